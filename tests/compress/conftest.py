"""A tiny artifact with every kind of tensor, and the means to take one apart and put it together wrong."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bitgolf.compress import compressors
from bitgolf.compress.container import FORMAT_VERSION, MAGIC, encode_artifact
from bitgolf.compress.stored import StoredTensor
from bitgolf.grid import Grid

PREAMBLE = struct.Struct("<8sHIII")


def stored(rows: int, columns: int, bits: int, group: str | None, seed: int) -> StoredTensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    grid = Grid(bits)
    scales = grid.scales(weight)
    return StoredTensor.quantized(grid.quantize(weight, scales), scales, bits, group)


@pytest.fixture
def contents() -> dict[str, Any]:
    """Arguments of `encode_artifact`, fresh for each test."""
    generator = torch.Generator().manual_seed(9)
    return {
        "model_config": {"model_dim": 8, "num_layers": 2, "qk_gain": 1.5},
        "tokenizer": b"not really a SentencePiece model" * 3,
        "tokenizer_meta": {"kind": "sentencepiece", "lossless": True},
        "tensors": {
            "embedding.weight": stored(6, 8, 8, "embedding", 0),
            "blocks.0.q.weight": stored(4, 8, 6, None, 1),
            "blocks.10.q.weight": stored(4, 8, 6, None, 2),
            "blocks.2.q.weight": stored(4, 8, 5, None, 3),
            "gain": StoredTensor.fp32(torch.tensor(1.25), "scalars"),
            "skips": StoredTensor.fp16(torch.rand(2, 8, generator=generator), "scalars"),
            "mix": StoredTensor.fp32(torch.rand(2, 3, 4, generator=generator)),
        },
        "meta": {"preset": "test", "note": "δ", "list": [1, 2.5, None, True]},
    }


@pytest.fixture
def artifact(contents: dict[str, Any]) -> bytes:
    """The bytes of the tiny artifact."""
    return encode_artifact(**contents)[0]


def take_apart(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The header as a dictionary and the compressed streams."""
    _, _, packed_bytes, raw_bytes, _ = PREAMBLE.unpack_from(data)
    position = PREAMBLE.size + packed_bytes
    header = json.loads(compressors.decompress("zstd", data[PREAMBLE.size : position], raw_bytes))
    streams = []
    for size, _ in header["streams"]:
        streams.append(data[position : position + size])
        position += size
    return header, streams


def put_together(
    header: dict[str, Any] | bytes, streams: list[bytes], *, version: int = FORMAT_VERSION, repair: bool = True
) -> bytes:
    """An artifact whose checksums are right, whatever the header says; `repair` makes sizes and sums follow."""
    if repair and isinstance(header, dict):
        header = {**header, "streams": [[len(s), f"{zlib.crc32(s):08x}"] for s in streams]}
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    packed = compressors.compress("zstd", raw)
    prefix = PREAMBLE.pack(MAGIC, version, len(packed), len(raw), 0)[:-4]
    return prefix + struct.pack("<I", zlib.crc32(packed, zlib.crc32(prefix))) + packed + b"".join(streams)


@pytest.fixture(name="take_apart")
def _take_apart() -> Callable[..., Any]:
    return take_apart


@pytest.fixture(name="put_together")
def _put_together() -> Callable[..., Any]:
    return put_together
