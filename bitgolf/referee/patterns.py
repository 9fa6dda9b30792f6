"""Patterns of code that rejected entries had in common, found in the syntax tree of a script.

A match names the line and the pattern. No match proves nothing, because a script may be written in another way; so a
check made of these patterns either fails or is NOT RUN. Names are those of the public records. Sources: the pull
requests of openai/parameter-golf named at each pattern; docs/rules.md, section 6.
"""

import ast
import re
from collections.abc import Callable, Iterable, Iterator

from bitgolf.referee.code import Match, Script
from bitgolf.referee.folder import VAL_DOCUMENTS
from bitgolf.referee.second_pass import Uses
from bitgolf.referee.texts import callee
from bitgolf.referee.training_data import TRAIN, VAL, training_on_validation

_EVALUATES = re.compile(r"^(eval|evaluate|score|validate)(_|$)")
_COUNTS = re.compile(r"(gram|freq|prior|histogram|statistic|unigram)")
_TARGET = re.compile(r"^(tgt|target|targets|tgts|y|y_true|next_tok\w*|targ\w*)(_\w+)?$|_(tgt|target|targets)$")
_LEARNS = (
    ".backward", ".step", "autograd.grad", "func.grad", "func.vjp", "func.jacrev", "grad_and_value", "value_and_grad"
)  # fmt: skip
_STEPS_ELSEWHERE = ("scheduler.step", "profiler.step", "prof.step")
_SEALS = re.compile(r"^_?(?!de|un|load|read)\w*(quantiz|serializ|export|gptq|compress|pack_)")
_WORD_TABLES = re.compile(r"(is_boundary|starts?_(new_)?word|within_word|word_start)")
_CHANGES_LOSSES = re.compile(
    r"(clamp|clip)(_|_max|_max_)?|nan_to_num_?|minimum|trim_mean|n?a?n?quantile|nanmean|nansum"
)
_LOSSES = re.compile(r"(^|_)(nll|nlls|loss|losses|nats)(_|$)")
_WARMS = re.compile(r"warm_?up")
_SECOND = re.compile(r"(^|_)(two_?pass|second_?pass|pass_?2|2_?pass|re_?scor(e|ed|ing)|best_of)(_|$)")
_DOCUMENT_LENGTH = re.compile(r"(max_)?doc(ument)?_?len(gth)?s?")
_FEW_DOCUMENTS = re.compile(r"(num_?)?val(idation)?_?(docs|documents)|n_?val")
_CONVERTERS = ("torch", "np", "numpy", "list", "tuple", "iter", "enumerate", "reversed", "sorted")

Function = ast.FunctionDef | ast.AsyncFunctionDef


Pattern = Callable[[Script], Iterator[Match]]


def validation_before_seal(script: Script) -> Iterator[Match]:
    """Weights learn from validation tokens before the artifact is made (PR 1376, 1416, 1485, 672), statistics are
    gathered on them (PR 728, 1919), or they choose a checkpoint (PR 576, 585) or are trained on outright (PR 44)."""
    learners = {function.name for function in script.functions() if _learns_from_validation(script, function)}
    learners |= _given_validation(script)
    aliases = _validation_names(script)
    for function in script.functions():
        if re.search(r"pre_?quant\w*_?ttt|ttt_?pre_?quant", function.name) and function.name in script.called:
            yield Match(function.lineno, f"{function.name}: test-time training before quantization", "prequant")
        calls = _calls(script.inside(function))
        seals = [call.lineno for call in calls if _SEALS.search(_last(call).lower())]
        for call in calls:
            name = _last(call)
            if _is_partial(call.func):
                name = next((n for n in _names(call.func) if n in learners), name)
            if name in learners and name != function.name and seals and call.lineno < max(seals):
                what = f"{name} trains on validation tokens before {function.name} makes the artifact"
                yield Match(call.lineno, what, "ttt")
            on_validation = any(VAL.search(n) or n in aliases for n in _names_in_arguments(call))
            if on_validation and re.search(r"(calib|hessian)", name.lower()):
                yield Match(call.lineno, f"{name} gathers its statistics on validation tokens", "calib")
            if on_validation and _COUNTS.search(name.lower()) and seals and call.lineno < max(seals):
                yield Match(call.lineno, f"{name} counts validation tokens before the artifact is made", "calib")
        for loop in (node for node in script.inside(function) if isinstance(node, ast.For)):
            over = _names(loop.iter)
            learns = any(_learns(call) for call in _calls(node for part in loop.body for node in ast.walk(part)))
            on_validation = any(VAL.search(n) or n in aliases for n in over) and not any(map(TRAIN.search, over))
            if learns and on_validation and seals and loop.lineno < max(seals):
                what = f"{function.name} trains on `{ast.unparse(loop.iter)[:40]}` before it makes the artifact"
                yield Match(loop.lineno, what, "ttt")
    yield from _chosen_by_validation(script)
    yield from training_on_validation(script)


def _chosen_by_validation(script: Script) -> Iterator[Match]:
    """`if val_bpb < best: best_state = copy of the weights`."""
    for node in script.nodes(ast.If):
        if not isinstance(node.test, ast.Compare):
            continue
        compared = _names(node.test)
        if not any(VAL.search(name) or name == "bpb" for name in compared) or not any("best" in n for n in compared):
            continue
        inside = [part for child in node.body for part in ast.walk(child)]
        kept = [*_names_of(inside), *(callee(call).lstrip(".") for call in _calls(inside))]
        if any(re.search(r"state_dict|deepcopy|clone|save|checkpoint", name) for name in kept):
            yield Match(node.lineno, f"weights are kept by {' and '.join(sorted(set(compared)))}", "best")
    for call in script.nodes(ast.Call):
        if callee(call) in ("min", "max", "sorted"):
            scores = [inner for inner in _calls(ast.walk(call)) if _EVALUATES.search(_last(inner))]
            if any(VAL.search(name) for inner in scores for name in _names_in_arguments(inner)):
                yield Match(
                    call.lineno, f"the best score on validation data is chosen: {ast.unparse(call)[:60]}", "best"
                )


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
    yield from _evaluated_again(script)
    for comprehension in script.nodes(ast.comprehension):
        windows = comprehension.iter
        if isinstance(windows, ast.Call) and callee(windows) == "range" and len(windows.args) == 3:
            for test in comprehension.ifs:
                if _keeps_every_window(test):
                    what = "windows shorter than the stride are kept: the last targets are scored by several of them"
                    yield Match(test.lineno, what, "sliding")


def _evaluated_again(script: Script) -> Iterator[Match]:
    """An evaluation that learns from validation tokens, called in a loop or twice one after the other."""
    learning = {f.name for f in script.functions() if _learns_from_validation(script, f)} | _given_validation(script)
    learning = {name for name in learning if re.search(r"eval|score|ttt", name.lower())}
    others = [
        node for node in script.nodes(ast.Assign) if isinstance(node.value, ast.Name) and node.value.id in learning
    ]
    learning |= {target.id for node in others for target in node.targets if isinstance(target, ast.Name)}
    for function in script.functions():
        calls: dict[str, list[int]] = {}
        loops = [node for node in script.inside(function) if isinstance(node, ast.For | ast.While | ast.ListComp)]
        looped = {id(call) for loop in loops for call in _calls(script.inside(loop))}
        for statement in function.body:  # those that are always made
            branches = isinstance(statement, ast.If | ast.Try | Function)
            for call in _calls(script.inside(statement)):
                if _last(call) in learning and any(map(VAL.search, _names_in_arguments(call))):
                    if id(call) in looped and function.name not in learning:
                        yield Match(call.lineno, f"{_last(call)} is called in a loop: targets scored again", "repeat")
                    elif not branches:
                        calls.setdefault(_last(call), []).append(call.lineno)
        for name, lines in calls.items():
            if len(lines) > 1:
                yield Match(lines[1], f"{name} is called {len(lines)} times: targets scored again", "repeat")


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
    token probabilities spread over the bytes that came (PR 1991, 2039), losses that are cut before they are averaged.
    """
    for function in script.functions():
        name, inside = function.name.lower(), " ".join(_names_of(script.inside(function))).lower()
        if "gram" in name or ("gram" in inside and re.search(r"(hash|bucket|cache)", name)):
            for node in script.inside(function):
                index = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.BitAnd)
                if index and _mixes_target(node.left):  # type: ignore[attr-defined]
                    what = f"{function.name} hashes its target into the key of a table"
                    yield Match(node.lineno, what, "gram")  # type: ignore[attr-defined]
                    break
        for node in script.inside(function) if _EVALUATES.search(name) else ():
            changes = isinstance(node, ast.Call) and _CHANGES_LOSSES.fullmatch(_last(node)) is not None
            changes |= isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Compare)
            if changes and any(map(_LOSSES.search, _names(node))):
                what = f"{function.name} changes or leaves out losses: {ast.unparse(node)[:60]}"
                yield Match(node.lineno, what, "clip_loss")  # type: ignore[attr-defined]
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
        return isinstance(node, ast.Constant) and isinstance(node.value, int) and 0 < node.value < VAL_DOCUMENTS

    for call in script.nodes(ast.Call):
        option = next((a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)), "")
        name = option.lstrip("-").replace("-", "_").lower()
        defaults = [keyword.value for keyword in call.keywords if keyword.arg == "default" and small(keyword.value)]
        if defaults and _FEW_DOCUMENTS.fullmatch(name):
            what = f"{option} is {ast.unparse(defaults[0])} by default, the split has {VAL_DOCUMENTS:,}"
            yield Match(call.lineno, what, "val_docs")
    for node in script.nodes(ast.Assign):
        names = [name.lower() for target in node.targets for name in _names(target)]
        if small(node.value) and any(_FEW_DOCUMENTS.fullmatch(name) for name in names):
            what = f"{ast.unparse(node)[:60]}, the split has {VAL_DOCUMENTS:,} documents"
            yield Match(node.lineno, what, "val_docs")


def _given_validation(script: Script) -> set[str]:
    """Functions that take gradient steps and are called with validation tokens, whatever their parameters are called.

    A function that calls such a function takes gradient steps, too. A variable that is assigned from validation tokens
    counts as such.
    """
    parts: dict[str, ast.AST] = {function.name: function for function in script.functions()}
    for node in script.nodes(ast.Assign):
        if isinstance(node.value, ast.Lambda):
            parts |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
    inside = {name: script.inside(part) for name, part in parts.items()}
    untrained = {name for name, nodes in inside.items() if not any(map(TRAIN.search, _names_of(nodes)))}
    learning = {name for name in untrained if any(_learns(call) for call in _calls(inside[name]))}
    for _ in range(3):
        learning |= {name for name in untrained if learning & {_last(call) for call in _calls(inside[name])}}
    aliases = _validation_names(script)
    on_validation = {name for name in learning if any(n.id in aliases for n in inside[name] if isinstance(n, ast.Name))}
    for call in script.nodes(ast.Call):
        names = {_last(call), *(_names(call.func.args[0]) if _is_partial(call.func) else [])} & learning  # type: ignore[attr-defined]
        if names:
            arguments = _names_in_arguments(call)
            keywords = [keyword.arg or "" for keyword in call.keywords]
            if any(VAL.search(name) or name in aliases for name in (*arguments, *keywords)):
                on_validation |= names
    return on_validation


def _is_partial(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and _last(node) == "partial" and bool(node.args)


def _validation_names(script: Script) -> set[str]:
    """Variables that are assigned from validation tokens, from their shards, or from such a variable."""
    aliases: set[str] = set()
    for _ in range(3):
        for node in script.nodes(ast.Assign):
            for target, value in _assigned(node):
                texts = [script.texts[part] for part in script.inside(value) if part in script.texts]
                shards = any(re.search(r"_val_[\d*]", text) for text in texts)
                if shards or any(VAL.search(name) or name in aliases for name in _names_of_value(value)):
                    aliases |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
    return {name for name in aliases if not TRAIN.search(name) and len(name) > 1}


def _assigned(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Targets with their values, of tuples one by one."""
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=False)
        else:
            yield target, node.value


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
        and any(VAL.search(name) for name in names)
        and not any(TRAIN.search(name) for name in names)
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
