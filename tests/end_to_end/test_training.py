"""Training through its command: the clock, the schedule, the average, and every way in which it must stop."""

import errno
import math
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from simulated_time import simulate_time
from tiny_run import (
    cli,
    done,
    events,
    file_digest,
    read_json,
    refused,
    settings,
    tree_digest,
    weights_digest,
)

import bitgolf.model.weights
import bitgolf.train.checkpoint
from bitgolf.config import load_config
from bitgolf.model import GPT
from bitgolf.run.directory import RunDirectory
from bitgolf.train.trainer import Trainer

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """A training run that only the clock ends, in a simulated time of 3 s; steps take 0.02 s."""
    changes = {"train.max_steps": "0", "budget.train_seconds": "3", "train.warmdown": "0.5", "train.log_every": "1"}
    changes |= {"train.batch_tokens": "256", "train.micro_batch_tokens": "256"}
    config = load_config(str(tiny_run / "config.toml"), changes)
    run = RunDirectory.create(tmp_path_factory.mktemp("timed") / "run", config)
    shutil.copytree(tiny_run / "data", run / "data")
    with pytest.MonkeyPatch.context() as patch:
        simulate_time(patch)
        done("train", run.path)
    return run.path


def test_the_clock_ends_training_and_calibration_inside_the_budget(timed: Path) -> None:
    start, end, calibration = (events(timed, name)[0] for name in ("start", "end", "calibration"))
    assert start["warm_up_step_seconds"] == pytest.approx(0.02)
    unused = start["reserve_seconds"] + 2 * start["warm_up_step_seconds"]
    assert 3.0 - unused < end["elapsed_seconds"] <= 3.0
    assert calibration["tokens"] == 8192
    assert end["steps_seconds"] + calibration["seconds"] == pytest.approx(end["elapsed_seconds"])


def test_the_learning_rate_follows_the_clock_down_to_nothing(timed: Path) -> None:
    rates = [event["lr_scale"] for event in events(timed, "step")]
    assert rates[0] == 1.0
    assert all(later <= earlier for earlier, later in pairwise(rates))
    assert rates[-1] < 0.03


SLOW = {
    "train__max_steps": 0, "train__warmdown": 0.5,
    "budget__train_seconds": 5, "budget__eval_seconds": 3, "budget__min_steps": 30,
    "train__batch_tokens": 512, "train__micro_batch_tokens": 512, "data__val_fraction": 0.02,
}  # fmt: skip


def test_a_slow_machine_gets_more_time_in_writing_and_the_audit_accepts_it(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    simulate_time(monkeypatch, step_seconds=0.5)
    words, run = settings(corpus, **SLOW), tmp_path / "run"
    assert done("run", *words, "--out", run, "--json").json["audit_passed"]
    budget = load_config(str(run / "config.toml")).budget
    assert 30 * 0.5 < budget.train_seconds < 30 * 0.5 * 1.15 + 3  # 15 % more, calibration, and rounding up
    assert budget.eval_seconds == math.ceil(3 * budget.train_seconds / 5)
    (start,), (end,) = events(run, "start"), events(run, "end")
    assert (start["train_seconds_limit"], start["eval_seconds_limit"]) == (budget.train_seconds, budget.eval_seconds)
    assert start["config_sha256"] == load_config(str(run / "config.toml")).digest()
    assert end["step"] >= 30 and end["elapsed_seconds"] <= budget.train_seconds
    limits = read_json(run / "budget.json")["limits"]
    assert (limits["train_seconds"], limits["eval_seconds"]) == (budget.train_seconds, budget.eval_seconds)
    assert f"budget.train_seconds is extended from 5 to {budget.train_seconds:g}" in caplog.text
    before = weights_digest(run)
    done("run", *words, "--out", run, "--resume")  # the original configuration may resume the extended run
    assert weights_digest(run) == before
    shorter = settings(corpus, **(SLOW | {"budget__train_seconds": 500}))
    assert "budget.train_seconds" in refused("run", *shorter, "--out", run, "--resume")


@pytest.mark.parametrize("changes", [{"budget__train_seconds": 60}, {"budget__min_steps": 0}], ids=["fast", "fixed"])
def test_a_fast_machine_and_a_fixed_clock_keep_their_time(
    untrained: Make, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    simulate_time(monkeypatch, step_seconds=0.5)
    run = untrained(**(SLOW | changes | {"train__max_steps": 8}))
    before = (run / "config.toml").read_bytes()
    done("train", run)
    assert (run / "config.toml").read_bytes() == before


def test_a_resumed_training_keeps_its_time(untrained: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = untrained(**SLOW, train__checkpoint__at=[0.5])
    with monkeypatch.context() as patch:
        simulate_time(patch, step_seconds=0.1)
        done("train", run)
    before = (run / "config.toml").read_bytes()
    simulate_time(monkeypatch, step_seconds=0.3)
    (run / "weights.safetensors").unlink()  # as if it had been interrupted
    done("train", run, "--resume")
    assert events(run, "resume") and (run / "config.toml").read_bytes() == before


def test_the_average_is_shipped(untrained: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    original, seen = Trainer.step, []

    def watched(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        metrics = original(self, *args, **kwargs)
        seen.append({name: p.detach().double() for name, p in self.optimizer.parameters.items()})
        return metrics

    monkeypatch.setattr(Trainer, "step", watched)
    run = untrained(train__max_steps=4, train__average__ema_decay=0.5)
    config = load_config(str(run / "config.toml"))
    initial = GPT(config.model, config.window).initialize_(torch.Generator().manual_seed(config.seed))
    done("train", run)
    for name, weight in load_file(run / "weights.safetensors").items():
        expected = initial.get_parameter(name).detach().double()
        for moment in seen[-4:]:  # the first is of the warm-up
            expected = 0.5 * expected + 0.5 * moment[name]
        torch.testing.assert_close(weight.double(), expected, atol=1e-6, rtol=1e-5)


def test_an_exploding_run_stops_with_the_step_and_the_tensor(untrained: Make) -> None:
    run = untrained(train__matrix_lr=1e30, train__embed_lr=1e30)
    message = refused("train", run)
    assert "not finite in" in message
    assert message.startswith("step ")
    assert 1 < int(message.split()[1].rstrip(":")) < 10
    assert not (run / "weights.safetensors").exists()


def test_a_budget_below_one_step_is_refused_before_anything_is_lost(untrained: Make) -> None:
    run = untrained(budget__train_seconds=0.05)
    earlier = run / "checkpoint" / "step-00000009"
    earlier.mkdir(parents=True)
    (earlier / "state.json").write_text("earlier")
    before = tree_digest(run)
    message = refused("train", run, "--anyway")  # without the estimate of a step, which load on the machine changes
    assert "budget.train_seconds = 0.05" in message
    assert "one optimizer step" in message
    assert "reserved" in message
    assert tree_digest(run) == before


def test_rows_longer_than_the_data_are_refused(untrained: Make) -> None:
    size = 2**18
    run = untrained(train__seq_len=size, train__batch_tokens=size, train__micro_batch_tokens=size,
                    score__batch_tokens=size)  # fmt: skip
    message = refused("train", run, "--anyway")
    assert f"train.seq_len {size}" in message
    assert "prepare more text" in message


def test_bytes_that_cannot_be_chosen_are_refused_before_the_training(untrained: Make) -> None:
    run = untrained(pack__method="rate", pack__small_tensor=10**6, train__measure__fisher_tokens=1024)
    assert "at most pack.small_tensor = 1,000,000 weights" in refused("train", run, "--anyway")
    assert not (run / "train.jsonl").exists()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), SafetensorError("I/O error: No space left on device")],
    ids=["ENOSPC", "safetensors"],
)
def test_a_full_disk_while_writing_the_weights_keeps_the_earlier_ones(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    names = ("weights.safetensors", "calibration/hessians.safetensors", "budget.json")
    before = [file_digest(run_copy / name) for name in names]
    monkeypatch.setattr(bitgolf.model.weights, "save_file", full)
    outcome = cli("train", run_copy, "--overwrite")
    assert outcome.status == 2
    assert "No space left" in outcome.stderr
    assert [file_digest(run_copy / name) for name in names] == before
    assert list(run_copy.rglob("*.tmp")) == []
