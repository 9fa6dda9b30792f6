"""The same global batch over one process or two, in one piece or several, trains the same model."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import simulated_time
from tiny_run import done, events, read_json, settings, start

PRINT_THE_WEIGHTS_OF_EVERY_RANK = """
import sys
sys.path.insert(0, sys.argv[2])
import pytest
from simulated_time import simulate_time
from bitgolf.run.ranks import world
from bitgolf.run.directory import RunDirectory
from bitgolf.train import attended, stage
from bitgolf.train.checkpoint import state_digest

class Watched(stage.Trainer):
    last = None
    def __init__(self, *args):
        super().__init__(*args)
        Watched.last = self
    def warm_up(self, *arguments):  # the ranks measure different paces
        return super().warm_up(*arguments) * (1 + 3 * self.world.rank)

stage.Trainer = Watched
with world("cpu") as peers:
    simulate_time(pytest.MonkeyPatch(), step_seconds=0.02 * (1 + peers.rank))
    attended.train_attended(RunDirectory.open(sys.argv[1]), peers)
    sys.stdout.write("digest " + state_digest(Watched.last.tensors()) + "\\n")
"""


def test_two_ranks_and_one_follow_the_same_losses(corpus: Path, tmp_path: Path) -> None:
    ramp = "[[0.5, 2048, 1.2]]"
    words = settings(corpus, train__max_steps=8, train__log_every=1, train__batch_ramp=ramp, data__val_fraction=0.02)
    process = start("run", *words, "--out", tmp_path / "two", "--json", ranks=2)
    done("run", *words, "--out", tmp_path / "one")
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    assert stdout.count('"audit_passed": true') == 1
    assert stdout.strip().startswith("{")
    assert stdout.strip().endswith("}")
    one, two = ([event["loss"] for event in events(tmp_path / name, "step")] for name in ("one", "two"))
    assert len(one) == len(two) == 8
    assert two == pytest.approx(one, abs=1e-3)
    assert events(tmp_path / "two", "start")[0]["world_size"] == 2
    scores = [read_json(tmp_path / name / "score.json") for name in ("one", "two")]
    assert scores[1]["world_size"] == 2
    assert scores[1]["headline_bpb"] == pytest.approx(scores[0]["headline_bpb"], abs=1e-3)


def test_ranks_that_measure_different_paces_still_hold_the_same_weights(
    untrained: Callable[..., Path], tmp_path: Path
) -> None:
    run = untrained(train__max_steps=0, budget__train_seconds=1, train__warmdown=1.0)
    script = tmp_path / "watch.py"
    script.write_text(PRINT_THE_WEIGHTS_OF_EVERY_RANK)
    process = start(run, Path(simulated_time.__file__).parent, ranks=2, program=(str(script),))
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    digests = [line for line in stdout.splitlines() if line.startswith("digest ")]
    assert len(digests) == 2
    assert digests[0] == digests[1]


def test_an_error_of_all_ranks_is_printed_once(untrained: Callable[..., Path]) -> None:
    run = untrained(train__batch_tokens=64 * 3, train__micro_batch_tokens=64)
    process = start("train", run, ranks=2)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode != 0
    assert stdout == ""
    assert stderr.count("do not divide over 2 ranks") == 1
    assert "[rank" not in stderr  # no traceback


def test_an_error_of_rank_0_ends_the_others_without_a_message(tiny_run: Path) -> None:
    process = start("run", tiny_run / "config.toml", "--out", tiny_run, ranks=2)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode != 0
    assert stdout == ""
    assert stderr.count("error: ") == 1
    assert "--resume" in stderr
    assert "[rank" not in stderr


def test_a_killed_rank_ends_all_and_another_number_of_ranks_goes_on(corpus: Path, tmp_path: Path) -> None:
    words = settings(corpus, train__max_steps=60, train__checkpoint__seconds=0.2)
    process, log = start("run", *words, "--out", tmp_path / "run", ranks=2), tmp_path / "run" / "train.jsonl"
    while process.poll() is None and not (log.exists() and '"checkpoint"' in log.read_text()):
        time.sleep(0.05)
    ranks = [child for child in psutil.Process(process.pid).children() if child.environ().get("RANK")]
    assert len(ranks) == 2
    next(rank for rank in ranks if rank.environ()["RANK"] == "1").kill()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "SIGKILL" in stderr
    assert not any(rank.is_running() for rank in ranks)
    done("run", tmp_path / "run" / "config.toml", "--out", tmp_path / "run", "--resume")
    sizes = [events(tmp_path / "run", kind)[0]["world_size"] for kind in ("start", "resume")]
    assert sizes == [2, 1]
    assert events(tmp_path / "run", "end")[0]["step"] == 60


def test_gradient_accumulation_changes_no_loss(untrained: Callable[..., Path]) -> None:
    losses = []
    for micro in (1024, 512, 256):
        run = untrained(f"micro{micro}", train__micro_batch_tokens=micro, train__max_steps=6, train__log_every=1)
        done("train", run)
        losses.append([event["loss"] for event in events(run, "step")])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert losses[2] == pytest.approx(losses[0], abs=1e-4)
