"""Crafted tokenizers: SentencePiece models with very many pieces, fields or bytes, alone and inside an artifact."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from surgery import put_together, tiny_contents
from tiny_run import documents

from bitgolf.artifact import tokenizer_bytes
from bitgolf.artifact.open import open_model
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.data.train_tokenizer import train_tokenizer
from bitgolf.errors import BitgolfError
from crafted.artifact import packed as compressed
from crafted.case import Case


def warm_up() -> None:
    """Refuse a small file, so that imports do not count."""
    try:
        Tokenizer.load(b"\x0a\x03\x0a\x01a")
    except BitgolfError:
        return


def pieces(count: int, length: int) -> bytes:
    """`count` different pieces of `length` bytes."""
    texts = (f"{i:0{length}x}"[-length:].encode() for i in range(count))
    return b"".join(bytes([10, length + 2, 10, length]) + text for text in texts)


def inside(make: Callable[[], bytes], path: Path) -> None:
    """An artifact with that tokenizer, compressed by lzma after `tokenizer_bytes` where that can be done."""
    raw = make()
    rearranged = tokenizer_bytes.rearrange(raw)
    stream = compressed("range", raw)
    if rearranged is not None:
        stream = b"\3" + len(rearranged).to_bytes(4, "little") + compressed("lzma", rearranged)
    fields = {"model_config": {"vocab_size": 384}, "meta": {"window": 64, "stride": 32}}
    fields |= {"tokenizer_meta": {"lossless": True}, "tokenizer_bytes": len(raw), "compressor": "range"}
    path.write_bytes(put_together({"streams": [], "tensors": []} | fields, [stream]))


def separators(path: Path) -> None:
    """A list of 3 million empty pieces in the form that `tokenizer_bytes` restores."""
    count = 3_000_000
    rearranged = count.to_bytes(4, "little") + b"\x07" + bytes(5 * count) + b"\x07" * count
    stream = b"\3" + len(rearranged).to_bytes(4, "little") + compressed("lzma", rearranged)
    contents = tiny_contents() | {"tensors": {}, "tokenizer": b""}
    header = {k: contents[k] for k in ("model_config", "meta", "tokenizer_meta")}
    fields = {"streams": [], "tensors": [], "tokenizer_bytes": 4_000_000, "compressor": "range"}
    path.write_bytes(put_together(header | fields, [stream]))


def write(make: Callable[[], bytes], path: Path) -> None:
    """Write the bytes that `make` gives."""
    path.write_bytes(make())


def load(path: Path) -> object:
    """Read a tokenizer file."""
    return Tokenizer.load(path)


def open_on_cpu(path: Path) -> object:
    """Open an artifact."""
    return open_model(path, "cpu")


MODELS: dict[str, Callable[[], bytes]] = {
    "65,536 pieces of 8 bytes": partial(pieces, 65_536, 8),
    "110,000 pieces of 5 bytes": partial(pieces, 110_000, 5),
    "250,000 empty pieces": partial(bytes.__mul__, b"\x0a\x02\x0a\x00", 250_000),
    "500,000 varints": partial(bytes.__mul__, b"\x20\x01", 500_000),
    "a piece of 1 MB": lambda: b"\x0a\xc4\x84\x3d\x0a\xc0\x84\x3d" + b"a" * 1_000_000,
    "1 MB of zeros": partial(bytes, 1_000_000),
    "a normalizer of 1 MB": lambda: b"\x0a\x03\x0a\x01a\x1a\xc4\x84\x3d\x12\xc0\x84\x3d" + b"\1" * 1_000_000,
}


PAYLOADS: dict[str, bytes] = {
    "nothing": b"",
    "the largest integer": b"\xff" * 9 + b"\x01",
    "an integer without end": b"\xff" * 40,
    "a length beyond the file": b"\xff\xff\xff\xff\x0f" + b"abc",
    "bytes that are no text": b"\x04\xff\xfe\x80\xc0",
    "200 nested messages": b"".join(bytes([0x7F, 0x0A]) for _ in range(200)),
    "1 MB of zeros": b"\x80\x80\x40" + bytes(1 << 20),
}


@cache
def sound() -> bytes:
    """A small model that loads."""
    return train_tokenizer(documents()[:60], 360, lossless=True).model_bytes


def with_field(number: int, wire_type: int, payload: str, first: bool) -> bytes:
    """The sound model with one more field, before or after the others."""
    field = bytes([number << 3 | wire_type]) + PAYLOADS[payload]
    return field + sound() if first else sound() + field


def cases() -> list[Case]:
    """All crafted tokenizers."""
    alone = [Case(name, partial(write, make), load) for name, make in MODELS.items()]
    packed_inside = [
        Case(f"in an artifact: {name}", partial(inside, make), open_on_cpu) for name, make in MODELS.items()
    ]
    for number, wire, payload, first in itertools.product(range(8), range(8), PAYLOADS, (True, False)):
        name = f"field {number} of type {wire} with {payload}, {'first' if first else 'last'}"
        alone.append(Case(name, partial(write, partial(with_field, number, wire, payload, first)), load))
    return [*alone, *packed_inside, Case("in an artifact: 3 million empty pieces, rearranged", separators, open_on_cpu)]
