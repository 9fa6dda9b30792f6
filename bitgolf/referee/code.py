"""A submission's script, read but never run: its source (unpacked where it is packed), imports and settings.

Many scripts are a line that decompresses and executes a string. The string is data: it is decoded here with the same
codecs, within bounds, and parsed; nothing is evaluated. What cannot be unpacked so is reported as unreadable.
"""

from __future__ import annotations

import ast
import base64
import binascii
import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

_MOST_BYTES = 16 << 20  # of unpacked source: more is no script
_MOST_LAYERS = 4
_PACKED_CHARACTERS = 400  # a shorter string holds no program
_SETTING = re.compile(r"[A-Z][A-Z0-9_]{2,}")
_DOWNLOADERS = ("requests", "urllib.request", "urllib3", "httpx", "aiohttp", "wget", "huggingface_hub", "datasets")
_INSTALLING = re.compile(r"\b(pip3? install|apt(-get)? install|conda install|curl |wget |git clone)")
_Node = TypeVar("_Node", bound=ast.AST)
_RAW_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 6}]


@dataclass(frozen=True)
class Script:
    """A script's source and what it was unpacked from.

    Attributes:
        name: of the file.
        size: bytes of the file as it is.
        source: readable source, "" when there is none.
        packed: whether it had to be unpacked.
    """

    name: str
    size: int
    source: str
    packed: bool

    @cached_property
    def tree(self) -> ast.Module | None:
        """Syntax tree of the source; of a log's source that ends in the middle, as much as parses is not tried."""
        return _parse(self.source) if self.source else None

    @cached_property
    def strings(self) -> set[str]:
        """All string constants."""
        return {node.value for node in self.nodes(ast.Constant) if isinstance(node.value, str)}

    @cached_property
    def names(self) -> set[str]:
        """All identifiers: variables, attributes, arguments, functions, classes."""
        found: set[str] = set()
        for node in self.nodes(ast.AST):
            for attribute in ("id", "attr", "arg", "name"):
                value = getattr(node, attribute, None)
                if isinstance(value, str):
                    found.add(value)
        return found

    @cached_property
    def settings(self) -> set[str]:
        """Upper-case names that it may read from the environment: every such string or keyword in it."""
        found = {text for text in self.strings if _SETTING.fullmatch(text)}
        # A class of hyper-parameters that is filled from the environment by the names of its fields.
        return found | {name.upper() for name in self.names if _builds_names(self) and name.islower()}

    @cached_property
    def imports(self) -> set[str]:
        """Dotted names of all modules imported anywhere in it."""
        found: set[str] = set()
        for node in self.nodes(ast.AST):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        return found

    def downloads(self) -> list[str]:
        """What in it reaches for the network or installs something while it runs."""
        found = [f"imports {name}" for name in sorted(self.imports) if name.startswith(_DOWNLOADERS)]
        for call in self.nodes(ast.Call):
            texts = [n.value for n in ast.walk(call) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            command = _INSTALLING.search(" ".join(texts))
            if command and callee(call).rpartition(".")[2] in ("run", "system", "Popen", "check_call", "check_output"):
                found.append(f"runs `{command[0].strip()}` at line {call.lineno}")
        return found

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All functions and methods."""
        yield from self.nodes(ast.FunctionDef)
        yield from self.nodes(ast.AsyncFunctionDef)

    def nodes(self, kind: type[_Node]) -> Iterator[_Node]:
        """All nodes of a kind, in the order of the source where it matters little."""
        if self.tree is not None:
            for node in ast.walk(self.tree):
                if isinstance(node, kind):
                    yield node


def read_script(name: str, data: bytes) -> Script:
    """Read the bytes of a Python file, unpacking what it holds packed."""
    text = _decode(data)
    source, packed = _unpack(text)
    return Script(name, len(data), source, packed)


def callee(call: ast.Call) -> str:
    """Dotted name of what a call calls, as far as it is one: "dist.all_reduce", ".backward" of an expression."""
    parts: list[str] = []
    node: ast.expr = call.func
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    parts.append(node.id if isinstance(node, ast.Name) else "")
    return ".".join(reversed(parts))


def _builds_names(script: Script) -> bool:
    """Whether names of settings are made by `.upper()` of other names."""
    return any(callee(call).endswith(".upper") for call in script.nodes(ast.Call))


def _parse(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _decode(data: bytes) -> str:
    first = data[:200].lower()
    encoding = "latin-1" if b"coding:latin" in first or b"coding: latin" in first else "utf-8"
    return data.decode(encoding, errors="replace")


def _unpack(text: str) -> tuple[str, bool]:
    """Readable source, layer by layer, and whether there was more than one."""
    packed = False
    for _ in range(_MOST_LAYERS):
        tree = _parse(text)
        inner = "" if tree is None else max(_programs_in(tree), key=len, default="")
        if not inner or len(inner) < len(text) // 4:
            break
        text, packed = inner, True
    return text, packed


def _programs_in(tree: ast.Module) -> Iterator[str]:
    """Sources that the tree's long strings hold, decompressed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            if len(node.value) < _PACKED_CHARACTERS:
                continue
            for data in _encoded(node.value):
                for expand in _EXPANDERS:
                    try:
                        raw = expand(data)
                    except (lzma.LZMAError, zlib.error, OSError, ValueError, EOFError):
                        continue
                    yield from _as_source(raw)


def _encoded(value: str | bytes) -> Iterator[bytes]:
    """What a string may stand for: itself byte for byte, or base85, base64, Ascii85."""
    if isinstance(value, bytes):
        yield value
        text = value
    else:
        try:
            yield value.encode("latin-1")
            text = value.encode("ascii")
        except UnicodeEncodeError:
            return
    for decode in (base64.b85decode, base64.b64decode, base64.a85decode):
        try:
            yield decode(text)
        except (ValueError, binascii.Error):
            continue


def _bounded(make: Callable[[], lzma.LZMADecompressor | bz2.BZ2Decompressor]) -> Callable[[bytes], bytes]:
    return lambda data: make().decompress(data, _MOST_BYTES)


_EXPANDERS: tuple[Callable[[bytes], bytes], ...] = (
    _bounded(lzma.LZMADecompressor),
    _bounded(lambda: lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_RAW_LZMA)),
    _bounded(bz2.BZ2Decompressor),
    lambda data: zlib.decompressobj().decompress(data, _MOST_BYTES),
    lambda data: zlib.decompressobj(-15).decompress(data, _MOST_BYTES),
    lambda data: zlib.decompressobj(31).decompress(data, _MOST_BYTES),
)


def _as_source(raw: bytes) -> Iterator[str]:
    """`raw` as the source of a program, when it is one; a program in NUL-divided sections is put together again."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return
    if "import" not in text:
        return
    if "\0" in text:  # sections "name\nsource": keep those that are Python
        parts = [part if _parse(part) else part.partition("\n")[2] for part in text.split("\0")]
        text = "\n".join(part for part in parts if part and _parse(part) is not None)
    if _parse(text) is not None:
        yield text
