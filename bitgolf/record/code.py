"""Bytes of the code that ships with an artifact (rules B1, B2).

Until a submission is bundled, the honest upper bound is counted: every Python source of the package, compressed
together with xz. What a bundle really contains is smaller.
"""

from __future__ import annotations

import lzma
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable


@cache
def code_bytes() -> int:
    """Size in bytes of all Python sources of the installed package, concatenated and compressed by xz -9e."""
    sources = b"".join(
        name.encode() + b"\0" + data for name, data in sorted(_sources(resources.files("bitgolf"), ""))
    )
    return len(lzma.compress(sources, preset=9 | lzma.PRESET_EXTREME))


def _sources(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _sources(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".py"):
            found.append((prefix + entry.name, entry.read_bytes()))
    return found
