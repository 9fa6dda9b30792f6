"""Crafted token shards: headers that declare other sizes, other versions, and files that are no shards."""

from __future__ import annotations

import itertools
import struct
from functools import partial
from pathlib import Path

import numpy as np

from bitgolf.data.shards import TokenShards, write_shard
from crafted.case import Case
from crafted.damage import DAMAGED_BYTES, SPECIAL

MAGICS = (20240520, 0, -1, 20240521)
VERSIONS = (1, 0, -1, 2)
COUNTS = (0, 1, 99, 100, 101, -1, 500_000, 2**31 - 1, -(2**31))
LENGTHS = (0, 1, 1_023, 1_024, 1_025, 1_224, 1_225, 1_000_000)  # bytes; 1,224 are those of 100 tokens


def write(magic: int, version: int, count: int, length: int, path: Path) -> None:
    """A file of `length` bytes with those fields in its header."""
    header = struct.pack("<3i", magic, version, count).ljust(1_024, b"\0")
    path.write_bytes((header + bytes(range(256)) * 4_000)[:length])


def damaged(what: str, path: Path) -> None:
    """A sound shard with damage of that name."""
    write_shard(path, np.arange(100))
    if what in SPECIAL:
        path.unlink()
        SPECIAL[what](path)
    else:
        path.write_bytes(DAMAGED_BYTES[what](path.read_bytes()))


def read(path: Path) -> object:
    """Read all tokens."""
    shards = TokenShards([path])
    shards.validate(1_000)
    return shards.read(0, shards.num_tokens)


def cases() -> list[Case]:
    """All crafted shards."""
    fields = itertools.product(MAGICS, VERSIONS, COUNTS, LENGTHS)
    made = [
        Case("magic {}, version {}, {} tokens, {} bytes".format(*each), partial(write, *each), read) for each in fields
    ]
    return made + [Case(what, partial(damaged, what), read) for what in (*DAMAGED_BYTES, *SPECIAL)]
