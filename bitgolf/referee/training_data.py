"""What a script trains on, as far as names of files show it: patterns that cover the shards of the validation split.

Rule B7 (docs/rules.md). Shards of the challenge are fineweb_train_*.bin and fineweb_val_*.bin. Validation data gets
into training by a pattern that covers both, by a list of files that is added to another, and by a link or a new name.
"""

import ast
import fnmatch
import re
from collections.abc import Iterator

from bitgolf.referee.code import Match, Script
from bitgolf.referee.texts import callee

VAL = re.compile(r"(^|_)(val|valid|validation)(_|$)")
TRAIN = re.compile(r"(^|_)train_(loader|files|tokens|data|batch|shards|stream)|next_batch")
_TRAIN_DATA = re.compile(
    r"(^|_)train(ing)?_(files?|pattern|glob|shards?|data|loader|tokens|stream|dataset|docs|paths?)$"
)
_LOADS = re.compile(r"(?i)loader|shards|dataset$")
_TRAIN_SHARD, _VAL_SHARD = "fineweb_train_000000.bin", "fineweb_val_000000.bin"
_VAL_SHARDS = (_VAL_SHARD, "val_000000.bin", "fineweb_validation_000000.bin")
_LEAST_LETTERS = 3  # of a pattern; one of fewer may be any file
_JOINS = re.compile(r"(^|\.)(cat|concat(enate)?|hstack|chain|ConcatDataset|ChainDataset|vstack)$")
_ADDS = re.compile(r"\.(extend|append|insert|update|add)$")
_LISTS = re.compile(r"(^|\.)(iterdir|listdir|scandir|walk)$")
_FILES = re.compile(r"(^|_)(files?|tokens?|shards?|data|docs|stream|loader)$")
_COPIES = re.compile(r"(^|\.)(symlink|link|renames?|replace|copy2?|copyfile|copytree|move|symlink_to|hardlink_to)$")


def training_on_validation(script: Script) -> Iterator[Match]:
    """Training data whose files or names are those of the validation split."""
    yield from _assigned(script)
    yield from _learned(script)
    trained = _names_for(script, _TRAIN_SHARD)
    for call in script.nodes(ast.Call):
        name, texts = script.function(call), [script.texts.get(argument, "") for argument in call.args]
        what = ""
        if name.endswith(".replace") and len(texts) == 2 and VAL.search(texts[0]):
            what = "names of validation shards become names of training shards" if _is_train(texts[1]) else ""
        if _LOADS.search(name.rpartition(".")[2]) and (both := [text for text in texts if covers_both(text)]):
            what = f"training reads {both[0]!r}"
        names = [name for argument in call.args for name in _names(argument)]
        if _JOINS.search(name) and any(map(_TRAIN_DATA.search, names)) and any(map(_is_val_data, names)):
            what = f"training and validation data are joined: {ast.unparse(call)[:60]}"
        if _ADDS.search(name) and not VAL.search(name) and (set(name.split(".")) & trained):
            added = any(map(_is_val_data, names)) or any(
                "val" in (text := script.texts.get(part, "")) and covers_validation(text)
                for argument in call.args
                for part in ast.walk(argument)
            )
            what = f"validation shards are added to training shards: {ast.unparse(call)[:60]}" if added else what
        shards = " ".join(script.texts.get(part, "") for part in ast.walk(call)) if _COPIES.search(name) else ""
        if links_validation(f"{shards} {shards}"):  # which of the two is the new name depends on the function
            what = f"validation shards become training shards: {ast.unparse(call)[:60]}"
        if what:
            yield Match(call.lineno, what, "train_files")
    for call, command in script.commands():
        if links_validation(command):
            yield Match(call.lineno, f"validation shards become training shards: {command[:60]}", "train_files")


def _assigned(script: Script) -> Iterator[Match]:
    """Assignments to training data, and those of patterns that cover both splits."""
    aliases = {
        target.id
        for node in script.nodes(ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
        and not VAL.search(target.id)
        and (_is_source(node.value) or covers_validation(script.texts.get(node.value, "")) or _loads_val(script, node))
    }
    for node in script.nodes(ast.stmt):
        if not isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) or node.value is None:
            continue
        places = node.targets if isinstance(node, ast.Assign) else [node.target]
        targets = [name for place in places for name in _names(place)]
        texts = sorted((script.texts[part] for part in ast.walk(node.value) if part in script.texts), key=len)
        reads = [repr(text) for text in texts if covers_both(text)]
        if any(map(_TRAIN_DATA.search, targets)) and not any(map(VAL.search, targets)):
            names = _names(node.value)
            reads += [repr(text) for text in texts if covers_validation(text)]
            reads += [name for name in names if VAL.search(name) and "file" in name]
            reads += [name for name in names if name in aliases]
            calls = [callee(part) for part in ast.walk(node.value) if isinstance(part, ast.Call)]
            bins = any(text.strip("*") in (".bin", "fineweb_") for text in texts) and any(
                isinstance(part, ast.comprehension) for part in ast.walk(node.value)
            )
            says_train = any("train" in text for text in (*texts, *names))
            if (any(map(_LISTS.search, calls)) or bins) and not says_train:
                reads.append(f"every file: {ast.unparse(node.value)[:60]}")
            if isinstance(node.value, ast.Call) and not any(map(TRAIN.search, names)):
                reads += [name for argument in node.value.args[:1] for name in _names(argument) if VAL.search(name)]
        if reads:
            yield Match(node.lineno, f"training reads {reads[0]}", "train_files")


def _is_val_data(name: str) -> bool:
    return VAL.search(name) is not None and _FILES.search(name) is not None


def _names_for(script: Script, shard: str) -> set[str]:
    """Variables that are assigned from a text that covers `shard`, or whose own name says training data."""
    names = {name for name in script.names if _TRAIN_DATA.search(name)}
    for node in script.nodes(ast.Assign):
        texts = [_last_part(script.texts[part]) for part in ast.walk(node.value) if part in script.texts]
        if any(len(text) > _LEAST_LETTERS and fnmatch.fnmatch(shard, text) for text in texts):
            names |= {getattr(target, "attr", getattr(target, "id", "")) for target in node.targets}
    return names


def _learned(script: Script) -> Iterator[Match]:
    """In a function of training, a loss of tokens that come from validation data alone, and its gradient."""
    for function in script.functions():
        if "train" not in function.name or VAL.search(function.name):
            continue
        nodes = script.inside(function)
        assigned = [node for node in nodes if isinstance(node, ast.Assign)]
        tainted: set[str] = set()
        for _ in range(3):
            sources: dict[str, list[bool]] = {}
            for node in assigned:
                names = _names(node.value)
                of_val = any(name in tainted or _is_val_data(name) for name in names)
                for target in node.targets:
                    for part in ast.walk(target):
                        if isinstance(part, ast.Name):
                            sources.setdefault(part.id, []).append(of_val and not any(map(_TRAIN_DATA.search, names)))
            tainted = {name for name, all_of_val in sources.items() if all(all_of_val)}
        for call in (node for node in nodes if isinstance(node, ast.Call)):
            names = _names(call.func.value) if isinstance(call.func, ast.Attribute) else []
            if callee(call).endswith(".backward") and any(name in tainted or _is_val_data(name) for name in names):
                what = f"{function.name} trains on validation tokens: {ast.unparse(call)[:60]}"
                yield Match(call.lineno, what, "train_files")


def covers_validation(pattern: str) -> bool:
    """Whether a pattern of file names for training covers the shards of the validation split."""
    last = _last_part(pattern)
    wild = set("*?[") & set(last)
    return bool(re.search(r"_val[_*]", pattern)) or bool(wild and any(fnmatch.fnmatch(v, last) for v in _VAL_SHARDS))


def covers_both(pattern: str) -> bool:
    """Whether a pattern of shards covers those of both splits."""
    last = _last_part(pattern)
    says_which = sum(map(str.isalnum, last.removesuffix(".bin"))) >= _LEAST_LETTERS
    return (
        says_which
        and last.endswith(".bin")
        and all(fnmatch.fnmatch(shard, last) for shard in (_TRAIN_SHARD, _VAL_SHARD))
    )


def links_validation(text: str) -> bool:
    """Whether a command or its arguments name a shard of validation and, after it, one of training."""
    of_val = re.search(r"(?<![a-zA-Z])val(idation)?_[\w*]", text)
    return of_val is not None and re.search(r"(?<![a-zA-Z])train_", text[of_val.end() :]) is not None


def _is_source(value: ast.expr) -> bool:
    """`val_files`, `h.val_files`, `val_data.tokens`."""
    return isinstance(value, ast.Name | ast.Attribute) and any(map(_is_val_data, _names(value)))


def _loads_val(script: Script, node: ast.Assign) -> bool:
    """A call that loads a file of validation."""
    arguments = node.value.args if isinstance(node.value, ast.Call) else []
    return any("val" in (text := script.texts.get(a, "")) and covers_validation(_last_part(text)) for a in arguments)


def _is_train(text: str) -> bool:
    return re.search(r"(^|_)train(_|$)", text) is not None


def _last_part(pattern: str) -> str:
    return pattern.rstrip().rpartition("/")[2].strip("'\"")


def _names(node: ast.AST) -> list[str]:
    return [
        part.id if isinstance(part, ast.Name) else part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Name | ast.Attribute)
    ]
