"""Patterns of code that rejected entries had in common, found in the syntax tree of a script.

A match names the line and the pattern. No match proves nothing, because a script may be written in another way; so a
check made of these patterns either fails or is NOT RUN. Names are those of the public records. Sources: the pull
requests of openai/parameter-golf named at each pattern; docs/rules.md, section 6.
"""

from __future__ import annotations

import ast
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bitgolf.referee.code import Script, callee, texts_in
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
_CONVERTERS = ("torch", "np", "numpy", "list", "tuple", "iter", "enumerate", "reversed", "sorted")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Match:
    """A match: the line of the (unpacked) source, what was recognized there, and the word in the name of a setting that
    would switch it off."""

    line: int
    what: str
    topic: str


Pattern = Callable[[Script], Iterator[Match]]


def validation_before_seal(script: Script) -> Iterator[Match]:
    """Weights learn from validation tokens before the artifact is made (PR 1376, 1416, 1485, 672), statistics are
    gathered on them (PR 728, 1919), or they choose a checkpoint (PR 576, 585) or are trained on outright (PR 44)."""
    learners = {function.name for function in script.functions() if _learns_from_validation(script, function)}
    learners |= _given_validation(script)
    for function in script.functions():
        if re.search(r"pre_?quant\w*_?ttt|ttt_?pre_?quant", function.name) and function.name in script.called:
            yield Match(function.lineno, f"{function.name}: test-time training before quantization", "prequant")
        calls = _calls(script.inside(function))
        seals = [call.lineno for call in calls if _SEALS.search(_last(call).lower())]
        for call in calls:
            name = _last(call)
            if name in learners and name != function.name and seals and call.lineno < max(seals):
                what = f"{name} trains on validation tokens before {function.name} makes the artifact"
                yield Match(call.lineno, what, "ttt")
            if re.search(r"(calib|hessian)", name.lower()) and any(_VAL.search(n) for n in _names_in_arguments(call)):
                yield Match(call.lineno, f"{name} gathers its statistics on validation tokens", "calib")
    yield from _chosen_by_validation(script)
    for node in script.nodes(ast.Assign):
        targets = [name for target in node.targets for name in _names(target)]
        if any(re.fullmatch(r"train_(files|pattern|shards)", name) for name in targets):
            for text in texts_in(node.value):
                if covers_validation(text):
                    yield Match(node.lineno, f"training reads {text!r}", "train_files")


def covers_validation(pattern: str) -> bool:
    """Whether a pattern of file names for training covers the shards of the validation split."""
    names = ("fineweb_val_000000.bin", "val_000000.bin", "fineweb_validation_000000.bin")
    last = pattern.rstrip().rpartition("/")[2].strip("'\"")
    return bool(re.search(r"_val[_*]", pattern)) or ("*" in last and any(fnmatch.fnmatch(name, last) for name in names))


def _chosen_by_validation(script: Script) -> Iterator[Match]:
    """`if val_bpb < best: best_state = copy of the weights`."""
    for node in script.nodes(ast.If):
        if not isinstance(node.test, ast.Compare):
            continue
        compared = _names(node.test)
        if not any(_VAL.search(name) or name == "bpb" for name in compared) or not any("best" in n for n in compared):
            continue
        inside = [part for child in node.body for part in ast.walk(child)]
        kept = [*_names_of(inside), *(callee(call).lstrip(".") for call in _calls(inside))]
        if any(re.search(r"state_dict|deepcopy|clone|save|checkpoint", name) for name in kept):
            yield Match(node.lineno, f"weights are kept by {' and '.join(sorted(set(compared)))}", "best")


def several_passes(script: Script) -> Iterator[Match]:
    """Validation scored again after it was learned from, and the better or last result taken (PR 576, 846, 868, 991,
    568), or the last targets scored by several windows (the lineage of PR 549, until PR 1218). A second pass whose
    result is only kept as an entry that nothing reads decides nothing and is no match."""
    uses = Uses(script.tree or ast.Module([], []))
    for function in script.functions():
        second = _SECOND.search(function.name.lower())
        if second and function.name in script.called and (place := uses.escape(function)):
            what = f"{function.name}: targets scored a second time, and the result is used at {place}"
            yield Match(function.lineno, what, second[2])
    for comprehension in script.nodes(ast.comprehension):
        windows = comprehension.iter
        if isinstance(windows, ast.Call) and callee(windows) == "range" and len(windows.args) == 3:
            for test in comprehension.ifs:
                if _keeps_every_window(test):
                    what = "windows shorter than the stride are kept: the last targets are scored by several of them"
                    yield Match(test.lineno, what, "sliding")


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


def peeking(script: Script) -> Iterator[Match]:
    """Predictions made with the target in hand: SLOT (PR 1229, 1313, 1321), experts that ask whether the target starts
    a word (PR 1420, 1967, 2041), adaptation scheduled by the length of the document (PR 2014), a warm-up that takes
    optimizer steps on validation tokens (PR 1530)."""
    for function in script.functions():
        name = function.name.lower()
        if re.search(r"(^|_)slot(_|$)", name) and any(_learns(call) for call in _calls(script.inside(function))):
            yield Match(function.lineno, f"{function.name} optimizes on the positions that it scores", "slot")
        if _WARMS.search(name) and _learns_from_validation(script, function):
            yield Match(function.lineno, f"{function.name} takes optimizer steps on validation tokens", "warmup")
        is_expert = re.search(r"(gram|tilt|hint|expert|gate)", name) is not None
        for node in script.inside(function):
            if is_expert and isinstance(node, ast.Subscript):
                table, index = _names(node.value), _names(node.slice)
                if any(_WORD_TABLES.search(n) for n in table) and any(_TARGET.search(n) for n in index):
                    what = f"{function.name} looks its target up in {ast.unparse(node.value)[:40]}"
                    yield Match(node.lineno, what, "gram")
            if isinstance(node, ast.If) and any(_DOCUMENT_LENGTH.fullmatch(n) for n in _names(node.test)):
                assigned = [target for part in node.body if isinstance(part, ast.Assign) for target in part.targets]
                if any("chunk" in n for target in assigned for n in _names(target)):
                    what = f"{function.name} chooses its chunks by the length of the document"
                    yield Match(node.lineno, what, "short")


def not_a_distribution(script: Script) -> Iterator[Match]:
    """A probability for the realized token alone: hashed n-gram caches whose key holds the target (PR 674, 779, 886),
    token probabilities spread over the bytes that came (PR 1991, 2039)."""
    for function in script.functions():
        name, inside = function.name.lower(), " ".join(_names_of(script.inside(function))).lower()
        if "gram" in name or ("gram" in inside and re.search(r"(hash|bucket|cache)", name)):
            for node in script.inside(function):
                index = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.BitAnd)
                if index and _mixes_target(node.left):  # type: ignore[attr-defined]
                    what = f"{function.name} hashes its target into the key of a table"
                    yield Match(node.lineno, what, "gram")  # type: ignore[attr-defined]
                    break
        if re.search(r"(^|_)ppm(_|$)", name) and "byte" in inside:
            what = f"{function.name} mixes in a byte model that is no distribution over tokens"
            yield Match(function.lineno, what, "ppm")


def _mixes_target(node: ast.expr) -> bool:
    """`context ^ (target * prime)`, in any nesting."""
    mixed = any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.BitXor | ast.Mult) for n in ast.walk(node))
    return mixed and any(_TARGET.search(name) for name in _names(node))


def small_validation_split(script: Script) -> Iterator[Match]:
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
            yield Match(call.lineno, what, "val_docs")
    for node in script.nodes(ast.Assign):
        names = [name.lower() for target in node.targets for name in _names(target)]
        if small(node.value) and any(_FEW_DOCUMENTS.fullmatch(name) for name in names):
            what = f"{ast.unparse(node)[:60]}, the split has {_VAL_DOCUMENTS:,} documents"
            yield Match(node.lineno, what, "val_docs")


def _given_validation(script: Script) -> set[str]:
    """Functions that take gradient steps and are called with validation tokens, whatever their parameters are called.

    A variable that is assigned from validation tokens counts as such in the function of the call.
    """
    learning = {
        function.name
        for function in script.functions()
        if any(_learns(call) for call in _calls(script.inside(function)))
        and not any(_TRAIN.search(n) for n in _names_of(script.inside(function)))
    }
    given: set[str] = set()
    for scope in (*script.functions(), *([script.tree] if script.tree else [])):
        calls = [call for call in _calls(script.inside(scope)) if _last(call) in learning]
        if not calls:
            continue
        aliases: set[str] = set()
        for _ in range(2):
            for node in (n for n in script.inside(scope) if isinstance(n, ast.Assign)):
                if any(_VAL.search(name) or name in aliases for name in _names_of_value(node.value)):
                    aliases |= {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        for call in calls:
            arguments = _names_in_arguments(call)
            keywords = [keyword.arg or "" for keyword in call.keywords]
            if any(_VAL.search(name) or name in aliases for name in (*arguments, *keywords)):
                given.add(_last(call))
    return given


def _names_of_value(node: ast.expr) -> list[str]:
    """The names of which an expression is a part, an item or a copy: `val_data.tokens[a:b]`, `torch.tensor(val)`."""
    names: list[str] = []
    while True:
        if isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Subscript | ast.Starred):
            node = node.value
        elif isinstance(node, ast.Call) and node.args and callee(node).partition(".")[0] in _CONVERTERS:
            node = node.args[0]
        elif isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Attribute):
                return names
            node = node.func
        else:
            return [*names, node.id] if isinstance(node, ast.Name) else names


def _learns_from_validation(script: Script, function: Function) -> bool:
    """Whether a function takes gradient steps on validation tokens. A training loop that also logs validation losses
    mentions training data as well, and is none."""
    names = _names_of(script.inside(function))
    return (
        any(_learns(call) for call in _calls(script.inside(function)))
        and any(_VAL.search(name) for name in names)
        and not any(_TRAIN.search(name) for name in names)
    )


def _learns(call: ast.Call) -> bool:
    name = callee(call)
    return name.endswith(_LEARNS) and not name.endswith(_STEPS_ELSEWHERE)


def _last(call: ast.Call) -> str:
    return callee(call).rpartition(".")[2]


def _calls(nodes: Iterable[ast.AST]) -> list[ast.Call]:
    return [node for node in nodes if isinstance(node, ast.Call)]


def _names(node: ast.AST) -> list[str]:
    """Variables, attributes and arguments in a piece of a tree."""
    return _names_of(ast.walk(node))


def _names_of(nodes: Iterable[ast.AST]) -> list[str]:
    fields: dict[type[ast.AST], str] = {ast.Name: "id", ast.Attribute: "attr", ast.arg: "arg"}
    return [getattr(node, fields[type(node)]) for node in nodes if type(node) in fields]


def _names_in_arguments(call: ast.Call) -> list[str]:
    parts = [*call.args, *(keyword.value for keyword in call.keywords)]
    return [name for part in parts for name in _names(part)]
