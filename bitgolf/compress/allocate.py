"""Which step each tensor gets, and how the file lands on the byte.

With step s, tensor t costs curvature_t * s^2 nats and n_t * (h_t - log2 s) bits, so the sum of the losses at a given
number of bits is least where s_t^2 = theta * n_t / curvature_t for all tensors: the same loss a bit everywhere. One
number theta is left; the size of the file falls by very nearly sum(n_t) / 2 bits a doubling of theta, so a few real
quantizations find it. A last correction on single tensors brings the file within reach of the cap.
Source: reverse water-filling at high rate (Cover and Thomas, section 10.3); frontier of the field, section 3.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bitgolf.errors import ConfigError


@dataclass(frozen=True)
class Rated:
    """A tensor that shares in the bytes.

    Attributes:
        num_weights: n, its elements.
        nats_per_squared_step: loss increase a token divided by step^2, > 0.
    """

    num_weights: int
    nats_per_squared_step: float


@dataclass(frozen=True)
class Landing:
    """Where the search ended.

    Attributes:
        log2_theta: of the best file, the largest that is not above the cap.
        size: its bytes.
        passes: (log2_theta, bytes) of every quantization that was made, in order.
    """

    log2_theta: float
    size: int
    passes: tuple[tuple[float, int], ...]


def equal_slope_steps(tensors: Mapping[str, Rated], log2_theta: float) -> dict[str, float]:
    """Step of every tensor at which one more bit anywhere lowers the loss by the same.

    Raises ConfigError naming a tensor without weights or without a positive curvature.
    """
    steps = {}
    for name, tensor in tensors.items():
        if tensor.num_weights < 1 or not 0 < tensor.nats_per_squared_step < math.inf:
            raise ConfigError(
                f"{name}: {tensor.num_weights} weights with curvature {tensor.nats_per_squared_step:g} cannot share in "
                "the bytes; both must be above 0"
            )
        steps[name] = math.sqrt(2.0**log2_theta * tensor.num_weights / tensor.nats_per_squared_step)
    return steps


def predicted_increase(tensors: Mapping[str, Rated], steps: Mapping[str, float]) -> float:
    """Loss increase in nats a token of rounding every tensor with its step, if the increases add up."""
    return sum(tensors[name].nats_per_squared_step * step**2 for name, step in steps.items())


def land(
    size: Callable[[float], int],
    cap: int,
    *,
    start: float,
    num_weights: int,
    slack: int,
    max_passes: int,
    lowest: float,
    highest: float,
) -> Landing | None:
    """Find the log2_theta whose file is the largest not above `cap`.

    Args:
        size: bytes of the file at a log2_theta; falls as it grows, up to small irregularities.
        cap: bytes allowed.
        start: first log2_theta to try.
        num_weights: of all tensors; gives the slope of the first move.
        slack: a file at most this many bytes below the cap ends the search.
        max_passes: files made at most.
        lowest, highest: bounds of log2_theta; a cap beyond what they reach ends at the bound.
    Returns:
        The landing, or None when no file that was tried fits.
    """
    passes: list[tuple[float, int]] = []
    above: tuple[float, int] | None = None  # the finest file known to be too large
    below: tuple[float, int] | None = None  # the coarsest known to fit
    point = min(max(start, lowest), highest)
    for _ in range(max_passes):
        found = size(point)
        passes.append((point, found))
        if found <= cap:
            if below is None or found >= below[1]:
                below = (point, found)
            if cap - found <= slack or point <= lowest:
                break
        else:
            if above is None or found <= above[1]:
                above = (point, found)
            if point >= highest:
                break
        point = min(max(_next(passes, above, below, cap - slack / 2, num_weights), lowest), highest)
        if any(point == tried for tried, _ in passes):
            break
    return None if below is None else Landing(below[0], below[1], tuple(passes))


def _next(
    passes: list[tuple[float, int]],
    above: tuple[float, int] | None,
    below: tuple[float, int] | None,
    target: float,
    num_weights: int,
) -> float:
    """The next log2_theta: inside the bracket by secant or halves, outside along the slope seen last."""
    if above is not None and below is not None and below[0] > above[0]:
        share = (above[1] - target) / (above[1] - below[1])
        width = below[0] - above[0]
        if len(passes) % 3 == 0 and width > 0.01:  # secants alone creep where the sizes bend
            share = 0.5
        return above[0] + min(max(share, 0.02), 0.98) * width
    near = below if above is None else above
    assert near is not None
    slope = num_weights / 16  # bytes a doubling of theta: half a bit a weight at high rate, less at low rate
    if len(passes) > 1:
        (x, before), (y, after) = passes[-2:]
        if x != y:
            slope = min(slope, max((before - after) / (y - x), slope / 16))
    return near[0] + (near[1] - target) / slope
