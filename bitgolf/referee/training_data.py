"""What a script trains on, as far as names of files show it: patterns that cover the shards of the validation split.

Rule B7 (docs/rules.md). Shards of the challenge are fineweb_train_*.bin and fineweb_val_*.bin. Validation data gets
into training by a pattern that covers both, by a list of files that is added to another, and by a link or a new name.
"""

from __future__ import annotations

import ast
import fnmatch
import re
from collections.abc import Iterator

from bitgolf.referee.code import Match, Script

VAL = re.compile(r"(^|_)(val|valid|validation)(_|$)")
TRAIN = re.compile(r"(^|_)train_(loader|files|tokens|data|batch|shards|stream)|next_batch")
_TRAIN_DATA = re.compile(
    r"(^|_)train(ing)?_(files?|pattern|glob|shards?|data|loader|tokens|stream|dataset|docs|paths?)$"
)
_LOADS = re.compile(r"(?i)loader|shards|dataset$")
_TRAIN_SHARD, _VAL_SHARD = "fineweb_train_000000.bin", "fineweb_val_000000.bin"
_VAL_SHARDS = (_VAL_SHARD, "val_000000.bin", "fineweb_validation_000000.bin")
_LEAST_LETTERS = 3  # of a pattern; one of fewer may be any file
_COPIES = re.compile(r"(^|\.)(symlink|link|renames?|replace|copy2?|copyfile|copytree|move|symlink_to|hardlink_to)$")


def training_on_validation(script: Script) -> Iterator[Match]:
    """Training data whose files or names are those of the validation split."""
    yield from _assigned(script)
    for call in script.nodes(ast.Call):
        name, texts = script.function(call), [script.texts.get(argument, "") for argument in call.args]
        what = ""
        if name.endswith(".replace") and len(texts) == 2 and VAL.search(texts[0]):
            what = "names of validation shards become names of training shards" if _is_train(texts[1]) else ""
        if _LOADS.search(name.rpartition(".")[2]) and (both := [text for text in texts if covers_both(text)]):
            what = f"training reads {both[0]!r}"
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
            if isinstance(node.value, ast.Call) and not any(map(TRAIN.search, names)):
                reads += [name for argument in node.value.args[:1] for name in _names(argument) if VAL.search(name)]
        if reads:
            yield Match(node.lineno, f"training reads {reads[0]}", "train_files")


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
