"""Packing on fixed grids (methods gptq, rtn and lossless), and pruning codes until the file fits.

The role of a tensor decides its grid (see `grids.roles`). Method gptq rounds matrices that have a Hessian with
feedback and everything else to the nearest level. Method rtn rounds everything to the nearest level. Method lossless
has no grids. `pack` calls one of the two functions here, or `fill_cap.fill_cap` for method rate.

Legend: R rows (outputs), C columns (inputs).
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from bitgolf.config import PackConfig
from bitgolf.grids.roles import grid_of
from bitgolf.measure.calibration import hessian_key
from bitgolf.quantize.packed import Encode, Packed
from bitgolf.quantize.prune import Candidates, fit, measure_again
from bitgolf.quantize.tensors import QuantizedTensor, QuantizeTask, quantize_tensors
from bitgolf.run.progress import Progress


def pack_on_grids(
    weights: dict[str, Tensor],  # by parameter name
    hessians: dict[str, Tensor],  # (C, C) by `hessian_key` of the parameter; empty for methods that use none
    settings: PackConfig,
    encode: Encode,
    device: torch.device,
    progress: Progress,
) -> Packed:
    """The artifact with every matrix on the grid of its role. Its size is what it is: nothing is searched."""
    return encode(_quantize(weights, hessians, settings, device, progress))


def pack_pruned_to_fit(
    weights: dict[str, Tensor],
    hessians: dict[str, Tensor],
    settings: PackConfig,
    encode: Encode,
    room: int,  # bytes that the artifact may have
    device: torch.device,
    progress: Progress,
) -> Packed:
    """The same with the cheapest codes of +1 and -1 zeroed: as few of them as make the artifact fit in `room`.

    If the artifact does not fit with all of them zeroed, it is returned with all of them zeroed.
    """
    quantized = _quantize(weights, hessians, settings, device, progress)
    by_tensor = {t.name: hessians[key] for t in quantized if (key := hessian_key(t.name)) in hessians}
    candidates = Candidates(quantized, by_tensor)

    def encode_pruned(count: int) -> Packed:
        progress("pack", 0, 1, f"compressing with {count:,} of {candidates.total:,} codes of +-1 zeroed")
        codes = candidates.codes(count)
        return encode([replace(t, codes=codes.get(t.name, t.codes)) for t in quantized])

    count, packed, num_encodes = fit(encode_pruned, candidates, room)
    changed = candidates.codes(count)
    measured = {
        t.name: measure_again(t, changed[t.name], weights[t.name], by_tensor[t.name]) if t.name in changed else t
        for t in quantized
    }
    record = {
        "candidates": candidates.total,
        "zeroed": count,
        "cost": candidates.cost(count),
        "margin_bytes": settings.fit.margin_bytes,
        "encodes": num_encodes,
    }
    return replace(packed, quantized=measured, pruned_to_fit=record)


def _quantize(
    weights: dict[str, Tensor],
    hessians: dict[str, Tensor],
    settings: PackConfig,
    device: torch.device,
    progress: Progress,
) -> list[QuantizedTensor]:
    """The tensors that go on a grid. Tables multiply no activations, so they have no Hessian and no feedback."""
    tasks = []
    for name, weight in weights.items():
        grid = grid_of(name, tuple(weight.shape), settings)
        if grid is not None:
            key = hessian_key(name)
            method: Literal["gptq", "rtn"] = "gptq" if key and settings.method == "gptq" else "rtn"
            tasks.append(QuantizeTask(name, weight, grid, method, hessians.get(key) if key else None))
    return quantize_tensors(
        tasks,
        settings.grid.percentiles,
        damping=settings.gptq.damping,
        block_size=settings.gptq.block_size,
        device=device,
        progress=progress,
    )
