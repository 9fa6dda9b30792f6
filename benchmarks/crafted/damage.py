"""Kinds of damage: to the bytes of a file, to the file itself, to a value of a JSON document or a setting."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


def some_fields(document: Any, times: int) -> Iterator[tuple[str, str]]:
    """Names and texts of a JSON document with one value replaced, every value `times` times by another one."""
    for number, path in enumerate(fields(document)):
        for offset in range(times):
            value = JSON_VALUES[(7 * number + offset) % len(JSON_VALUES)]
            name = f"{'.'.join(map(str, path))} is {value[:20] or 'missing'}"
            yield f"{name} ({number}.{offset})", replaced(document, path, value)


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
