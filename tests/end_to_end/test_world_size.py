"""The same global batch over one process or two, in one piece or several, trains the same model."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from ranks import command, run_ranks
from simulated_time import simulate_time
from tiny_run import done, events, read_json, settings, start

from bitgolf.run.directory import RunDirectory
from bitgolf.run.ranks import world
from bitgolf.train.attended import train_attended
from bitgolf.train.checkpoint import state_digest
from bitgolf.train.trainer import Trainer


def print_the_weights(run: Path) -> None:
    """Train a run where the ranks measure different paces, and print the digest of this rank's weights."""
    with world("cpu") as peers, pytest.MonkeyPatch.context() as patch:
        warm_up, trainers = Trainer.warm_up, []

        def slower_on_rank_1(self: Trainer, *arguments: Any) -> float:
            trainers.append(self)
            return warm_up(self, *arguments) * (1 + 3 * peers.rank)

        patch.setattr(Trainer, "warm_up", slower_on_rank_1)
        simulate_time(patch, step_seconds=0.02 * (1 + peers.rank))
        train_attended(RunDirectory.open(run), peers)
        sys.stdout.write("digest " + state_digest(trainers[-1].tensors()) + "\n")


def test_two_ranks_and_one_follow_the_same_losses(corpus: Path, tmp_path: Path) -> None:
    ramp = "[[0.5, 2048, 1.2]]"
    words = settings(corpus, train__max_steps=8, train__log_every=1, train__batch_ramp=ramp, data__val_fraction=0.02)
    done("run", *words, "--out", tmp_path / "one")
    statuses, stdout, stderr = run_ranks(tmp_path / "io", command, "run", *words, "--out", tmp_path / "two", "--json")
    assert statuses == [0, 0], stderr
    assert stdout.count('"audit_passed": true') == 1
    assert stdout.strip().startswith("{")
    assert stdout.strip().endswith("}")
    one, two = ([event["loss"] for event in events(tmp_path / name, "step")] for name in ("one", "two"))
    assert len(one) == len(two) == 8
    assert two == pytest.approx(one, abs=1e-3)
    start_event = events(tmp_path / "two", "start")[0]
    assert (start_event["world_size"], start_event["kernels"]) == (2, "pytorch")
    scores = [read_json(tmp_path / name / "score.json") for name in ("one", "two")]
    assert scores[1]["world_size"] == 2
    assert scores[1]["headline_bpb"] == pytest.approx(scores[0]["headline_bpb"], abs=1e-3)


def test_ranks_that_measure_different_paces_still_hold_the_same_weights(
    untrained: Callable[..., Path], tmp_path: Path
) -> None:
    run = untrained(train__max_steps=0, budget__train_seconds=1, train__warmdown=1.0)
    statuses, stdout, stderr = run_ranks(tmp_path / "io", print_the_weights, run)
    assert statuses == [0, 0], stderr
    digests = [line for line in stdout.splitlines() if line.startswith("digest ")]
    assert len(digests) == 2
    assert digests[0] == digests[1]


def test_an_error_of_all_ranks_is_printed_once(untrained: Callable[..., Path], tmp_path: Path) -> None:
    run = untrained(train__batch_tokens=64 * 3, train__micro_batch_tokens=64)
    statuses, stdout, stderr = run_ranks(tmp_path / "io", command, "train", run)
    assert 0 not in statuses
    assert stdout == ""
    assert stderr.count("do not divide over 2 ranks") == 1
    assert "[rank" not in stderr  # no traceback


def test_an_error_of_rank_0_ends_the_others_without_a_message(tiny_run: Path, tmp_path: Path) -> None:
    words = ("run", tiny_run / "config.toml", "--out", tiny_run)
    statuses, stdout, stderr = run_ranks(tmp_path / "io", command, *words)
    assert 0 not in statuses
    assert stdout == ""
    assert stderr.count("error: ") == 1
    assert "--resume" in stderr
    assert "[rank" not in stderr


def test_a_killed_rank_ends_all_and_another_number_of_ranks_goes_on(untrained: Callable[..., Path]) -> None:
    run = untrained(train__max_steps=60, train__checkpoint__seconds=0.2)
    process, log = start("train", run, "--resume", ranks=2), run / "train.jsonl"
    while process.poll() is None and not (log.exists() and '"checkpoint"' in log.read_text()):
        time.sleep(0.05)
    ranks = [child for child in psutil.Process(process.pid).children() if child.environ().get("RANK")]
    assert len(ranks) == 2
    next(rank for rank in ranks if rank.environ()["RANK"] == "1").kill()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "SIGKILL" in stderr
    assert not any(rank.is_running() for rank in ranks)
    done("train", run, "--resume")
    sizes = [events(run, kind)[0]["world_size"] for kind in ("start", "resume")]
    assert sizes == [2, 1]
    assert events(run, "end")[0]["step"] == 60


def test_gradient_accumulation_changes_no_loss(untrained: Callable[..., Path]) -> None:
    losses = []
    for micro in (1024, 512, 256):
        run = untrained(f"micro{micro}", train__micro_batch_tokens=micro, train__max_steps=6, train__log_every=1)
        done("train", run)
        losses.append([event["loss"] for event in events(run, "step")])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert losses[2] == pytest.approx(losses[0], abs=1e-4)
