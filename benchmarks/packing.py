"""How long quantizing and coding take, and how near the coder comes to the entropy of the codes.

    python benchmarks/packing.py [--device cpu] [--width 512] [--layers 2]

Random weights and Hessians of the baseline's shapes; prints GPTQ seconds, the error left against rounding to nearest,
and bits a weight of each compressor against the order-0 entropy.
"""

from __future__ import annotations

import argparse
import time

import torch

from bitgolf.artifact.compressors import compress, compressor_names, missing_package
from bitgolf.grids.grid import Grid
from bitgolf.quantize.tensors import QuantizeTask, quantize_tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--bits", type=int, default=6)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    width = arguments.width
    tasks = []
    for layer in range(arguments.layers):
        for rows, columns in ((width, width), (width // 2, width), (2 * width, width), (width, 2 * width)):
            mix = torch.randn(columns, columns, generator=generator) / columns**0.5
            x = torch.randn(4 * columns, columns, generator=generator) @ mix
            weight = torch.randn(rows, columns, generator=generator)
            name = f"layer{layer}.{rows}x{columns}"
            tasks.append(QuantizeTask(name, weight, Grid(arguments.bits), "gptq", x.T @ x / len(x)))
    begin = time.perf_counter()
    done = quantize_tensors(tasks, device=arguments.device)
    seconds = time.perf_counter() - begin
    weights = sum(task.weight.numel() for task in tasks)
    print(f"GPTQ of {weights:,} weights at {arguments.bits} bits on {arguments.device}: {seconds:.2f} s")
    kept = sum((t.hessian_error or 0.0) for t in done) / sum((t.rtn_hessian_error or 0.0) for t in done)
    print(f"output error: {kept:.3f} of rounding to nearest")
    codes = b"".join(t.codes.numpy().tobytes() for t in done)
    entropy = sum(t.code_bits * t.codes.numel() for t in done) / weights
    print(f"order-0 entropy {entropy:.4f} bits a weight")
    for name in compressor_names():
        if missing_package(name):
            continue
        begin = time.perf_counter()
        bits = 8 * len(compress(name, codes)) / weights
        print(f"{name:<7} {bits:.4f} bits a weight ({bits / entropy - 1:+.1%}) in {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()
