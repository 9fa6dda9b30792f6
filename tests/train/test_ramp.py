"""Batches that grow during the run: which rows the steps read, at which rates, on what clock, and after a restart."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_run import done, events, read_json, weights_digest
from tiny_trainer import make_trainer

from bitgolf.config import TrainConfig
from bitgolf.config.train import ReplayConfig
from bitgolf.data.loader import BatchShape, next_batches
from bitgolf.errors import ConfigError
from bitgolf.run.clock import Clock
from bitgolf.run.ranks import World
from bitgolf.train.pace import Division, Pace, Timeline
from bitgolf.train.ramp import Ramp
from bitgolf.train.replay import ReplayWindow
from bitgolf.train.rows import TrainingRows
from bitgolf.train.schedule import StepSettings

CPU = torch.device("cpu")
RAMP = ((0.0, 16, 0.5), (0.25, 32, 1.0), (0.5, 48, 1.5))  # tokens; rows of 8


def config(**changes: Any) -> TrainConfig:
    sizes = {"seq_len": 8, "batch_tokens": 32, "micro_batch_tokens": 16}
    return TrainConfig.model_validate(sizes | changes)


def test_the_parts_of_the_run_have_their_sizes_and_rates() -> None:
    ramped = config(batch_ramp=RAMP[1:])
    assert ramped.batch_parts == ((0.0, 32, 1.0), *RAMP[1:]) and config(batch_ramp=RAMP).batch_parts == RAMP
    assert (config(batch_ramp=RAMP).block_tokens, ramped.block_tokens, config().block_tokens) == (16, 16, 32)
    ramp, taken = Ramp.of(config(batch_ramp=RAMP)), []
    for step, fraction in enumerate((0.0, 0.24, 0.25, 0.49, 0.5, 0.99)):
        assert ramp.blocks(step) == sum(taken)
        size, rate = ramp.enter(step, fraction)
        taken.append(size)
        assert (size, rate) == {0: (1, 0.5), 1: (2, 1.0), 2: (3, 1.5)}[step // 2]
        assert int(ramp.taken) == sum(taken)
    assert [ramp.blocks(step) for step in range(8)] == [0, 1, 2, 4, 6, 9, 12, 15]
    plain = Ramp.of(config())
    assert plain.state() == {} and [plain.enter(step, 0.1 * step)[0] for step in range(3)] == [1, 1, 1]


def test_a_restored_ramp_goes_on_with_the_next_block() -> None:
    ramp, again = (Ramp.of(config(batch_ramp=RAMP)) for _ in range(2))
    for step in range(5):
        ramp.enter(step, 0.2 * step)
    again.state()["ramp.taken"].copy_(ramp.state()["ramp.taken"])
    again.begin(5)
    assert again.blocks(5) == ramp.blocks(5) == int(again.taken) == 1 + 1 + 2 + 3 + 3
    assert again.enter(5, 0.9) == (3, 1.5) and again.blocks(6) == 13
    plain = Ramp.of(config())
    plain.begin(7)
    assert int(plain.taken) == plain.blocks(7) == 7


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("loader", ["sequential", "shuffled"])
def test_all_ranks_together_read_every_row_once_in_order(num_ranks: int, loader: str) -> None:
    settings = config(batch_ramp=RAMP, micro_batch_tokens=8, loader=loader)
    rows = [_rows(settings, num_ranks) for _ in range(num_ranks)]
    assert rows[0].shape == BatchShape(6, 6 // num_ranks, 1) and rows[0].blocks == 3
    read: list[list[int]] = [[] for _ in range(4)]
    for rank in range(num_ranks):
        with rows[rank].loader(World(rank, num_ranks, CPU), 0) as batches:
            for step, size in enumerate((1, 2, 3, 1)):
                inputs, targets = next_batches(batches, size)
                assert inputs.shape == targets.shape == (2 * size // num_ranks, 8)
                assert torch.equal(inputs[:, 1:], targets[:, :-1])
                read[step] += inputs[:, 0].tolist()
    expected = [rows[0].order.spans(row)[0][0] for row in range(14)]
    for step, (start, stop) in enumerate(((0, 2), (2, 6), (6, 12), (12, 14))):
        assert sorted(read[step]) == sorted(expected[start:stop])
    with rows[0].loader(World(0, num_ranks, CPU), 6) as resumed:
        assert next(resumed)[0][0, 0] == expected[12]
    micro = list(rows[0].micro_batches(iter([(torch.zeros(2, 8), torch.zeros(2, 8))] * 3), 5))  # type: ignore[arg-type]
    assert [len(part) for part in micro] == [1] * 5


def _rows(settings: TrainConfig, num_ranks: int) -> TrainingRows:
    stream = SimpleNamespace(
        num_tokens=200, validate=None, read=lambda start, n: torch.arange(start, start + n).numpy().astype("uint16")
    )
    data = SimpleNamespace(train=stream, tokenizer=SimpleNamespace(vocab_size=200, bos_id=1))
    whole = SimpleNamespace(train=settings, model=SimpleNamespace(vocab_size=200), seed=3)
    return TrainingRows.plan(data, whole, num_ranks)  # type: ignore[arg-type]


def test_the_clock_counts_blocks() -> None:
    """A block takes 2 s. Launches of steps of 1, 2 and 3 blocks are predicted exactly from readings two steps old."""
    ramp = Ramp.of(config(batch_ramp=RAMP))
    pace = Pace(0, 0.0, 6.0, ramp)  # the warm-up's last step has three blocks
    timeline = Timeline(Clock(0.0), pace, Division(100.0, 0.0))
    launches, sizes = [0.0], []  # of step 1, 2, ..
    while not timeline.steps_are_over(step := len(sizes)):
        if step > 2:
            pace.observe(step - 2, launches[step - 3])
            assert pace.predict(step + 1) == pytest.approx(launches[step])
            assert timeline.fraction(step) == pytest.approx(launches[step - 1] / 100)
        sizes.append(ramp.enter(step, timeline.fraction(step))[0])
        launches.append(launches[-1] + 2.0 * sizes[-1])
    # A step has the fraction at which the one before was launched: 24 s and 52 s end the first parts, 100 s the last.
    assert sizes == [1] * 14 + [2] * 7 + [3] * 8
    assert launches[-2] == 98.0
    assert (pace.seconds_per_step, pace.mean_seconds) == (pytest.approx(6.0), pytest.approx(6.0))


def test_the_replayed_batches_have_the_last_size() -> None:
    window, ramp = ReplayWindow(ReplayConfig(epochs=1, batches=4)), Ramp.of(config(batch_ramp=RAMP))
    for step in range(10):
        ramp.enter(step, 0.1 * step)
        window.note(ramp.blocks(step), 1.0 if step < 4 else 0.1)
    # The steps 4 to 9 with a low rate took 2, 3, 3, 3, 3 and 3 blocks from block 7 on.
    assert ramp.blocks(4) == 1 * 3 + 2 and ramp.blocks(10) == 5 + 2 + 3 * 5 - 0
    assert list(window.batches(ramp.blocks(10), ramp.last_size)) == [10, 13, 16, 19]
    window.config = ReplayConfig(epochs=1, batches=99)
    assert list(window.batches(ramp.blocks(10), ramp.last_size)) == [7, 10, 13, 16, 19]


def test_every_size_is_warmed_up_and_a_step_is_the_mean_over_its_rows() -> None:
    trainer = make_trainer({"batch_ramp": ((0.0, 16, 1.0), (0.5, 32, 1.0)), "micro_batch_tokens": 16}, micro_rows=2)
    assert [kind[4] for kind in trainer._kinds()] == [2, 4]
    trainer.warm_up()
    tokens = torch.randint(260, (4, 9), generator=torch.Generator().manual_seed(1))
    for rows in (tokens[:2], tokens):
        expected = float(trainer.model(rows[:, :-1], rows[:, 1:]).detach())
        loss = float(trainer.step(rows[:, :-1], rows[:, 1:], StepSettings(0.0, 0.9))[1])
        assert loss == pytest.approx(expected, rel=1e-5)


def test_the_rate_multiplies_every_update() -> None:
    moved = []
    for lr_scale, rate in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5)):
        trainer = make_trainer()
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        tokens = torch.randint(260, (4, 9), generator=torch.Generator().manual_seed(1))
        trainer.step(tokens[:, :-1], tokens[:, 1:], StepSettings(lr_scale, 0.9, rate=rate))
        moved.append({name: p.detach() - before[name] for name, p in trainer.model.named_parameters()})
    assert all(torch.equal(moved[1][name], moved[2][name]) for name in moved[0])
    assert not torch.equal(moved[0]["embedding"], moved[2]["embedding"])


def test_runs_with_a_ramp(untrained: Callable[..., Path]) -> None:
    """Equal sizes and rates change no bit. A run that grows resumes bit by bit, in every part, and its log adds up."""
    runs = {
        "plain": {},
        "equal": {"train__batch_ramp": "[[0.5, 1024, 1.0]]"},
        "growing": {
            "train__batch_tokens": 512,
            "train__micro_batch_tokens": 512,
            "train__batch_ramp": "[[0.25, 1024, 1.2], [0.5, 1536, 1.4]]",
            "train__checkpoint__at": "[0.2, 0.4, 0.8]",
            "train__log_every": 1,
            "train__replay__epochs": 1,
            "train__replay__batches": 2,
            "train__replay__lr_scale_below": 0.9,
        },
    }
    paths = {name: untrained(name, train__max_steps=8, **changes) for name, changes in runs.items()}
    for path in paths.values():
        done("train", path)
    digests = {name: weights_digest(path) for name, path in paths.items()}
    assert digests["plain"] == digests["equal"] != digests["growing"]
    growing = paths["growing"]
    sizes = [512] * 2 + [1024] * 2 + [1536] * 4
    changes = [(event["step"], event["batch_tokens"], event["lr_multiplier"]) for event in events(growing, "batch")]
    assert changes == [(0, 512, 1.0), (2, 1024, 1.2), (4, 1536, 1.4)]
    assert [event["tokens"] for event in events(growing, "step")] == [sum(sizes[: i + 1]) for i in range(8)]
    assert events(growing, "end")[0]["tokens"] == sum(sizes)
    (replay,) = events(growing, "replay")
    assert replay["batches"] == 2 and replay["first_batch"] == sum(sizes[:6]) // 512
    for step in (7, 4, 2):  # from the last checkpoint, then from earlier ones
        for later in (growing / "checkpoint").glob("step-*"):
            if read_json(later / "state.json")["step"] > step:
                for file in later.iterdir():
                    file.unlink()
                later.rmdir()
        done("train", growing, "--resume", "--overwrite")
        assert events(growing, "resume")[-1]["step"] == step
        assert weights_digest(growing) == digests["growing"]
        assert events(growing, "end")[0]["tokens"] == sum(sizes)


def test_every_size_must_divide_over_ranks_and_micro_batches() -> None:
    with pytest.raises(ConfigError, match="16 is 2 rows of 8, which do not divide over 4 ranks"):
        _rows(config(batch_ramp=RAMP), 4)
    with pytest.raises(ConfigError, match="the 6 rows of a rank do not divide into micro-batches of 4"):
        _rows(config(batch_ramp=RAMP, micro_batch_tokens=32), 1)


def test_the_mean_batch_is_that_of_the_time() -> None:
    ramped = config(batch_ramp=RAMP)
    assert ramped.mean_batch_tokens == round(1 / (0.25 / 16 + 0.25 / 32 + 0.5 / 48))
    assert all(config(batch_tokens=8 * rows).mean_batch_tokens == 8 * rows for rows in range(1, 3000, 7))
