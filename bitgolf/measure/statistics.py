"""The files of a run's `calibration/` folder: `train` writes them with `write_statistics`, `pack` reads them.

`hessians.safetensors` holds one Hessian per key of `calibration.hessian_key`, `fisher.safetensors` two tensors per
parameter, `curvature.json` two numbers per parameter. Each exists only if training was asked to measure it.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitgolf.config import PackConfig
from bitgolf.errors import ForeignError, RunError
from bitgolf.foreign import as_number, as_object, conform, read_json
from bitgolf.measure.calibration import hessian_key
from bitgolf.measure.curvature import Curvature, curvature_from_gradient
from bitgolf.measure.fisher import Fisher
from bitgolf.model.weights import read_tensors, write_tensors
from bitgolf.run import atomic

_CURVATURE_FIELDS = ("step", "increase_nats")
_HESSIANS, _FISHER, _CURVATURE = "hessians.safetensors", "fisher.safetensors", "curvature.json"


@dataclass(frozen=True)
class Statistics:
    """What was measured on the final weights."""

    hessians: dict[str, Tensor]  # key -> (C, C) fp32
    calibration_tokens: int = 0  # training tokens of the Hessians, over all ranks, when they are gathered
    # fisher, curvature: by parameter name; empty if they were not asked for.
    fisher: dict[str, Fisher] = field(default_factory=dict)
    curvature: dict[str, Curvature] = field(default_factory=dict)
    # (R, C) by parameter name, see `fisher`. They are not stored.
    gradients: dict[str, Tensor] = field(default_factory=dict)


def with_curvature(
    statistics: Statistics, weights: dict[str, Tensor], settings: PackConfig, device: torch.device
) -> Statistics:
    """The statistics with the curvature of every tensor whose gradient was summed, computed on `device`."""
    curvature = {}
    for name, gradient in statistics.gradients.items():
        weight, hessian = weights[name].to(device), statistics.hessians.get(hessian_key(name) or "")
        if settings.rate.hessian == "fisher" and name in statistics.fisher:
            hessian = statistics.fisher[name].inputs
        if bool(weight.any()):  # else a table that was never used
            curvature[name] = curvature_from_gradient(
                weight, gradient, hessian, settings.gptq.damping, column_steps=settings.rate.column_steps
            )
    return replace(statistics, curvature=curvature, gradients={})


def write_statistics(folder: Path, statistics: Statistics) -> None:
    """Write the files; those of an earlier training that this one did not measure are removed."""
    if statistics.hessians:
        write_tensors(folder / _HESSIANS, statistics.hessians, {"tokens": str(statistics.calibration_tokens)})
    else:
        (folder / _HESSIANS).unlink(missing_ok=True)
    if statistics.fisher:
        inputs = {f"{name}.inputs": fisher.inputs for name, fisher in statistics.fisher.items()}
        rows = {f"{name}.rows": fisher.rows for name, fisher in statistics.fisher.items()}
        write_tensors(folder / _FISHER, inputs | rows, {})
    else:
        (folder / _FISHER).unlink(missing_ok=True)
    if statistics.curvature:
        atomic.write_json(folder / _CURVATURE, {name: asdict(value) for name, value in statistics.curvature.items()})
    else:
        (folder / _CURVATURE).unlink(missing_ok=True)


def read_statistics(run: Path, settings: PackConfig, device: torch.device) -> Statistics:
    """What `settings.method` uses, Hessians on the device. Raises RunError if a file is missing or damaged."""
    folder, by_rate = run / "calibration", settings.method == "rate"
    by_fisher = by_rate and settings.rate.hessian == "fisher"
    hessians = read_hessians(folder, run) if settings.method == "gptq" or (by_rate and not by_fisher) else {}
    return Statistics(
        {key: hessian.to(device) for key, hessian in hessians.items()},
        fisher=read_fisher(folder, run) if by_fisher else {},
        curvature=read_curvature(folder, run) if by_rate else {},
    )


def read_hessians(folder: Path, run: Path) -> dict[str, Tensor]:
    """Hessians by key, on the CPU. Raises RunError if the file is missing or damaged."""
    return read_tensors(_required(folder / _HESSIANS, run, "calibration_tokens", "pack.method 'rtn'"), run)


def read_fisher(folder: Path, run: Path) -> dict[str, Fisher]:
    """Fisher statistics by parameter name. Raises RunError if the file is missing or damaged."""
    tensors = read_tensors(_required(folder / _FISHER, run, "fisher_tokens", "pack.rate.hessian 'plain'"), run)
    names = [key.removesuffix(".rows") for key in tensors if key.endswith(".rows")]
    try:
        return {name: Fisher(tensors[f"{name}.inputs"], tensors[f"{name}.rows"]) for name in names}
    except KeyError as error:
        raise RunError(f"{folder / _FISHER} is damaged: it lacks {error}; run `bitgolf train {run}` again") from error


def read_curvature(folder: Path, run: Path) -> dict[str, Curvature]:
    """Curvature by parameter name. Raises RunError if the file is missing or damaged."""
    path = _required(folder / _CURVATURE, run, "fisher_tokens", "pack.method 'gptq'")
    try:
        entries = as_object(read_json(path), "it")
        conform(entries, {"*": {"step": _as_step, "increase_nats": as_number}}, "curvature")
        return {name: Curvature(*(float(entry[key]) for key in _CURVATURE_FIELDS)) for name, entry in entries.items()}
    except ForeignError as error:
        raise RunError(f"{path} is damaged ({error}); run `bitgolf train {run}` again") from error


def _as_step(value: Any, name: str) -> None:
    """A step is 0 or so large that one may divide by its square."""
    if value != 0:
        as_number(value, name, 1e-100)


def _required(path: Path, run: Path, setting: str, otherwise: str) -> Path:
    """`path`. Raises RunError that names the setting of `train.measure` if there is no such file."""
    if path.exists():
        return path
    raise RunError(
        f"{path} is missing; set train.measure.{setting} and run `bitgolf train {run}` again, or pack with {otherwise}"
    )
