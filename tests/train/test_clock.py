"""How the training budget is divided, how the ranks predict the clock, and how deadlines stop in time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitgolf.config import TrainConfig
from bitgolf.run.clock import Clock, Deadline, PartSeconds, seconds_of_second_run
from bitgolf.run.ranks import World
from bitgolf.train.pace import Division, EndTimes, Pace, Reserves, Timeline

ALONE = World(0, 1, torch.device("cpu"))


class ReadingsClock(Clock):
    """A clock with given readings."""

    def __init__(self, *readings: float) -> None:
        super().__init__(0.0)
        self.readings = list(readings)

    def elapsed(self) -> float:
        return self.readings.pop(0)


def simulate(config: TrainConfig, limit: float, reserve: float, step_seconds: float) -> tuple[float, float]:
    """Steps one by one until their end, then the burst: (end of the steps, end of the burst)."""
    division = Division.of(limit, reserve, config)
    end, now, low = division.steps_end(step_seconds), 0.0, 0
    while now + step_seconds <= end:
        low += config.warmdown > 0 and (1 - now / end) / config.warmdown < config.replay.lr_scale_below
        now += step_seconds
    return now, now + config.replay.epochs * min(low, config.replay.batches) * step_seconds


@given(
    limit=st.floats(1, 1000),
    share=st.floats(0, 0.5),
    steps=st.integers(40, 3000),
    epochs=st.integers(1, 4),
    batches=st.integers(1, 200),
    warmdown=st.floats(0.05, 1),
    below=st.floats(0.05, 1),
)
def test_steps_and_burst_fill_the_budget_but_for_a_few_steps_and_never_exceed_it_by_more(
    limit: float, share: float, steps: int, epochs: int, batches: int, warmdown: float, below: float
) -> None:
    config = TrainConfig().updated(
        {"replay.epochs": epochs, "replay.batches": batches, "warmdown": warmdown, "replay.lr_scale_below": below}
    )
    reserve, step_seconds = limit * share, limit / steps
    _, end = simulate(config, limit, reserve, step_seconds)
    rounding = (2 * epochs + 2) * step_seconds  # whole steps on both sides, and one batch more or less in each pass
    assert limit - reserve - rounding < end < limit - reserve + rounding


def test_without_a_burst_the_steps_get_all_but_the_reserve() -> None:
    division = Division.of(300.0, 7.0, TrainConfig())
    assert division.steps_end(0.1) == division.steps_end(99.0) == division.replay_end == 293.0


def test_the_burst_gets_what_its_steps_take_at_this_pace() -> None:
    config = TrainConfig().updated(
        {"replay.epochs": 2, "replay.batches": 100, "warmdown": 0.7, "replay.lr_scale_below": 0.2}
    )
    division = Division.of(300.0, 7.0, config)
    assert division.steps_end(0.08) == pytest.approx(293 - 2 * 100 * 0.08)
    # So slow that fewer than 100 batches are seen at a low rate: 14 % of the steps, twice.
    assert division.steps_end(10.0) == pytest.approx(293 / 1.28)


def test_the_pace_is_the_mean_of_all_steps_and_the_prediction_follows_the_last_ones() -> None:
    pace = Pace(step=10, elapsed=5.0, seconds_per_step=1.0)
    assert (pace.mean_seconds, pace.predict(12)) == (1.0, 7.0)
    readings = [5.0, 6.0, 7.5, 8.0, 11.0]  # of steps 11 .. 15 at their launch
    expected = 1.0
    for step, reading in zip(range(11, 16), readings, strict=True):
        pace.observe(step, reading)
        if step > 11:  # the first reading measures no completed step
            expected += 0.1 * (reading - readings[step - 12] - expected)
    assert pace.seconds_per_step == pytest.approx(expected)
    assert pace.mean_seconds == pytest.approx((11.0 - 5.0) / 4)
    assert pace.predict(17) == pytest.approx(11.0 + 2 * expected)
    pace.observe(15, 99.0)  # older than the last reading
    assert pace.elapsed == 11.0


def test_a_deadline_stops_if_another_round_of_the_longest_duration_would_end_too_late() -> None:
    deadline = Deadline(ALONE, ReadingsClock(10.0, 12.0, 13.0, 15.9, 16.1), until=18.9)
    assert [deadline.another_fits() for _ in range(4)] == [True, True, True, False]  # rounds of 2, 1, 2.9, 0.2 s


def test_the_clock_starts_when_asked_and_adds_to_the_seconds_spent_before(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([1000.0, 1000.25, 1007.0])
    monkeypatch.setattr("bitgolf.run.clock.time.perf_counter", lambda: next(readings))
    clock = Clock(12.5)
    assert clock.elapsed() == 12.5
    clock.start()
    assert [clock.elapsed(), clock.elapsed()] == [12.75, 19.5]


def test_work_is_timed_by_its_second_run_and_parts_by_their_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([10.0, 12.5, 20.0, 21.0, 30.0, 34.0, 40.0, 42.0])
    monkeypatch.setattr("bitgolf.run.clock.time.perf_counter", lambda: next(readings))
    runs: list[int] = []
    assert seconds_of_second_run(lambda: runs.append(1), ALONE) == 2.5 and len(runs) == 2
    parts = PartSeconds()
    for name in "aba":
        with parts.timed(name):
            pass
    assert parts == {"a": 3.0, "b": 4.0}


def test_a_part_ends_early_enough_for_those_after_it() -> None:
    reserves = Reserves(choice=1.0, calibration=2.0, fisher=4.0, in_flight=16.0)
    assert reserves.total == 23.0
    assert reserves.end_times(100.0) == EndTimes(choice=94.0, calibration=96.0, fisher=100.0)


@pytest.mark.parametrize(("max_steps", "fractions"), [(0, [0.0, 0.25, 0.5, 1.0]), (8, [0.0, 0.125, 0.25, 0.5])])
def test_the_fraction_follows_the_clock_unless_the_number_of_steps_is_limited(
    max_steps: int, fractions: list[float]
) -> None:
    timeline = Timeline(Clock(0.0), Pace(0, 0.0, 2.5), Division(13.0, 3.0), max_steps)
    assert [timeline.fraction(step) for step in (0, 1, 2, 4)] == fractions
    assert timeline.fraction(99) == 1.0
    assert [timeline.steps_are_over(step) for step in (0, 3, 4, 8)] == [False, False, True, True]
    assert not Timeline(Clock(0.0), Pace(0, 0.0, 99.0), Division(13.0, 3.0)).steps_are_over(0)
    assert Timeline(Clock(0.0), Pace(0, 0.0, 0.1), Division(13.0, 3.0), max_steps=5).steps_are_over(5)
