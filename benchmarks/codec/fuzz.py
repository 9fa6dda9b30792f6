"""Damaged and hostile coded texts: every one must end in a clear error or in exactly the text.

    python benchmarks/codec/fuzz.py MODEL [--count 1000] [--seed 0] [--bytes 400]

Takes a short text, coded in two streams with the artifact MODEL, and changes it: bytes flipped, cut, inserted, pieces
swapped; with the checksum as it was, or repaired so that the damage reaches the parser, the range coder and the
model. Prints how the cases ended. Anything else than an error of bitgolf's own or the exact text stops it.
"""

from __future__ import annotations

import argparse
import collections
import random
import re
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path

import torch

from bitgolf.codec import CodecModel, compress_bytes, decompress_bytes, file_format
from bitgolf.codec.file_format import CodedStream, CodedText
from bitgolf.errors import BitgolfError

TEXT = "The quiet miller carries a letter across the valley, and nobody asks why. déjà vu!\n" * 50
_CRC_AT, _HEADER_AT, _BODY_AT = 7, 5, 35  # see file_format


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bytes", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = CodecModel.load(arguments.model, "cpu")
    text = TEXT.encode()[: arguments.bytes]
    coded = compress_bytes(text, model, streams=2)
    rng = random.Random(arguments.seed)
    begin = time.perf_counter()
    ends: collections.Counter[str] = collections.Counter()
    for _ in range(arguments.count):
        kind, bad = damaged(coded.data, coded.text, rng)
        ends[f"{kind}: {outcome(bad, model, text)}"] += 1
    for name, count in sorted(ends.items(), key=lambda item: (item[0].split(":")[0], -item[1])):
        print(f"{count:5}  {name}")
    print(f"{arguments.count} cases in {time.perf_counter() - begin:.0f} s: each an error or the exact text")


def damaged(data: bytes, text: CodedText, rng: random.Random) -> tuple[str, bytes]:
    """The name of a kind of damage, and the file damaged so."""
    kind = rng.choice(("bytes", "bytes resealed", "header text", "header values", "payload"))
    if kind.startswith("bytes"):
        bad = scrambled(data, rng)
        return kind, resealed(bad) if kind == "bytes resealed" else bad
    if kind == "header text":
        return kind, with_header(data, scrambled(header_text(data), rng, b'0123456789[]{}",:.-eEnulltrue'))
    streams = list(text.streams)
    if kind == "payload":
        index = rng.randrange(len(streams))
        payload = bytearray(streams[index].payload)
        for _ in range(rng.randint(1, 3)):
            payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
        streams[index] = replace(streams[index], payload=bytes(payload))
        if rng.random() < 0.1:
            streams.reverse()
        return kind, file_format.write(replace(text, streams=tuple(streams)))
    changes = {
        "num_bytes": rng.choice((0, 1, text.num_bytes - 1, text.num_bytes + 1, 2**31, 2**60)),
        "text_digest": rng.randbytes(16),
        "model_digest": rng.randbytes(8),
        "platform": {"torch": "0"},
        "threads": rng.choice((0, 1, 3, 10**9)),
        "stride": rng.choice((0, 1, 7, 10**6)),
        "streams": tuple(
            CodedStream(max(0, s.num_tokens + rng.randint(-9, 9)), s.payload, rng.random() < 0.5) for s in streams
        ),
    }
    name = rng.choice(sorted(changes))
    return f"{kind} ({name})", file_format.write(replace(text, **{name: changes[name]}))


def scrambled(data: bytes, rng: random.Random, alphabet: bytes = bytes(range(256))) -> bytes:
    """A few bytes changed, cut out or put in, or the end cut off."""
    bad = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(max(1, len(bad)))
        what = rng.randrange(8)
        if what < 5 and bad:
            bad[at] = rng.choice(alphabet)
        elif what == 5:
            del bad[at : at + rng.randint(1, 20)]
        elif what == 6:
            bad[at:at] = bytes(rng.choices(alphabet, k=rng.randint(1, 20)))
        else:
            del bad[at:]
    return bytes(bad)


def resealed(data: bytes) -> bytes:
    """`data` with the magic, version and checksum put right."""
    if len(data) < _CRC_AT + 4:
        return data
    data = file_format.MAGIC + bytes([file_format.FORMAT_VERSION]) + data[5:]
    checksum = zlib.crc32(data[_CRC_AT + 4 :], zlib.crc32(data[:_CRC_AT]))
    return data[:_CRC_AT] + struct.pack("<I", checksum) + data[_CRC_AT + 4 :]


def header_text(data: bytes) -> bytes:
    """The JSON of the header of a sound file."""
    (size,) = struct.unpack_from("<H", data, _HEADER_AT)
    return file_format._inflate(data[_BODY_AT : _BODY_AT + size])


def with_header(data: bytes, text: bytes) -> bytes:
    """A sound file with another header, sealed."""
    (size,) = struct.unpack_from("<H", data, _HEADER_AT)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=file_format._DICTIONARY)
    header = deflate.compress(text) + deflate.flush()
    start = data[:_HEADER_AT] + struct.pack("<H", len(header)) + data[_HEADER_AT + 2 : _BODY_AT]
    return resealed(start + header + data[_BODY_AT + size :])


def outcome(data: bytes, model: CodecModel, text: bytes) -> str:
    """How decoding ends: "the exact text", or the beginning of the error; anything else is raised."""
    try:
        decoded = decompress_bytes(data, model, allow_platform_mismatch=True, max_text_bytes=4 * len(text))
    except BitgolfError as error:
        assert str(error)
        return re.sub(r"[0-9a-f]{16}|[0-9,]*[0-9]|b'.*'", "#", str(error))[:50]
    assert decoded == text, "decoded to another text without an error"
    return "the exact text"


if __name__ == "__main__":
    main()
