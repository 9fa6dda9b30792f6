"""Training through its command: the clock, the schedule, the average, and every way in which it must stop."""

from __future__ import annotations

import errno
import math
import os
import platform
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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
from bitgolf.data.shards import read_header
from bitgolf.model import GPT
from bitgolf.run.directory import RunDirectory
from bitgolf.train.schedule import lr_multiplier
from bitgolf.train.trainer import Trainer

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """A training run that only the clock ends, in a simulated time of 3 s; steps take 0.02 s."""
    changes = {"train.max_steps": "0", "budget.train_seconds": "3", "train.warmdown": "0.5", "train.log_every": "1"}
    config = load_config(str(tiny_run / "config.toml"), changes)
    run = RunDirectory.create(tmp_path_factory.mktemp("timed") / "run", config)
    shutil.copytree(tiny_run / "data", run / "data")
    with pytest.MonkeyPatch.context() as patch:
        simulate_time(patch)
        done("train", run.path)
    return run.path


def test_the_log_names_the_software(tiny_run: Path) -> None:
    start = events(tiny_run, "start")[0]
    assert start["bitgolf"] == bitgolf.__version__
    assert start["python"] == platform.python_version()
    assert (start["torch"], start["cuda"]) == (torch.__version__, torch.version.cuda)


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


def test_the_log_gives_each_step_its_own_learning_rate(tiny_run: Path) -> None:
    for event in events(tiny_run, "step"):
        assert event["lr_scale"] == pytest.approx(lr_multiplier((event["step"] - 1) / 40, 0.4, 0.0))


def test_warm_up_steps_do_not_change_the_result(untrained: Make, tiny_run: Path) -> None:
    run = untrained(train__warmup_steps=3)
    done("train", run)
    assert weights_digest(run) == weights_digest(tiny_run)


@pytest.mark.parametrize("decay", [0.5, 0.0])
def test_the_average_is_shipped_when_there_is_one_else_the_last_weights(
    untrained: Make, monkeypatch: pytest.MonkeyPatch, decay: float
) -> None:
    original, seen = Trainer.step, []

    def watched(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        metrics = original(self, *args, **kwargs)
        seen.append({name: p.detach().double() for name, p in self.optimizer.parameters.items()})
        return metrics

    monkeypatch.setattr(Trainer, "step", watched)
    run = untrained(train__max_steps=4, train__average__ema_decay=decay)
    config = load_config(str(run / "config.toml"))
    initial = GPT(config.model, config.window).initialize_(torch.Generator().manual_seed(config.seed))
    done("train", run)
    for name, weight in load_file(run / "weights.safetensors").items():
        expected = initial.get_parameter(name).detach().double()
        for moment in seen[-4:]:  # the first is of the warm-up
            expected = decay * expected + (1 - decay) * moment[name]
        torch.testing.assert_close(weight.double(), expected, atol=1e-6, rtol=1e-5)


def test_an_exploding_run_stops_with_the_step_and_the_tensor(untrained: Make) -> None:
    run = untrained(train__matrix_lr=1e30, train__embed_lr=1e30)
    message = refused("train", run)
    assert "not finite in" in message
    assert message.startswith("step ")
    assert 1 < int(message.split()[1].rstrip(":")) < 10
    assert not (run / "weights.safetensors").exists()


def test_a_poisoned_tensor_is_named(untrained: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.step
    calls = 0

    def poisoned(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:  # one step of warm-up, then the fifth timed one
            self.optimizer.parameters["blocks.1.mlp.down.weight"].register_hook(lambda grad: grad * float("nan"))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "step", poisoned)
    message = refused("train", untrained())
    assert message.startswith("step 5: ")
    assert "1 of " in message
    assert "'blocks.1.mlp.down.weight'" in message


@pytest.mark.parametrize("seconds", [0.001, 0.05])
def test_a_budget_below_one_step_is_refused_before_anything_is_lost(untrained: Make, seconds: float) -> None:
    run = untrained(budget__train_seconds=seconds)
    earlier = run / "checkpoint" / "step-00000009"
    earlier.mkdir(parents=True)
    (earlier / "state.json").write_text("earlier")
    before = tree_digest(run)
    message = refused("train", run)
    assert f"budget.train_seconds = {seconds:g}" in message
    assert "one optimizer step" in message
    assert "reserved" in message
    assert tree_digest(run) == before


def test_rows_longer_than_the_data_are_refused(untrained: Make) -> None:
    size = 2**18
    run = untrained(train__seq_len=size, train__batch_tokens=size, train__micro_batch_tokens=size,
                    score__batch_tokens=size)  # fmt: skip
    message = refused("train", run)
    assert f"train.seq_len {size}" in message
    assert "prepare more text" in message


def test_a_vocabulary_other_than_the_tokenizers_is_refused(untrained: Make) -> None:
    run = untrained(model__vocab_size=512)
    message = refused("train", run)
    assert "model.vocab_size 512" in message
    assert "384" in message


def test_ids_beyond_the_vocabulary_are_refused_when_they_are_read(untrained: Make, tiny_run: Path) -> None:
    run = untrained()
    shard = next((run / "data").glob("train_0*.bin"))
    tokens = np.memmap(shard, dtype="<u2", mode="r+", offset=1024)
    tokens[: read_header(shard)] = 384
    tokens.flush()
    message = refused("train", run)
    assert shard.name in message
    assert "id 384" in message


def out_of_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_while_saving_a_checkpoint_is_reported_and_keeps_the_earlier_ones(
    untrained: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = untrained(train__checkpoint__seconds=0.001)
    original = bitgolf.train.checkpoint.save_file
    written: list[Path] = []

    def full_after_two(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if len(written) == 2:
            out_of_space()
        original(tensors, path)
        written.append(path)

    monkeypatch.setattr(bitgolf.train.checkpoint, "save_file", full_after_two)
    message = refused("train", run)
    assert "No space left" in message
    assert "--resume" in message
    assert len(list((run / "checkpoint").glob("step-*"))) == 2
    monkeypatch.undo()
    done("train", run, "--resume")
    assert events(run, "resume")[0]["step"] > 0


@pytest.mark.parametrize("error", ["ENOSPC", "safetensors"])
def test_a_full_disk_while_writing_the_weights_keeps_the_earlier_ones(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    from safetensors import SafetensorError

    def full(*_: Any, **__: Any) -> None:
        if error == "ENOSPC":
            out_of_space()
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    names = ("weights.safetensors", "calibration/hessians.safetensors", "budget.json")
    before = [file_digest(run_copy / name) for name in names]
    monkeypatch.setattr(bitgolf.model.weights, "save_file", full)
    outcome = cli("train", run_copy, "--overwrite")
    assert outcome.status == 2
    assert "No space left" in outcome.stderr
    assert [file_digest(run_copy / name) for name in names] == before
    assert list(run_copy.rglob("*.tmp")) == []


def test_training_again_replaces_the_charges(run_copy: Path) -> None:
    done("train", run_copy, "--overwrite")
    charges = [c for c in read_json(run_copy / "budget.json")["charges"] if c["stage"] == "train"]
    assert [c["what"] for c in charges] == ["optimizer steps", "calibration"]
    assert sum(c["amount"] for c in charges) == pytest.approx(events(run_copy, "end")[0]["elapsed_seconds"])
