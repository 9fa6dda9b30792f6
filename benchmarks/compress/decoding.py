"""Time and memory of reading an artifact of 16 MB, on one core.

    python benchmarks/compress/decoding.py --into DIR [--commit HASH] [--states 0 8] [--repeats 3] [ARTIFACT...]

Makes a model of 36M weights in the shapes of the 27M-parameter presets with a larger vocabulary and a wider MLP: 11
layers of 512, tied embedding of 8,192 rows; Gaussians whose rows and columns vary in scale, rounded to `Steps`, with
and without a trellis. Each artifact (and each file named) is read in processes of their own that may use one core;
reading includes dequantization. "memory" is by how much the resident set grew at its highest, as a multiple of the
fp32 weights. Writes decoding.json and decoding.md into DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from coder import hardware

from bitgolf.artifact.container import encode_artifact, read_artifact
from bitgolf.artifact.stored import StoredTensor
from bitgolf.quantize.column_steps import Steps
from bitgolf.quantize.tensors import QuantizeTask, quantize_tensors

SHAPES = {
    "attention.query": (512, 512),
    "attention.key": (256, 512),
    "attention.value": (256, 512),
    "attention.out": (512, 512),
    "mlp.up": (2048, 512),
    "mlp.down": (512, 2048),
}
NUM_LAYERS, VOCAB_SIZE, MODEL_DIM = 11, 8192, 512
MATRIX_STEP, EMBED_STEP = 0.4, 0.2  # in standard deviations; together they come to 16 MB


def model(states: int) -> dict[str, StoredTensor]:
    """The tensors of the synthetic model."""
    generator = torch.Generator().manual_seed(0)

    def task(name: str, rows: int, columns: int, steps: Steps) -> QuantizeTask:
        by_row = torch.exp(0.25 * torch.randn(rows, 1, generator=generator))
        by_column = torch.exp(0.15 * torch.randn(columns, generator=generator))
        weight = torch.randn(rows, columns, generator=generator) * by_row * by_column
        return QuantizeTask(name, weight, steps, "rtn")

    tasks = [task("embedding", VOCAB_SIZE, MODEL_DIM, Steps(EMBED_STEP, trellis=states))]
    gains = {}
    for layer in range(NUM_LAYERS):
        for name, shape in SHAPES.items():
            tasks.append(task(f"blocks.{layer}.{name}.weight", *shape, Steps(MATRIX_STEP, trellis=states)))
        for name in ("attn_scale", "mlp_scale"):
            values = 1 + 0.1 * torch.randn(MODEL_DIM, generator=generator)
            gains[f"blocks.{layer}.{name}"] = StoredTensor.fp16(values)
    return gains | {tensor.name: tensor.stored() for tensor in quantize_tensors(tasks)}


def peak_bytes() -> int:
    """The most that was resident since this program began (`ru_maxrss` would count the process it was forked from)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def read_once(path: Path) -> dict[str, float]:
    """Read `path` in this process, on one core."""
    torch.set_num_threads(1)
    before = peak_bytes()
    begin, cpu = time.perf_counter(), time.process_time()
    artifact = read_artifact(path)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    peak = peak_bytes()
    num_weights = sum(tensor.numel() for tensor in artifact.tensors.values())
    return {
        "num_weights": num_weights,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "memory": (peak - before) / (4 * num_weights),
        "process_memory": peak / (4 * num_weights),
    }


def read_alone(path: Path) -> dict[str, float]:
    """`read_once` in a fresh process that may use one core."""
    core = min(os.sched_getaffinity(0))
    found = subprocess.run(
        [sys.executable, __file__, "--read", str(path)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    result: dict[str, float] = json.loads(found.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", nargs="*", type=Path)
    parser.add_argument("--name", nargs="*", default=[], help="what to call each artifact; else its folder")
    parser.add_argument("--into", type=Path)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--states", nargs="*", type=int, default=[0, 8], help="trellises of the synthetic models")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read_once(arguments.read)))
        return
    if arguments.into is None:
        parser.error("--into DIR is needed")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cases: dict[str, Path] = {}
        for states in arguments.states:
            path = Path(folder) / f"{states}.bitgolf"
            data, _ = encode_artifact(
                model_config={}, tokenizer=b"", tokenizer_meta={}, tensors=model(states), meta={}, compressor="range"
            )
            path.write_bytes(data)
            cases["synthetic, " + (f"{states} states" if states else "no trellis")] = path
        for number, path in enumerate(arguments.artifacts):
            name = arguments.name[number] if number < len(arguments.name) else path.resolve().parent.name
            cases[name] = path
        for name, path in cases.items():
            runs = [read_alone(path) for _ in range(arguments.repeats)]
            best = min(runs, key=lambda run: run["seconds"])
            rows.append({"case": name, "bytes": path.stat().st_size, **best, "all": runs})
    lines = [
        "| artifact | bytes | weights | seconds | CPU seconds | memory | of the process |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {row['case']} | {row['bytes']:,} | {row['num_weights']:,} | {row['seconds']:.2f} | "
            f"{row['cpu_seconds']:.2f} | {row['memory']:.2f}x | {row['process_memory']:.2f}x |"
            for row in rows
        ),
    ]
    print("\n".join(lines))
    arguments.into.mkdir(parents=True, exist_ok=True)
    head = [
        "# Reading an artifact on one core",
        "",
        f"Made by `benchmarks/compress/decoding.py` at commit {arguments.commit} on {hardware()}.",
        f"Best of {arguments.repeats} fresh processes; memory as a multiple of the fp32 weights.",
        "",
    ]
    (arguments.into / "decoding.md").write_text("\n".join([*head, *lines, ""]))
    report = {"commit": arguments.commit, "hardware": hardware(), "rows": rows}
    (arguments.into / "decoding.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
