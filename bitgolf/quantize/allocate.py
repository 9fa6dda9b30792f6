"""Which step each tensor gets, and how the file lands on the byte.

With step s, tensor t costs curvature_t * s^2 nats and n_t * (h_t - log2 s) bits, so the sum of the losses at a given
number of bits is least where s_t^2 = theta * n_t / curvature_t for all tensors: the same loss a bit everywhere. One
number theta is left; the size of the file falls by very nearly sum(n_t) / 2 bits a doubling of theta, less at low rate.
With a forecast that knows how much less, two or three real quantizations find it. A last correction on single tensors
brings the file within the slack of the cap.
Source: reverse water-filling at high rate (Cover and Thomas, section 10.3).
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
        log2_theta: of the best file: the largest not above the cap, or one that single tensors can bring there.
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
    forecast: Callable[[float], float],
    slack: int,
    reach: int,
    max_passes: int,
    lowest: float,
    highest: float,
) -> Landing | None:
    """Find a log2_theta whose file is as large as `cap` allows, or so near that a last correction gets there.

    Files are far dearer than forecasts, so every move goes along the forecast: first to where it says `cap`, then to
    where it says `cap` once shifted, and then also stretched, to agree with the files made.

    Args:
        size: bytes of the file at a log2_theta; falls as it grows, up to small irregularities.
        cap: bytes allowed.
        forecast: about what `size` will be, wrong by an offset and a slope; must fall without irregularities.
        slack: a file at most this many bytes below the cap ends the search.
        reach: so does one at most this many bytes from the middle of the slack, above the cap or below.
        max_passes: files made at most.
        lowest, highest: bounds of log2_theta; a cap beyond what they reach ends at the bound.
    Returns:
        The landing, or None when no file that was tried fits or is within reach.
    """
    passes: list[tuple[float, int]] = []
    target = cap - slack / 2
    above: tuple[float, int] | None = None  # the finest file known to be too large
    below: tuple[float, int] | None = None  # the coarsest known to fit
    gap, halved = math.inf, False  # between the two, in bytes of the forecast; whether the last move was half of it
    point = _where(forecast, target, lowest, highest)
    for _ in range(max_passes):
        found = size(point)
        passes.append((point, found))
        if found <= cap and (below is None or found >= below[1]):
            below = (point, found)
        if found > cap and (above is None or found <= above[1]):
            above = (point, found)
        at_bound = point <= lowest if found <= cap else point >= highest
        if at_bound or 0 <= cap - found <= slack or abs(found - target) <= reach:
            break
        bent = _next(passes, target, slack, forecast, lowest, highest)
        if above is None or below is None or below[0] <= above[0]:
            point = bent
        else:
            last_gap, gap = gap, forecast(above[0]) - forecast(below[0])
            if gap <= slack / 4:
                break  # sizes jump here, as those of general-purpose compressors do
            width = below[0] - above[0]
            # Secants alone creep where sizes bend and the forecast does not: a move that did not halve is followed by
            # one that does.
            halve = not halved and gap > last_gap / 2
            halved = halve
            share = 0.5 if halve else min(max((bent - above[0]) / width, 1e-3), 1 - 1e-3)
            point = above[0] + share * width
        if any(point == tried for tried, _ in passes):
            break
    fitting = [(point, found) for point, found in passes if found <= cap]
    near = [(point, found) for point, found in passes if abs(found - target) <= reach]
    if not fitting and not near:
        return None
    best = min(near or fitting, key=lambda tried: (not 0 <= cap - tried[1] <= slack, abs(tried[1] - target)))
    return Landing(*best, tuple(passes))


def _next(
    passes: list[tuple[float, int]],
    target: float,
    slack: int,
    forecast: Callable[[float], float],
    lowest: float,
    highest: float,
) -> float:
    """The next log2_theta, by the forecast bent to go through the file that came nearest and the one before it."""
    near, *others = sorted(passes, key=lambda tried: abs(tried[1] - target))
    stretch = 1.0  # bytes of the file a byte of the forecast
    if others:
        # Between files of nearly one size a slope would be noise.
        other = next((tried for tried in others if abs(tried[1] - near[1]) > 4 * slack), others[-1])
        moved = forecast(other[0]) - forecast(near[0])
        if moved:
            stretch = min(max((other[1] - near[1]) / moved, 1 / 16), 16.0)
    return _where(forecast, forecast(near[0]) + (target - near[1]) / stretch, lowest, highest)


def _where(forecast: Callable[[float], float], wanted: float, lowest: float, highest: float) -> float:
    """log2_theta between the bounds at which the forecast is `wanted`, by halves."""
    if forecast(lowest) <= wanted:
        return lowest
    if forecast(highest) >= wanted:
        return highest
    for _ in range(50):
        middle = (lowest + highest) / 2
        if forecast(middle) > wanted:
            lowest = middle
        else:
            highest = middle
    return highest
