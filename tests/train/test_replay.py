"""The replay burst: its batches, its rate, what it updates, and when it stops."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_trainer import ALONE, make_trainer

from bitgolf.config.train import ReplayConfig
from bitgolf.run.clock import Clock
from bitgolf.train.checkpoint import state_digest
from bitgolf.train.metrics import MetricsPipe
from bitgolf.train.pace import Division, Pace, Timeline
from bitgolf.train.replay import Replayed, ReplayWindow, replay
from bitgolf.train.schedule import StepSettings
from bitgolf.train.trainer import Trainer

BURST: dict[str, Any] = {
    "replay.epochs": 2, "replay.batches": 3, "replay.lr": 0.25, "muon.momentum": 0.9, "average.ema_decay": 0.9,
    "average.swa_weight": 0.5, "average.swa_start": 1.0, "average.swa_spacing": 0.001,
}  # fmt: skip


class Rows:
    """In place of the loader: random rows by batch number, and a list of the numbers that were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def rows(self, step: int, count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        assert count == 1
        self.asked.append(step)
        tokens = torch.randint(260, (4, 9), generator=torch.Generator().manual_seed(step))
        return tokens[:, :-1], tokens[:, 1:]


def burst(trainer: Trainer, batches: range, step: int, until: float = 1e9, pace: float = 1e-6) -> tuple[Replayed, Rows]:
    rows, clock = Rows(), Clock(0.0)
    clock.start()
    timeline = Timeline(clock, Pace(step, 0.0, pace), Division(until, 0.0))
    pipe = MetricsPipe(ALONE.device, trainer.optimizer.names)
    return replay(trainer, rows, batches, step, timeline, pipe), rows  # type: ignore[arg-type]


@given(st.lists(st.sampled_from([0.05, 0.19999, 0.2, 0.3, 1.0])), st.integers(1, 6))
def test_the_window_is_the_last_batches_of_the_unbroken_stretch_of_low_rate(scales: list[float], most: int) -> None:
    window = ReplayWindow(ReplayConfig(epochs=1, batches=most))
    for step, scale in enumerate(scales):
        window.note(step, scale)
    expected: list[int] = []
    for step in reversed(range(len(scales))):
        if scales[step] >= 0.2 or len(expected) == most:
            break
        expected.insert(0, step)
    assert list(window.batches(len(scales))) == expected


def test_the_window_survives_a_restart_and_has_no_state_without_a_burst() -> None:
    window, again = (ReplayWindow(ReplayConfig(epochs=1)) for _ in range(2))
    for step in range(40):
        window.note(step, 1.0 if step < 25 else 0.1)
    for name, tensor in again.state().items():
        tensor.copy_(window.state()[name])
    assert again.batches(40) == window.batches(40) == range(25, 40)
    assert ReplayWindow(ReplayConfig()).state() == {}


def test_the_burst_is_plain_steps_at_the_small_rate_with_the_ema_and_without_snapshots() -> None:
    trainer, by_hand = make_trainer(BURST), make_trainer(BURST)
    done, rows = burst(trainer, range(5, 8), step=8)
    assert rows.asked == [5, 6, 7, 5, 6, 7]
    losses = []
    for number in rows.asked:
        losses.append(float(by_hand.step(*Rows().rows(number), StepSettings(0.25, 0.9, snapshots=False))[1]))
    assert state_digest(trainer.tensors()) == state_digest(by_hand.tensors())
    assert (done.batches, done.planned, done.steps) == (3, 6, 6)
    assert done.losses == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])
    averages = trainer.averages
    assert averages.swa is not None
    assert averages.ema is not None
    assert int(averages.swa.count) == 0
    fresh = make_trainer(BURST).averages.ema
    assert fresh is not None
    assert not torch.equal(averages.ema.shadow["embedding"], fresh.shadow["embedding"])


def test_a_step_takes_a_snapshot_unless_told_not_to() -> None:
    trainer = make_trainer(BURST)
    trainer.step(*Rows().rows(1), StepSettings(0.1, 0.9, fraction=1.0))
    assert trainer.averages.swa is not None
    assert int(trainer.averages.swa.count) == 1


@pytest.mark.parametrize(("room", "made"), [(0.5, 0), (2.5, 2), (4.0, 5), (99.0, 6)])
def test_no_step_of_the_burst_is_launched_after_its_end(
    room: float, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(BURST)
    monkeypatch.setattr(Clock, "elapsed", lambda self: float(len(rows.asked) - 1))  # one second per step
    rows = Rows()
    pipe = MetricsPipe(ALONE.device, trainer.optimizer.names)
    timeline = Timeline(Clock(0.0), Pace(8, 0.0, 1.0), Division(room, 0.0))
    done = replay(trainer, rows, range(5, 8), 8, timeline, pipe)  # type: ignore[arg-type]
    assert (done.steps, done.planned) == (made, 6)
    assert rows.asked == [5, 6, 7, 5, 6, 7][:made]


def test_without_batches_no_step_is_made() -> None:
    trainer = make_trainer(BURST)
    before = state_digest(trainer.tensors())
    done, rows = burst(trainer, range(0), step=8)
    assert done == Replayed(0, 0, 0, ())
    assert rows.asked == []
    assert state_digest(trainer.tensors()) == before


def test_a_batch_that_was_not_seen_is_refused() -> None:
    with pytest.raises(AssertionError):
        burst(make_trainer(BURST), range(7, 9), step=8)
