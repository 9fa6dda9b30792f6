"""A whole program in one file: the modules that a configuration needs, packed into a train_gpt.py that runs alone.

    package sources ──simplify──▶ trees ──trace──▶ what is needed ──shorten, print──▶ text ──bz2 or lzma──▶ one file

The file is Python source in Latin-1: two lines around a string that holds the compressed text, byte for character
(base85, the usual way, costs a quarter more). It unpacks in memory and imports from there (`importer`), so it needs
neither temporary files nor an installed bitgolf; Python and the packages in requirements.txt are enough. The same
sources and settings give the same bytes under one version of Python, which is how anybody can check that a file is
made from the `source/` beside it.
"""

from __future__ import annotations

import ast
import bz2
import functools
import importlib.util
import json
import lzma
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitgolf.config import Config
from bitgolf.config.section import Section
from bitgolf.record import importer
from bitgolf.record.constants import propagate_
from bitgolf.record.minify import print_compactly, simplify
from bitgolf.record.rename import shorten_names_
from bitgolf.record.specialize import Types, specialize, types_of
from bitgolf.record.trace import trace
from bitgolf.record.variants import absent_code, fixed_keys, known_settings
from bitgolf.version import __version__

PACKAGE = "bitgolf"
ENTRY = ("bitgolf.record.train_gpt", "main")
_IMPORTER = importer.__name__
_START = """
install(__file__, PARTS[2:])
if __name__ == "__main__":
    from {module} import {function}
    raise SystemExit({function}(PARTS[1], sys.argv[1:]))
"""
_FILE = "#coding:latin1 (bitgolf {version}: made from source/, where the same program can be read and run)\n{body}\n"
# The payload has a line of its own, which no traceback shows.
_UNPACK = (
    "PARTS={literal}\n"
    "import {codec};PARTS={codec}.decompress(PARTS.encode('latin1')).decode().split('\\0');exec(PARTS[0])"
)


@dataclass(frozen=True)
class Bundle:
    """A packed program.

    Attributes:
        data: the bytes of train_gpt.py.
        modules: packed source of each module by dotted name.
        settings: JSON that the file starts with: `config`, what differs from the defaults, and `fixed`.
        codec: "bz2" or "lzma".
    """

    data: bytes
    modules: Mapping[str, str]
    settings: str
    codec: str


class PackageSources(Mapping[str, ast.Module]):
    """The modules of a package below a folder as trees, specialized and simplified when first asked for."""

    def __init__(self, root: Path, known: Mapping[str, Any], name: str = PACKAGE) -> None:
        """`root` is the folder that holds the package's folder `name`; `known`: settings, see `specialize`."""
        self.files = module_files(root, name)
        self.known, self.types = known, _types(root, name)
        self._trees: dict[str, ast.Module] = {}

    def __getitem__(self, name: str) -> ast.Module:
        if name not in self._trees:
            source = self.files[name].read_text(encoding="utf-8")
            tree = specialize(ast.parse(source, str(self.files[name])), self.known, self.types)
            self._trees[name] = simplify(tree, source)
        return self._trees[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __contains__(self, name: object) -> bool:
        return name in self.files


def module_files(root: Path, name: str = PACKAGE) -> dict[str, Path]:
    """The source files of a package below `root`, by dotted name of the module."""
    files: dict[str, Path] = {}
    for file in sorted((root / name).rglob("*.py")):
        parts = list(file.relative_to(root).with_suffix("").parts)
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


def make_bundle(config: Config, root: Path | None = None) -> Bundle:
    """The train_gpt.py of a configuration.

    Args:
        config: all of it but the seed is put into the file; the seed is given on its command line.
        root: folder that holds the package's folder; None = the installed package.
    """
    known = tuple(sorted(known_settings(config).items()))
    return _make(settings_of(config), known, absent_code(config), (root or installed_root()).resolve())


def installed_root() -> Path:
    """The folder that holds the package which is running."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.submodule_search_locations, "the package is running"
    return Path(next(iter(spec.submodule_search_locations))).parent


def settings_of(config: Config) -> str:
    """What a bundle of this configuration starts with (see `train_gpt.main`)."""
    different = _different(config, Config())
    different.pop("seed", None)
    return json.dumps({"config": different, "fixed": fixed_keys(config)}, separators=(",", ":"), ensure_ascii=False)


def _different(section: Section, default: Section) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in type(section).model_fields:
        value, usual = getattr(section, name), getattr(default, name)
        if isinstance(value, Section):
            inner = _different(value, usual)
            found |= {name: inner} if inner else {}
        elif value != usual:
            found[name] = section.model_dump(mode="json", include={name})[name]
    return found


_Known = tuple[tuple[str, Any], ...]


@functools.lru_cache(maxsize=4)
def _types(root: Path, name: str) -> Types:
    """Types of the attributes of all classes that may hold settings."""
    sources = (file.read_text(encoding="utf-8") for file in module_files(root, name).values())
    return types_of([ast.parse(source) for source in sources if "Config" in source and "class " in source])


@functools.lru_cache(maxsize=64)
def _make(settings: str, known: _Known, absent: frozenset[str], root: Path) -> Bundle:
    modules, loader = _program(known, absent, root)
    sections = [loader, settings, *(f"{name}\n{source}" for name, source in modules.items())]
    data, codec = pack_text("\0".join(sections))
    return Bundle(data, modules, settings, codec)


@functools.lru_cache(maxsize=16)
def _program(known: _Known, absent: frozenset[str], root: Path) -> tuple[dict[str, str], str]:
    """Packed sources of all modules that a program with `known` settings needs, and that of the importer."""
    package = PackageSources(root, dict(known))
    trees = trace(package, [ENTRY], absent)
    propagate_(trees, ENTRY)
    left: Mapping[str, ast.Module] = ChainMap(trees, package)  # type: ignore[arg-type]  # only read
    trees = trace(left, [ENTRY], absent)  # without what only decided branches needed
    shorten_names_(list(trees.values()))
    loader = ast.parse(ast.unparse(package[_IMPORTER]) + _START.format(module=ENTRY[0], function=ENTRY[1]))
    return {name: print_compactly(tree) for name, tree in trees.items()}, print_compactly(loader)


def pack_text(text: str) -> tuple[bytes, str]:
    """A Python file that unpacks `text` (sections divided by NUL) and runs its first section, and the codec's name.

    Raises ValueError when a section holds what the file could not carry.
    """
    raw = text.encode("utf-8")
    # A dictionary far above the text changes nothing; code has no period that literal position bits would help.
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "pb": 0}]
    packed = {
        "bz2": bz2.compress(raw),
        "lzma": lzma.compress(raw, format=lzma.FORMAT_ALONE, filters=filters),
    }
    codec = min(packed, key=lambda name: len(latin1_literal(packed[name])))
    body = _UNPACK.format(codec=codec, literal=latin1_literal(packed[codec]))
    return _FILE.format(version=__version__, body=body).encode("latin1"), codec


def latin1_literal(data: bytes) -> str:
    """A Python string literal on one line whose characters are the bytes of `data` in Latin-1."""
    quote = min("'\"", key=lambda q: data.count(q.encode()))
    written = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", quote: "\\" + quote}
    text = data.decode("latin1")
    parts = []
    for position, character in enumerate(text):
        if character == "\0":  # no file may hold it; an octal escape would swallow a digit behind it
            parts.append("\\x00" if text[position + 1 : position + 2].isdigit() else "\\0")
        else:
            parts.append(written.get(character, character))
    return quote + "".join(parts) + quote
