"""What the rules forbid, as it looks in a script: shapes of code that the rejected entries had in common.

A match names the line and what it is; no match proves nothing (a script may be written in other words), so a check
made of these either fails or says NOT RUN. Names are those that the public records use. Sources: the pull requests
named beside each pattern; section 6 of the challenge's rules.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bitgolf.referee.code import Script, callee
from bitgolf.referee.second_pass import Uses

_VAL = re.compile(r"(^|_)(val|valid|validation)(_|$)")
_TRAIN = re.compile(r"(^|_)train_(loader|files|tokens|data|batch|shards|stream|loss)|next_batch")
_TARGET = re.compile(r"^(tgt|target|targets|tgts|y|y_true|next_tok\w*|targ\w*)(_\w+)?$|_(tgt|target|targets)$")
_LEARNS = (".backward", ".step", "autograd.grad")
_STEPS_ELSEWHERE = ("scheduler.step", "profiler.step", "prof.step")
_SEALS = re.compile(r"^_?(?!de|un|load|read)\w*(quantiz|serializ|export|gptq|compress|pack_)")
_WORD_TABLES = re.compile(r"(is_boundary|starts?_(new_)?word|within_word|word_start)")
_WARMS = re.compile(r"warm_?up")
_SECOND = re.compile(r"(^|_)(two_?pass|second_?pass|pass_?2|2_?pass|re_?scor(e|ed|ing)|best_of)(_|$)")
_DOCUMENT_LENGTH = re.compile(r"(max_)?doc(ument)?_?len(gth)?s?")
_FEW_DOCUMENTS = re.compile(r"(num_?)?val(idation)?_?(docs|documents)|n_?val")
_VAL_DOCUMENTS = 50_000

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Found:
    """A match: the line of the (unpacked) source, what was recognized there, and the word by which a script's settings
    would switch it off."""

    line: int
    what: str
    topic: str


Pattern = Callable[[Script], Iterator[Found]]


def validation_before_seal(script: Script) -> Iterator[Found]:
    """Weights learn from validation tokens before the artifact is made (PR 1376, 1416, 1485, 672), statistics are
    gathered on them (PR 728, 1919), or they choose a checkpoint (PR 576, 585) or are trained on outright (PR 44)."""
    learners = {function.name for function in script.functions() if _learns_from_validation(function)}
    for function in script.functions():
        if re.search(r"pre_?quant\w*_?ttt|ttt_?pre_?quant", function.name) and _is_called(script, function):
            yield Found(function.lineno, f"{function.name}: test-time training before quantization", "prequant")
        calls = list(_calls(function))
        seals = [call.lineno for call in calls if _SEALS.search(_last(call).lower())]
        for call in calls:
            name = _last(call)
            if name in learners and name != function.name and seals and call.lineno < max(seals):
                what = f"{name} trains on validation tokens before {function.name} makes the artifact"
                yield Found(call.lineno, what, "ttt")
            if re.search(r"(calib|hessian)", name.lower()) and any(_VAL.search(n) for n in _names_in_arguments(call)):
                yield Found(call.lineno, f"{name} gathers its statistics on validation tokens", "calib")
    yield from _chosen_by_validation(script)
    for node in script.nodes(ast.Assign):
        targets = [name for target in node.targets for name in _names(target)]
        if any(re.fullmatch(r"train_(files|pattern|shards)", name) for name in targets):
            texts = [n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            for text in texts:
                if re.search(r"_val[_*]", text):
                    yield Found(node.lineno, f"training reads {text!r}", "train_files")


def _chosen_by_validation(script: Script) -> Iterator[Found]:
    """`if val_bpb < best: best_state = copy of the weights`."""
    for node in script.nodes(ast.If):
        if not isinstance(node.test, ast.Compare):
            continue
        compared = _names(node.test)
        if not any(_VAL.search(name) or name == "bpb" for name in compared) or not any("best" in n for n in compared):
            continue
        kept = [n for child in node.body for n in (*_names(child), *(callee(c).lstrip(".") for c in _calls(child)))]
        if any(re.search(r"state_dict|deepcopy|clone|save|checkpoint", name) for name in kept):
            yield Found(node.lineno, f"weights are kept by {' and '.join(sorted(set(compared)))}", "best")


def several_passes(script: Script) -> Iterator[Found]:
    """Validation scored again after it was learned from, and the better or last result taken (PR 576, 846, 868, 991,
    568), or the last targets scored by several windows (the lineage of PR 549, until PR 1218). A second pass whose
    result is only kept as an entry that nothing reads decides nothing and is no match."""
    uses = Uses(script.tree or ast.Module([], []))
    for function in script.functions():
        second = _SECOND.search(function.name.lower())
        if second and _is_called(script, function) and (place := uses.escape(function)):
            what = f"{function.name}: targets scored a second time, and the result is used at {place}"
            yield Found(function.lineno, what, second[2])
    for comprehension in script.nodes(ast.comprehension):
        windows = comprehension.iter
        if isinstance(windows, ast.Call) and callee(windows) == "range" and len(windows.args) == 3:
            for test in comprehension.ifs:
                if _keeps_every_window(test):
                    what = "windows shorter than the stride are kept: the last targets are scored by several of them"
                    yield Found(test.lineno, what, "sliding")


def _keeps_every_window(test: ast.expr) -> bool:
    """`min(start + window, total) - start >= 1`."""
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.left, ast.BinOp):
        return False
    (operator,), least, length = test.ops, test.comparators[0], test.left.left
    any_length = isinstance(least, ast.Constant) and (
        (isinstance(operator, ast.GtE) and least.value == 1) or (isinstance(operator, ast.Gt) and least.value == 0)
    )
    cut = isinstance(test.left.op, ast.Sub) and isinstance(length, ast.Call) and callee(length) == "min"
    return any_length and cut


def peeking(script: Script) -> Iterator[Found]:
    """Predictions made with the target in hand: SLOT (PR 1229, 1313, 1321), experts that ask whether the target starts
    a word (PR 1420, 1967, 2041), adaptation scheduled by the length of the document (PR 2014), a warm-up that takes
    optimizer steps on validation tokens (PR 1530)."""
    for function in script.functions():
        name = function.name.lower()
        if re.search(r"(^|_)slot(_|$)", name) and any(_learns(call) for call in _calls(function)):
            yield Found(function.lineno, f"{function.name} optimizes on the positions that it scores", "slot")
        if _WARMS.search(name) and _learns_from_validation(function):
            yield Found(function.lineno, f"{function.name} takes optimizer steps on validation tokens", "warmup")
        for node in ast.walk(function):
            if re.search(r"(gram|tilt|hint|expert|gate)", name) and isinstance(node, ast.Subscript):
                table, index = _names(node.value), _names(node.slice)
                if any(_WORD_TABLES.search(n) for n in table) and any(_TARGET.search(n) for n in index):
                    what = f"{function.name} looks its target up in {ast.unparse(node.value)[:40]}"
                    yield Found(node.lineno, what, "gram")
            if isinstance(node, ast.If) and any(_DOCUMENT_LENGTH.fullmatch(n) for n in _names(node.test)):
                assigned = [target for part in node.body if isinstance(part, ast.Assign) for target in part.targets]
                if any("chunk" in n for target in assigned for n in _names(target)):
                    what = f"{function.name} chooses its chunks by the length of the document"
                    yield Found(node.lineno, what, "short")


def not_a_distribution(script: Script) -> Iterator[Found]:
    """A probability for the realized token alone: hashed n-gram caches whose key holds the target (PR 674, 779, 886),
    token probabilities spread over the bytes that came (PR 1991, 2039)."""
    for function in script.functions():
        name, inside = function.name.lower(), " ".join(_names(function)).lower()
        if "gram" in name or ("gram" in inside and re.search(r"(hash|bucket|cache)", name)):
            for node in ast.walk(function):
                index = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.BitAnd)
                if index and _mixes_target(node.left):  # type: ignore[attr-defined]
                    what = f"{function.name} hashes its target into the key of a table"
                    yield Found(node.lineno, what, "gram")  # type: ignore[attr-defined]
                    break
        if re.search(r"(^|_)ppm(_|$)", name) and "byte" in inside:
            what = f"{function.name} mixes in a byte model that is no distribution over tokens"
            yield Found(function.lineno, what, "ppm")


def _mixes_target(node: ast.expr) -> bool:
    """`context ^ (target * prime)`, in any nesting."""
    mixed = any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.BitXor | ast.Mult) for n in ast.walk(node))
    return mixed and any(_TARGET.search(name) for name in _names(node))


def small_validation_split(script: Script) -> Iterator[Found]:
    """A preparation script whose default is fewer than 50,000 validation documents: the rest goes to training
    (issue 2127)."""

    def small(node: ast.expr) -> bool:
        return isinstance(node, ast.Constant) and isinstance(node.value, int) and 0 < node.value < _VAL_DOCUMENTS

    for call in script.nodes(ast.Call):
        option = next((a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)), "")
        name = option.lstrip("-").replace("-", "_").lower()
        defaults = [keyword.value for keyword in call.keywords if keyword.arg == "default" and small(keyword.value)]
        if defaults and _FEW_DOCUMENTS.fullmatch(name):
            what = f"{option} is {ast.unparse(defaults[0])} by default, the split has {_VAL_DOCUMENTS:,}"
            yield Found(call.lineno, what, "val_docs")
    for node in script.nodes(ast.Assign):
        names = [name.lower() for target in node.targets for name in _names(target)]
        if small(node.value) and any(_FEW_DOCUMENTS.fullmatch(name) for name in names):
            yield Found(
                node.lineno, f"{ast.unparse(node)[:60]}, the split has {_VAL_DOCUMENTS:,} documents", "val_docs"
            )


def _learns_from_validation(function: Function) -> bool:
    """Takes gradient steps, has validation tokens, and nothing of training: a training loop that also logs validation
    losses has both."""
    names = _names(function)
    return (
        any(_learns(call) for call in _calls(function))
        and any(_VAL.search(name) for name in names)
        and not any(_TRAIN.search(name) for name in names)
    )


def _learns(call: ast.Call) -> bool:
    name = callee(call)
    return name.endswith(_LEARNS) and not name.endswith(_STEPS_ELSEWHERE)


def _is_called(script: Script, function: Function) -> bool:
    """Whether anything in the script mentions a function but its definition."""
    return any(_last(call) == function.name for call in script.nodes(ast.Call)) or any(
        function.name in _names_in_arguments(call) for call in script.nodes(ast.Call)
    )


def _last(call: ast.Call) -> str:
    return callee(call).rpartition(".")[2]


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    yield from (n for n in ast.walk(node) if isinstance(n, ast.Call))


def _names(node: ast.AST) -> list[str]:
    """Variables, attributes and arguments in a piece of a tree."""
    found = []
    for n in ast.walk(node):
        if isinstance(n, ast.Name):
            found.append(n.id)
        elif isinstance(n, ast.Attribute):
            found.append(n.attr)
        elif isinstance(n, ast.arg):
            found.append(n.arg)
    return found


def _names_in_arguments(call: ast.Call) -> list[str]:
    parts = [*call.args, *(keyword.value for keyword in call.keywords)]
    return [name for part in parts for name in _names(part)]
