"""Pruning: weights of least magnitude before quantization, and codes of +-1 after it until the artifact fits.

Zeros cost a compressor little. The published int5 systems zero the smallest 2 to 5 % of every large matrix (`prune`).
PR 609 and 693 zero codes instead, and only as many as it takes: a code of +-1 costs scale_row^2 * H_jj at the layer's
output, the cheapest go first, and the number is searched for that brings code and model under the cap with a margin
(`fit`). H is the Hessian as it was gathered, without damping; tables are left alone, because H says nothing of what
they do as inputs. Each probe of the search encodes the whole artifact, so the order-0 entropy of the codes guides it.

Legend: R rows (outputs), C columns (inputs), N candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from bitgolf.artifact.sizes import entropy_bits
from bitgolf.grids.roles import is_table
from bitgolf.quantize.gptq import output_error
from bitgolf.quantize.tensors import QuantizedTensor

Encoded = TypeVar("Encoded")

_PRUNED_ABOVE = 65_536  # elements; the limit of the published scripts
_CURVE_POINTS = 257  # of the entropy curve that guides the search
_TOLERANCE = 1 / 4096  # of the limit may stay unused; of the candidates may be zeroed needlessly


def prune(weights: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Zero the `share` of smallest magnitude in every matrix of more than 65,536 elements that is no table."""
    pruned = dict(weights)
    for name, weight in weights.items():
        count = int(share * weight.numel())
        if count and weight.ndim == 2 and weight.numel() > _PRUNED_ABOVE and not is_table(name):
            threshold = weight.abs().flatten().kthvalue(count).values
            pruned[name] = weight.masked_fill(weight.abs() <= threshold, 0.0)
    return pruned


class Candidates:
    """The codes of +-1 in GPTQ matrices, cheapest first.

    Args:
        tensors: quantized tensors; tables, trellis codes and what was not rounded by GPTQ give no candidates.
        hessians: (C, C) of every matrix, by the tensor's name.

    Attributes:
        total: N.
    """

    def __init__(self, tensors: Sequence[QuantizedTensor], hessians: dict[str, Tensor]) -> None:
        self.tensors = [t for t in tensors if t.method == "gptq" and not is_table(t.name) and not t.trellis]
        self._places: list[np.ndarray] = []  # flat positions of +-1 in each tensor, rising
        costs = [np.empty(0, dtype=np.float64)]
        for tensor in self.tensors:
            codes = tensor.codes.numpy()
            rows, columns = np.nonzero(np.abs(codes) == 1)
            steps = tensor.scales.double().numpy()
            diagonal = hessians[tensor.name].diagonal().double().cpu().numpy()
            if tensor.column_scales is not None:
                diagonal = diagonal * tensor.column_scales.double().numpy() ** 2
            self._places.append(rows * codes.shape[1] + columns)
            costs.append(steps[rows] ** 2 * diagonal[columns])
        self._costs = np.concatenate(costs)
        self._bounds = np.cumsum([0, *(len(places) for places in self._places)])
        self._order = np.argsort(self._costs, kind="stable")
        self.total = len(self._costs)

    def cost(self, count: int) -> float:
        """Sum of scale_row^2 * H_jj over the `count` cheapest: squared output per token, as far as H is diagonal."""
        return float(self._costs[self._order[:count]].sum())

    def codes(self, count: int) -> dict[str, Tensor]:
        """Codes with the `count` cheapest candidates zeroed, of the tensors in which that changes something."""
        chosen = np.zeros(self.total, dtype=bool)
        chosen[self._order[:count]] = True
        changed = {}
        for tensor, places, start in zip(self.tensors, self._places, self._bounds[:-1], strict=True):
            here = places[chosen[start : start + len(places)]]
            if len(here):
                codes = tensor.codes.clone()
                codes.view(-1)[torch.from_numpy(here)] = 0
                changed[tensor.name] = codes
        return changed

    def entropy_curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Order-0 bits of all codes at rising counts of zeroed candidates: (counts, bits), (P,) each."""
        counts = np.unique(np.linspace(0, self.total, _CURVE_POINTS).astype(np.int64))
        rank = np.empty(self.total, dtype=np.int64)
        rank[self._order] = np.arange(self.total)
        bits = np.zeros(len(counts))
        edges = np.append(counts, self.total + 1)
        for tensor, places, start in zip(self.tensors, self._places, self._bounds[:-1], strict=True):
            flat = tensor.codes.numpy().reshape(-1)
            values, present = np.unique(flat, return_counts=True)
            histogram = {int(value): float(number) for value, number in zip(values, present, strict=True)}
            ranks, signs = rank[start : start + len(places)], flat[places]
            gone = {
                sign: np.concatenate(([0], np.histogram(ranks[signs == sign], bins=edges)[0][:-1].cumsum()))
                for sign in (1, -1)
            }
            for point in range(len(counts)):
                moved = histogram | {sign: histogram.get(sign, 0.0) - gone[sign][point] for sign in (1, -1)}
                moved[0] = histogram.get(0, 0.0) + gone[1][point] + gone[-1][point]
                some = np.array([number for number in moved.values() if number > 0])
                bits[point] += float((some * (np.log2(flat.size) - np.log2(some))).sum())
        return counts, bits


def fit(
    encode: Callable[[int], Encoded], size: Callable[[Encoded], int], candidates: Candidates, limit: int
) -> tuple[int, Encoded, int]:
    """Zero as few candidates as bring the artifact to `limit` bytes: within 1/4096 of the limit, or of the candidates.

    Args:
        encode: the artifact with that many candidates zeroed.
        size: its bytes.
        limit: bytes that it may have; negative when there is no room at all.
    Returns:
        (number zeroed, the artifact with that many, how often it was encoded). The number is 0 when all fits as it
        is, and all candidates when even that is not enough: the artifact is then above the limit.
    """
    best = encode(0)
    first, encodes, count = size(best), 1, 0
    if first <= limit or not candidates.total:
        return 0, best, encodes
    counts, bits = candidates.entropy_curve()
    # Bytes saved so far as order-0 entropy tells: the scale on which real sizes are interpolated.
    told = np.maximum.accumulate(bits[0] - bits) / 8
    slack = max(64, int(limit * _TOLERANCE))
    resolution = max(1, int(candidates.total * _TOLERANCE))
    low, low_size = 0, first  # too few
    high, high_size, fits = candidates.total, first - told[-1], False  # enough, once `fits`
    widths = [high - low]
    while not fits or (limit - high_size > slack and high - low > resolution):
        at_low, at_high = np.interp([low, high], counts, told)
        share = (low_size - limit + slack / 2) / max(low_size - high_size, 1e-9)
        wanted = at_low + share * (at_high - at_low)
        guess = high if wanted > at_high else int(np.ceil(np.interp(wanted, told, counts)))
        if len(widths) > 2 and high - low > widths[-3] / 2:  # the curve misleads: halve
            guess = (low + high) // 2
        guess = min(max(guess, low + 1), high - 1 if fits else high)
        tried = encode(guess)
        encodes += 1
        if size(tried) <= limit:
            fits, high, high_size = True, guess, size(tried)
            best, count = tried, guess
        elif guess == candidates.total:
            return guess, tried, encodes
        else:
            if not fits:  # what the curve claims for all of them, corrected by what it claimed for these
                claimed = np.interp(guess, counts, told) - at_low
                if claimed > 0 and low_size > size(tried):
                    high_size = size(tried) - (low_size - size(tried)) / claimed * (at_high - at_low - claimed)
            low, low_size = guess, size(tried)
        widths.append(high - low)
    return count, best, encodes


def measured_again(
    tensor: QuantizedTensor,
    codes: Tensor,  # (R, C) like the tensor's
    weight: Tensor,  # (R, C) what was quantized
    hessian: Tensor,  # (C, C)
) -> QuantizedTensor:
    """`tensor` with other codes, and the errors and entropy that belong to them."""
    changed = replace(tensor, codes=codes)
    wide = weight.to(hessian.device).float()
    error = wide - changed.dequantized().to(hessian.device)
    signal, squares = float(output_error(wide, hessian)), float(wide.square().sum())
    return replace(
        changed,
        weight_error=float(error.square().sum()) / squares if squares else 0.0,
        hessian_error=float(output_error(error, hessian)) / signal if signal > 0 else 0.0,
        code_bits=entropy_bits(codes.numpy()) / codes.numel(),
    )
