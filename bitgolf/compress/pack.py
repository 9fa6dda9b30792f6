"""Stage `pack`: float weights and calibration statistics -> one artifact under the byte cap. Reads no text.

Every tensor gets a storage by its role: block matrices on the `matrix_bits` grid, the embedding and other tables
on the `embed_bits` grid, what is small or one-dimensional as fp16 (`lossless` keeps fp32 throughout). The bytes
that count are those of the artifact file plus those of the code that reads it (rule B1).
"""

from __future__ import annotations

import hashlib
import logging
import time

import torch
from torch import Tensor

from bitgolf import atomic
from bitgolf.code_size import code_bytes
from bitgolf.compress.container import StoredTensor, encode_artifact
from bitgolf.compress.quantize import QuantizedTensor, QuantizeTask, quantize_tensors
from bitgolf.config import Config
from bitgolf.data.prepare import open_data
from bitgolf.errors import BudgetError, RunError
from bitgolf.progress import Progress, silent
from bitgolf.roles import grid_of, is_table, role
from bitgolf.rundir import RunDirectory
from bitgolf.train.calibration import hessian_key
from bitgolf.train.weights import read_tensors

log = logging.getLogger(__name__)

_PRUNED_ABOVE = 65_536  # elements; the limit of the published scripts


def pack(
    run: RunDirectory, device: torch.device, *, artifact_bytes: int | None = None, progress: Progress = silent
) -> None:
    """Write model.bitgolf and pack.json.

    Args:
        run: needs weights.safetensors, and calibration/ unless the method uses no statistics.
        device: where GPTQ runs.
        artifact_bytes: cap to use instead of the configured one.
    Raises:
        BudgetError: code and model together exceed the cap, with the difference; an earlier artifact stays.
        RunError: a product is missing.
    """
    config = run.config
    begin = time.perf_counter()
    weights = prune(read_tensors(run.require("weights.safetensors"), run.path), config.pack.prune)
    hessians = _hessians(run, config, device)
    quantized = quantize_tensors(
        _tasks(weights, hessians, config),
        config.pack.percentiles,
        damping=config.pack.damping,
        block_size=config.pack.block_size,
        device=device,
        progress=progress,
    )
    by_name = {tensor.name: tensor for tensor in quantized}
    stored = {
        tensor.name: StoredTensor.quantized(tensor.codes, tensor.scales, tensor.grid.bits, role(tensor.name))
        for tensor in quantized
    }
    plain = StoredTensor.fp32 if config.pack.method == "lossless" else StoredTensor.fp16
    stored |= {name: plain(weight, role(name)) for name, weight in weights.items() if name not in stored}
    progress("pack", 1, 1, "compressing")
    tokenizer = open_data(run.require("data")).tokenizer
    cap = config.budget.artifact_bytes if artifact_bytes is None else artifact_bytes
    code = code_bytes()
    artifact, sizes = encode_artifact(
        model_config=config.model.model_dump(mode="json"),
        tokenizer=tokenizer.model_bytes,
        tokenizer_meta={"lossless": tokenizer.lossless, "name": tokenizer.name},
        tensors={name: stored[name] for name in weights},
        meta={
            "preset": config.name,
            "window": config.window,
            "stride": config.score.stride,
            "config_sha256": config.digest(),
        },
        compressor=config.pack.compressor,
    )
    model_bytes = len(artifact)
    total = model_bytes + code
    if total > cap:
        raise BudgetError(
            f"the artifact does not fit: {model_bytes:,} bytes of model + {code:,} bytes of code = "
            f"{total:,}, {total - cap:,} over the cap of {cap:,}; lower pack.matrix_bits "
            f"(now {config.pack.matrix_bits}) or pack.embed_bits (now {config.pack.embed_bits}), or "
            "shrink the model"
        )
    atomic.write_bytes(run / "model.bitgolf", artifact)
    seconds = time.perf_counter() - begin
    num_weights = sum(w.numel() for w in weights.values())
    atomic.write_json(
        run / "pack.json",
        {
            "model_bytes": model_bytes,
            "code_bytes": code,
            "total_bytes": total,
            "cap_bytes": cap,
            "model_sha256": hashlib.sha256(artifact).hexdigest(),
            "seconds": seconds,
            "num_parameters": num_weights,
            "bits_per_weight": 8 * model_bytes / num_weights,
            "method": config.pack.method,
            "compressor": config.pack.compressor,
            "header_bytes": sizes.header,
            "stream_bytes": sizes.streams,
            "group_bytes": sizes.groups,
            "tensors": {
                name: {
                    "shape": list(weight.shape),
                    "kind": stored[name].kind,
                    "group": stored[name].group,
                    "bytes": sizes.tensors[name],
                    **_figures(by_name.get(name)),
                }
                for name, weight in weights.items()
            },
        },
    )
    budget = run.budget()
    budget.forget("pack")
    budget.charge("artifact_bytes", "pack", "model", model_bytes)
    budget.charge("artifact_bytes", "pack", "code", code)
    budget.charge("untimed_seconds", "pack", "quantize and compress", seconds)


def _hessians(run: RunDirectory, config: Config, device: torch.device) -> dict[str, Tensor]:
    if config.pack.method != "gptq":
        return {}
    folder = run.require("calibration")
    path = folder / "hessians.safetensors"
    if not path.exists():
        raise RunError(
            f"{path} is missing; run `bitgolf train {run.path}` again, or pack without statistics: pack.method = 'rtn'"
        )
    return {name: tensor.to(device) for name, tensor in read_tensors(path, run.path).items()}


def _tasks(weights: dict[str, Tensor], hessians: dict[str, Tensor], config: Config) -> list[QuantizeTask]:
    """The tensors that go on a grid, each with its Hessian; tables multiply no activations, so nothing is fed back."""
    tasks = []
    for name, weight in weights.items():
        grid = grid_of(name, tuple(weight.shape), config.pack)
        if grid is not None:
            key = hessian_key(name)
            method = config.pack.method if key else "rtn"
            tasks.append(QuantizeTask(name, weight, grid, method, hessians.get(key or "")))
    return tasks


def prune(weights: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Zero the `share` of smallest magnitude in every matrix of more than 65,536 elements that is no table.

    Zeros cost a compressor little; the published int5 systems drop 2 to 5 % (techniques.md section 6).
    """
    pruned = dict(weights)
    for name, weight in weights.items():
        count = int(share * weight.numel())
        if count and weight.ndim == 2 and weight.numel() > _PRUNED_ABOVE and not is_table(name):
            threshold = weight.abs().flatten().kthvalue(count).values
            pruned[name] = weight.masked_fill(weight.abs() <= threshold, 0.0)
    return pruned


def _figures(tensor: QuantizedTensor | None) -> dict[str, float | None]:
    """What quantization did to a tensor: relative error of weights and outputs, entropy of the codes."""
    if tensor is None:
        return {}
    return {
        "weight_error": tensor.weight_error,
        "hessian_error": tensor.hessian_error,
        "rtn_hessian_error": tensor.rtn_hessian_error,
        "code_bits": tensor.code_bits,
    }
