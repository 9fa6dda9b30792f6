"""What a branch takes over from its trunk, what may differ, and what is refused; without training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bitgolf.config import Config
from bitgolf.errors import ConfigError, RunError
from bitgolf.run.directory import RunDirectory
from bitgolf.train.branch import Trunk, adapt, find_trunk
from bitgolf.train.checkpoint import CheckpointStore, TrainState
from bitgolf.train.continued import Branched, Resumed
from bitgolf.train.unattended import Start

QAT = {"qat.mode": "ste", "qat.start_fraction": 0.5}
SWA = {"train.average.swa_weight": 0.5, "train.average.swa_start": 0.9, "train.average.swa_spacing": 0.02}


def config(changes: dict[str, Any] | None = None) -> Config:
    return Config().updated({"device": "cpu"} | (changes or {}))


def saved(**changes: float) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint with one matrix and its EMA."""
    tensors = {
        "model.w": torch.arange(4.0), "ema.w": torch.ones(4), "muon.m": torch.full((2,), 7.0),
        "rng": torch.get_rng_state(), "late.began_at": torch.tensor(-1.0), "swa_count": torch.tensor(0.0),
    }  # fmt: skip
    return tensors | {name: torch.tensor(value) for name, value in changes.items()}


def adapted(
    ours: dict[str, Any], theirs: dict[str, Any], tensors: dict[str, torch.Tensor], live: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    return adapt(tensors, live, Trunk(Path("trunk"), config(theirs), None), config(ours))


def test_saved_state_is_taken_over_and_new_kinds_start_fresh() -> None:
    live = {"model.w": torch.zeros(4), "ema.v": torch.zeros(4), "late.steps": torch.tensor(3), "swa.w": torch.ones(4),
            "replay.first": torch.tensor(-1)}  # fmt: skip
    tensors = saved() | {"model.v": torch.full((4,), 5.0)}
    state, fresh = adapted({}, {}, tensors, live)
    assert state["model.w"] is tensors["model.w"] and state["rng"] is tensors["rng"]
    assert torch.equal(state["ema.v"], tensors["model.v"])  # an average begins at the weights of the branch point
    assert torch.equal(state["swa.w"], torch.ones(4)) and int(state["late.steps"]) == 3
    assert fresh == ["ema", "late", "replay", "swa"]
    assert set(state) == set(live) | {"rng"}


def test_state_that_cannot_start_fresh_is_refused() -> None:
    with pytest.raises(RunError, match=r"'muon\.other'"):
        adapted({}, {}, saved(), {"muon.other": torch.zeros(1)})


@pytest.mark.parametrize("began_at", [0.0, 0.3])
@pytest.mark.parametrize(("changes", "allowed"), [({}, True), ({"qat.refresh_steps": 7}, False),
                                                  ({"pack.grid.matrix_bits": 4}, False),
                                                  ({"pack.compressor": "lzma"}, True)], ids=str)  # fmt: skip
def test_a_late_phase_that_has_begun_keeps_its_settings_and_grids(
    began_at: float, changes: dict[str, Any], allowed: bool
) -> None:
    tensors = saved(**{"late.began_at": began_at}) | {"model.blocks.0.mlp.up.weight": torch.zeros(300, 300)}
    if allowed:
        adapted(QAT | changes, QAT, tensors, {})
        return
    with pytest.raises(ConfigError, match=f"at fraction {began_at:g} of the run"):
        adapted(QAT | changes, QAT, tensors, {})
    adapted(QAT | changes, QAT, tensors | {"late.began_at": torch.tensor(-1.0)}, {})


@pytest.mark.parametrize("key", ["swa_start", "swa_spacing"])
def test_snapshots_keep_their_rule_if_they_are_used(key: str) -> None:
    other, tensors = SWA | {f"train.average.{key}": 0.5}, saved(swa_count=3.0)
    adapted(SWA | {"train.average.swa_weight": 0.25}, SWA, tensors, {})
    adapted(other | {"train.average.swa_weight": 0.0}, SWA, tensors, {})
    adapted(other, SWA, saved(), {})
    with pytest.raises(ConfigError, match="3 snapshots"):
        adapted(other, SWA, tensors, {})


def test_the_origin_names_the_run_and_the_step() -> None:
    any_step, fifth = (Trunk(Path("trunk"), config(), step) for step in (None, 5))
    assert any_step.is_origin(any_step.origin(7)) and fifth.is_origin(fifth.origin(5))
    assert not fifth.is_origin(any_step.origin(7))
    assert not Trunk(Path("trunk"), config({"seed": 1}), None).is_origin(any_step.origin(7))
    assert not any_step.is_origin("")


@pytest.fixture
def trunk(tmp_path: Path) -> Path:
    """A run directory with a checkpoint of step 5."""
    run = RunDirectory.create(tmp_path / "trunk", config())
    store = CheckpointStore(run / "checkpoint")
    store.save(TrainState(5, 1.0, run.config.digest(), 1), {"a": torch.zeros(1)})
    store.close()
    return run.path


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"name": "arm", "description": "another ending"}, []),
        (QAT | {"pack.grid.matrix_bits": 5, "score.stride": 32, "ttt.method": "full", "report.samples": 0}, []),
        ({"train.average.ema_decay": 0.5, "train.replay.epochs": 1, "train.measure.fisher_tokens": 9,
          "train.checkpoint.seconds": 1.0, "train.log_every": 3}, []),
        ({"data.source": "shards:elsewhere", "data.workers": 3}, []),
        ({"data.workers": 3}, []),
        ({"train.matrix_lr": 0.01, "seed": 9}, ["train.matrix_lr", "seed"]),
        ({"model.attention.qk_gain": 2.0}, ["model.attention.qk_gain"]),
        ({"train.warmdown": 0.3, "train.max_steps": 50}, ["train.warmdown", "train.max_steps"]),
        ({"budget.train_seconds": 60.0}, ["budget.train_seconds"]),
        ({"train.held_out_tokens": 4096, "train.table_dtype": "bf16"}, ["train.held_out_tokens", "train.table_dtype"]),
        ({"data.val_fraction": 0.03}, ["data.val_fraction"]),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_affect_the_training_so_far_must_agree(
    trunk: Path, tmp_path: Path, changes: dict[str, Any], refused: list[str]
) -> None:
    if not refused:
        assert find_trunk(str(trunk), config(changes), tmp_path / "arm").path == trunk
        return
    with pytest.raises(ConfigError) as error:
        find_trunk(str(trunk), config(changes), tmp_path / "arm")
    assert str(error.value).count(" there, ") == len(refused)
    assert all(f"{key} is " in str(error.value) for key in refused)


def test_a_step_of_the_trunk_is_found_by_its_number(trunk: Path, tmp_path: Path) -> None:
    assert find_trunk(f"{trunk}@5", config(), tmp_path / "arm").step == 5
    assert find_trunk(str(trunk), config(), tmp_path / "arm").step is None
    for spec, words in ((f"{trunk}@6", "no checkpoint of step 6"), (str(tmp_path), "is not a run directory")):
        with pytest.raises(RunError, match=words):
            find_trunk(spec, config(), tmp_path / "arm")
    with pytest.raises(RunError, match="itself"):
        find_trunk(str(trunk), config(), trunk)
    bare = RunDirectory.create(tmp_path / "bare", config()).path
    with pytest.raises(RunError, match="no checkpoint to branch from"):
        find_trunk(str(bare), config(), tmp_path / "arm")


def test_what_each_beginning_does_to_earlier_checkpoints_and_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier checkpoints go, unless the run goes on from one; a branch keeps its first one before it goes on."""
    calls: list[tuple[Any, ...]] = []
    state: Any = SimpleNamespace(step=3, seconds_spent=1.5, origin="there")
    store: Any = SimpleNamespace(
        remove_all=lambda: calls.append(("remove",)),
        save=lambda *given: calls.append(("save", *given)),
        wait=lambda: calls.append(("wait",)),
    )
    train_log: Any = SimpleNamespace(events=tmp_path / "own", begin=lambda *given: calls.append(("begin", *given)))
    monkeypatch.setattr("bitgolf.train.continued.events_until", lambda path, step: (path, step))
    tensors = {"a": torch.ones(1)}
    branched = Branched(state, tensors, tmp_path / "history", {"from": "there"})
    for start in (Start(), Resumed(state, tensors), branched):
        start.open_files(store, train_log, state)
    assert calls == [
        ("remove",), ("begin",),
        ("begin", (tmp_path / "own", 3)),
        ("remove",), ("save", state, tensors), ("wait",), ("begin", (tmp_path / "history", 3)),
    ]  # fmt: skip
    assert branched.tensors == {} and branched.details() == {"from": "there"}
    assert (branched.step, branched.seconds, branched.origin) == (3, 1.5, "there")
    assert (branched.fraction(12, 9.0), branched.fraction(0, 9.0)) == (3 / 12, 1.5 / 9.0)
