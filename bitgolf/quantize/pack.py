"""Stage `pack`: float weights and calibration statistics -> one artifact under the byte cap. Reads no text.

Every tensor gets a storage by its role: block matrices on the `matrix_bits` grid, the embedding and other tables
on the `embed_bits` grid, what is small, one-dimensional or passed through as fp16 (`lossless` keeps fp32 throughout).
The bytes that count are those of the artifact file plus those of the code that reads it (rule B1).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bitgolf.artifact.container import StoredTensor, encode_artifact
from bitgolf.artifact.sizes import ArtifactSizes
from bitgolf.config import Config
from bitgolf.config.idle import idle_packing
from bitgolf.data.prepare import open_data
from bitgolf.errors import ArtifactError, BudgetError, RunError
from bitgolf.grids.roles import grid_of, idle_passthrough, require_passthrough_names, role
from bitgolf.measure.calibration import hessian_key
from bitgolf.measure.second_order import read_curvature, read_fisher
from bitgolf.model.build import check_tensors
from bitgolf.model.weights import read_tensors
from bitgolf.quantize.fill_cap import Priced, Settings, fill
from bitgolf.quantize.prune import Candidates, fit, measured_again, prune
from bitgolf.quantize.tensors import QuantizedTensor, QuantizeTask, quantize_tensors
from bitgolf.run import atomic
from bitgolf.run.directory import RunDirectory
from bitgolf.run.progress import Progress, silent

log = logging.getLogger(__name__)


def pack(
    run: RunDirectory,
    device: torch.device,
    code_bytes: int,
    *,
    artifact_bytes: int | None = None,
    progress: Progress = silent,
) -> None:
    """Write model.bitgolf and pack.json.

    Args:
        run: needs weights.safetensors, and calibration/ unless the method uses no statistics.
        device: where GPTQ runs.
        code_bytes: size of the code that ships with the artifact; it counts against the cap.
        artifact_bytes: cap to use instead of the configured one.
    Raises:
        ArtifactError: the weights are not those of the configured model, or not finite; an earlier artifact stays.
        BudgetError: code and model together exceed the cap, with the difference; an earlier artifact stays.
        ConfigError: a setting that does not fit the weights.
        RunError: a product is missing or damaged.
    """
    config, budget = run.config, run.budget()
    begin = time.perf_counter()
    read = read_tensors(run.require("weights.safetensors"), run.path)
    check_tensors(config.model, config.window, read, str(run / "weights.safetensors"))
    require_passthrough_names(read, config.pack)
    shapes = {name: tuple(weight.shape) for name, weight in read.items()}
    for sentence in (*idle_packing(config.pack), *idle_passthrough(config.pack, shapes)):
        log.warning("no effect: %s", sentence)
    weights = prune(read, config.pack.prune)
    hessians = _hessians(run, config, device)
    cap = config.budget.artifact_bytes if artifact_bytes is None else artifact_bytes
    fits = config.pack.fit.prune and config.pack.method == "gptq"
    room = cap - code_bytes - (config.pack.fit.margin_bytes if fits else 0)
    if config.pack.method == "rate":
        packed = _fill(run, weights, hessians, room, code_bytes, device, progress)
    else:
        quantized = quantize_tensors(
            _tasks(weights, hessians, config),
            config.pack.grid.percentiles,
            damping=config.pack.gptq.damping,
            block_size=config.pack.gptq.block_size,
            device=device,
            progress=progress,
        )
        if fits:
            packed = _fit(run, weights, quantized, hessians, room, progress)
        else:
            packed = _encode(run, weights, quantized)
    progress("pack", 1, 1, "compressing")
    sizes, model_bytes = packed.sizes, len(packed.artifact)
    total = model_bytes + code_bytes
    if model_bytes > room:
        tried = f" even with all {packed.pruned['candidates']:,} codes of +-1 zeroed" if packed.pruned else ""
        less = f" less pack.fit.margin_bytes {config.pack.fit.margin_bytes:,}" if fits else ""
        raise BudgetError(
            f"the artifact does not fit{tried}: {model_bytes:,} bytes of model + {code_bytes:,} bytes of code = "
            f"{total:,}, {model_bytes - room:,} over the cap of {cap:,}{less}; lower pack.grid.matrix_bits "
            f"(now {config.pack.grid.matrix_bits}) or pack.grid.embed_bits (now {config.pack.grid.embed_bits}), or "
            "shrink the model"
        )
    atomic.write_bytes(run / "model.bitgolf", packed.artifact)
    seconds = time.perf_counter() - begin
    num_weights = sum(w.numel() for w in weights.values())
    atomic.write_json(
        run / "pack.json",
        {
            "model_bytes": model_bytes,
            "code_bytes": code_bytes,
            "total_bytes": total,
            "cap_bytes": cap,
            "model_sha256": hashlib.sha256(packed.artifact).hexdigest(),
            "seconds": seconds,
            "num_parameters": num_weights,
            "bits_per_weight": 8 * model_bytes / num_weights,
            "method": config.pack.method,
            "compressor": config.pack.compressor,
            "header_bytes": sizes.header,
            "stream_bytes": sizes.streams,
            "group_bytes": sizes.groups,
            "pruned_to_fit": packed.pruned,
            "allocation": packed.allocation,
            "tensors": {
                name: {
                    "shape": list(weight.shape),
                    "kind": packed.stored[name].kind,
                    "group": packed.stored[name].group,
                    "bytes": sizes.tensors[name],
                    **_figures(packed.quantized.get(name)),
                }
                for name, weight in weights.items()
            },
        },
    )
    budget.forget("pack")
    budget.charge("artifact_bytes", "pack", "model", model_bytes)
    budget.charge("artifact_bytes", "pack", "code", code_bytes)
    budget.charge("untimed_seconds", "pack", "quantize and compress", seconds)


@dataclass(frozen=True)
class _Packed:
    """An encoded artifact and what it was made from.

    For pack.json, `pruned`: what `prune_to_fit` did; `allocation`: how method `rate` divided the bytes.
    """

    artifact: bytes
    sizes: ArtifactSizes
    quantized: dict[str, QuantizedTensor]
    stored: dict[str, StoredTensor]
    pruned: dict[str, float] | None = None
    allocation: dict[str, Any] | None = None


def _encode(
    run: RunDirectory,
    weights: dict[str, Tensor],
    quantized: Iterable[QuantizedTensor],
) -> _Packed:
    """The artifact: quantized tensors as they are, all other weights in float."""
    config = run.config
    by_name = {tensor.name: tensor for tensor in quantized}
    stored = {
        name: by_name[name].stored(role(name)) if name in by_name else _in_float(name, weight, config.pack.method)
        for name, weight in weights.items()
    }
    tokenizer = open_data(run.require("data")).tokenizer
    artifact, sizes = encode_artifact(
        model_config=config.model.model_dump(mode="json"),
        tokenizer=tokenizer.model_bytes,
        tokenizer_meta={"lossless": tokenizer.lossless, "name": tokenizer.name},
        tensors=stored,
        meta={
            "preset": config.name,
            "window": config.window,
            "stride": config.score.stride,
            "config_sha256": config.digest(),
        },
        compressor=config.pack.compressor,
    )
    return _Packed(artifact, sizes, by_name, stored)


def _in_float(name: str, weight: Tensor, method: str) -> StoredTensor:
    """A tensor that goes on no grid. Raises ArtifactError that names it when its values do not fit the format."""
    plain = StoredTensor.fp32 if method == "lossless" else StoredTensor.fp16
    try:
        return plain(weight, role(name))
    except ArtifactError as error:
        raise ArtifactError(f"{name}: {error}") from error


def _fill(
    run: RunDirectory,
    weights: dict[str, Tensor],
    hessians: dict[str, Tensor],
    room: int,  # bytes that the artifact may have
    code: int,  # bytes of code beside it
    device: torch.device,
    progress: Progress,
) -> _Packed:
    """The artifact with steps by curvature, as large as `room` allows (see `rate`)."""
    config = run.config.pack
    if room <= 0:
        raise BudgetError(f"the artifact does not fit: the code alone has {code:,} bytes, {-room:,} over the cap")
    folder = run.require("calibration")
    curvature = read_curvature(folder, run.path)
    fisher = read_fisher(folder, run.path) if config.rate.hessian == "fisher" else {}
    priced = {}
    for name, weight in weights.items():
        if grid_of(name, tuple(weight.shape), config) is None:
            continue
        statistics, measured = fisher.get(name), curvature.get(name)
        priced[name] = Priced(
            weight.to(device),
            hessians.get(hessian_key(name) or "") if statistics is None else statistics.inputs.to(device),
            None if statistics is None else statistics.rows.to(device),
            None if measured is None else measured.increase_nats,
            0.0 if measured is None else measured.error_nats,
            0.0 if measured is None else measured.step,
        )
    settings = Settings(
        config.rate.trellis, config.rate.column_steps, config.gptq.damping, config.gptq.block_size, device
    )
    made: list[_Packed] = []

    def encode(tensors: dict[str, QuantizedTensor]) -> bytes:
        made.append(_encode(run, weights, tensors.values()))
        return made[-1].artifact

    try:
        filled = fill(priced, encode, room, settings, progress)
    except BudgetError as error:
        raise BudgetError(f"{error}; {code:,} bytes of the cap are code") from error
    allocation = {
        "predicted_nats": filled.predicted_nats,
        "log2_theta": filled.landing.log2_theta,
        "passes": [{"log2_theta": theta, "model_bytes": size} for theta, size in filled.landing.passes],
        "tensors": filled.choices,
    }
    return replace(next(packed for packed in made if packed.artifact is filled.data), allocation=allocation)


def _fit(
    run: RunDirectory,
    weights: dict[str, Tensor],
    quantized: list[QuantizedTensor],
    hessians: dict[str, Tensor],
    room: int,  # bytes that the artifact may have
    progress: Progress,
) -> _Packed:
    """The artifact with as few codes of +-1 zeroed as bring it to `room` bytes; with all of them when none do."""
    of_tensor = {t.name: hessians[key] for t in quantized if (key := hessian_key(t.name)) in hessians}
    candidates = Candidates(quantized, of_tensor)

    def pruned(count: int) -> list[QuantizedTensor]:
        codes = candidates.codes(count)
        return [replace(t, codes=codes.get(t.name, t.codes)) for t in quantized]

    def probe(count: int) -> _Packed:
        progress("pack", 0, 1, f"compressing with {count:,} of {candidates.total:,} codes of +-1 zeroed")
        return _encode(run, weights, pruned(count))

    count, packed, encodes = fit(probe, lambda tried: len(tried.artifact), candidates, room)
    changed = candidates.codes(count)
    measured = {
        t.name: measured_again(t, changed[t.name], weights[t.name], of_tensor[t.name]) if t.name in changed else t
        for t in quantized
    }
    record = {
        "candidates": candidates.total,
        "zeroed": count,
        "cost": candidates.cost(count),
        "margin_bytes": run.config.pack.fit.margin_bytes,
        "encodes": encodes,
    }
    return replace(packed, quantized=measured, pruned=record)


def _hessians(run: RunDirectory, config: Config, device: torch.device) -> dict[str, Tensor]:
    if config.pack.method not in ("gptq", "rate"):
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
