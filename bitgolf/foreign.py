"""Text, JSON, TOML and numbers from files that bitgolf did not write, or that somebody may have changed.

All parsing of such files goes through this module. Its functions read within fixed limits, return plain values, and
raise ForeignError for everything else. Its message is one printable line. The caller adds the path and the way out:

    try:
        record = as_object(read_json(path), "the file")
        bpb = as_number(field(record, "val_bpb"), "val_bpb", low=0)
    except ForeignError as error:
        raise RunError(f"{path} is damaged: {error}; make it again with `bitgolf score`") from error

`printable` and `harmless` make foreign text safe to show, in one line or in several.
"""

import io
import itertools
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from bitgolf.errors import ForeignError

MAX_BYTES = 64 * 1024 * 1024  # largest file that is read as a whole
_PART_BYTES = 1 << 20  # read at a time
MAX_DEPTH = 64  # nested lists and objects
MAX_INTEGER = 2**63 - 1  # largest magnitude of an integer
MAX_NUMBER_LENGTH = 64  # characters of a number
_LARGEST = 1e100  # magnitude of a number that is computed with
_SHOWN = 200  # characters of foreign text in a message
_NUMBER = re.compile(r"[+-]?(\d{1,32}(\.\d{0,32})?|\.\d{1,32})([eE][+-]?\d{1,3})?", re.ASCII)
# C0 and C1 controls but tab and newline, bidirectional controls, line and paragraph separators, surrogates.
_HARMFUL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def read_bytes(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `max_bytes` bytes.

    Raises FileNotFoundError if there is no file, ForeignError if it is of another kind, too large or unreadable.
    """
    try:
        # Opening a FIFO without a writer must not wait.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise ForeignError("it is not a regular file")
        with os.fdopen(handle, "rb") as file:
            data = read_at_most(file, max_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ForeignError(f"it cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a lone surrogate or NUL in the path
        if isinstance(error, ForeignError):
            raise
        raise ForeignError("its path has characters that no path has") from error
    if len(data) > max_bytes:
        raise ForeignError(f"it has more than {max_bytes:,} bytes")
    return data


def read_at_most(file: BinaryIO, most: int) -> bytes:
    """The rest of a file, or its first `most` bytes. `file.read(most)` would take memory for `most` bytes at once."""
    content = io.BytesIO()  # hands its memory over; a join of parts would take twice as much
    while most > 0 and (part := file.read(min(most, _PART_BYTES))):
        most -= content.write(part)
    return content.getvalue()


def read_text(path: str | Path, max_bytes: int = MAX_BYTES) -> str:
    """The content of a file as UTF-8 text. Raises as `read_bytes`, and ForeignError for other encodings."""
    return _text(read_bytes(path, max_bytes), max_bytes)


def read_json(path: str | Path, max_bytes: int = MAX_BYTES) -> Any:
    """The JSON value of a file. Raises as `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, max_bytes), max_bytes)


def parse_json(data: bytes | str, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON document.

    Raises ForeignError for text that is not JSON, more than `max_bytes` bytes, more than MAX_DEPTH nested lists and
    objects, integers above MAX_INTEGER, numbers that are too long, infinite or NaN, lone surrogates, and objects with
    a key twice.
    """
    text = _text(data, max_bytes)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_finite,
            parse_int=_integer,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise ForeignError(f"it has more than {MAX_DEPTH} nested lists and objects") from error
    except json.JSONDecodeError as error:
        raise ForeignError(f"it is not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from error
    _check(value)
    return value


def parse_toml(data: bytes | str, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The table of a TOML document. Raises ForeignError for text that is not TOML, and as `parse_json`."""
    text = _text(data, max_bytes)
    try:
        value = tomllib.loads(text)
    except RecursionError as error:
        raise ForeignError(f"it has more than {MAX_DEPTH} nested lists and tables") from error
    except ValueError as error:  # TOMLDecodeError, and integers of thousands of digits
        raise ForeignError(f"it is not TOML: {printable(str(error))}") from error
    _check(value)
    return value


def parse_json_lines(data: bytes | str, max_bytes: int = MAX_BYTES) -> Iterator[Any]:
    """The values of JSON lines, without empty lines. Raises as `parse_json`, with the number of the line."""
    text = _text(data, max_bytes)
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield parse_json(line)
            except ForeignError as error:
                raise ForeignError(f"line {number}: {error}") from error


def parse_number(text: str) -> float:
    """The finite number that `text` is, for example in a log. Raises ForeignError for anything else, e.g. 1.2.3.4."""
    stripped = text.strip().replace(",", "") if len(text) <= MAX_NUMBER_LENGTH else ""
    if not _NUMBER.fullmatch(stripped) or not math.isfinite(value := float(stripped)):
        raise ForeignError(f"{printable(text)!r} is not a number")
    return value


def field(record: Mapping[str, Any], key: str) -> Any:
    """The value of `key`. Raises ForeignError if it is missing."""
    if key not in record:
        raise ForeignError(f"{printable(key)} is missing")
    return record[key]


def as_object(value: Any, name: str) -> dict[str, Any]:
    """`value`, which must be an object."""
    return value if isinstance(value, dict) else _refuse(value, name, "an object")


def as_list(value: Any, name: str, longest: int | None = None) -> list[Any]:
    """`value`, which must be a list of at most `longest` entries."""
    if not isinstance(value, list):
        _refuse(value, name, "a list")
    if longest is not None and len(value) > longest:
        raise ForeignError(f"{name} has {len(value):,} entries, at most {longest:,} are allowed")
    return value


def as_text(value: Any, name: str, longest: int = 100_000) -> str:
    """`value`, which must be a text of at most `longest` characters."""
    if not isinstance(value, str):
        _refuse(value, name, "a text")
    if len(value) > longest:
        raise ForeignError(f"{name} has {len(value):,} characters, at most {longest:,} are allowed")
    return value


def as_bool(value: Any, name: str) -> bool:
    """`value`, which must be true or false."""
    return value if isinstance(value, bool) else _refuse(value, name, "true or false")


def as_integer(value: Any, name: str, low: int = -MAX_INTEGER, high: int = MAX_INTEGER) -> int:
    """`value`, which must be an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(value, name, "an integer")
    if not low <= value <= high:
        raise ForeignError(f"{name} is {value}, it must be from {low} to {high}")
    return value


def as_number(value: Any, name: str, low: float = -_LARGEST, high: float = _LARGEST) -> float:
    """`value`, which must be a number from `low` to `high`, at most of such a size that its square is a number, too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(value, name, "a number")
    if not low <= value <= high:
        raise ForeignError(f"{name} is {value}, it must be a number from {low:g} to {high:g}")
    return float(value)


def conform(value: Any, kind: Any, name: str) -> None:
    """Raise ForeignError unless `value` is of `kind`.

    A kind is a function of (value, name) that raises ForeignError, such as `as_text`; `[kind]` for a list;
    `{key: kind}` for an object, where "key?" may be missing and "*" stands for every key; or `(kind, None)`, which
    allows null. Keys that are not named are not looked at.
    """
    if isinstance(kind, tuple):
        if value is not None:
            conform(value, kind[0], name)
    elif isinstance(kind, list):
        for number, inner in enumerate(as_list(value, name)):
            conform(inner, kind[0], f"{name}[{number}]")
    elif isinstance(kind, dict):
        record = as_object(value, name)
        for key, inner in kind.items():
            if key == "*":
                for other in record:
                    conform(record[other], inner, f"{name}.{printable(other)}")
            elif not key.endswith("?") or key[:-1] in record:
                conform(field(record, key.removesuffix("?")), inner, f"{name}.{key.removesuffix('?')}")
    else:
        kind(value, name)


def require_regular(path: str | Path) -> None:
    """Raise FileNotFoundError if there is no file, and ForeignError if it is a folder, device or pipe."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise ForeignError("it is not a regular file")


def printable(text: str, longest: int = _SHOWN) -> str:
    """`text` as one line of at most `longest` characters. Characters that are not printable become escapes."""
    cut = text[:longest]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
    return shown + ("..." if len(text) > longest else "")


def harmless(text: str) -> str:
    """`text` with escapes in place of control characters, bidirectional overrides and surrogates.

    Tabs and newlines are kept. Use it for foreign text of several lines on a terminal or a page.
    """
    return _HARMFUL.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def _text(data: bytes | str, max_bytes: int) -> str:
    """The text of a document. Raises ForeignError if it is too long or no UTF-8."""
    if len(data) > max_bytes:
        raise ForeignError(f"it has more than {max_bytes:,} bytes")
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ForeignError(f"it is not UTF-8: byte 0x{data[error.start]:02X} at position {error.start}") from error


def _refuse(value: Any, name: str, expected: str) -> NoReturn:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    kind = kinds.get(type(value), "a number")
    raise ForeignError(f"{name} is {kind}, it must be {expected}")


def _integer(text: str) -> int:
    if len(text) > MAX_NUMBER_LENGTH:
        raise ForeignError(f"a number has {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    if len(text) > MAX_NUMBER_LENGTH:
        raise ForeignError(f"a number has {len(text):,} digits")
    value = float(text)
    if not math.isfinite(value):
        raise ForeignError(f"the number {text} is not finite")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key, value in pairs:
        if key in record:
            raise ForeignError(f"the key {printable(key)!r} occurs twice")
        record[key] = value
    return record


def _check(value: Any) -> None:
    """Raise ForeignError for deep nesting, large integers, infinite numbers and lone surrogates."""
    level = [value]
    for depth in itertools.count():
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict | list):
                if depth == MAX_DEPTH:
                    raise ForeignError(f"it has more than {MAX_DEPTH} nested lists and objects")
                inner += item
                if isinstance(item, dict):
                    inner += item.values()
            elif isinstance(item, str):
                _check_text(item)
            elif isinstance(item, int) and abs(item) > MAX_INTEGER:
                raise ForeignError(f"a number is above {MAX_INTEGER} or has too many digits")
            elif isinstance(item, float) and not math.isfinite(item):
                raise ForeignError(f"the number {item} is not finite")
        if not inner:
            return
        level = inner


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ForeignError(f"a text contains the lone surrogate U+{ord(text[error.start]):04X}") from error
