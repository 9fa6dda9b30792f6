"""What the published quantization pipelines cost on the weights of a run: bytes, and bits per byte beside our own.

    python benchmarks/compress/published.py RUN [--pipeline auto|pr585|pr693|pr348] [--device auto] [--into FOLDER]

RUN is a run directory with float weights, calibration statistics, prepared data and a score of its own artifact.
The pipelines are written from the description of the originals, their deviations from GPTQ included:

- pr585 (also PR 576): 2 % magnitude pruning; int5 for attention and MLP with one GPTQ pass in *ascending* order of
  the diagonal that pushes errors with rows of the raw inverse Hessian; row scales by percentile with a floor of 1/15.
- pr693: int6 for attention and MLP, correct GPTQ run once per percentile, the least squared weight error kept;
  damped twice; scales floored at 1/31. (Its selective pruning only acts when the file is too large; it is left out.)
- pr348: 5 % magnitude pruning; round to nearest, int5 for the MLP, int6 for attention and bigram, steps from the
  largest magnitude of a row, one code more on the negative side; embedding and one late key matrix in fp16.

Other matrices: int8 rows (99.99984th percentile, floor 1/127) for pr585 and pr693; small tensors fp16. Bytes are those
of `torch.save` of the codes, scales and small tensors, compressed by zstd-22 (pr693: lzma-6). Both scores are chunked,
on all validation tokens, by the same scorer.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from torch import Tensor

from bitgolf.bundle.single_file import code_bytes
from bitgolf.config import Config
from bitgolf.data.prepare import open_data
from bitgolf.evaluate.bits import BitsPerByte, bits_per_byte
from bitgolf.evaluate.score import scoring_model
from bitgolf.evaluate.scorers import make_scorer
from bitgolf.evaluate.tape import ScoreTape, evaluate
from bitgolf.measure.calibration import hessian_key
from bitgolf.model.build import build_model, load_weights_
from bitgolf.model.weights import read_tensors
from bitgolf.run.directory import RunDirectory
from bitgolf.run.ranks import device_name

PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
SMALL = 65_536
Packed = dict[str, Tensor]
"""What one tensor becomes in the saved file: codes and scales, or fp16 values."""


def row_scales(weight: Tensor, percentile: float, qmax: int, floor: float) -> Tensor:
    """(R,) steps that reach the percentile of each row's magnitudes."""
    return (torch.quantile(weight.abs(), percentile, dim=1) / qmax).clamp_min(floor)


def int8_rows(weight: Tensor) -> tuple[Tensor, Packed]:
    """The originals' int8 for tables: clipped at a high percentile, rounded to nearest."""
    scales = row_scales(weight, 0.9999984, 127, 1 / 127).half()
    codes = torch.round(weight / scales.float()[:, None]).clamp(-127, 127)
    return codes * scales.float()[:, None], {"codes": codes.to(torch.int8), "scales": scales}


def best_percentile_scales(weight: Tensor, qmax: int, floor: float) -> Tensor:
    """(R,) steps: for each row the percentile with the least squared error."""
    best, scales = torch.full_like(weight[:, 0], torch.inf), torch.empty_like(weight[:, 0])
    for percentile in PERCENTILES:
        steps = row_scales(weight, percentile, qmax, floor)
        error = (weight - torch.round(weight / steps[:, None]).clamp(-qmax, qmax) * steps[:, None]).square().sum(1)
        scales, best = torch.where(error < best, steps, scales), torch.minimum(error, best)
    return scales


def feed_back(weight: Tensor, push: Tensor, order: Tensor, steps: Tensor, qmax: int) -> Tensor:
    """Codes (R, C): round column after column in `order`; the error moves later columns by rows of `push`."""
    work, codes = weight[:, order].clone(), torch.empty_like(weight)
    for j in range(work.size(1)):
        codes[:, j] = torch.round(work[:, j] / steps).clamp(-qmax, qmax)
        error = (work[:, j] - codes[:, j] * steps) / push[j, j]
        work[:, j:] -= error[:, None] * push[j, j:]
    return torch.empty_like(codes).index_copy_(1, order, codes)


def damped(hessian: Tensor) -> Tensor:
    return hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), device=hessian.device)


def gptq_pr585(weight: Tensor, hessian: Tensor) -> tuple[Tensor, Packed]:
    steps = best_percentile_scales(weight, 15, 1 / 15)
    order = torch.argsort(hessian.diagonal())
    push = torch.linalg.inv(damped(hessian)[order][:, order])
    codes = feed_back(weight, push, order, steps, 15)
    # The original rounds with fp32 steps and stores fp16 ones.
    return codes * steps.half().float()[:, None], {"codes": codes.to(torch.int8), "scales": steps.half()}


def gptq_pr693(weight: Tensor, hessian: Tensor) -> tuple[Tensor, Packed]:
    hessian = damped(damped(hessian))
    order = torch.argsort(hessian.diagonal(), descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    push = torch.linalg.cholesky(inverse, upper=True)
    best: tuple[float, Tensor, Packed] | None = None
    for percentile in PERCENTILES:
        steps = row_scales(weight, percentile, 31, 1 / 31).half().float()
        codes = feed_back(weight, push, order, steps, 31)
        error = float((weight - codes * steps[:, None]).square().sum())
        if best is None or error < best[0]:
            best = error, codes * steps[:, None], {"codes": codes.to(torch.int8), "scales": steps.half()}
    assert best is not None
    return best[1], best[2]


def round_pr348(weight: Tensor, qmax: int) -> tuple[Tensor, Packed]:
    steps = (weight.abs().amax(1) / qmax).clamp_min(1e-12).half()
    codes = torch.round(weight / steps.float()[:, None]).clamp(-qmax - 1, qmax)
    return codes * steps.float()[:, None], {"codes": codes.to(torch.int8), "scales": steps}


def prune(weight: Tensor, share: float) -> Tensor:
    """Zero the smallest magnitudes of a large matrix."""
    if weight.ndim != 2 or weight.numel() <= SMALL or not share:
        return weight
    threshold = weight.abs().flatten().kthvalue(max(1, int(share * weight.numel()))).values
    return weight.masked_fill(weight.abs() <= threshold, 0.0)


def is_block_matrix(name: str) -> bool:
    return name.endswith(".weight") and (".attention." in name or ".mlp." in name)


def fp16(weight: Tensor) -> tuple[Tensor, Packed]:
    return weight.half().float(), {"values": weight.half()}


def pr585(name: str, weight: Tensor, hessian: Tensor | None) -> tuple[Tensor, Packed]:
    weight = prune(weight, 0.02)
    if is_block_matrix(name) and hessian is not None:
        return gptq_pr585(weight, hessian)
    return int8_rows(weight) if weight.ndim == 2 and weight.numel() > SMALL else fp16(weight)


def pr693(name: str, weight: Tensor, hessian: Tensor | None) -> tuple[Tensor, Packed]:
    if is_block_matrix(name) and hessian is not None:
        return gptq_pr693(weight, hessian)
    return int8_rows(weight) if weight.ndim == 2 and weight.numel() > SMALL else fp16(weight)


def pr348(name: str, weight: Tensor, hessian: Tensor | None) -> tuple[Tensor, Packed]:
    weight = prune(weight, 0.05)
    if weight.ndim != 2 or weight.numel() <= 8192 or name in ("embedding", "blocks.8.attention.key.weight"):
        return fp16(weight)
    return round_pr348(weight, 15 if ".mlp." in name else 31)


PIPELINES: dict[str, Callable[[str, Tensor, Tensor | None], tuple[Tensor, Packed]]] = {
    "pr585": pr585,
    "pr693": pr693,
    "pr348": pr348,
}
PIPELINE_OF = {"seed-585": "pr585", "seed-576": "pr585", "seed-693": "pr693", "seed-348": "pr348"}


def saved_bytes(pipeline: str, packed: dict[str, Packed]) -> int:
    buffer = io.BytesIO()
    torch.save({name: {key: t.cpu() for key, t in parts.items()} for name, parts in packed.items()}, buffer)
    raw = buffer.getvalue()
    return len(lzma.compress(raw, preset=6) if pipeline == "pr693" else zstandard.ZstdCompressor(22).compress(raw))


def chunked(
    config: Config, weights: dict[str, Tensor], tokens: np.ndarray, costs: np.ndarray, device: torch.device
) -> BitsPerByte:
    """Chunked score of `weights` on all of `tokens`."""  # fmt: skip
    model, _ = build_model(config.model, config.window, device, config.train.attention)
    load_weights_(model, weights, "published weights")
    model.eval().requires_grad_(False)
    tape = ScoreTape(tokens)
    scorer = make_scorer(
        "chunked", scoring_model(model, config, device), window=config.window, stride=config.window,
        batch_tokens=config.score.batch_tokens, device=device,
    )  # fmt: skip
    evaluate(tape, scorer)
    return bits_per_byte(tape.nll, costs)


def quantized(run: RunDirectory, pipeline: str, device: torch.device) -> dict[str, Any]:
    """The run's weights after the published pipeline, and what they cost."""
    weights = read_tensors(run.require("weights.safetensors"), run.path)
    hessians = read_tensors(run.require("calibration") / "hessians.safetensors", run.path)
    begin = time.perf_counter()
    restored, packed = {}, {}
    for name, weight in weights.items():
        hessian = hessians.get(hessian_key(name) or "")
        on_device = None if hessian is None else hessian.to(device)
        value, packed[name] = PIPELINES[pipeline](name, weight.to(device), on_device)
        restored[name] = value.cpu()
    model_bytes = saved_bytes(pipeline, packed)
    return {
        "weights": restored,
        "model_bytes": model_bytes,
        "total_bytes": model_bytes + code_bytes(run.config),
        "bits_per_weight": 8 * model_bytes / sum(weight.numel() for weight in weights.values()),
        "pack_seconds": time.perf_counter() - begin,
        "load_seconds": 0.0,
    }


def measure(run: RunDirectory, pipeline: str, device: torch.device) -> dict[str, object]:
    """The published pipeline on the run's weights, beside the run's own artifact."""
    weights = read_tensors(run.require("weights.safetensors"), run.path)
    found = quantized(run, pipeline, device)
    data = open_data(run.require("data"))
    tokens = data.val.read(0, data.val.num_tokens)
    costs = data.tokenizer.byte_costs(tokens)
    float_bpb = chunked(run.config, weights, tokens, costs, device).bpb
    published_bpb = chunked(run.config, found["weights"], tokens, costs, device).bpb
    result: dict[str, object] = {
        "run": run.config.name,
        "seed": run.config.seed,
        "pipeline": pipeline,
        "hardware": device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "float_chunked_bpb": float_bpb,
        "published_chunked_bpb": published_bpb,
        "published_tax_bpb": published_bpb - float_bpb,
        "published_model_bytes": found["model_bytes"],
        "published_pack_seconds": found["pack_seconds"],
        "val_bytes": int(costs.sum()),
    }
    if (run / "score.json").exists():
        own = json.loads((run / "score.json").read_text())["methods"].get("chunked", {}).get("bpb")
        size = json.loads((run / "pack.json").read_text())["model_bytes"]
        result |= {"own_chunked_bpb": own, "own_tax_bpb": own - float_bpb if own else None, "own_model_bytes": size}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pipeline", default="auto", choices=("auto", *PIPELINES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    run = RunDirectory.open(arguments.run)
    name = arguments.device
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    pipeline = arguments.pipeline
    if pipeline == "auto":
        if run.config.name not in PIPELINE_OF:
            parser.error(f"preset {run.config.name} has no published pipeline; give --pipeline")
        pipeline = PIPELINE_OF[run.config.name]
    result = measure(run, pipeline, device)
    for key, value in result.items():
        print(f"{key:<28} {value}")
    if arguments.into:
        arguments.into.mkdir(parents=True, exist_ok=True)
        target = arguments.into / f"published-{run.config.name}-seed{run.config.seed}.json"
        target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
