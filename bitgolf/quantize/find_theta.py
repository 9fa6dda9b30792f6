"""The search for the theta whose file fills the byte cap.

`allocate` gives every tensor its step for a theta. The size of the file falls as theta grows. Making a file takes
seconds; a forecast of its size (see `forecast`) takes milliseconds, but is off by a percent or so in level and by a few
percent in slope. So every new theta is read off the forecast, corrected by the files made so far: first shifted so that
it agrees with the nearest file, then also stretched so that it agrees with a second one. Two or three files are enough.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

_HALVINGS = 50  # of the interval in which a forecast is inverted: down to the precision of fp64
_MOST_STRETCH = 16.0  # factor between the slopes of sizes and forecasts
_MIN_SHARE = 1e-3  # part of the interval that a new theta keeps away from its ends

Point = tuple[float, int]  # (log2 of theta, bytes of its file)


@dataclass(frozen=True)
class ThetaSearch:
    log2_theta: float  # of the best file: within the slack of the cap or nearest to it
    size: int  # bytes of that file
    passes: tuple[Point, ...]  # (log2 of theta, bytes) of every file that was made, in order


def find_theta(
    # makes the file of a log2(theta) and gives its bytes; falls as theta grows, up to small irregularities.
    size: Callable[[float], int],
    cap: int,  # bytes allowed
    *,
    # bytes expected at a log2(theta); off by an offset and a slope, and strictly falling.
    forecast: Callable[[float], float],
    slack: int,  # the search ends with a file that is at most this many bytes below the cap
    # the search also ends with a file that is at most this many bytes from cap - slack / 2. The caller corrects it by
    # changing single tensors.
    reach: int,
    max_passes: int,  # files made at most
    # lowest, highest: bounds of log2(theta). If a cap needs less or more, the search ends at the bound.
    lowest: float,
    highest: float,
) -> ThetaSearch | None:
    """Find a log2(theta) whose file is at most `cap` bytes and at least `cap - slack`, or near enough to be corrected.

    Returns None if no file that was made fits or is within reach.
    """
    target = cap - slack / 2
    passes: list[Point] = []
    too_large: Point | None = None  # the smallest file above the cap
    fitting: Point | None = None  # the largest file within the cap
    gap, halved = math.inf, False  # forecast bytes between these two; whether the last theta halved the interval
    theta = _invert(forecast, target, lowest, highest)
    for _ in range(max_passes):
        num_bytes = size(theta)
        passes.append((theta, num_bytes))
        fits = num_bytes <= cap
        if fits and (fitting is None or num_bytes >= fitting[1]):
            fitting = (theta, num_bytes)
        if not fits and (too_large is None or num_bytes <= too_large[1]):
            too_large = (theta, num_bytes)
        if abs(num_bytes - target) <= max(slack / 2, reach):
            break
        corrected = _corrected_theta(passes, target, slack, forecast, lowest, highest)
        if too_large is None or fitting is None or fitting[0] <= too_large[0]:
            theta = corrected
        else:
            last_gap, gap = gap, forecast(too_large[0]) - forecast(fitting[0])
            if gap <= slack / 4:
                break  # sizes jump here, as those of general-purpose compressors do
            # If sizes bend and the forecast does not, corrections alone approach slowly. A theta that did not halve the
            # interval is therefore followed by its middle.
            halved = not halved and gap > last_gap / 2
            width = fitting[0] - too_large[0]
            share = 0.5 if halved else min(max((corrected - too_large[0]) / width, _MIN_SHARE), 1 - _MIN_SHARE)
            theta = too_large[0] + share * width
        if any(theta == tried for tried, _ in passes):
            break  # the search has reached a bound, or cannot tell more thetas apart
    near = [point for point in passes if abs(point[1] - target) <= reach]
    usable = near or [point for point in passes if point[1] <= cap]
    if not usable:
        return None
    best = min(usable, key=lambda point: abs(point[1] - target))
    return ThetaSearch(*best, tuple(passes))


def _corrected_theta(
    passes: list[Point],
    target: float,
    slack: int,
    forecast: Callable[[float], float],
    lowest: float,
    highest: float,
) -> float:
    """Where the forecast reaches `target` once it is shifted and stretched to agree with two of the files."""
    nearest, *others = sorted(passes, key=lambda point: abs(point[1] - target))
    stretch = 1.0  # bytes of the file per byte of the forecast
    if others:
        # Between files of nearly one size a slope would be noise.
        other = next((point for point in others if abs(point[1] - nearest[1]) > 4 * slack), others[-1])
        change = forecast(other[0]) - forecast(nearest[0])
        if change:
            stretch = min(max((other[1] - nearest[1]) / change, 1 / _MOST_STRETCH), _MOST_STRETCH)
    return _invert(forecast, forecast(nearest[0]) + (target - nearest[1]) / stretch, lowest, highest)


def _invert(forecast: Callable[[float], float], num_bytes: float, lowest: float, highest: float) -> float:
    """The log2(theta) between the bounds at which the forecast is `num_bytes`, by halving the interval."""
    if forecast(lowest) <= num_bytes:
        return lowest
    if forecast(highest) >= num_bytes:
        return highest
    for _ in range(_HALVINGS):
        middle = (lowest + highest) / 2
        if forecast(middle) > num_bytes:
            lowest = middle
        else:
            highest = middle
    return highest
