"""Bytes of the code that ships with an artifact (rules B1, B2).

Counted are the package's own Python sources that training, packing and scoring a prepared corpus need, compressed
together with xz: what a challenge entry has to carry. Left out is what an entry does without: making shards and
tokenizers, the audit, the report and the command line.
"""

from __future__ import annotations

import lzma
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

_NOT_SHIPPED = (
    "audit/", "record/", "presets/", "cli.py", "code_size.py", "console.py", "doctor.py", "tables.py", "__main__.py",
    "data/encode_stream.py", "data/existing_shards.py", "data/fineweb.py", "data/prepare.py", "data/sources.py",
    "data/split.py", "data/stdlib_text.py", "data/text_split.py", "data/train_tokenizer.py",
)  # fmt: skip


@cache
def code_bytes() -> int:
    """Size in bytes of the shipped sources, concatenated and compressed by xz -9e."""
    joined = b"".join(name.encode() + b"\0" + data for name, data in shipped_sources())
    return len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME))


def shipped_sources() -> list[tuple[str, bytes]]:
    """Path below the package and contents of every source file that counts, sorted by path."""
    return sorted(
        (name, data) for name, data in _sources(resources.files("bitgolf"), "") if not name.startswith(_NOT_SHIPPED)
    )


def _sources(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _sources(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".py"):
            found.append((prefix + entry.name, entry.read_bytes()))
    return found
