"""The code that trains, packs and scores, as one train_gpt.py that runs alone (rule B2, docs/rules.md).

    package sources ──trace──▶ what main() reaches ──python-minifier──▶ text ──bz2──▶ one file

The file is Python source in Latin-1: a few lines around a string that holds the compressed text, one character per
byte (base85 would need a quarter more bytes). It unpacks in memory and imports from there (see `importer`), so it needs
neither temporary files nor an installed bitgolf, only Python and the packages in requirements.txt. The code is the same
for every configuration; only the settings in the file differ. The same sources and settings give the same bytes with
one version of Python and of python-minifier, so anybody can check that a file was made from the `source/` beside it.
This folder reads the sources as text and imports only the configuration.
"""

import ast
import bz2
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import python_minifier

from bitgolf.bundle.trace import bound_name, trace
from bitgolf.config import Config
from bitgolf.config.section import differing_keys, with_values
from bitgolf.version import __version__

PACKAGE = "bitgolf"
MOST_CODE_BYTES = 80_000  # of the file of any preset
ENTRY = ("bitgolf.submit.train_gpt", "main")
_IMPORTER = "bitgolf.bundle.importer"
_START = """
import os
install(__file__, PARTS[2:])
if __name__ == "__main__":
    from {module} import {function}
    {function}(PARTS[1], sys.argv[1:], os.path.getsize(__file__))
"""
# The payload has its own line, so that no traceback shows it.
_FILE = (
    "#coding:latin1 (bitgolf {version}: made from source/, where the same program can be read and run)\n"
    "PARTS={literal}\n"
    "import bz2;P=PARTS.encode('latin1');n=P[0];"
    "P=bytes(b-P[i-i%n+1]&255 for i,b in enumerate(P[1:])if i%n);"
    "PARTS=bz2.decompress(P).decode().split('\\0');exec(PARTS[0])\n"
)
# Errors without their messages in the file, but for those that a command line can cause.
_SHOWN_BY_SOURCE = (
    "ArtifactError",
    "BudgetError",
    "ConfigError",
    "DataError",
    "ForeignError",
    "RuleViolation",
    "RunError",
    "TrainingDiverged",
    "TypeError",
    "ValueError",
)
_ESCAPED = re.compile(rb'[\0\n\r"]|\\\Z')
_SHIFTS = [bytes((value + shift) % 256 for value in range(256)) for shift in range(256)]
_CHECKED_BEFORE = ("description", "ge", "gt", "le", "lt")
_WITH_MESSAGES = ("bitgolf.config.overrides", "bitgolf.submit.train_gpt")
# Who reviews a submission follows the score through these modules, as the check `single-pass` does.
_FOLLOWED_BY_REVIEWERS = "bitgolf.evaluate."
# Modules whose source or signatures are read at run time keep both unchanged.
_READ_BY_COMPILERS = re.compile(r"\b(import triton|custom_op|get_type_hints)\b")


@dataclass(frozen=True)
class Bundle:
    data: bytes  # the bytes of train_gpt.py
    modules: Mapping[str, str]  # minified source of each module by dotted name
    settings: str  # JSON of the settings that differ from the defaults


def make_bundle(config: Config, root: Path | None = None) -> Bundle:
    """The train_gpt.py of a configuration, without the seed, which its command line gives.

    `root` is the folder that holds the package's folder; None = that of the installed package. The first call in a
    process takes a few seconds.
    """
    modules, start = _program((root or installed_root()).resolve())
    settings = settings_json(config)
    return Bundle(_packed(start, settings, tuple(modules.items())), modules, settings)


def code_bytes(config: Config) -> int:
    """Bytes of the code that ships with an artifact (rules B1 and B2): the size of this configuration's train_gpt.py.

    The seed does not matter.
    """
    return len(make_bundle(config).data)


def installed_root() -> Path:
    """The folder that holds the running package."""
    return Path(__file__).resolve().parents[2]


def module_files(root: Path) -> dict[str, Path]:
    """The source files of the package below `root`, by dotted name of the module."""
    files: dict[str, Path] = {}
    for file in sorted((root / PACKAGE).rglob("*.py")):
        parts = list(file.relative_to(root).with_suffix("").parts)
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


def settings_json(config: Config) -> str:
    """The settings inside a bundle of this configuration, as JSON (see `train_gpt.main`)."""
    values = config.flat()
    different = {key: values[key] for key in differing_keys(config, Config()) if key != "seed"}
    return json.dumps(with_values({}, different), separators=(",", ":"), ensure_ascii=False)


@functools.lru_cache(maxsize=4)
def _program(root: Path) -> tuple[dict[str, str], str]:
    """Minified source of every module that the program needs, and of its first section."""
    files = module_files(root)
    sources = {
        name: without_checks(ast.parse(file.read_text(encoding="utf-8"), str(file))) for name, file in files.items()
    }
    modules = {
        name: minified(
            ast.unparse(without_texts(tree, messages=name in _WITH_MESSAGES)),
            rename_functions=not name.startswith(_FOLLOWED_BY_REVIEWERS),
        )
        for name, tree in trace(sources, *ENTRY).items()
    }
    start = ast.unparse(sources[_IMPORTER]) + _START.format(module=ENTRY[0], function=ENTRY[1])
    return modules, minified(start)


def without_checks(module: ast.Module) -> ast.Module:
    """The module without the validators of settings, and with 0 in place of types of fields that nothing reads.

    The settings in the file are current, and the validators saw them when the run was made. `source/train_gpt.py` has
    the validators. Nothing reads the types of the fields of dataclasses and named tuples.
    """
    for node in ast.walk(module):
        if not isinstance(node, ast.ClassDef):
            continue
        node.body = [part for part in node.body if not _validates(part)] or [ast.Pass()]
        if {"dataclass", "NamedTuple"} & {
            part.id for part in ast.walk(ast.Tuple([*node.decorator_list, *node.bases])) if isinstance(part, ast.Name)
        }:
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation):
                    field.annotation = ast.Constant(0)
    return module


def _validates(node: ast.stmt) -> bool:
    """Whether it is a method with the decorator `model_validator(...)`."""
    return isinstance(node, ast.FunctionDef) and any(
        isinstance(part, ast.Call) and ast.unparse(part.func) == "model_validator" for part in node.decorator_list
    )


def without_texts(module: ast.Module, *, messages: bool = False) -> ast.Module:
    """The module without what only a reader needs.

    The descriptions of settings (`Field(..., description=...)`) are for the command line. The limits of settings were
    applied when the run was made, and `source/train_gpt.py` applies them again. The messages of some errors
    (`_SHOWN_BY_SOURCE`) are about settings, data and files that do not fit; `source/train_gpt.py` shows them, and the
    file shows the error and its line. With `messages` they stay.
    """
    module = ast.parse(ast.unparse(module))  # a copy, several times faster than copy.deepcopy
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Field":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in _CHECKED_BEFORE]
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and not messages:
            error = node.exc.func
            node.exc = error if isinstance(error, ast.Name) and error.id in _SHOWN_BY_SOURCE else node.exc
    return module


@functools.cache
def minified(source: str, *, rename_functions: bool = True) -> str:
    """The same module in fewer bytes, without docstrings and annotations, and with short names where only it uses them.

    Those are names of local variables, and global names that begin with an underscore. Names of modules, attributes,
    and other functions and classes stay, so modules can be minified one by one and tracebacks are readable. Without
    `rename_functions` functions and classes that begin with an underscore keep their names too.
    """
    untouched = _READ_BY_COMPILERS.search(source) is not None
    annotations = python_minifier.RemoveAnnotationsOptions(
        remove_variable_annotations=not untouched,
        remove_return_annotations=not untouched,
        remove_argument_annotations=not untouched,
        remove_class_attribute_annotations=False,  # pydantic and dataclasses read them
    )
    return python_minifier.minify(
        source,
        remove_literal_statements=True,
        remove_annotations=annotations,
        remove_asserts=True,  # as `python -O` does; `source/train_gpt.py` has them
        rename_locals=not untouched,
        preserve_locals=["self"],  # one name in all methods compresses better than several short ones
        rename_globals=not untouched,
        preserve_globals=_kept_names(source, rename_functions),
        hoist_literals=False,  # repeated literals compress well
        constant_folding=False,
    )


def _kept_names(source: str, rename_functions: bool) -> list[str]:
    """The global names of a module that stay: imports, and names without one underscore before them."""
    kept: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.alias):
            kept.add(bound_name(node))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            (others if rename_functions else kept).add(node.name)
        elif isinstance(node, ast.Name):
            others.add(node.id)
    return sorted(kept | {name for name in others if not name.startswith("_") or name.startswith("__")})


@functools.lru_cache(maxsize=16)
def _packed(start: str, settings: str, modules: tuple[tuple[str, str], ...]) -> bytes:
    sections = [f"{name}\n{source}" for name, source in modules]
    turns = range(0, len(sections), -(-len(sections) // 8))  # bz2's size depends on their order, by 0.7 %
    return pack_texts(["\0".join([start, settings, *sections[k:], *sections[:k]]) for k in turns])


def pack_texts(texts: Sequence[str]) -> bytes:
    """A Python file that unpacks the shortest of `texts` (sections separated by NUL) and runs its first section."""
    packed = min((bz2.compress(text.encode("utf-8")) for text in texts), key=len)  # 5 % smaller than lzma for code
    return _FILE.format(version=__version__, literal=shifted_literal(packed)).encode("latin1")


def shifted_literal(data: bytes) -> str:
    """A Python string literal on one line without escapes, whose characters stand for `data`.

    The first character is n. Then come blocks of n characters: a shift, and n - 1 bytes plus this shift, modulo 256.
    The shifts are chosen so that no byte occurs that would need an escape. This takes 0.5 % more bytes than `data`,
    while escapes take 2 %.
    """
    for n in range(255, 1, -1):  # ends at 63 at the latest: each of 62 bytes rules out at most 4 of 252 shifts
        blocks = [_shifted(data[start : start + n - 1]) for start in range(0, len(data), n - 1)]
        if all(blocks):
            break
    return f'r"{chr(n)}{b"".join(blocks).decode("latin1")}"'


def _shifted(block: bytes) -> bytes:
    """A shift and the shifted block; empty if every shift gives a byte that a raw string cannot hold, or end with."""
    for shift in range(1, 256):
        shifted = bytes([shift]) + block.translate(_SHIFTS[shift])
        if not _ESCAPED.search(shifted):
            return shifted
    return b""
