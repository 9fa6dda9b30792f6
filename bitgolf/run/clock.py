"""The training clock of rank 0, deadlines on it that are equal on all ranks (rule B4, docs/rules.md), and timing."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bitgolf.run.ranks import World

SAFETY = 1.15  # time reserved for repeated work, divided by its measured time


def seconds_of_second_run(work: Callable[[], object], world: World) -> float:
    """Seconds that `work` takes the second time on this rank; the first time compiles kernels and fills caches."""
    work()
    world.synchronize()
    begin = time.perf_counter()
    work()
    world.synchronize()
    return time.perf_counter() - begin


class PartSeconds(dict[str, float]):
    """Seconds that each part of some work took; a part may be timed several times."""

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self[part] = self.get(part, 0.0) + time.perf_counter() - begin


@dataclass
class Clock:
    """Rank 0's training clock: seconds that earlier processes spent plus seconds since `start`."""

    spent_before: float
    started: float | None = None

    def start(self) -> None:
        self.started = time.perf_counter()

    def elapsed(self) -> float:
        return self.spent_before + (time.perf_counter() - self.started if self.started is not None else 0.0)


class Deadline:
    """Decides after each round of equal work whether another one ends before `until`. All ranks use rank 0's clock."""

    def __init__(self, world: World, clock: Clock, until: float) -> None:
        self.world, self.clock, self.until = world, clock, until
        self._last, self._longest = clock.elapsed(), 0.0

    def another_fits(self) -> bool:
        """Whether a round as long as the longest so far ends in time. Call it after each round, on every rank."""
        self.world.synchronize()
        now = self.clock.elapsed()
        self._longest, self._last = max(self._longest, now - self._last), now
        return bool(self.world.from_main(float(now + self._longest < self.until)))
