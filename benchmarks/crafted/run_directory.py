"""Crafted run directories: one file of a sound run is damaged, and every command that reads runs meets it.

A command must end with a verdict, or with one line of error. Anything else, a traceback or an endless wait, is a fault.
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tiny_run import Outcome, cli, documents, done, settings, write_jsonl

from bitgolf.audit.sealed_run import SealedRun
from bitgolf.audit.verdict import MissingEvidence
from bitgolf.run.lock import LOCK_FILES
from crafted.case import Case

SHARE_MEMORY = True  # cases run in copies of the process that made the sound run
DAMAGED_BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "a byte flipped": lambda data: (
        data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 1]) + data[len(data) // 3 + 1 :]
    ),
    "noise": lambda data: random.Random(len(data)).randbytes(len(data)),
    "nested 100,000 deep": lambda data: b"[" * 100_000,
    "objects nested 100 deep": lambda data: b'{"a":' * 100 + b"1" + b"}" * 100,
    "a number of 5,000 digits": lambda data: b'{"a": ' + b"9" * 5_000 + b"}",
    "null": lambda data: b"null",
    "a list": lambda data: b"[1, 2]",
    "an empty object": lambda data: b"{}",
    "a text of control characters": lambda data: b'{"event": "\\u001b[2J\\u202e", "\x1b[31m": 1}',
    "not UTF-8": lambda data: b"\xff\xfe" + data,
    "a lone surrogate": lambda data: b'{"event": "\\ud800"}',
    "followed by a megabyte of zeros": lambda data: data + bytes(1_000_000),
}
SPECIAL: dict[str, Callable[[Path], object]] = {
    "a directory": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("none"),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/null": lambda path: path.symlink_to("/dev/null"),
    "missing": lambda path: None,
}
VALUES: tuple[Any, ...] = (
    None, [], {}, "", "x", True, -1, 0, 1.5, 10**18, -(10**18), 2**63 - 1, 1e308, "9" * 400, "\x1b[2J\u202e[/x]",
    "../../etc/passwd", [[[[[]]]]], {"a": {"b": []}}, [None], ["x"] * 3, [1e308, -1e308], "nan", 1e-308,
)  # fmt: skip
LITERALS = (
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 400,
    "-" + "9" * 5_000,
    '"\\ud800"',
    "[" * 70 + "]" * 70,
    '{"a":1,"a":2}',
)

JSON_VALUES = (*(json.dumps(value) for value in VALUES), *LITERALS, "")  # texts; "" removes the field
SETTINGS = ("-1", "10000000000", "1e308", "nan", '""', "[]", "true", "{}", "0", "9" * 400, "1.5")  # TOML


@functools.cache
def sound() -> Path:
    """A finished run with every kind of file that a run can have."""
    folder = Path(tempfile.mkdtemp())
    corpus = write_jsonl(folder / "letters.jsonl", documents()[:200])
    settled = settings(
        corpus,
        data__tokenizer_bytes=100_000,
        train__max_steps=8,
        train__held_out_tokens=2048,
        train__measure__calibration_tokens=2048,
        train__measure__curvature_tokens=2048,
        train__measure__fisher_tokens=2048,
        train__checkpoint__at=[0.5],
        pack__method="rate",
        pack__rate__hessian="fisher",
        pack__rate__trellis=0,
        pack__compressor="range",
        budget__artifact_bytes=130_000,
    )
    done("run", *settled, "--out", folder / "run")
    (folder / "text").write_text(documents()[0][:100])
    return folder / "run"


COMMANDS: tuple[tuple[str, str], ...] = (  # a command, and the files that it reads; RUN, OUT and SOUND are folders
    ("report RUN", r"(?!checkpoint|calibration|weights).*"),
    ("report RUN --out OUT/site", r".*\.json|config.toml|train.jsonl"),
    ("compare RUN SOUND --resamples 100", r"(score|tape|data/manifest)\.json|config.toml|train.jsonl|nll.*|data/.*"),
    ("submit RUN --out OUT/folder --seeds 1 --force", r"[a-z]*\.json|config.toml|train.*|model.*|data/manifest.*"),
    ("audit RUN --quick", r"(?!checkpoint).*"),
    ("sample RUN/model.bitgolf --max-tokens 2", r"model.*"),
    ("compress SOUND/../text -o OUT/coded --model RUN/model.bitgolf", r"model.*"),
    ("score RUN", r"model.*|pack.json|config.toml|data/.*|weights.*|budget.*"),
    ("pack RUN", r"weights.*|calibration/.*|config.toml|train.jsonl|budget.*|data/[mt]o.*|data/manifest.*"),
    ("train RUN --resume", r"checkpoint/.*|config.toml|train.*|budget.*|data/.*"),
    ("train OUT/branch --overwrite --branch RUN@4", r"checkpoint/.*|config.toml|train.*|data/manifest.*"),
)


def read(path: Path, name: str = "") -> None:
    """Run all commands that read the file `name` on the run at `path`. Raises RuntimeError for a fault."""
    out = path.parent / "out"
    SealedRun.process = property(_no_process)  # type: ignore[assignment, method-assign]
    for line, names in COMMANDS:
        if name and not re.fullmatch(names, name):
            continue
        if line.startswith("train RUN"):
            (path / "weights.safetensors").unlink(missing_ok=True)  # else the run is trained already
        elif "OUT/branch" in line:
            shutil.copytree(sound(), out / "branch")
        folders = {"RUN": path, "OUT": out, "SOUND": sound()}
        words = [re.sub("RUN|OUT|SOUND", lambda match, to=folders: str(to[match[0]]), word) for word in line.split()]
        complaint = judged(cli(*words))
        if complaint:
            raise RuntimeError(f"{line}: {complaint}")
    shutil.rmtree(out, ignore_errors=True)


def _no_process(run: SealedRun) -> NoReturn:
    """In place of the sealed process, which takes seconds to start and reads nothing of the run but the artifact."""
    raise MissingEvidence("the harness starts no sealed process")


def judged(outcome: Outcome) -> str:
    """What is wrong with the ending of a command; "" for nothing."""
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    shown = outcome.stdout + outcome.stderr
    if outcome.status not in (0, 1, 2, 3):
        return f"status {outcome.status}"
    if (outcome.status == 2) != (len(errors) == 1):
        return f"status {outcome.status} and {len(errors)} lines of error"
    if "Traceback" in shown or any((ord(c) < 32 and c not in "\n\r\t") or c in "\u202e\x7f" for c in shown):
        return "a traceback or control characters"
    return ""


def files() -> list[str]:
    """The files of the sound run."""
    root = sound()
    names = (str(path.relative_to(root)) for path in sorted(root.rglob("*")) if path.is_file())
    return [name for name in names if Path(name).name not in LOCK_FILES and not name.endswith(".html")]


def copy_with(name: str, damage: Callable[[Path], object], path: Path) -> None:
    """A copy of the sound run in which `damage` has changed the file `name`."""
    shutil.copytree(sound(), path, symlinks=True)
    damage(path / name)


def change_bytes(change: Callable[[bytes], bytes], path: Path) -> None:
    """Replace the content of a file."""
    path.write_bytes(change(path.read_bytes()))


def replace_file(make: Callable[[Path], object], path: Path) -> None:
    """Put something else in place of a file."""
    path.unlink()
    make(path)


def fields(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths to all values of a JSON document, of lists the first two and the last."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = [(n, value[n]) for n in sorted({0, 1, len(value) - 1}) if 0 <= n < len(value)]
    for key, inner in items:
        yield (*path, key)
        yield from fields(inner, (*path, key))


def replaced(document: Any, path: tuple[str | int, ...], value: str) -> str:
    """The JSON text of `document` with the JSON text `value` at `path`; "" removes the entry."""
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if not value:
        del inner[path[-1]]
        return json.dumps(copy)
    inner[path[-1]] = "\0here"
    return json.dumps(copy).replace(json.dumps("\0here"), value)


def change_field(path: tuple[str | int, ...], value: str, file: Path) -> None:
    """Replace one value of a JSON document, or of a line of train.jsonl (the first key of `path` is its number)."""
    if file.suffix == ".jsonl":
        lines = file.read_text().splitlines()
        number, *rest = path
        lines[int(number)] = replaced(json.loads(lines[int(number)]), tuple(rest), value) if rest else value
        file.write_text("\n".join(lines) + "\n")
    else:
        file.write_text(replaced(json.loads(file.read_text()), path, value))


def documents_of(file: Path) -> Any:
    """The JSON document of a file, or the list of those of its lines."""
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    return json.loads(file.read_text())


def field_cases(rng: random.Random, every: bool = False) -> Iterator[tuple[str, str, Callable[[Path], object]]]:
    """Every field of every JSON file, with one hostile value, or with all of them."""
    for name in files():
        if not name.endswith((".json", ".jsonl")):
            continue
        for path in fields(documents_of(sound() / name)):
            for value in JSON_VALUES if every else [rng.choice(JSON_VALUES)]:
                shown = value if len(value) < 24 else value[:20] + "..."
                where = ".".join(map(str, path))
                yield f"{where} is {shown or 'missing'}", name, partial(change_field, path, value)


def settings_cases() -> Iterator[tuple[str, str, Callable[[Path], object]]]:
    """Settings of config.toml with other values."""
    text = (sound() / "config.toml").read_text()
    lines = text.splitlines()
    rng = random.Random(1)
    for number, line in enumerate(lines):
        key, _, value = line.partition(" = ")
        if value:
            other = rng.choice(
                ["-1", "10000000000", "1e308", "nan", '""', "[]", "true", "{}", '"x"', "0", "9" * 400, "1.5"]
            )
            changed = "\n".join([*lines[:number], f"{key} = {other}", *lines[number + 1 :]])
            yield f"{key} is {other[:20]}", "config.toml", partial(change_bytes, lambda _, new=changed: new.encode())


def cases() -> list[Case]:
    """All crafted run directories."""
    assert tomllib.loads((sound() / "config.toml").read_text())
    made: list[tuple[str, str, Callable[[Path], object]]] = []
    for name in files():
        made += [(what, name, partial(change_bytes, change)) for what, change in DAMAGED_BYTES.items()]
        made += [(what, name, partial(replace_file, make)) for what, make in SPECIAL.items()]
    made += field_cases(random.Random(0))
    made += settings_cases()
    return [
        Case(f"{name}: {what}", partial(copy_with, name, damage), partial(read, name=name))
        for what, name, damage in made
    ]
