"""Crafted coded texts: headers and payloads that declare much more work and memory than their bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from fuzz import as_version_1, header_text, with_header
from tiny_gpt import WINDOW, config, tiny_gpt
from tiny_run import documents

from bitgolf.artifact.open import PackedModel
from bitgolf.codec import CodecModel, compress_bytes, decompress_bytes, file_format
from bitgolf.codec.checkpoints import num_checkpoints
from bitgolf.codec.file_format import CodedStream, CodedText
from bitgolf.config import TTTConfig
from bitgolf.data.train_tokenizer import train_tokenizer
from crafted.case import Case
from crafted.damage import some_fields

MEGABYTE = 1_000_000


@cache
def model() -> CodecModel:
    """A tiny model of 360 tokens with windows of 16."""
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(documents()[:60], 360, lossless=True)
    gpt = tiny_gpt(config().model.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    return CodecModel(PackedModel(gpt, tokenizer, WINDOW, 4, "math"), bytes(32))


@cache
def sound() -> CodedText:
    """A short text that decodes."""
    return compress_bytes(documents()[60][:200].encode(), model()).text


def warm_up() -> None:
    """Decode a sound file, so that imports and tables do not count."""
    decompress_bytes(file_format.write(sound()), model())


def read(path: Path) -> bytes:
    """Decode a file."""
    return decompress_bytes(path.read_bytes(), model())


def write(make: Callable[[], bytes], path: Path) -> None:
    """Write the bytes that `make` gives."""
    path.write_bytes(make())


def payloads(sizes: list[int], tokens: int, seed: int = 0, **fields: Any) -> bytes:
    """Streams of random payloads, `tokens` each, with checkpoints that a forger has guessed."""
    rng = random.Random(seed)
    streams = tuple(CodedStream(tokens, rng.randbytes(size), False) for size in sizes)
    checkpoints = bytes(num_checkpoints(tokens))
    return file_format.write(replace(sound(), num_bytes=1 << 31, streams=streams, checkpoints=checkpoints, **fields))


def header(**fields: Any) -> bytes:
    """A sound file with other fields in its header."""
    data = file_format.write(sound())
    return with_header(data, json.dumps(json.loads(header_text(data)) | fields).encode())


def text(raw: bytes) -> bytes:
    """A sound file with `raw` in place of its header."""
    return with_header(file_format.write(sound()), raw)


def version_1(tokens: int) -> bytes:
    """A file of version 1 with a payload of 74 bytes, rounded to words."""
    return as_version_1(replace(sound(), num_bytes=1 << 31, streams=(CodedStream(tokens, bytes(76), False),)))


def ttt(method: str, **settings: Any) -> TTTConfig:
    """Test-time training with settings of its method."""
    return TTTConfig.model_validate({"method": method, "lora" if method == "lora" else "weights": settings})


def cases() -> list[Case]:
    """All crafted coded texts."""
    made: dict[str, Callable[[], bytes]] = {
        "17 GB of declared tokens": partial(header, streams=[[1 << 31, 1, 0]], bytes=1 << 31),
        "tokens beyond any integer": partial(header, streams=[[10**30, 1, 0]], bytes=1 << 31),
        "one long stream beside 4,095 short ones": partial(
            header, streams=[[1 << 20, 0, 0], *[[1, 0, 0]] * 4095], bytes=1 << 31
        ),
        "4 million tokens in 74 bytes, version 1": partial(version_1, 4_000_000),
        "a thousand tokens in 74 bytes, version 1": partial(version_1, 1_000),
        "as many tokens as 76 bytes may hold": partial(payloads, [76], 3_000),
        "1 MB of noise, 1 stream": partial(payloads, [MEGABYTE], 15_000_000),
        "1 MB of noise, 128 streams": partial(payloads, [7_800] * 128, 120_000),
        "1 MB of noise, 4,096 streams": partial(payloads, [240] * 4096, 3_900),
        "4,096 streams of one token": partial(payloads, [4] * 4096, 1),
        "10^9 epochs": partial(header, ttt=ttt("full", epochs=10**9, chunk_tokens=16).model_dump(mode="json")),
        "the most epochs after each window": partial(
            payloads, [100_000], 1_000_000, ttt=ttt("full", epochs=100, chunk_tokens=16, batch_rows=1)
        ),
        "an update after every token": partial(payloads, [100_000], 1_000_000, ttt=ttt("lora", chunk_tokens=1)),
        "rank 10^9": partial(header, ttt=ttt("lora", rank=10**9).model_dump(mode="json")),
        "10^9 documents": partial(header, ttt=ttt("lora", documents=10**9).model_dump(mode="json")),
        "a stride of one": partial(payloads, [100_000], 1_000_000, stride=1),
        "256 threads": partial(payloads, [1_000], 10_000, threads=256),
        "a header that inflates to 10 MB": partial(text, b" " * 10 * MEGABYTE),
        "a header of nested lists": partial(text, b"[" * 200_000),
        "a header with a number of 200,000 digits": partial(text, b'{"bytes":' + b"9" * 200_000 + b"}"),
        "a header of 60,000 streams": partial(header, streams=[[1, 0, 0]] * 20_000),
    }
    for name, changed in some_fields(json.loads(header_text(file_format.write(sound()))), 30):
        made[name] = partial(text, changed.encode())
    return [Case(name, partial(write, make), read) for name, make in made.items()]
