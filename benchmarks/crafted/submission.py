"""Crafted submission folders of up to a megabyte: logs, scripts and records that cost much to read."""

from __future__ import annotations

import base64
import json
import lzma
import re
import tempfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from synthetic_submission import Folder

from bitgolf.referee.run import audit_submission
from crafted.case import Case
from crafted.damage import DAMAGED_BYTES, SPECIAL, replace_file, some_fields

MEGABYTE = 1_000_000


def warm_up() -> None:
    """Import everything."""
    from bitgolf.referee import run

    assert run.submission_checks.entries


def read(path: Path) -> object:
    """Audit a folder."""
    return audit_submission(path).to_json()


def write(name: str, text: bytes, path: Path) -> None:
    """An honest folder with another content of one file, or with more at the end of a log."""
    Folder().write(path)
    append = name.startswith("+")
    target = path / name.removeprefix("+")
    target.write_bytes((target.read_bytes() if append else b"") + text)


def many_files(path: Path) -> None:
    """A folder of 5,000 modules that import each other."""
    Folder(code="import m0\n").write(path)
    for number in range(5_000):
        (path / f"m{number}.py").write_text(f"import m{number + 1}\n")


def lines(line: str) -> bytes:
    """A megabyte of one line repeated."""
    return (line + "\n").encode() * (MEGABYTE // (len(line) + 1))


def functions(body: str) -> bytes:
    """A megabyte of functions that call each other."""
    one = "def pass2_{n}(model, val_tokens, y):\n" + body + "\n"
    parts: list[str] = []
    while sum(map(len, parts[:1])) * len(parts) < MEGABYTE * 0.8:
        parts.append(one.format(n=len(parts), m=len(parts) // 2))
    return "".join(parts).encode()


LOG, SCRIPT, JSON, README = "+train_seed0.log", "train_gpt.py", "submission.json", "README.md"
BOMB = zlib.compress(b"import os\n" + b"x = [1, 2, 3]\n" * 20_000_000, 9)
INPUTS: dict[str, tuple[str, bytes]] = {
    "one line of a megabyte": (LOG, b"val_loader:" * (MEGABYTE // 11)),
    "lines of val_loader": (LOG, lines("val_loader:" * 180)),
    "lines of ngram": (LOG, lines("ngram" * 390 + " built")),
    "lines of beginning": (LOG, lines("beginning " * 190)),
    "lines of digits": (LOG, lines("1" * 1_990)),
    "lines of losses": (LOG, lines("1/2 train_loss: 1.0 train_time: 1ms")),
    "lines of metrics": (LOG, lines("final val_loss:2.32 val_bpb:1.06 eval_time:1ms")),
    "settings": (LOG, b"".join(b"  key_%d: %d\n" % (n, n) for n in range(60_000))),
    "short lines": (LOG, b"\n" * MEGABYTE),
    "a script of functions": (SCRIPT, functions("    pass2_{m}(model, val_tokens, y).backward()\n    opt.step()")),
    "a script of calls": (SCRIPT, b"f(" * 30 + b"x" + b")" * 30 + (b"\nf(g(h(x)))" * 90_000)),
    "a script of n-gram hashes": (SCRIPT, functions("    return (y * 7 ^ {n}) % 3, (y * {m}) & 5")),
    "a script of one sum": (SCRIPT, b"x = " + b"1+" * 400_000 + b"1"),
    "a script of brackets": (SCRIPT, b"(" * MEGABYTE),
    "a script of strings": (SCRIPT, b"".join(b"s%d = '%s'\n" % (n, b"x" * 450) for n in range(2_000))),
    "a bomb": (SCRIPT, b"exec(d(" + repr(BOMB).encode() + b"))"),
    "many bombs": (SCRIPT, b"\n".join(b"x = " + repr(base64.b85encode(BOMB[:12_000])).encode() for _ in range(40))),
    "a bomb of zeros": (SCRIPT, b"exec(d(" + repr(lzma.compress(bytes(50_000_000))).encode() + b"))"),
    "deep JSON": (JSON, b"[" * (MEGABYTE // 2) + b"]" * (MEGABYTE // 2)),
    "digits in JSON": (JSON, b'{"val_bpb": ' + b"9" * MEGABYTE + b"}"),
    "keys in JSON": (JSON, json.dumps({f"key{n}": n for n in range(60_000)}).encode()),
    "seeds in JSON": (JSON, json.dumps({"seed_results": {str(n): {"val_bpb": 1.0} for n in range(30_000)}}).encode()),
    "a README of tables": (README, lines("| Seed | 42 | 1.0599 | 15,890,121 |")),
    "a README of pipes": (README, b"|" * MEGABYTE),
    "a README of settings": (README, b"```\n" + b"".join(b"A_%d=%d " % (n, n) for n in range(70_000)) + b"\n```\n"),
    "a README of quotes": (README, b"```\n" + b"AAA=\"'" * (MEGABYTE // 6) + b"\n```\n"),
}


NUMBERS = ("9" * 400, "nan", "-1", "1e999", "1.2.3.4", "\u0661\u0662", "1,0,0", "0x10", "\x1b[2J", "\u202e7")


def replaced_file(name: str, special: str, path: Path) -> None:
    """An honest folder with something else in place of a file, or with damaged bytes."""
    Folder().write(path)
    if special in SPECIAL:
        replace_file(SPECIAL[special], path / name)
    else:
        (path / name).write_bytes(DAMAGED_BYTES[special]((path / name).read_bytes()))


def swept() -> Iterator[tuple[str, str, bytes]]:
    """Every field of the JSON file, and every number of a log and of the README, with hostile values."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "entry")
        Folder().write(folder)
        texts = {file.name: file.read_text() for file in folder.iterdir()}
    for what, text in some_fields(json.loads(texts[JSON]), 6):
        yield what, JSON, text.encode()
    for file in (LOG.removeprefix("+"), README):
        for place, match in enumerate(re.finditer(r"[\d.,]*\d", texts[file])):
            for number in (NUMBERS[place % len(NUMBERS)], NUMBERS[(place + 3) % len(NUMBERS)]):
                text = texts[file][: match.start()] + number + texts[file][match.end() :]
                yield f"number {place} of {file} is {number[:12]!a}", file, text.encode()


def cases() -> list[Case]:
    """All crafted folders."""
    crafted = [Case(name, partial(write, *parts), read) for name, parts in INPUTS.items()]
    for file in (LOG.removeprefix("+"), SCRIPT, JSON, README):
        for special in (*DAMAGED_BYTES, *SPECIAL):
            crafted.append(Case(f"{file}: {special}", partial(replaced_file, file, special), read))
    crafted += [Case(what, partial(write, file, text), read) for what, file, text in swept()]
    return [*crafted, Case("a chain of modules", many_files, read)]
