"""`kill -9` in mid-training, then `--resume`: nothing spent is forgotten, nothing is done twice, nothing changes."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ranks import start_command
from tiny_run import cli, done, events, read_json, refused, settings, tree_digest, weights_digest

import bitgolf.audit.run
import bitgolf.evaluate.score
import bitgolf.measure.calibration
import bitgolf.quantize.pack
import bitgolf.report.report
import bitgolf.train.attended
import bitgolf.train.finish
from bitgolf.train.schedule import StepSettings
from bitgolf.train.trainer import Trainer

STEPS = 120
SLOW_ENOUGH: dict[str, Any] = {
    "train__max_steps": STEPS,
    "train__batch_tokens": 256,
    "train__micro_batch_tokens": 256,
    "train__checkpoint__seconds": 0.05,
    "train__log_every": 1,
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A run that got SIGKILL in mid-training, after two checkpoints."""
    root = tmp_path_factory.mktemp("killed") / "run"
    process = start_command("run", *settings(corpus, **SLOW_ENOUGH), "--out", root)
    deadline = time.monotonic() + 600
    while len(checkpoints(root)) < 2:
        assert process.is_alive(), process.exitcode
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.005)
    process.kill()
    process.join()
    assert not (root / "weights.safetensors").exists(), "training ended before the signal"
    return root


@pytest.fixture(scope="module")
def uninterrupted(killed: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the weights that the same configuration gives when nobody interferes."""
    root = tmp_path_factory.mktemp("whole") / "run"
    root.mkdir()
    shutil.copy(killed / "config.toml", root)
    shutil.copytree(killed / "data", root / "data")
    done("train", root)
    return weights_digest(root)


@pytest.fixture
def victim(killed: Path, tmp_path: Path) -> Path:
    """A copy of the killed run."""
    return Path(shutil.copytree(killed, tmp_path / "victim"))


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoint").glob("step-*"))


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(victim: Path, uninterrupted: str) -> None:
    newest = read_json(checkpoints(victim)[-1] / "state.json")
    result = done("run", victim / "config.toml", "--out", victim, "--resume", "--json").json
    assert weights_digest(victim) == uninterrupted
    assert result["audit_passed"]
    resumed = events(victim, "resume")
    assert [event["step"] for event in resumed] == [newest["step"]]
    assert [event["elapsed_seconds"] for event in resumed] == [newest["seconds_spent"]]
    assert 0 < newest["step"] < STEPS
    assert newest["seconds_spent"] > 0


def test_every_step_is_logged_once_and_the_clock_goes_on(victim: Path) -> None:
    done("train", victim, "--resume")
    steps = events(victim, "step")
    assert [event["step"] for event in steps] == list(range(1, STEPS + 1))
    clock = [event["elapsed_seconds"] for event in steps]
    assert clock == sorted(clock)
    spent = events(victim, "resume")[0]["elapsed_seconds"]
    end = events(victim, "end")[0]
    assert end["elapsed_seconds"] > spent
    charged = sum(c["amount"] for c in read_json(victim / "budget.json")["charges"] if c["kind"] == "train_seconds")
    assert charged == pytest.approx(end["elapsed_seconds"])
    text, lines = (len((victim / name).read_text().splitlines()) for name in ("train.log", "train.jsonl"))
    assert text == lines


def test_without_resume_a_half_finished_run_is_left_alone(victim: Path) -> None:
    before = tree_digest(victim)
    assert "--resume" in refused("run", victim / "config.toml", "--out", victim)
    assert tree_digest(victim) == before


def spend(run: Path, seconds: float) -> int:
    """Let the newest checkpoint say that this much time was spent; its step."""
    path = checkpoints(run)[-1] / "state.json"
    state = read_json(path)
    path.write_text(json.dumps(state | {"seconds_spent": seconds}))
    return int(state["step"])


def test_a_checkpoint_with_no_time_left_for_a_step_is_calibrated_and_finished(victim: Path) -> None:
    step = spend(victim, 119.8)
    done("train", victim, "--resume")
    end = events(victim, "end")[0]
    assert end["step"] == step
    assert 119.8 < end["elapsed_seconds"] < 120


def test_a_checkpoint_beyond_the_budget_cannot_be_continued(victim: Path) -> None:
    spend(victim, 120.5)
    before = tree_digest(victim)
    message = refused("train", victim, "--resume")
    assert "120" in message
    assert "spent" in message
    assert tree_digest(victim) == before


ENDING: dict[str, Any] = {
    "train__max_steps": 20,
    "train__replay__epochs": 2,
    "train__replay__lr_scale_below": 0.6,
    "train__average__ema_decay": 0.9,
    "train__average__swa_weight": 0.5,
    "train__average__swa_start": 0.5,
    "train__average__choose": "held_out",
    "train__held_out_tokens": 640,
    "train__table_dtype": "bf16",
    "qat__mode": "ste",
    "qat__start_lr_scale": 0.9,
    "train__checkpoint__at": [0.8],
    "pack__grid__percentiles": [0.9, 1.0],
    "pack__grid__matrix_bits": 4,
}


def test_a_run_that_dies_after_its_steps_resumes_before_them_and_ends_the_same(
    untrained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = untrained("whole", **ENDING)
    done("train", whole)
    (burst,) = events(whole, "replay")
    assert (burst["batches"], burst["first_batch"], burst["replay_steps"], burst["planned_steps"]) == (4, 16, 8, 8)

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    real, calls = Trainer.step, 0

    def dies_in_the_burst(self: Trainer, inputs: Any, targets: Any, settings: StepSettings, *elapsed: float) -> Any:
        nonlocal calls
        calls += not settings.snapshots
        return dies() if calls == 3 else real(self, inputs, targets, settings, *elapsed)

    for owner, name, replacement in (
        (Trainer, "step", dies_in_the_burst),
        (bitgolf.train.finish, "held_out_losses", dies),
        (bitgolf.train.finish, "gather_hessians", dies),
    ):
        run = untrained(f"dies in {name}", **ENDING)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, replacement)
            assert cli("train", run).status == 130
        assert not (run / "weights.safetensors").exists()
        done("train", run, "--resume")
        assert events(run, "resume")[0]["step"] == 16  # before the burst, and inside the late phase
        assert weights_digest(run) == weights_digest(whole)
        assert [len(events(run, kind)) for kind in ("replay", "choice", "calibration", "end")] == [1, 1, 1, 1]
        assert events(run, "choice")[0]["losses"] == events(whole, "choice")[0]["losses"]
        assert events(run, "replay")[0]["losses"] == burst["losses"]


def without_end(run: Path) -> None:
    """As a run that was killed while it was trained again."""
    log = run / "train.jsonl"
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines() if '"end"' not in line))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda run: None, ["audit", "report"]),
        (lambda run: (run / "pack.json").unlink(), ["pack", "score", "audit", "report"]),
        (without_end, ["train", "pack", "score", "audit", "report"]),
    ],
    ids=["finished", "not packed", "not trained"],
)
def test_a_resumed_run_makes_only_the_stages_that_are_missing(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], expected: list[str]
) -> None:
    damage(run_copy)
    stages: list[str] = []

    def recorded(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def stage(*args: Any, **kwargs: Any) -> Any:
            stages.append(name)
            return real(*args, **kwargs)

        return stage

    for name, module, function in (
        ("train", bitgolf.train.attended, "train_attended"),
        ("pack", bitgolf.quantize.pack, "pack"),
        ("score", bitgolf.evaluate.score, "score"),
        ("audit", bitgolf.audit.run, "audit_run"),
        ("report", bitgolf.report.report, "report"),
    ):
        monkeypatch.setattr(module, function, recorded(name, getattr(module, function)))
    done("run", run_copy / "config.toml", "--out", run_copy, "--resume")
    assert stages == expected
