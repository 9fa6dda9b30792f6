"""Damaged and hostile files: every one must end in a clear error, or in exactly what was stored.

    python benchmarks/fuzz.py artifact [--count 100000] [--compressor range] [--into DIR]
    python benchmarks/fuzz.py codec MODEL [--count 1000] [--bytes 400]

`artifact` reads damaged artifacts. Half of them have all checksums and sizes repaired, so that the damage reaches the
decoders. Child processes with little memory to spare read 2,000 each. A decoder that aborts, or asks for more memory
than the file declares, ends only its child and is reported with the number of the case.

`codec` decodes damaged coded texts with the artifact MODEL: bytes changed, cut or inserted, and headers and payloads
changed. In some of them the checksum is repaired, so that the damage reaches the parser, the range coder and the model.

Both print how the cases ended. `--seed` sets the damage.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import platform
import queue
import random
import re
import resource
import struct
import sys
import time
import zlib
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from bitgolf.artifact.container import encode_artifact, read_artifact
from bitgolf.codec import CodecModel, compress_bytes, decompress_bytes, file_format
from bitgolf.codec.file_format import CodedStream, CodedText
from bitgolf.errors import ArtifactError, BitgolfError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

CASES_PER_CHILD = 2000
SPARE_BYTES = 256 << 20  # beyond what the child holds before its first case
MAX_BYTES = 1 << 24  # that an artifact may declare
SLOW_SECONDS = 1.0
TEXT = "The quiet miller carries a letter across the valley, and nobody asks why. déjà vu!\n" * 50
_CRC_AT, _HEADER_AT, _BODY_AT = 7, 5, 35  # see codec/file_format.py


def read_damaged(first: int, artifact: bytes, results: multiprocessing.Queue[tuple[str, object]]) -> None:
    """Read the damaged artifacts from number `first` on, in a child process, and report each outcome."""
    from surgery import mutations

    read_artifact(artifact)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + SPARE_BYTES, held + SPARE_BYTES))
    counts: collections.Counter[str] = collections.Counter()
    slowest, faults = 0.0, []
    for case, data in enumerate(islice(mutations(artifact, random.Random(first)), CASES_PER_CHILD), first):
        results.put(("began", case))
        begin = time.process_time()  # CPU time: other work on the machine does not count
        try:
            read_artifact(data, max_bytes=MAX_BYTES)
            ending = "read"
        except ArtifactError as error:
            ending = "refused: " + str(error).split(" ")[0].rstrip(":")
        except BaseException as error:
            ending = "FAULT"
            faults.append(f"case {case}: {type(error).__name__}: {error}")
        seconds = time.process_time() - begin
        if seconds > SLOW_SECONDS:
            faults.append(f"case {case}: took {seconds:.1f} CPU seconds")
        slowest = max(slowest, seconds)
        counts[ending] += 1
    results.put(("done", (counts, slowest, faults)))


def fuzz_artifacts(count: int, seed: int, compressor: str) -> dict[str, object]:
    """Read `count` damaged artifacts. The result lists the faults; it is what fuzz.json holds."""
    from surgery import rich_contents

    artifact = encode_artifact(**rich_contents(), compressor=compressor)[0]
    context = multiprocessing.get_context("spawn")
    counts: collections.Counter[str] = collections.Counter()
    slowest, faults, begin = 0.0, [], time.perf_counter()
    for first in range(seed, seed + count, CASES_PER_CHILD):
        results = context.Queue()
        child = context.Process(target=read_damaged, args=(first, artifact, results))
        child.start()
        last, done = first, False
        while not done:
            try:
                kind, value = results.get(timeout=60)
            except queue.Empty:
                ending = "hangs" if child.is_alive() else "died"
                faults.append(f"case {last}: the process {ending} ({child.exitcode})")
                child.kill()
                break
            if kind == "began":
                last = value
            else:
                done = True
                counts += value[0]
                slowest = max(slowest, value[1])
                faults += value[2]
        child.join()
    return {
        "cases": counts.total(),
        "compressor": compressor,
        "artifact_bytes": len(artifact),
        "outcomes": dict(counts.most_common()),
        "slowest_cpu_seconds": round(slowest, 3),
        "seconds": round(time.perf_counter() - begin, 1),
        "spare_bytes": SPARE_BYTES,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "faults": faults,
    }


def fuzz_codec(path: Path, count: int, seed: int, num_bytes: int) -> None:
    """Decode `count` damaged copies of a short coded text and print how they ended. Raises when one ends wrong."""
    torch.set_num_threads(1)
    model = CodecModel.load(path, "cpu")
    text = TEXT.encode()[:num_bytes]
    coded = compress_bytes(text, model, streams=2)
    rng = random.Random(seed)
    begin = time.perf_counter()
    endings: collections.Counter[str] = collections.Counter()
    for _ in range(count):
        kind, bad = damaged(coded.data, coded.text, rng)
        endings[f"{kind}: {outcome(bad, model, text)}"] += 1
    for name, times in sorted(endings.items(), key=lambda item: (item[0].split(":")[0], -item[1])):
        print(f"{times:5}  {name}")
    print(f"{count} cases in {time.perf_counter() - begin:.0f} s: each an error or the exact text")


def damaged(data: bytes, text: CodedText, rng: random.Random) -> tuple[str, bytes]:
    """The name of a kind of damage, and the coded file `data` damaged in this way."""
    kind = rng.choice(("bytes", "bytes resealed", "header text", "header values", "payload"))
    if kind.startswith("bytes"):
        bad = scrambled(data, rng)
        return kind, resealed(bad) if kind == "bytes resealed" else bad
    if kind == "header text":
        return kind, with_header(data, scrambled(header_text(data), rng, b'0123456789[]{}",:.-eEnulltrue'))
    if kind == "payload":
        return kind, with_payload_damage(text, rng)
    changes = {
        "num_bytes": rng.choice((0, 1, text.num_bytes - 1, text.num_bytes + 1, 2**31, 2**60)),
        "text_digest": rng.randbytes(16),
        "model_digest": rng.randbytes(8),
        "platform": {"torch": "0"},
        "threads": rng.choice((0, 1, 3, 10**9)),
        "stride": rng.choice((0, 1, 7, 10**6)),
        "streams": tuple(
            CodedStream(max(0, s.num_tokens + rng.randint(-9, 9)), s.payload, rng.random() < 0.5) for s in text.streams
        ),
    }
    name = rng.choice(sorted(changes))
    return f"{kind} ({name})", file_format.write(replace(text, **{name: changes[name]}))


def with_payload_damage(text: CodedText, rng: random.Random) -> bytes:
    """A file whose checksum is right, with bits of one stream's payload flipped and perhaps the streams reversed."""
    streams = list(text.streams)
    index = rng.randrange(len(streams))
    payload = bytearray(streams[index].payload)
    for _ in range(rng.randint(1, 3)):
        payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
    streams[index] = replace(streams[index], payload=bytes(payload))
    if rng.random() < 0.1:
        streams.reverse()
    return file_format.write(replace(text, streams=tuple(streams)))


def scrambled(data: bytes, rng: random.Random, alphabet: bytes = bytes(range(256))) -> bytes:
    """`data` with a few bytes changed, cut out or inserted, or its end cut off."""
    bad = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(max(1, len(bad)))
        change = rng.randrange(8)
        if change < 5 and bad:
            bad[at] = rng.choice(alphabet)
        elif change == 5:
            del bad[at : at + rng.randint(1, 20)]
        elif change == 6:
            bad[at:at] = bytes(rng.choices(alphabet, k=rng.randint(1, 20)))
        else:
            del bad[at:]
    return bytes(bad)


def resealed(data: bytes) -> bytes:
    """`data` with the right magic, version and checksum."""
    if len(data) < _CRC_AT + 4:
        return data
    data = file_format.MAGIC + bytes([file_format.FORMAT_VERSION]) + data[5:]
    checksum = zlib.crc32(data[_CRC_AT + 4 :], zlib.crc32(data[:_CRC_AT]))
    return data[:_CRC_AT] + struct.pack("<I", checksum) + data[_CRC_AT + 4 :]


def as_version_1(coded: CodedText) -> bytes:
    """A file of version 1, by its definition. Its platform does not name the BLAS of NumPy."""
    platform = {key: value for key, value in coded.platform.items() if key != "blas"}
    data = file_format.write(replace(coded, checkpoints=b"", platform=platform))
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=file_format._DICTIONARIES[1])
    header = deflate.compress(header_text(data)) + deflate.flush()
    payloads = b"".join(stream.payload for stream in coded.streams)
    start = data[:4] + b"\1" + len(header).to_bytes(2, "little") + bytes(4) + data[11:35]
    whole = start + header + payloads
    return whole[:7] + zlib.crc32(whole[:7] + whole[11:]).to_bytes(4, "little") + whole[11:]


def header_text(data: bytes) -> bytes:
    """The JSON text in the header of an undamaged file."""
    (size,) = struct.unpack_from("<H", data, _HEADER_AT)
    return file_format._inflate(data[_BODY_AT : _BODY_AT + size], file_format._DICTIONARIES[data[4]])


def with_header(data: bytes, text: bytes) -> bytes:
    """An undamaged file with the JSON `text` in its header, and the right checksum."""
    (size,) = struct.unpack_from("<H", data, _HEADER_AT)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=file_format._DICTIONARIES[data[4]])
    header = deflate.compress(text) + deflate.flush()
    start = data[:_HEADER_AT] + struct.pack("<H", len(header)) + data[_HEADER_AT + 2 : _BODY_AT]
    return resealed(start + header + data[_BODY_AT + size :])


def outcome(data: bytes, model: CodecModel, text: bytes) -> str:
    """How decoding ends: "the exact text", or the beginning of the error. Any other ending is raised."""
    try:
        decoded = decompress_bytes(data, model, allow_platform_mismatch=True, max_text_bytes=4 * len(text))
    except BitgolfError as error:
        assert str(error)
        return re.sub(r"[0-9a-f]{16}|[0-9,]*[0-9]|b'.*'", "#", str(error))[:50]
    assert decoded == text, "decoded to another text without an error"
    return "the exact text"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    artifact = commands.add_parser("artifact", help="damaged artifacts")
    artifact.add_argument("--count", type=int, default=100_000)
    artifact.add_argument("--compressor", default="range")
    artifact.add_argument("--into", type=Path, help="folder for fuzz.json")
    codec = commands.add_parser("codec", help="damaged coded texts")
    codec.add_argument("model", type=Path)
    codec.add_argument("--count", type=int, default=1000)
    codec.add_argument("--bytes", type=int, default=400)
    for sub in (artifact, codec):
        sub.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.command == "codec":
        fuzz_codec(arguments.model, arguments.count, arguments.seed, arguments.bytes)
        return
    summary = fuzz_artifacts(arguments.count, arguments.seed, arguments.compressor)
    print(json.dumps(summary, indent=2))
    if arguments.into:
        arguments.into.mkdir(parents=True, exist_ok=True)
        (arguments.into / "fuzz.json").write_text(json.dumps(summary, indent=2) + "\n")
    if summary["faults"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
