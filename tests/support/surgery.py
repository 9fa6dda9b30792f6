"""Artifacts taken apart and put together wrong: the tools of the container's tests and of the fuzzer."""

import json
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import torch

from bitgolf.artifact import compressors
from bitgolf.artifact.container import FORMAT_VERSION, MAGIC
from bitgolf.artifact.stored import StoredTensor
from bitgolf.grids.grid import Grid

PREAMBLE = struct.Struct("<8sHIII")
_JSON_ALPHABET = b'0123456789[]{}",:.-eEnulltrue \\ux'


def stored(rows: int, columns: int, bits: int, group: str | None, seed: int) -> StoredTensor:
    """A rounded Gaussian matrix on a grid."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    grid = Grid(bits)
    scales = grid.scales(weight)
    return StoredTensor.quantized(grid.quantize(weight, scales), scales, bits, group)


def unbounded(
    rows: int, columns: int, sigma: float, group: str | None, seed: int, *, trellis: int = 0, by_column: bool = True
) -> StoredTensor:
    """A matrix of unbounded codes with row and column scales of 1/8 octave, perhaps a path of a trellis."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.round(torch.randn(rows, columns, generator=generator) * sigma).to(torch.int16)
    octaves = [torch.round(4 * torch.randn(n, generator=generator)) / 8 for n in (rows, columns)]
    by_row, factors = ((0.01 * 2**octave).half().float() for octave in octaves)
    return StoredTensor.quantized(
        codes, by_row, 16, group, column_scales=factors if by_column else None, trellis=trellis
    )


def tiny_contents() -> dict[str, Any]:
    """Arguments of `encode_artifact`: a tiny artifact with every kind of tensor."""
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


def rich_contents() -> dict[str, Any]:
    """The same with what only the coder for weights makes good use of, large enough for its models to differ."""
    contents = tiny_contents()
    varied = torch.randn(40, 24, generator=torch.Generator().manual_seed(4)) * torch.logspace(-1, 0.6, 24)
    grid = Grid(6, clip_sigmas=12.0)
    scales = torch.full((40,), 0.0625)
    mean = torch.outer((torch.arange(64) < 32).float(), torch.linspace(-60, 60, 32))
    rows_alike = (mean + torch.randn(64, 32, generator=torch.Generator().manual_seed(5))).round().to(torch.int8)
    contents["tensors"] |= {
        "blocks.0.up.weight": StoredTensor.quantized(grid.quantize(varied, scales), scales, 6),
        "blocks.0.down.weight": unbounded(20, 16, 3.0, None, 6, trellis=8),
        "blocks.1.down.weight": unbounded(530, 3, 0.7, None, 7, trellis=8, by_column=False),
        "blocks.1.up.weight": unbounded(12, 10, 900.0, "wide", 8),
        "table.weight": StoredTensor.quantized(rows_alike, torch.full((64,), 0.125), 8),
        "constant.weight": StoredTensor.quantized(torch.full((9, 9), -3, dtype=torch.int8), torch.ones(9), 4),
        "gains": StoredTensor.fp16(1 + 0.1 * torch.randn(3, 40, generator=torch.Generator().manual_seed(9))),
    }
    return contents


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


def mutations(artifact: bytes, rng: random.Random) -> Iterator[bytes]:
    """Damaged copies without end: every second one as it is, the others with all checksums and sizes repaired."""
    header, streams = take_apart(artifact)
    text = json.dumps(header).encode()
    while True:
        yield _damaged(artifact, rng, rng.randint(1, 8))
        kind = rng.randrange(5)
        if kind == 0:
            yield put_together(_misspelled(text, rng), streams, repair=False)
        elif kind == 1:  # the header as it is, the streams in another order
            yield put_together(header, rng.sample(streams, len(streams)))
        else:
            some = list(streams)
            for _ in range(rng.randint(1, 2)):
                at = rng.randrange(len(some))
                some[at] = (
                    rng.randbytes(rng.randint(1, 60)) if kind == 2 else _damaged(some[at], rng, rng.randint(1, 4))
                )
            yield put_together(header, some)


def _damaged(data: bytes, rng: random.Random, times: int) -> bytes:
    bad = bytearray(data)
    for _ in range(times):
        kind, at = rng.randrange(4), rng.randrange(max(len(bad), 1))
        if kind == 0 and bad:
            bad[at] = rng.randrange(256)
        elif kind == 1 and bad:
            bad[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del bad[at : at + rng.randint(1, 20)]
        else:
            bad[at:at] = rng.randbytes(rng.randint(1, 20))
    return bytes(bad)


def _misspelled(text: bytes, rng: random.Random) -> bytes:
    bad = bytearray(text)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(bad))
        if rng.random() < 0.3:
            del bad[at : at + rng.randint(1, 9)]
        else:
            bad[at] = rng.choice(_JSON_ALPHABET)
    return bytes(bad)
