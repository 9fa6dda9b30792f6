"""The source `stdlib`: about 9 MB of English and code that every Python installation contains.

It consists of documentation topics (`pydoc_data.topics`), docstrings of modules written in C, and the sources of the
standard library without tests and tables. Files are read in a fixed order by hash, so every prefix is a mixture of all
kinds. Long files are cut at blank lines. The text depends on the version of Python, not on the machine.
"""

import hashlib
import importlib
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import BuiltinFunctionType, ModuleType

from bitgolf.data.cut_text import cut_text
from bitgolf.errors import DataError

DOCUMENT_BYTES = 16 * 1024
_SKIPPED = frozenset((
    "test", "tests", "site-packages", "dist-packages", "idlelib", "pydoc_data", "lib2to3", "__pycache__",
    "encodings", "ensurepip", "turtledemo",
))  # fmt: skip
_C_MODULES = (
    "array", "atexit", "binascii", "builtins", "cmath", "errno", "gc", "itertools", "marshal", "math", "select",
    "signal", "sys", "time", "unicodedata",
)  # fmt: skip


def stdlib_documents() -> Iterator[str]:
    """Documents of the embedded corpus, at most 16 KB each, in a fixed order.

    Raises DataError if this Python has no library sources (a stripped or frozen installation).
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    keys = [
        f"source {p.relative_to(root).as_posix()}"
        for p in root.rglob("*.py")
        if not _SKIPPED & set(p.relative_to(root).parts) and not p.name.startswith("_sysconfigdata")
    ]
    if not keys:
        raise DataError(
            f"this Python has no library sources under {root}; use another source, for example jsonl:PATH or dir:PATH"
        )
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    keys += [f"topic {name}" for name in topics] + [f"module {name}" for name in _C_MODULES]
    for key in sorted(keys, key=lambda k: hashlib.blake2b(k.encode(), digest_size=8).digest()):
        kind, name = key.split(" ", 1)
        if kind == "source":
            text = _source(root / name)
        elif kind == "topic":
            text = topics[name]
        else:
            text = _docstrings(importlib.import_module(name))
        yield from cut_text(text.splitlines(keepends=True), DOCUMENT_BYTES)


def _source(path: Path) -> str:
    """The text of a Python source, decoded as the file declares (PEP 263)."""
    try:
        with tokenize.open(path) as handle:
            return handle.read()
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the library source {path}: {error}") from error


def _docstrings(module: ModuleType) -> str:
    """The docstrings of `module` and of its public functions and types, each under its name.

    Members that the start-up of the interpreter adds to `builtins` (exit, copyright) are left out.
    """
    parts = [f"{module.__name__}\n\n{module.__doc__ or ''}\n"]
    for name, member in sorted(vars(module).items()):
        if not name.startswith("_") and isinstance(member, (type, BuiltinFunctionType)) and member.__doc__:
            parts.append(f"{module.__name__}.{name}\n\n{member.__doc__}\n")
    return "\n".join(parts)
