"""A training whose time is simulated, so that a test of the clock has the same outcome on any machine.

The simulated time stands still except for the work that `simulate_time` gives a duration to. Every reading of the
clock that training takes is of this time.
"""

from typing import Any

import pytest

import bitgolf.measure.calibration
import bitgolf.measure.fisher
import bitgolf.run.clock
import bitgolf.train.plan
import bitgolf.train.trainer
from bitgolf.measure.calibration import HessianCollector
from bitgolf.measure.fisher import FisherCollector
from bitgolf.train.trainer import Trainer

_READERS = (
    bitgolf.run.clock,
    bitgolf.train.trainer,
    bitgolf.train.plan,
    bitgolf.measure.calibration,
    bitgolf.measure.fisher,
)


class SimulatedTime:
    """In place of the module `time`. `now`: seconds so far."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def simulate_time(patch: pytest.MonkeyPatch, step_seconds: float = 0.02, batch_seconds: float = 0.005) -> SimulatedTime:
    """Let an optimizer step take `step_seconds`, and a batch of Hessians or Fisher statistics `batch_seconds`."""
    simulated = SimulatedTime()
    for module in _READERS:
        patch.setattr(module, "time", simulated)

    def slow_down(owner: type, name: str, seconds: float) -> None:
        real = getattr(owner, name)

        def slowed(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = real(self, *args, **kwargs)
            simulated.now += seconds
            return result

        patch.setattr(owner, name, slowed)

    slow_down(Trainer, "step", step_seconds)
    slow_down(HessianCollector, "add", batch_seconds)
    slow_down(FisherCollector, "add", batch_seconds)
    return simulated
