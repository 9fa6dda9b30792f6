"""A submission's script, read but never run: its source (unpacked where it is packed), imports and settings.

Many scripts are a line that decompresses and executes a string. The string is data: it is decoded here with the same
codecs and parsed, and nothing is evaluated. A script that cannot be unpacked this way is reported as unreadable. The
work is bounded: all strings of a script together may expand to `_MOST_BYTES`.
"""

import ast
import base64
import binascii
import bz2
import functools
import itertools
import lzma
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from bitgolf.errors import DataError
from bitgolf.referee.texts import callee, folded_texts

_MOST_BYTES = 2 << 20  # of source, and of all that the strings of a script expand to; the largest record has 0.2 MB
_MOST_CHARACTERS = 600_000  # that are parsed: a megabyte of dense code takes seconds
_MOST_NODES = 400_000  # of a syntax tree; the program of this package has 93,000
_MOST_LAYERS = 4
_MOST_STRINGS = 64  # that are tried, the longest first
_PACKED_CHARACTERS = 400  # a shorter string holds no program
_SETTING = re.compile(r"[A-Z][A-Z0-9_]{2,}")
IMPORTERS = ("importlib.import_module", "__import__", "builtins.__import__", "importlib.__import__")
_NETWORK = re.compile(
    r"(requests|urllib\.request|urllib3|httpx|aiohttp|wget|huggingface_hub|datasets|http\.client|http\.server|ftplib"
    r"|smtplib|telnetlib|xmlrpc|boto3|botocore|s3fs|gcsfs|paramiko|gdown|kagglehub|kaggle|websockets?|pycurl|pip)(\.|$)"
)
_FETCHES = re.compile(  # functions that fetch something, by their dotted names
    r"(^|\.)(urlopen|urlretrieve|create_connection|open_connection|from_pretrained|load_state_dict_from_url"
    r"|download_url_to_file|snapshot_download|hf_hub_download|load_dataset)$"
    r"|^(socket\.socket|torch\.hub\.load|nltk\.download|tiktoken\.(get_encoding|encoding_for_model))$"
)
_URL = re.compile(r"(https?|ftp|s3|gs|hf)://")
_SHOWS = re.compile(r"(^|\.)(print\w*|log\d?|info|warning|debug|error|write)$")
_RUNS = re.compile(
    r"(subprocess\.)?(run|Popen|call|check_call|check_output|getoutput|getstatusoutput)"
    r"|(os\.)?(system|popen|exec[lv]p?e?|spawn[lv]p?e?|posix_spawnp?)|asyncio\.create_subprocess_\w+|pty\.spawn"
)
_INSTALLING = re.compile(
    r"\b(pip3? install|apt(-get)? install|conda install|curl |wget |aria2c |rsync |scp |git clone|aws s3|gsutil "
    r"|huggingface-cli |hf download)"
)
_Node = TypeVar("_Node", bound=ast.AST)
_RAW_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 6}]


@dataclass(frozen=True)
class Script:
    """A script's source and what it was unpacked from."""

    name: str  # of the file
    size: int  # bytes of the file as it is
    source: str  # readable source, "" when there is none
    packed: bool  # whether it had to be unpacked

    @cached_property
    def tree(self) -> ast.Module | None:
        """Syntax tree of the source; None if it is not Python."""
        return _parse(self.source) if self.source else None

    @cached_property
    def _nodes(self) -> dict[type[ast.AST], list[ast.AST]]:
        """All nodes of the tree by their type, in the order of `ast.walk`."""
        nodes: dict[type[ast.AST], list[ast.AST]] = {}
        for node in ast.walk(self.tree) if self.tree is not None else ():
            nodes.setdefault(type(node), []).append(node)
        return nodes

    @cached_property
    def _inside(self) -> dict[ast.AST, list[ast.AST]]:
        return {}

    def inside(self, part: ast.AST) -> list[ast.AST]:
        """All nodes of a part of the tree, walked once."""
        if part not in self._inside:
            self._inside[part] = list(ast.walk(part))
        return self._inside[part]

    @cached_property
    def strings(self) -> set[str]:
        return {node.value for node in self.nodes(ast.Constant) if isinstance(node.value, str)}

    @cached_property
    def names(self) -> set[str]:
        """All identifiers: variables, attributes, arguments, functions, classes."""
        values = (getattr(node, field, None) for node in self.nodes(ast.AST) for field in ("id", "attr", "arg", "name"))
        return {value for value in values if isinstance(value, str)}

    @cached_property
    def called(self) -> set[str]:
        """Names of functions that are called, and all names in the arguments of calls."""
        names: set[str] = set()
        for call in self.nodes(ast.Call):
            names.add(callee(call).rpartition(".")[2])
            for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
                if isinstance(argument, ast.Name):
                    names.add(argument.id)
                elif isinstance(argument, ast.Attribute):
                    names.add(argument.attr)
        return names

    @cached_property
    def settings(self) -> set[str]:
        """Upper-case names that it may read from the environment: every such string or keyword in it."""
        settings = {text for text in self.strings if _SETTING.fullmatch(text)}
        # A class of hyper-parameters may be filled from the environment by the names of its fields, in upper case.
        if any(callee(call).endswith(".upper") for call in self.nodes(ast.Call)):
            settings |= {name.upper() for name in self.names if name.islower()}
        return settings

    @cached_property
    def imports(self) -> set[str]:
        """Dotted names of all modules imported anywhere in it, by a statement or by a call."""
        modules = {alias.name for node in self.nodes(ast.Import) for alias in node.names}
        for node in self.nodes(ast.ImportFrom):
            modules |= {f"{node.module}.{alias.name}" if node.module else alias.name for alias in node.names}
            modules |= {node.module} if node.module else set()
        for call in self.nodes(ast.Call):
            if self.function(call) in IMPORTERS and call.args and "*" not in self.texts.get(call.args[0], "*"):
                modules.add(self.texts[call.args[0]])
        return modules

    @cached_property
    def _aliases(self) -> dict[str, str]:
        """What imports call a module or function, with its dotted name."""
        aliases = {a.asname: a.name for node in self.nodes(ast.Import) for a in node.names if a.asname}
        for node in self.nodes(ast.ImportFrom):
            aliases |= {a.asname or a.name: f"{node.module or ''}.{a.name}" for a in node.names}
        return aliases

    @cached_property
    def texts(self) -> dict[ast.AST, str]:
        """The text of every expression that has a known part, with `*` for the others."""
        return folded_texts(self.tree) if self.tree is not None else {}

    def function(self, call: ast.Call) -> str:
        """Dotted name of the function that is called, whatever an import has named it."""
        first, dot, rest = callee(call).partition(".")
        return self._aliases.get(first, first) + dot + rest

    def commands(self) -> Iterator[tuple[ast.Call, str]]:
        """Calls that start another program, with the words of its command."""
        for call in self.nodes(ast.Call):
            if _RUNS.fullmatch(self.function(call)):
                parts = (part for a in call.args for part in (a.elts if isinstance(a, ast.List | ast.Tuple) else [a]))
                yield call, " ".join(self.texts.get(part, "*") for part in parts)

    def downloads(self) -> list[str]:
        """Imports and calls that use the network or install something while the script runs."""
        downloads = [f"imports {name}" for name in sorted(self.imports) if _NETWORK.match(name)]
        for call, command in self.commands():
            if installing := _INSTALLING.search(command):
                downloads.append(f"runs `{installing[0].strip()}` at line {call.lineno}")
        for call in self.nodes(ast.Call):
            name = self.function(call)
            if _FETCHES.search(name):
                downloads.append(f"calls {name} at line {call.lineno}")
            elif not _SHOWS.search(name):
                texts = [self.texts.get(argument, "") for argument in call.args]
                downloads += [f"reads {text[:40]} at line {call.lineno}" for text in texts if _URL.match(text)]
        return downloads

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        yield from self.nodes(ast.FunctionDef)
        yield from self.nodes(ast.AsyncFunctionDef)

    def nodes(self, kind: type[_Node]) -> Iterator[_Node]:
        """All nodes of a kind, grouped by their exact type."""
        for exact, nodes in self._nodes.items():
            if issubclass(exact, kind):
                yield from nodes  # type: ignore[misc]


@dataclass(frozen=True)
class Match:
    """A match: the line of the (unpacked) source, what was recognized there, and the word in the name of a setting that
    would switch it off."""

    line: int
    what: str
    topic: str


def read_script(name: str, data: bytes) -> Script:
    """Read the bytes of a Python file, and unpack the program in it if it is packed.

    Raises DataError for a file that is longer than any script.
    """
    if len(data) > _MOST_BYTES:
        raise DataError(f"{name} has {len(data):,} bytes; scripts of up to {_MOST_BYTES:,} are read")
    source, packed = _unpack(_decode(data))
    return Script(name, len(data), source, packed)


@functools.lru_cache(maxsize=4)
def _parse(source: str) -> ast.Module | None:
    """The syntax tree of a source; None if it is no Python, or larger than any script."""
    if len(source) > _MOST_CHARACTERS:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # on escapes and literals of the script
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    num_nodes = sum(1 for _ in itertools.islice(ast.walk(tree), _MOST_NODES + 1))
    return tree if num_nodes <= _MOST_NODES else None


def _decode(data: bytes) -> str:
    first = data[:200].lower()
    encoding = "latin-1" if b"coding:latin" in first or b"coding: latin" in first else "utf-8"
    return data.decode(encoding, errors="replace")


def _unpack(text: str) -> tuple[str, bool]:
    """Readable source, layer by layer, and whether there was more than one."""
    packed, left = False, _MOST_BYTES
    for _ in range(_MOST_LAYERS):
        tree = _parse(text)
        if tree is None:
            break
        programs, left = _programs_in(tree, left)
        inner = max(programs, key=len, default="")
        if not inner or len(inner) < len(text) // 4:
            break
        text, packed = inner, True
    return text, packed


def _programs_in(tree: ast.Module, left: int) -> tuple[list[str], int]:
    """Sources in the tree's long strings, decompressed to `left` bytes at most, and how many bytes are left then."""
    values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    strings = [value for value in values if isinstance(value, str | bytes) and len(value) >= _PACKED_CHARACTERS]
    programs: list[str] = []
    for value in sorted(strings, key=len, reverse=True)[:_MOST_STRINGS]:
        for data in _encoded(value):
            for expand in _EXPANDERS:
                if left <= 0:
                    return programs, 0
                try:
                    raw = expand(data, left)
                except (lzma.LZMAError, zlib.error, OSError, ValueError, EOFError, MemoryError):
                    continue
                left -= len(raw)
                if source := _as_source(raw):
                    programs.append(source)
    return programs, left


def _encoded(value: str | bytes) -> Iterator[bytes]:
    """The bytes that a string may stand for: its own characters, bitgolf's shifted ones, or base85, base64, Ascii85."""
    if isinstance(value, bytes):
        yield value
        text = value
    else:
        try:
            data = value.encode("latin-1")
            yield data
            yield _unshifted(data)
            text = value.encode("ascii")
        except UnicodeEncodeError:
            return
    for decode in (base64.b85decode, base64.b64decode, base64.a85decode):
        try:
            yield decode(text)
        except (ValueError, binascii.Error):
            continue


def _unshifted(data: bytes) -> bytes:
    """What `bundle.single_file.shifted_literal` made from bytes, undone."""
    n = max(1, data[0])
    starts = range(1, len(data), n)
    return b"".join(bytes((value - data[k]) % 256 for value in data[k + 1 : k + n]) for k in starts)


_MEMORY_BYTES = 128 << 20  # of an LZMA dictionary
_EXPANDERS: tuple[Callable[[bytes, int], bytes], ...] = (  # of data, up to a number of bytes
    lambda data, most: lzma.LZMADecompressor(memlimit=_MEMORY_BYTES).decompress(data, most),
    lambda data, most: lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_RAW_LZMA).decompress(data, most),
    lambda data, most: bz2.BZ2Decompressor().decompress(data, most),
    lambda data, most: zlib.decompressobj().decompress(data, most),
    lambda data, most: zlib.decompressobj(-15).decompress(data, most),
    lambda data, most: zlib.decompressobj(31).decompress(data, most),
)


def _as_source(raw: bytes) -> str:
    """`raw` as source, "" if it is no program. Sections that NUL divides are joined."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    if "import" not in text:
        return ""
    if "\0" in text:  # sections "name\nsource": keep those that are Python
        parts = [part if _parse(part) else part.partition("\n")[2] for part in text.split("\0")]
        text = "\n".join(part for part in parts if part and _parse(part) is not None)
    return text if _parse(text) is not None else ""
