"""What column steps and trellises are worth on the matrices of a run, in bits a weight at equal output error.

    python benchmarks/compress/steps.py RUN [--bits 3.3] [--damping 0.01] [--device auto] [--into FOLDER]

RUN is a run directory with float weights and calibration statistics. Every matrix is quantized with GPTQ at about
the same entropy (of discretized Gaussians of fitted row and column variances) by: one step; column steps; one step on
a trellis of 8 states; column steps on that trellis. "waste" is
1/2 log2(AM(D) / GM(D)), what one step for all columns should cost; the other columns are the bits that a variant saves
against one step at equal Hessian error. "side" is what the column steps cost to store. Tables without statistics are
compared by the error of their weights.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bitgolf.measure.calibration import hessian_key
from bitgolf.model.weights import read_tensors
from bitgolf.quantize.code_length import gaussian_bits
from bitgolf.quantize.column_steps import Steps
from bitgolf.quantize.tensors import QuantizedTensor, QuantizeTask, quantize_tensors
from bitgolf.run.directory import RunDirectory
from bitgolf.run.ranks import device_name

VARIANTS = {
    "one step": Steps(1.0),
    "columns": Steps(1.0, columns="pivot"),
    "trellis 8": Steps(1.0, trellis=8),
    "columns, trellis 8": Steps(1.0, columns="pivot", trellis=8),
}
_PASSES = 2  # quantizations at a corrected step; what remains is bridged at 6.02 dB a bit


def at_bits(tasks: list[QuantizeTask], steps: Steps, target: float, damping: float, device: torch.device):
    """The tasks quantized with steps that bring each near `target` bits; tensors, their bits, seconds of a pass."""
    sizes = [float(task.weight.float().square().mean().sqrt()) * 2 ** (2.047 - target) for task in tasks]
    for _ in range(_PASSES):
        now = [
            replace(task, grid=replace(steps, step=size, columns=steps.columns if task.hessian is not None else "one"))
            for task, size in zip(tasks, sizes, strict=True)
        ]
        begin = time.perf_counter()
        tensors = quantize_tensors(now, damping=damping, device=device)
        seconds = time.perf_counter() - begin
        bits = [gaussian_bits(t.codes, t.trellis) for t in tensors]
        sizes = [size * 2 ** (b - target) for size, b in zip(sizes, bits, strict=True)]
    return tensors, bits, seconds


def side_bits(tensor: QuantizedTensor) -> float:
    """Order-0 entropy of the column steps, in bits a weight."""
    if tensor.column_scales is None:
        return 0.0
    counts = np.unique(tensor.column_scales.numpy(), return_counts=True)[1]
    return float((counts * np.log2(counts.sum() / counts)).sum()) / tensor.codes.numel()


def error(tensor: QuantizedTensor) -> float:
    """Output error where the inputs are known, else the weights'."""
    return tensor.weight_error if tensor.hessian_error is None else tensor.hessian_error


def measure(run: RunDirectory, target: float, damping: float, device: torch.device) -> dict[str, object]:
    """Bits saved by tensor and variant."""
    weights = read_tensors(run.require("weights.safetensors"), run.path)
    hessians = read_tensors(run.require("calibration") / "hessians.safetensors", run.path)
    tasks = []
    for name, weight in weights.items():
        if weight.ndim == 2 and weight.numel() > run.config.pack.small_tensor:
            hessian = hessians.get(hessian_key(name) or "")
            tasks.append(QuantizeTask(name, weight, Steps(1.0), "rtn" if hessian is None else "gptq", hessian))
    found = {variant: at_bits(tasks, steps, target, damping, device) for variant, steps in VARIANTS.items()}
    plain, plain_bits, _ = found["one step"]
    rows = []
    for i, task in enumerate(tasks):
        saved = {}
        for variant, (tensors, bits, _) in found.items():
            ratio = error(plain[i]) / error(tensors[i])
            saved[variant] = plain_bits[i] - bits[i] + 0.5 * math.log2(ratio)
        rows.append(
            {
                "name": task.name,
                "shape": list(task.weight.shape),
                "bits": plain_bits[i],
                "error": error(plain[i]),
                "waste": plain[i].uniform_waste_bits,
                "side": side_bits(found["columns"][0][i]),
                "saved": saved,
            }
        )
    total = sum(task.weight.numel() for task in tasks)
    share = [task.weight.numel() / total for task in tasks]
    return {
        "run": run.config.name,
        "seed": run.config.seed,
        "target_bits": target,
        "damping": damping,
        "hardware": device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "num_weights": total,
        "waste": sum(p * float(r["waste"] or 0.0) for p, r in zip(share, rows, strict=True)),
        "side": sum(p * r["side"] for p, r in zip(share, rows, strict=True)),
        "saved": {v: sum(p * r["saved"][v] for p, r in zip(share, rows, strict=True)) for v in VARIANTS},
        "seconds": {variant: seconds for variant, (_, _, seconds) in found.items()},
        "tensors": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--bits", type=float, default=3.3)
    parser.add_argument("--damping", type=float, default=0.01)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    run = RunDirectory.open(arguments.run)
    name = arguments.device
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    result = measure(run, arguments.bits, arguments.damping, device)
    others = [variant for variant in VARIANTS if variant != "one step"]
    print(f"{result['num_weights']:,} weights of {result['run']} at about {arguments.bits} bits; bits saved a weight")
    header = " ".join(f"{variant:>{max(9, len(variant))}}" for variant in others)
    print(f"{'tensor':<34} {'shape':>12} {'waste':>7} {'side':>7} {header}")
    total = {"name": "all, by number of weights", "shape": [], **{k: result[k] for k in ("waste", "side", "saved")}}
    for row in [*result["tensors"], total]:
        waste = "-" if row["waste"] is None else f"{row['waste']:.4f}"
        saved = " ".join(f"{row['saved'][variant]:>{max(9, len(variant))}.4f}" for variant in others)
        print(f"{row['name']:<34} {'x'.join(map(str, row['shape'])):>12} {waste:>7} {row['side']:7.4f} {saved}")
    for variant, seconds in result["seconds"].items():
        print(f"{variant:<28} {seconds:8.2f} s")
    if arguments.into:
        arguments.into.mkdir(parents=True, exist_ok=True)
        target = arguments.into / f"steps-{run.config.name}-seed{run.config.seed}.json"
        target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
