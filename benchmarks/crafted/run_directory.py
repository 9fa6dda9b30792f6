"""Crafted run directories: one file of a sound run is damaged, and every command that reads runs meets it.

A command must end with a verdict, or with one line of error. Anything else, a traceback or an endless wait, is a fault.
"""

from __future__ import annotations

import functools
import json
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
from crafted.damage import DAMAGED_BYTES, JSON_VALUES, SETTINGS, SPECIAL, fields, replace_file, replaced


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
    try:
        for line, names in COMMANDS:
            if not name or re.fullmatch(names, name):
                _run(line, path, out)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _run(line: str, path: Path, out: Path) -> None:
    if line.startswith("train RUN"):
        (path / "weights.safetensors").unlink(missing_ok=True)  # else the run is trained already
    elif "OUT/branch" in line:
        shutil.copytree(sound(), out / "branch")
    folders = {"RUN": path, "OUT": out, "SOUND": sound()}
    words = [re.sub("RUN|OUT|SOUND", lambda match: str(folders[match[0]]), word) for word in line.split()]
    complaint = judged(cli(*words))
    if complaint:
        raise RuntimeError(f"{line}: {complaint}")


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
            other = rng.choice(SETTINGS)
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
