"""What may still be done once codes are chosen: scales fitted again, low-rank corrections. No text is needed for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from bitgolf.compress.lowrank import Correction, correct
from bitgolf.compress.quantize import QuantizedTensor
from bitgolf.compress.rescale import rescale
from bitgolf.compress.sizes import ArtifactSizes
from bitgolf.compress.stored import CORRECTION, StoredTensor
from bitgolf.config import PackConfig
from bitgolf.roles import role
from bitgolf.train.calibration import hessian_key


def repair(
    tensors: Sequence[QuantizedTensor],
    weights: Mapping[str, Tensor],  # (R, C), what was quantized
    hessians: Mapping[str, Tensor],  # (C, C), as calibration names them
    config: PackConfig,
) -> tuple[list[QuantizedTensor], dict[str, Correction]]:
    """The tensors with new scales where `config.rescale` asks for them, and corrections where `config.lqer_rank` does.

    Only what GPTQ rounded with a Hessian is repaired.
    """
    keys = {t.name: hessian_key(t.name) or "" for t in tensors if t.method == "gptq"}
    known = {name: hessians[key] for name, key in keys.items() if key in hessians}
    done = list(tensors)
    if config.rescale != "none":
        done = [
            rescale(t, weights[t.name].to(known[t.name].device), known[t.name], config.rescale)
            if t.name in known
            else t
            for t in tensors
        ]
    if not config.lqer_rank:
        return done, {}
    return done, most_gained(done, weights, known, config.lqer_rank, config.lqer_tensors, config.damping)


def most_gained(
    tensors: Sequence[QuantizedTensor],
    weights: Mapping[str, Tensor],  # (R, C)
    hessians: Mapping[str, Tensor],  # (C, C), by name of the tensor; only these are corrected
    rank: int,
    count: int,
    damping: float,
) -> dict[str, Correction]:
    """Corrections of the at most `count` tensors whose output error falls most, by name.

    A matrix with a side below `rank` is corrected with that rank; 64 columns share a scale where that divides them.
    """
    found: dict[str, Correction] = {}
    for tensor in tensors:
        if tensor.name not in hessians:
            continue
        hessian = hessians[tensor.name]
        residual = (weights[tensor.name].float().cpu() - tensor.dequantized()).to(hessian.device)
        group = math.gcd(64, residual.shape[1])
        found[tensor.name] = correct(residual, hessian, min(rank, *residual.shape), group, damping)
    best = sorted(found, key=lambda name: (-found[name].gain, name))[:count]
    return {name: found[name] for name in best if found[name].gain > 0}


def stored_corrections(corrections: Mapping[str, Correction]) -> dict[str, StoredTensor]:
    """Both halves of every correction by the names under which the artifact has them."""
    return {
        name + end: part
        for name, correction in corrections.items()
        for end, part in zip(CORRECTION, correction.stored(f"{role(name)}.lqer"), strict=True)
    }


def recorded(corrections: Mapping[str, Correction], sizes: ArtifactSizes) -> dict[str, dict[str, Any]]:
    """For pack.json: rank, bytes and output errors of every correction."""
    return {
        name: {
            "rank": correction.left.size(1),
            "bytes": sum(sizes.tensors[name + end] for end in CORRECTION),
            "error_before": correction.error_before,
            "error_after": correction.error_after,
        }
        for name, correction in corrections.items()
    }
