"""The loop of optimizer steps: schedules, the switch to the late phase, and the checkpoints that are due.

A trainer without a model notes its arguments; time advances by one second per step.
"""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_trainer import ALONE

from bitgolf.config import QATConfig, TrainConfig
from bitgolf.config.train import CheckpointConfig, ReplayConfig
from bitgolf.run.clock import Clock
from bitgolf.train.checkpoint import TrainState
from bitgolf.train.checkpoint_times import Checkpoints
from bitgolf.train.loop import make_steps
from bitgolf.train.metrics import MetricsPipe, StepReport, TrainLog, read_events
from bitgolf.train.pace import Division, Pace, Timeline
from bitgolf.train.replay import ReplayWindow
from bitgolf.train.schedule import StepSettings


class Late:
    """In place of the late phase."""

    config = QATConfig().updated({"mode": "ste", "start_lr_scale": 0.5})

    def __init__(self) -> None:
        self.began_at: list[float] = []

    def begin(self, fraction: float) -> float:
        self.began_at.append(fraction)
        return 0.01


@dataclass
class NotingTrainer:
    """In place of the trainer."""

    config: TrainConfig
    clock: Clock
    late: Late | None = None
    repeats: int = 0
    steps: list[tuple[float, ...]] = field(default_factory=list)
    settings: list[StepSettings] = field(default_factory=list)
    looped: list[bool] = field(default_factory=list)

    @property
    def model(self) -> Any:
        attention = SimpleNamespace(windows=(0, 0))
        config = SimpleNamespace(loop=SimpleNamespace(repeats=self.repeats), attention=attention)
        return SimpleNamespace(config=config, windows=(0, 0))

    def step(self, inputs: Any, targets: Any, settings: StepSettings, elapsed: float) -> torch.Tensor:
        self.steps.append((inputs, settings.fraction, settings.lr_scale, settings.momentum, settings.late))
        self.settings.append(settings)
        self.looped.append(settings.looped)
        self.clock.spent_before += 1.0
        return torch.tensor([elapsed, 2.0 + len(self.steps), 1.0, 1.0])


class Store:
    """In place of the checkpoint store."""

    def __init__(self) -> None:
        self.saved: list[tuple[int, float, bool]] = []

    def save(self, state: TrainState, tensors: Any, *, kept: bool) -> None:
        assert set(tensors) == {"a", "rng"}
        self.saved.append((state.step, state.seconds_spent, kept))


@dataclass
class Scene:
    """One run of the loop and what it left."""

    trainer: NotingTrainer
    store: Store
    window: ReplayWindow
    last: int
    events: list[dict[str, Any]]


def run(
    folder: Path,
    changes: dict[str, Any],
    limit: float = 1e9,
    late: Late | None = None,
    first: int = 0,
    repeats: int = 0,
) -> Scene:
    """Run the loop from step `first` (with as many seconds spent) to its end."""
    config = TrainConfig().updated({"batch_tokens": 1024, "log_every": 4} | changes)
    clock = Clock(float(first))
    trainer, store, window = NotingTrainer(config, clock, late, repeats), Store(), ReplayWindow(ReplayConfig(epochs=1))
    timeline = Timeline(clock, Pace(first, float(first), 1.0), Division(limit, 0.0), config.max_steps)
    train_log = TrainLog(folder, enabled=True)
    train_log.begin()
    state = TrainState(first, float(first), "digest", 1)
    report = StepReport(MetricsPipe(ALONE.device, ["a"]), timeline, train_log, config, ALONE)
    checkpoints = Checkpoints(store, {"a": torch.zeros(1)}, state, config.checkpoint, report, ALONE)  # type: ignore[arg-type]
    batches = iter([(number, number) for number in range(first, 1000)])
    last = make_steps(
        trainer,
        batches,
        window,
        report,
        first,
        lambda step, looped: checkpoints.after_step(step),  # type: ignore[arg-type]
    )
    checkpoints.save_last(last)
    return Scene(trainer, store, window, last, read_events(folder / "train.jsonl"))


def test_a_held_out_loss_has_a_sample_only_where_there_is_one(tmp_path: Path) -> None:
    train_log = TrainLog(tmp_path, enabled=True)
    train_log.begin()
    timeline = Timeline(Clock(0.0), Pace(0, 0.0, 1.0), Division(9.0, 0.0), 8)
    report = StepReport(MetricsPipe(ALONE.device, ["a"]), timeline, train_log, TrainConfig(), ALONE)
    for text in ("", "a text"):
        report.log_held_out(3, 2.5, 512, 4.0, 0.5, text)
    shared = {"event": "held_out", "step": 3, "loss": 2.5, "tokens": 512, "elapsed_seconds": 4.0, "seconds": 0.5}
    without, sampled = [{key: event[key] for key in event if key != "seal"} for event in read_events(train_log.events)]
    assert without == shared and sampled == shared | {"sample": "a text"}
    assert report._held_out == " held out 2.5000", "it stands in the progress bar"


def test_every_batch_gets_the_schedule_of_its_fraction(tmp_path: Path) -> None:
    changes = {
        "max_steps": 8,
        "warmdown": 0.5,
        "muon.momentum_warmup": 0.5,
        "muon.momentum_start": 0.8,
        "muon.momentum": 0.9,
    }
    scene = run(tmp_path, changes)
    assert scene.last == 8
    fractions = [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]
    scales = [1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    momenta = [0.8, 0.825, 0.85, 0.875, 0.9, 0.9, 0.9, 0.9]
    assert [step[0] for step in scene.trainer.steps] == list(range(8))
    assert [step[1:] for step in scene.trainer.steps] == [
        (fraction, scale, pytest.approx(momentum), False)
        for fraction, scale, momentum in zip(fractions, scales, momenta, strict=True)
    ]


def test_every_setting_of_a_step_follows_its_schedule(tmp_path: Path) -> None:
    changes = {
        "max_steps": 8,
        "warmdown": 0.5,
        "min_lr": 0.3,
        "muon.weight_decay": 0.1,
        "muon.decay_falls": True,
        "extra_targets.next_tokens": (0.4, 0.2),
        "extra_targets.prefix": 0.6,
        "extra_targets.until": 0.5,
    }
    scene = run(tmp_path, changes)
    assert [made.lr_scale for made in scene.trainer.settings] == [1.0] * 5 + [0.75, 0.5, 0.3]
    decays = [made.decay for made in scene.trainer.settings]
    assert decays == pytest.approx([0.1, 0.0875, 0.075, 0.0625, 0.05, 0.0375, 0.025, 0.0125])
    extra = [made.extra for made in scene.trainer.settings]
    assert extra[:4] == [pytest.approx(w) for w in ([0.4, 0.2, 0.6], [0.4, 0.1, 0.6], [0.4, 0, 0.6], [0.2, 0, 0.3])]
    assert extra[4:] == [None] * 4 and all(made.looped and made.rate == 1 for made in scene.trainer.settings)
    late = run(tmp_path, changes | {"extra_targets.until": 1.0, "min_lr": 0.0}, late=Late())
    assert [made.extra is None for made in late.trainer.settings] == [made.late for made in late.trainer.settings]
    assert [made.late for made in late.trainer.settings] == [False] * 7 + [True]


def test_the_log_has_the_mean_loss_and_the_speed_since_the_last_line(tmp_path: Path) -> None:
    steps = [event for event in run(tmp_path, {"max_steps": 8, "warmdown": 0.5}).events if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 4, 8]
    assert [event["loss"] for event in steps] == [3.0, (4 + 5 + 6) / 3, (7 + 8 + 9 + 10) / 4]
    assert [event["tokens"] for event in steps] == [1024, 4096, 8192]
    assert [event["tokens_per_second"] for event in steps] == pytest.approx([1024] * 3)
    assert [event["lr_scale"] for event in steps] == [1.0, 1.0, 0.25]


def test_the_late_phase_begins_once_when_the_rate_is_low(tmp_path: Path) -> None:
    late = Late()
    scene = run(tmp_path, {"max_steps": 10, "warmdown": 0.5}, late=late)
    assert late.began_at == [0.8]  # (1 - 0.8) / 0.5 is the first multiplier below 0.5
    assert [step[-1] for step in scene.trainer.steps] == [False] * 8 + [True] * 2
    (event,) = [event for event in scene.events if event["event"] == "late"]
    assert (event["step"], event["relative_change"]) == (8, 0.01)


@pytest.mark.parametrize(("repeats", "first", "expected"), [(0, 0, [True] * 8), (2, 0, [False] * 4 + [True] * 4),
                                                            (2, 6, [True] * 2)])  # fmt: skip
def test_layers_are_looped_from_their_fraction_on(
    tmp_path: Path, repeats: int, first: int, expected: list[bool]
) -> None:
    scene = run(tmp_path, {"max_steps": 8, "loop_start": 0.5}, first=first, repeats=repeats)
    assert scene.trainer.looped == expected
    assert [event["step"] for event in scene.events if event["event"] == "loop"] == ([4] if False in expected else [])


def test_the_replay_window_knows_the_batches_of_low_rate(tmp_path: Path) -> None:
    assert run(tmp_path, {"max_steps": 20, "warmdown": 0.6}).window.batches(20) == range(18, 20)


def test_checkpoints_are_kept_at_their_fractions_and_saved_after_their_seconds(tmp_path: Path) -> None:
    scene = run(tmp_path, {"max_steps": 20, "checkpoint.at": (0.25, 0.6), "checkpoint.seconds": 3.5})
    assert [(step, kept) for step, _, kept in scene.store.saved] == [
        (5, True), (9, False), (12, True), (16, False), (20, False)
    ]  # fmt: skip
    assert [seconds for _, seconds, _ in scene.store.saved] == [5.0, 9.0, 12.0, 16.0, 20.0]
    assert [event["step"] for event in scene.events if event["event"] == "checkpoint"] == [5, 9, 12, 16, 20]


def test_fractions_before_the_beginning_are_not_saved_again(tmp_path: Path) -> None:
    changes = {"max_steps": 20, "checkpoint.at": (0.25, 0.5, 0.75), "checkpoint.seconds": 0.0}
    assert [step for step, _, _ in run(tmp_path, changes, first=10).store.saved] == [15]


@pytest.mark.parametrize("at", [0.999, 0.3])
def test_a_fraction_just_before_the_end_of_the_clock_is_saved_after_the_last_step(tmp_path: Path, at: float) -> None:
    scene = run(tmp_path, {"checkpoint.at": (at,), "checkpoint.seconds": 0.0}, limit=10.5)
    assert scene.last == 11  # the last step is launched before the end
    assert [(step, kept) for step, _, kept in scene.store.saved] == [(11 if at > 0.9 else 5, True)]


def test_a_late_reading_of_the_clock_does_not_save_a_fraction_twice(tmp_path: Path) -> None:
    """The fraction may fall when a newer reading arrives; a fraction that was served stays served."""
    timeline = Timeline(Clock(0.0), Pace(0, 0.0, 1.0), Division(10.0, 0.0))
    store, train_log = Store(), TrainLog(tmp_path, enabled=True)
    report = StepReport(MetricsPipe(ALONE.device, ["a"]), timeline, train_log, TrainConfig(), ALONE)
    checkpoints = Checkpoints(
        store, {"a": torch.zeros(1)}, TrainState(0, 0.0, "digest", 1), CheckpointConfig(seconds=0.0, at=(0.5, 0.8)),
        report, ALONE,  # type: ignore[arg-type]
    )  # fmt: skip
    assert checkpoints.must_keep(5)
    timeline.pace.elapsed = -1.0
    checkpoints.save(5, keep=True)
    assert not checkpoints.must_keep(6)
    timeline.pace.elapsed = 0.0
    assert not checkpoints.must_keep(7) and checkpoints.must_keep(8)
