"""How fast the parts are, beside what they compete with: tokenizing, packing, reading an artifact, coding text.

    python benchmarks/timing.py                         # tokenizing, packing and reading; `make bench`
    python benchmarks/timing.py tokenizing [--source stdlib] [--tokenizer MODEL] [--megabytes 8]
    python benchmarks/timing.py packing [--device cpu] [--width 512] [--layers 2] [--bits 6]
    python benchmarks/timing.py reading [ARTIFACT...] [--repeats 3]
    python benchmarks/timing.py codec MODEL TEXT [--bytes 65536] [--streams 1,0] [--device auto] [--ttt.KEY VALUE ...]

tokenizing: one core turns text into tokens, and proves each document by decoding it.
packing:    GPTQ of random matrices in the shapes of the preset `baseline`, and every compressor on the codes.
reading:    a synthetic model of 36 million weights in 16 MB, with and without a trellis, and the named artifacts. Each
            is read in fresh processes on one core. "memory" is the growth of the process at its peak.
codec:      the first bytes of TEXT, coded and decoded with the artifact MODEL. "over score" compares the payload with
            what the scorer charges for the same tokens in the same streams. 0 streams is the automatic choice.
"""

from __future__ import annotations

import argparse
import json
import logging
import lzma
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import zstandard

from bitgolf.artifact.compressors import compress, compressor_names, missing_package
from bitgolf.artifact.container import encode_artifact, read_artifact
from bitgolf.artifact.stored import StoredTensor
from bitgolf.codec import CodecModel, compress_bytes, decompress_bytes
from bitgolf.codec.tokens import split_bytes, tokenize
from bitgolf.commands.codec import ask_for_reproducible_cublas
from bitgolf.config import Config, resolve
from bitgolf.data.sources import iterate_documents
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.data.train_tokenizer import train_tokenizer
from bitgolf.evaluate.adapted_pass import adapted_pass
from bitgolf.evaluate.chunk_training import preserved
from bitgolf.evaluate.tape import ScoreTape, evaluate
from bitgolf.evaluate.window_scorer import Windows
from bitgolf.grids.grid import Grid
from bitgolf.quantize.column_steps import Steps
from bitgolf.quantize.tensors import QuantizeTask, quantize_tensors
from bitgolf.run.ranks import World

SHAPES = {
    "attention.query": (512, 512),
    "attention.key": (256, 512),
    "attention.value": (256, 512),
    "attention.out": (512, 512),
    "mlp.up": (2048, 512),
    "mlp.down": (512, 2048),
}
NUM_LAYERS, VOCAB_SIZE, MODEL_DIM = 11, 8192, 512
MATRIX_STEP, EMBED_STEP = 0.4, 0.2  # in standard deviations; together they make a file of 16 MB


def time_tokenizing(source: str, tokenizer_path: str | None, megabytes: float) -> None:
    texts: list[str] = []
    size = 0
    for text in iterate_documents(source):
        texts.append(text)
        size += len(text.encode())
        if size >= megabytes * 1e6:
            break
    if tokenizer_path:
        tokenizer = Tokenizer.load(tokenizer_path)
    else:
        tokenizer = train_tokenizer(texts[: len(texts) // 4], 1024, True)
    wall, cpu = time.perf_counter(), time.process_time()
    encoded = tokenizer.encode_proven(texts)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{size:,} bytes, {len(texts):,} documents -> {len(encoded.tokens):,} tokens with {tokenizer.name}")
    print(f"{size / 1e6 / cpu:.1f} MB/s of CPU time, {size / 1e6 / wall:.1f} MB/s of wall time, peak {peak:.0f} MiB")


def time_packing(device: str, width: int, layers: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tasks = []
    for layer in range(layers):
        for rows, columns in ((width, width), (width // 2, width), (2 * width, width), (width, 2 * width)):
            mix = torch.randn(columns, columns, generator=generator) / columns**0.5
            x = torch.randn(4 * columns, columns, generator=generator) @ mix
            weight = torch.randn(rows, columns, generator=generator)
            name = f"layer{layer}.{rows}x{columns}"
            tasks.append(QuantizeTask(name, weight, Grid(bits), "gptq", x.T @ x / len(x)))
    begin = time.perf_counter()
    tensors = quantize_tensors(tasks, device=device)
    seconds = time.perf_counter() - begin
    weights = sum(task.weight.numel() for task in tasks)
    print(f"GPTQ of {weights:,} weights at {bits} bits on {device}: {seconds:.2f} s")
    left = sum((t.hessian_error or 0.0) for t in tensors) / sum((t.rtn_hessian_error or 0.0) for t in tensors)
    print(f"output error: {left:.3f} of that of rounding to nearest")
    codes = b"".join(t.codes.numpy().tobytes() for t in tensors)
    entropy = sum(t.code_bits * t.codes.numel() for t in tensors) / weights
    print(f"order-0 entropy {entropy:.4f} bits per weight")
    for name in compressor_names():
        if missing_package(name):
            continue
        begin = time.perf_counter()
        coded = 8 * len(compress(name, codes)) / weights
        seconds = time.perf_counter() - begin
        print(f"{name:<7} {coded:.4f} bits per weight ({coded / entropy - 1:+.1%}) in {seconds:.1f} s")


def synthetic_model(states: int) -> dict[str, StoredTensor]:
    """Gaussians whose rows and columns vary in scale, rounded with unbounded codes; a trellis when `states` is 8."""
    generator = torch.Generator().manual_seed(0)

    def task(name: str, rows: int, columns: int, step: float) -> QuantizeTask:
        by_row = torch.exp(0.25 * torch.randn(rows, 1, generator=generator))
        by_column = torch.exp(0.15 * torch.randn(columns, generator=generator))
        weight = torch.randn(rows, columns, generator=generator) * by_row * by_column
        return QuantizeTask(name, weight, Steps(step, trellis=states), "rtn")

    tasks = [task("embedding", VOCAB_SIZE, MODEL_DIM, EMBED_STEP)]
    gains = {}
    for layer in range(NUM_LAYERS):
        for name, shape in SHAPES.items():
            tasks.append(task(f"blocks.{layer}.{name}.weight", *shape, MATRIX_STEP))
        for name in ("attn_scale", "mlp_scale"):
            values = 1 + 0.1 * torch.randn(MODEL_DIM, generator=generator)
            gains[f"blocks.{layer}.{name}"] = StoredTensor.fp16(values)
    return gains | {tensor.name: tensor.stored() for tensor in quantize_tensors(tasks)}


def read_here(path: Path) -> dict[str, float]:
    """Read `path` in this process, on one core."""

    def peak_bytes() -> int:  # `ru_maxrss` would count the process that this one was forked from
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

    torch.set_num_threads(1)
    before, begin = peak_bytes(), time.perf_counter()
    artifact = read_artifact(path)
    seconds = time.perf_counter() - begin
    weights = sum(tensor.numel() for tensor in artifact.tensors.values())
    return {"weights": weights, "seconds": seconds, "memory": (peak_bytes() - before) / (4 * weights)}


def time_reading(artifacts: list[Path], repeats: int) -> None:
    core = min(os.sched_getaffinity(0))
    print("artifact                     bytes      weights  seconds  memory, of the fp32 weights")
    with tempfile.TemporaryDirectory() as folder:
        cases: dict[str, Path] = {}
        for states in (0, 8):
            path = Path(folder) / f"{states}.bitgolf"
            data, _ = encode_artifact(
                model_config={},
                tokenizer=b"",
                tokenizer_meta={},
                tensors=synthetic_model(states),
                meta={},
                compressor="range",
            )
            path.write_bytes(data)
            cases[f"synthetic, {f'{states} states' if states else 'no trellis'}"] = path
        for name, path in (cases | {path.resolve().parent.name: path for path in artifacts}).items():
            runs = [
                json.loads(
                    subprocess.run(
                        [sys.executable, __file__, "read", str(path)],
                        check=True,
                        capture_output=True,
                        text=True,
                        env=os.environ | {"OMP_NUM_THREADS": "1"},
                        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
                    ).stdout
                )
                for _ in range(repeats)
            ]
            best = min(runs, key=lambda run: run["seconds"])
            size = path.stat().st_size
            print(f"{name:<22} {size:>11,} {best['weights']:>12,} {best['seconds']:8.2f} {best['memory']:7.2f}x")


def time_codec(path: Path, text_path: Path, num_bytes: int, streams: str, device: str, ttt: dict[str, str]) -> None:
    ask_for_reproducible_cublas()
    with text_path.open("rb") as handle:
        text = handle.read(num_bytes)
    model = CodecModel.load(path, device)
    packed = model.packed
    scoring = {"seq_len": packed.window, "stride": packed.stride, "methods": ["sliding"]}
    config = resolve({"model": packed.model.config.model_dump(mode="json"), "score": scoring}, ttt)
    print(f"{len(text):,} bytes, {packed.device}, {torch.get_num_threads()} threads, {ttt or 'no adaptation'}")
    print("streams  tokens     file  header   score  over score     bpb  coding B/s  decoding B/s")
    for count in map(int, streams.split(",")):
        begin = time.perf_counter()
        coded = compress_bytes(text, model, streams=count, ttt=config.ttt)
        coded_at = time.perf_counter()
        decoded = decompress_bytes(coded.data, model)
        decoded_at = time.perf_counter()
        assert decoded == text
        num_streams, payload = len(coded.text.streams), coded.text.payload_bytes
        charged = score_bytes(text, model, config, num_streams)
        score, over = (f"{charged:.0f}", f"{payload / charged - 1:+.3%}") if charged else ("-", "-")
        print(
            f"{num_streams:7}  {coded.num_tokens:6}  {len(coded.data):7}  {len(coded.data) - payload:6}  "
            f"{score:>6}  {over:>10}  {coded.bpb:.4f}  {len(text) / (coded_at - begin):10,.0f}  "
            f"{len(text) / (decoded_at - coded_at):12,.0f}",
            flush=True,
        )
    for name, size in general_purpose(text).items():
        print(f"{name:<10} {size:9} bytes  {8 * size / len(text):.4f} bits per byte")


def score_bytes(text: bytes, model: CodecModel, config: Config, streams: int) -> float:
    """Bytes that the scorer charges for the streams; 0 when the streams share what they learn."""
    if config.ttt.between_chunks and streams > 1:
        return 0.0
    packed = model.packed
    bos_id = packed.tokenizer.bos_id
    total = 0.0
    for stream in tokenize(split_bytes(text, streams), packed.tokenizer):
        tape = ScoreTape(np.concatenate([[bos_id], stream.tokens]))
        with preserved(packed.model):
            gpt, world = packed.model, World(0, 1, packed.device)
            windows = Windows.of(config, "sliding", 16 * config.window)
            if config.ttt.enabled:
                learning = adapted_pass(
                    config.ttt,
                    windows,
                    gpt,
                    gpt,
                    num_targets=tape.num_targets,
                    bos_id=bos_id,
                    seed=config.seed,
                    world=world,
                )
                learning.run(tape)
            else:
                evaluate(tape, windows.scorer(gpt, world))
        total += float(tape.nll.sum(dtype=np.float64))
    return total / math.log(2) / 8


def general_purpose(text: bytes) -> dict[str, int]:
    """Bytes of the text by each general-purpose compressor that is installed."""
    long_window = zstandard.ZstdCompressionParameters.from_level(22, window_log=27)
    sizes = {
        "zstd-22": len(zstandard.ZstdCompressor(compression_params=long_window).compress(text)),
        "xz-9": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)),
    }
    try:
        import brotli
    except ImportError:
        print("brotli is not installed: no figure for it")
    else:
        sizes["brotli-11"] = len(brotli.compress(text, quality=11, lgwin=24))
    return sizes


def main() -> None:
    logging.basicConfig(format="%(levelname)s %(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command")
    sub = commands.add_parser("tokenizing")
    sub.add_argument("--source", default="stdlib")
    sub.add_argument("--tokenizer", help="SentencePiece model; without it one of 1,024 pieces is trained")
    sub.add_argument("--megabytes", type=float, default=8.0)
    sub = commands.add_parser("packing")
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--width", type=int, default=512)
    sub.add_argument("--layers", type=int, default=2)
    sub.add_argument("--bits", type=int, default=6)
    sub = commands.add_parser("reading")
    sub.add_argument("artifacts", nargs="*", type=Path)
    sub.add_argument("--repeats", type=int, default=3)
    sub = commands.add_parser("read")  # one reading, in the process of its own that `reading` starts
    sub.add_argument("path", type=Path)
    sub = commands.add_parser("codec", allow_abbrev=False)
    sub.add_argument("model", type=Path)
    sub.add_argument("text", type=Path)
    sub.add_argument("--bytes", type=int, default=65_536)
    sub.add_argument("--streams", default="1,0")
    sub.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    arguments, rest = parser.parse_known_args()
    if rest and arguments.command != "codec":
        parser.error(f"unexpected {rest[0]}")
    match arguments.command:
        case "tokenizing":
            time_tokenizing(arguments.source, arguments.tokenizer, arguments.megabytes)
        case "packing":
            time_packing(arguments.device, arguments.width, arguments.layers, arguments.bits)
        case "reading":
            time_reading(arguments.artifacts, arguments.repeats)
        case "read":
            print(json.dumps(read_here(arguments.path)))
        case "codec":
            ttt = {key.removeprefix("--"): value for key, value in zip(rest[::2], rest[1::2], strict=True)}
            time_codec(arguments.model, arguments.text, arguments.bytes, arguments.streams, arguments.device, ttt)
        case None:
            time_tokenizing("stdlib", None, 8.0)
            time_packing("cpu", 512, 2, 6)
            time_reading([], 3)


if __name__ == "__main__":
    main()
