"""Branches: one training, several endings. What a branch takes over, what it may change, and what it is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_run import MAX_STEPS, done, events, read_json, refused, settings, tree_digest, weights_digest

from bitgolf.config import load_config
from bitgolf.run.directory import RunDirectory
from bitgolf.train.checkpoint import state_digest

Make = Callable[..., Path]
STEPS = 20
AT = 12  # the step of the newest kept checkpoint: 0.6 of them
SMALLER: dict[str, Any] = {"train__max_steps": STEPS, "train__batch_tokens": 512, "train__micro_batch_tokens": 512}


@pytest.fixture
def make(untrained: Make) -> Make:
    """Makes runs of `STEPS` small steps, nothing trained yet."""
    return lambda name, **changes: untrained(name, **(SMALLER | changes))


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """A training with kept checkpoints at 0.25 and 0.6 of its steps; not to be changed."""
    changes = {key.replace("__", "."): str(value) for key, value in SMALLER.items()}
    config = load_config(str(tiny_run / "config.toml"), changes | {"train.checkpoint.at": "[0.25, 0.6]"})
    run = RunDirectory.create(tmp_path_factory.mktemp("trunk") / "run", config)
    shutil.copytree(tiny_run / "data", run / "data")
    done("train", run.path)
    return run.path


def checkpoint(run: Path, step: int, kept: bool = True) -> Path:
    return run / "checkpoint" / f"step-{step:08d}{'-kept' if kept else ''}"


def test_kept_checkpoints_change_nothing_and_stand_among_others(untrained: Make, tiny_run: Path) -> None:
    run = untrained(train__checkpoint__at=[0.25, 0.6, 0.999], train__checkpoint__seconds=0.001)
    done("train", run)
    names = sorted(p.name for p in (run / "checkpoint").iterdir())
    assert [name for name in names if name.endswith("-kept")] == [f"step-000000{n}-kept" for n in (10, 24, MAX_STEPS)]
    assert len(names) == 5  # and the newest two of the others
    assert weights_digest(run) == weights_digest(tiny_run)


@pytest.mark.parametrize("spec", ["newest", "step"])
def test_a_branch_of_the_same_configuration_is_the_run_itself_bit_for_bit(trunk: Path, make: Make, spec: str) -> None:
    before = tree_digest(trunk)
    run = make("branch", train__checkpoint__at=[0.25, 0.6])
    step = {"newest": AT, "step": 5}[spec]
    done("train", run, "--branch", str(trunk) + (f"@{step}" if spec == "step" else ""))
    assert weights_digest(run) == weights_digest(trunk)
    assert state_digest(load_file(run / "calibration" / "hessians.safetensors")) == state_digest(
        load_file(trunk / "calibration" / "hessians.safetensors")
    )
    assert tree_digest(trunk) == before
    (branch,) = events(run, "branch")
    state = read_json(checkpoint(trunk, step) / "state.json")
    assert (branch["step"], branch["branch_step"]) == (step, step)
    assert branch["elapsed_seconds"] == branch["branch_seconds"] == state["seconds_spent"] > 0
    assert branch["branch_config_sha256"] == load_config(str(trunk / "config.toml")).digest()
    assert branch["branch_starts_fresh"] == branch["branch_differs"] == []


def test_steps_and_seconds_before_the_branch_are_charged_and_logged(trunk: Path, make: Make) -> None:
    run = make("branch", train__log_every=1)
    done("train", run, "--branch", f"{trunk}@{AT}")
    spent = read_json(checkpoint(trunk, AT) / "state.json")["seconds_spent"]
    end = events(run, "end")[0]
    assert end["step"] == STEPS
    assert end["tokens"] == STEPS * 512
    charged = [c for c in read_json(run / "budget.json")["charges"] if c["kind"] == "train_seconds"]
    assert charged[0]["what"] == "optimizer steps"
    assert charged[0]["amount"] > spent
    assert sum(c["amount"] for c in charged) == pytest.approx(end["elapsed_seconds"])
    clock = [
        e["elapsed_seconds"]
        for e in map(json.loads, (run / "train.jsonl").read_text().splitlines())
        if "elapsed_seconds" in e
    ]
    assert clock == sorted(clock)
    steps = [event["step"] for event in events(run, "step")]
    assert steps == [1, 10, *range(AT + 1, STEPS + 1)]  # the trunk's lines, then its own


def test_arms_differ_in_their_endings_and_say_in_what(trunk: Path, make: Make) -> None:
    arms: dict[str, dict[str, Any]] = {
        "plain": {},
        "quantized": {"qat__mode": "ste", "qat__start_fraction": 0.5, "pack__grid__matrix_bits": 3},
        "slower average": {"train__average__ema_decay": 0.95},
        "snapshots": {
            "train__average__swa_weight": 1.0,
            "train__average__swa_start": 0.9,
            "train__average__ema_decay": 0.0,
        },
        "burst": {"train__replay__epochs": 2, "train__replay__lr_scale_below": 0.5},
    }
    runs, branches = {}, {}
    for name, changes in arms.items():
        runs[name] = make(name, description=name, **changes)
        done("train", runs[name], "--branch", trunk)
        (branches[name],) = events(runs[name], "branch")
        keys = {key.replace("__", ".") for key in changes} | {"description", "train.checkpoint.at"}
        assert set(branches[name]["branch_differs"]) == keys, name
    digests = [weights_digest(run) for run in runs.values()]
    assert len(set(digests)) == len(arms)
    assert digests[0] == weights_digest(trunk)
    assert branches["quantized"]["branch_starts_fresh"] == ["late"]
    assert branches["snapshots"]["branch_starts_fresh"] == ["swa"]
    assert [event["step"] for event in events(runs["quantized"], "late")] == [AT]  # its start lay before the branch


def test_a_branch_is_resumed_like_any_run_and_needs_its_trunk_no_more(trunk: Path, make: Make, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(trunk, tmp_path / "moved"))
    run = make("branch")
    done("train", run, "--branch", moved)
    whole = weights_digest(run)
    assert sorted(p.name for p in (run / "checkpoint").iterdir()) == [f"step-{AT:08d}"]
    shutil.rmtree(moved)
    (run / "weights.safetensors").unlink()
    done("train", run, "--resume")
    assert weights_digest(run) == whole
    assert len(events(run, "branch")) == len(events(run, "resume")) == 1
    assert events(run, "resume")[0]["step"] == AT


def test_resuming_with_the_flag_goes_on_from_the_runs_own_checkpoint(trunk: Path, make: Make) -> None:
    run = make("branch", train__checkpoint__at=[0.8])
    done("train", run, "--branch", trunk, "--resume")  # nothing of its own yet: it begins
    assert [e["step"] for e in events(run, "branch")] == [AT]
    done("train", run, "--branch", trunk, "--resume", "--overwrite")
    assert [e["step"] for e in events(run, "resume")] == [16]
    done("train", run, "--branch", f"{trunk}@{AT}", "--resume", "--overwrite")
    message = refused("train", run, "--branch", f"{trunk}@5", "--resume", "--overwrite")
    assert "did not begin from" in message
    own = make("own", train__checkpoint__at=[0.5])
    done("train", own)
    before = tree_digest(own)
    assert "leave out --branch to resume" in refused("train", own, "--branch", trunk, "--resume", "--overwrite")
    assert tree_digest(own) == before


def test_other_training_data_are_refused(trunk: Path, make: Make) -> None:
    run = make("other")
    manifest = read_json(run / "data" / "manifest.json")
    manifest["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    (run / "data" / "manifest.json").write_text(json.dumps(manifest))
    message = refused("train", run, "--branch", trunk)
    assert "training data" in message
    assert "differ" in message
    assert f"shards:{trunk}/data" in message


def test_the_trunks_own_shards_are_the_same_data(trunk: Path, tmp_path: Path, corpus: Path) -> None:
    words = settings(corpus, data__source=f"shards:{trunk}/data", **SMALLER)
    result = done("run", *words, "--out", tmp_path / "arm", "--branch", trunk, "--json").json
    assert result["audit_passed"]
    assert weights_digest(tmp_path / "arm") == weights_digest(trunk)
    assert events(tmp_path / "arm", "branch")[0]["branch_differs"] == ["data.source", "train.checkpoint.at"]


def test_a_branch_that_does_not_fit_is_refused_before_its_directory_is_made(
    trunk: Path, tmp_path: Path, corpus: Path
) -> None:
    out = tmp_path / "arm"
    message = refused("run", *settings(corpus, train__matrix_lr=0.3, **SMALLER), "--out", out, "--branch", trunk)
    assert "train.matrix_lr" in message
    assert not out.exists()
