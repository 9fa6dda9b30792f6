"""Crafted artifacts: headers and streams that declare much more than their bytes."""

from __future__ import annotations

import json
import lzma
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from surgery import put_together, rich_contents, take_apart, tiny_contents

from bitgolf.artifact import compressors, integer_coder
from bitgolf.artifact.container import encode_artifact, read_artifact
from bitgolf.artifact.entropy_coder import Matrix, encode_matrices
from bitgolf.artifact.frequency import Law
from bitgolf.artifact.message import Writer
from bitgolf.artifact.scale_model import ScaleModel
from bitgolf.artifact.stored import StoredTensor
from bitgolf.artifact.streams import CODED
from bitgolf.artifact.symbol_counts import Integers
from crafted.case import Case
from crafted.damage import some_fields

Tensor = list[Any]  # [name, kind, group, shape] or those and [column scales, trellis]


def warm_up() -> None:
    """Read a small sound artifact, so that imports and tables do not count."""
    read_artifact(encode_artifact(**rich_contents(), compressor="range")[0])


def header(
    tensors: list[Tensor], *, compressor: str = "range", tokenizer_bytes: int = 0, **fields: Any
) -> dict[str, Any]:
    """A header of those tensors."""
    return {
        "compressor": compressor,
        "meta": {},
        "model_config": {},
        "streams": [],
        "tensors": tensors,
        "tokenizer_bytes": tokenizer_bytes,
        "tokenizer_meta": {},
    } | fields


def write(make: Callable[[], bytes], path: Path) -> None:
    """Write the bytes that `make` gives."""
    path.write_bytes(make())


def declared(shape: list[int], kind: str, compressor: str) -> bytes:
    """One tensor of zeros of that shape, whatever its size."""
    count = int(np.prod(shape))
    itemsize = {"fp32": 4, "fp16": 2, "int16": 2}.get(kind, 1)
    streams = []
    if kind.startswith("int"):
        scales = np.ones(shape[0], dtype="<f2").view(np.uint8).reshape(-1, 2).T.tobytes()
        streams.append(packed(compressor, scales))
    if compressor == "range" and kind.startswith("int"):
        streams.append(CODED + encode_matrices([Matrix(np.zeros((1, 1), dtype=np.int8))]))
    else:
        streams.append(packed(compressor, bytes(count * itemsize)))
    return put_together(header([["w", kind, "w", shape]], compressor=compressor), [*streams, b""])


def packed(compressor: str, data: bytes) -> bytes:
    """`data` compressed quickly, as the artifact's `compressor` reads it."""
    if compressor == "range":
        return b"\0" + zstandard.ZstdCompressor(level=3).compress(data)
    if compressor == "zstd":
        return zstandard.ZstdCompressor(level=3).compress(data)
    if compressor == "lzma":
        return lzma.compress(data, format=lzma.FORMAT_RAW, filters=compressors._lzma_filters(len(data)))
    return zlib.compress(data)


def many_groups(count: int, compressor: str) -> bytes:
    """Tiny tensors, each in a group and so in a stream of its own."""
    tensors = [[f"t{i}", "int8", f"g{i}", [1, 1]] for i in range(count)]
    scales = np.ones(count, dtype="<f2").view(np.uint8).reshape(-1, 2).T.tobytes()
    code = CODED + encode_matrices([Matrix(np.ones((1, 1), dtype=np.int8))])
    one = code if compressor == "range" else packed(compressor, b"\1")
    return put_together(header(tensors, compressor=compressor), [packed(compressor, scales), *[one] * count, b""])


def many_tensors(count: int) -> bytes:
    """Tiny tensors in one stream."""
    tensors = [[f"t{i}", "fp16", "g", [1]] for i in range(count)]
    return put_together(header(tensors, compressor="zstd"), [packed("zstd", bytes(2 * count)), b""])


def message_of(values: np.ndarray, times: int, law: Law, states: int = 0, num_classes: int = 1) -> bytes:
    """A message with `values` several times, with a law and classes that no encoder would choose."""
    fitted = integer_coder.fit

    def fit(integers: Integers) -> ScaleModel:
        if len(integers.values) == 1:
            return fitted(integers)
        rows, columns = (np.arange(n) % num_classes for n in integers.values.shape)
        return ScaleModel(0, 0, law, rows, columns)

    integer_coder.fit = fit
    try:
        out = Writer()
        for _ in range(times):
            integer_coder.put_integers(out, values, states)
        return CODED + out.finish()
    finally:
        integer_coder.fit = fitted


def hostile(rows: int, columns: int, count: int, law: Law, states: int = 0, num_classes: int = 1) -> bytes:
    """`count` matrices of small integers in one stream, coded as `message_of` says."""
    values = np.random.default_rng(0).integers(0, 3, (rows, columns))
    tensors = [[f"t{i}", "int16", "g", [rows, columns], 0, states] for i in range(count)]
    scales = packed("range", np.ones(rows * count, dtype="<f2").view(np.uint8).reshape(-1, 2).T.tobytes())
    return put_together(header(tensors), [scales, message_of(values, count, law, states, num_classes), b""])


def tokenizer_of(raw: bytes, compressor: str = "zstd", declared_bytes: int | None = None) -> bytes:
    """An artifact whose tokenizer is `raw`."""
    size = len(raw) if declared_bytes is None else declared_bytes
    return put_together(header([], compressor=compressor, tokenizer_bytes=size), [packed(compressor, raw)])


def deep_json(depth: int) -> bytes:
    """A header whose meta is nested that deep."""
    text = json.dumps(header([], compressor="zstd")).replace(
        '"meta": {}', '"meta": {"a": ' + "[" * depth + "]" * depth + "}"
    )
    return put_together(text.encode(), [])


def large_json() -> bytes:
    """A header of the largest size, of very many small values."""
    values = json.dumps(header([], compressor="zstd", meta={"a": [0] * 340_000}))
    return put_together(values.encode(), [])


def noise(count: int, states: int) -> bytes:
    """A message of random bytes for a matrix of `count` integers."""
    message = np.random.default_rng(0).integers(1, 256, 900_000, dtype=np.uint8).tobytes()
    shape = [count // 1024, 1024]
    scales = packed("range", np.ones(shape[0], dtype="<f2").view(np.uint8).reshape(-1, 2).T.tobytes())
    tensors = [["w", "int16", "w", shape, 0, states]]
    return put_together(header(tensors), [scales, CODED + message, b""])


def sound(rows: int, compressor: str, states: int) -> bytes:
    """A sound artifact of one Gaussian matrix."""
    rng = torch.Generator().manual_seed(0)
    codes = torch.round(0.6 * torch.randn(rows, 1024, generator=rng)).to(torch.int16)
    tensor = StoredTensor.quantized(codes, torch.ones(rows), 16, trellis=states)
    return encode_artifact(**(tiny_contents() | {"tensors": {"w": tensor}}), compressor=compressor)[0]


def cases() -> list[Case]:
    """All crafted artifacts."""
    made: dict[str, tuple[Callable[[], bytes], int]] = {}
    for compressor in ("range", "zstd", "lzma", "zlib"):
        for kind in ("int8", "int16", "fp32"):
            made[f"4 million zeros, {kind}, {compressor}"] = (
                partial(declared, [1 << 12, 1 << 10], kind, compressor),
                1 << 24,
            )
        made[f"64 million zeros, int8, {compressor}"] = (partial(declared, [1 << 13, 1 << 13], "int8", compressor), 0)
        made[f"16 million zeros, fp32, {compressor}"] = (partial(declared, [1 << 24], "fp32", compressor), 0)
        made[f"23,000 groups, {compressor}"] = (partial(many_groups, 23_000, compressor), 0)
        made[f"4,000 groups, {compressor}"] = (partial(many_groups, 4_000, compressor), 0)
    made["20,000 tensors in one stream"] = (partial(many_tensors, 20_000), 0)
    made["4,000 tensors in one stream"] = (partial(many_tensors, 4_000), 0)
    narrow, wide = Law(-4, 3, 16, 700), Law(-(1 << 15), (1 << 15) - 1, 16, 1500)
    for states in (0, 8):
        made[f"100 tables of 65,536 symbols, {states} states"] = (partial(hostile, 8, 8, 100, wide, states), 0)
        made[f"400 matrices of 255 contexts, {states} states"] = (partial(hostile, 64, 64, 400, narrow, states, 64), 0)
        made[f"4,000 matrices of 2 x 2, {states} states"] = (partial(hostile, 2, 2, 4_000, narrow, states, 2), 0)
        made[f"400 matrices of 512 x 4, {states} states"] = (partial(hostile, 512, 4, 400, narrow, states, 2), 0)
        made[f"one matrix of 4 million, {states} states"] = (
            partial(hostile, 2048, 2048, 1, narrow, states, 120),
            1 << 24,
        )
    made["tokenizer of 16 million zero bytes"] = (partial(tokenizer_of, bytes(1 << 24)), 0)
    made["tokenizer that declares 1 GB"] = (partial(tokenizer_of, bytes(1 << 20), "zstd", 1 << 30), 0)
    made["header nested 100,000 deep"] = (partial(deep_json, 100_000), 0)
    made["header of 340,000 numbers"] = (large_json, 0)
    for states in (0, 8):
        for count in (1 << 22, 1 << 25, 1 << 28):
            made[f"900 KB of noise for {count:,} integers, {states} states"] = (partial(noise, count, states), 0)
        made[f"sound, 6 million weights, {states} states"] = (partial(sound, 6_000, "range", states), 4 * 6_000 * 1024)
    made["sound, 6 million weights, zstd"] = (partial(sound, 6_000, "zstd", 0), 4 * 6_000 * 1024)
    for compressor in ("range", "zstd"):
        document, streams = take_apart(encode_artifact(**rich_contents(), compressor=compressor)[0])
        for name, text in some_fields(document, 8):
            made[f"{compressor}: {name}"] = (partial(put_together, text.encode(), streams, repair=False), 0)
    return [Case(name, partial(write, make), read_artifact, size) for name, (make, size) in made.items()]
