"""What the quantizers reach on synthetic Gaussians, and whether their gains add up inside GPTQ.

    python benchmarks/compress/trellis.py [--device cpu] [--weights 1048576] [--into FOLDER]

Three tables. Rate and distortion: squared error and entropy of nearest rounding and of the trellis of 8 states, the
gap to the Gaussian's rate-distortion function, and the error at equal entropy as a share of nearest rounding's.
Restarts: what starting the path again every n rows costs. Composition: gap to the information limit of GPTQ with one
step, with column steps and with the trellis, for Hessians of three spectra.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path

import torch
from torch import Tensor

from bitgolf.artifact.trellis import RESTART_ROWS, trellis_levels
from bitgolf.quantize.code_length import gaussian_bits
from bitgolf.quantize.column_steps import Steps
from bitgolf.quantize.tensors import quantize_tensor
from bitgolf.quantize.viterbi import trellis_quantize
from bitgolf.run.ranks import device_name

STEPS = (0.25, 0.35, 0.4145, 0.5, 0.7, 1.0, 1.25, 2.0)
SPREADS = {"mild": 0.0, "medium": 0.35, "strong": 0.6}  # of the logarithm of the inputs' sizes
VARIANTS: dict[str, tuple[str, Steps]] = {
    "nearest": ("rtn", Steps(0.4)),
    "GPTQ": ("gptq", Steps(0.4)),
    "GPTQ, trellis 8": ("gptq", Steps(0.4, trellis=8)),
    "GPTQ, column steps": ("gptq", Steps(0.4, columns="pivot")),
    "GPTQ, column steps, trellis 8": ("gptq", Steps(0.4, columns="pivot", trellis=8)),
}


def rate_distortion(weight: Tensor) -> list[dict[str, float]]:
    """One row for each step and number of states."""
    rows = []
    for step in STEPS:
        scalar = quantize_tensor("scalar", weight, Steps(step), "rtn")
        reference = scalar.weight_error * 4**scalar.code_bits
        for states in (0, 8):
            begin = time.perf_counter()
            found = quantize_tensor("x", weight, Steps(step, trellis=states), "rtn")
            rows.append(
                {
                    "step": step,
                    "states": states,
                    "bits": found.code_bits,
                    "squared_error": found.weight_error,
                    "gap_bits": found.code_bits + 0.5 * math.log2(found.weight_error),
                    "share_of_nearest_at_equal_bits": found.weight_error * 4**found.code_bits / reference,
                    "seconds": time.perf_counter() - begin,
                }
            )
    return rows


def restarts(weight: Tensor) -> list[dict[str, float]]:
    """Bits lost by starting the path of 8 states again every n rows, at a step of 0.4 standard deviations."""
    x = weight.T.contiguous() / 0.2
    rows = []
    for every in (32, 64, 128, 256, RESTART_ROWS, x.shape[1]):
        levels = trellis_quantize(x, 8, restart=every)
        decoded = trellis_levels((levels.int() >> 1).T, 8, every)
        assert torch.equal(decoded.T, levels.int())
        rows.append({"rows": float(every), "squared_error": float((x - levels).square().mean()) * 0.04})
    free = rows[-1]["squared_error"]
    return [row | {"lost_bits": 0.5 * math.log2(row["squared_error"] / free)} for row in rows]


def composition(rows: int, columns: int, device: torch.device) -> list[dict[str, float | str]]:
    """Gap to the information limit, tr(E H E^T) = rows * columns * det(H)^(1/columns) * 4^-bits."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(rows, columns, generator=generator)
    place = torch.arange(columns, dtype=torch.float64)
    found = []
    for name, spread in SPREADS.items():
        size = (spread * torch.randn(columns, generator=generator, dtype=torch.float64)).exp()
        hessian = 0.8 ** (place[:, None] - place[None]).abs() * size[:, None] * size[None]
        signal = float(((weight.double() @ hessian) * weight.double()).sum())
        limit = rows * columns * math.exp(float(torch.logdet(hessian)) / columns)
        for variant, (method, steps) in VARIANTS.items():
            begin = time.perf_counter()
            tensor = quantize_tensor(
                variant, weight.to(device), steps, method, hessian.to(device), damping=1e-6, dtype=torch.float64
            )
            seconds = time.perf_counter() - begin
            bits = gaussian_bits(tensor.codes, tensor.trellis)
            error = (tensor.hessian_error or 0.0) * signal
            found.append(
                {
                    "hessian": name,
                    "variant": variant,
                    "bits": bits,
                    "gap_bits": bits + 0.5 * math.log2(error / limit),
                    "uniform_waste_bits": tensor.uniform_waste_bits or 0.0,
                    "seconds": seconds,
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", type=int, default=1 << 20)
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    shape = 4 * RESTART_ROWS, max(1, arguments.weights // (4 * RESTART_ROWS))
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    table = rate_distortion(weight)
    print(f"{weight.numel():,} Gaussian weights on {arguments.device}")
    print(f"{'step':>6} {'states':>6} {'bits':>7} {'error':>9} {'gap':>7} {'share':>6} {'seconds':>8}")
    for row in table:
        print(
            f"{row['step']:6.4g} {row['states']:6} {row['bits']:7.4f} {row['squared_error']:9.6f} "
            f"{row['gap_bits']:7.4f} {row['share_of_nearest_at_equal_bits']:6.3f} {row['seconds']:8.2f}"
        )
    starts = restarts(weight)
    print(f"\n{'restart every':>13} {'lost bits':>10}")
    for row in starts:
        print(f"{row['rows']:13.0f} {row['lost_bits']:10.4f}")
    composed = composition(2048, 256, device)
    print(f"\n{'Hessian':<8} {'variant':<40} {'bits':>7} {'gap':>7} {'waste':>7} {'seconds':>8}")
    for line in composed:
        print(
            f"{line['hessian']:<8} {line['variant']:<40} {line['bits']:7.4f} {line['gap_bits']:7.4f} "
            f"{line['uniform_waste_bits']:7.4f} {line['seconds']:8.2f}"
        )
    if arguments.into:
        arguments.into.mkdir(parents=True, exist_ok=True)
        result = {
            "hardware": device_name(device) if device.type == "cuda" else platform.machine(),
            "torch": torch.__version__,
            "rate_distortion": table,
            "restarts": starts,
            "composition": composed,
        }
        (arguments.into / "trellis.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
