"""Pruning: weights of least magnitude before quantization, and codes of +1 and -1 after it until the artifact fits.

Zeros take few bytes after compression. `prune` zeroes the smallest weights of every large matrix; the published int5
systems zero 2 to 5 % of them. `fit` zeroes codes of +1 and -1 instead, as PR 609 and 693 do: as few of them as bring
code and model under the cap with a margin. Zeroing one costs scale_row^2 * H_jj of squared error at the layer's
output, and the cheapest are zeroed first. H is the Hessian as it was gathered, without damping. Tables are not
pruned, because H says nothing of their effect as inputs. Every trial encodes the whole artifact, so the order-0
entropy of the codes guides the search.

Legend: R rows (outputs), C columns (inputs), N candidates, P points of a curve.
"""

from collections.abc import Callable, Sequence, Sized
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from bitgolf.artifact.sizes import entropy_bits
from bitgolf.grids.roles import is_table
from bitgolf.quantize.gptq import output_error
from bitgolf.quantize.tensors import QuantizedTensor

Encoded = TypeVar("Encoded", bound=Sized)

_PRUNED_ABOVE = 65_536  # elements, as in the published scripts
_CURVE_POINTS = 257  # of the entropy curve that guides the search
_TOLERANCE = 1 / 4096  # of the limit that may stay unused, and of the candidates that may be zeroed without need
_LEAST_SLACK = 64  # bytes that may always stay unused


def prune(weights: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Zero the `share` of smallest weights in every matrix of more than 65,536 elements, except tables."""
    pruned = dict(weights)
    for name, weight in weights.items():
        count = int(share * weight.numel())
        if count and weight.ndim == 2 and weight.numel() > _PRUNED_ABOVE and not is_table(name):
            threshold = weight.abs().flatten().kthvalue(count).values
            pruned[name] = weight.masked_fill(weight.abs() <= threshold, 0.0)
    return pruned


class Candidates:
    """The codes of +1 and -1 in GPTQ matrices, cheapest first.

    Args:
        tensors: tensors on fixed grids. Tables and tensors that GPTQ did not round give no candidates.
        hessians: (C, C) of every matrix, by the tensor's name.

    Attributes:
        total: N.
    """

    def __init__(self, tensors: Sequence[QuantizedTensor], hessians: dict[str, Tensor]) -> None:
        self.tensors = [t for t in tensors if t.method == "gptq" and not is_table(t.name)]
        self._places: list[np.ndarray] = []  # flat positions of +-1 in each tensor, rising
        costs = [np.empty(0, dtype=np.float64)]
        for tensor in self.tensors:
            codes = tensor.codes.numpy()
            rows, columns = np.nonzero(np.abs(codes) == 1)
            steps = tensor.scales.double().numpy()
            diagonal = hessians[tensor.name].diagonal().double().cpu().numpy()
            self._places.append(rows * codes.shape[1] + columns)
            costs.append(steps[rows] ** 2 * diagonal[columns])
        self._costs = np.concatenate(costs)
        self._bounds = np.cumsum([0, *(len(places) for places in self._places)])
        self._order = np.argsort(self._costs, kind="stable")
        self.total = len(self._costs)

    def cost(self, count: int) -> float:
        """Sum of scale_row^2 * H_jj over the `count` cheapest: squared output per token if H were diagonal."""
        return float(self._costs[self._order[:count]].sum())

    def codes(self, count: int) -> dict[str, Tensor]:
        """Codes with the `count` cheapest candidates zeroed, by name, for the tensors that this changes."""
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


def fit(encode: Callable[[int], Encoded], candidates: Candidates, limit: int) -> tuple[int, Encoded, int]:
    """Zero as few candidates as bring the artifact to `limit` bytes: within 1/4096 of the limit, or of the candidates.

    `encode` makes the artifact with that many candidates zeroed; `limit` is negative if there is no room at all.
    Returns the number zeroed, the artifact with that many, and how often one was encoded. The number is 0 if the
    artifact fits as it is. It is that of all candidates if even that is not enough; the artifact is then above the
    limit.
    """
    best = encode(0)
    num_bytes, encodes, count = len(best), 1, 0
    if num_bytes <= limit or not candidates.total:
        return 0, best, encodes
    counts, bits = candidates.entropy_curve()
    saved = np.maximum.accumulate(bits[0] - bits) / 8  # bytes saved by each of `counts`, if entropy were the size
    slack = max(_LEAST_SLACK, int(limit * _TOLERANCE))
    resolution = max(1, int(candidates.total * _TOLERANCE))
    low, low_bytes = 0, num_bytes  # too few zeroed
    high, high_bytes, fits = candidates.total, num_bytes - saved[-1], False  # enough zeroed, once `fits`
    widths = [high - low]
    while not fits or (limit - high_bytes > slack and high - low > resolution):
        saved_low, saved_high = np.interp([low, high], counts, saved)
        share = (low_bytes - limit + slack / 2) / max(low_bytes - high_bytes, 1e-9)
        target = saved_low + share * (saved_high - saved_low)
        guess = high if target > saved_high else int(np.ceil(np.interp(target, saved, counts)))
        if len(widths) > 2 and high - low > widths[-3] / 2:  # the curve misleads: take the middle
            guess = (low + high) // 2
        guess = min(max(guess, low + 1), high - 1 if fits else high)
        trial = encode(guess)
        encodes += 1
        if len(trial) <= limit:
            fits, high, high_bytes = True, guess, len(trial)
            best, count = trial, guess
        elif guess == candidates.total:
            return guess, trial, encodes
        else:
            if not fits:  # correct the curve's value for all candidates by the ratio seen up to this guess
                expected = np.interp(guess, counts, saved) - saved_low
                if expected > 0 and low_bytes > len(trial):
                    ratio = (low_bytes - len(trial)) / expected
                    high_bytes = len(trial) - ratio * (saved_high - saved_low - expected)
            low, low_bytes = guess, len(trial)
        widths.append(high - low)
    return count, best, encodes


def measure_again(
    tensor: QuantizedTensor,
    codes: Tensor,  # (R, C) like the tensor's
    weight: Tensor,  # (R, C) what was quantized
    hessian: Tensor,  # (C, C)
) -> QuantizedTensor:
    """`tensor` with other codes, and their errors and entropy."""
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
