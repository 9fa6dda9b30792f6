"""The end of training through its command: the replay burst and the choice of the average, inside the budget."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from safetensors import safe_open
from safetensors.torch import load_file
from simulated_time import simulate_time
from tiny_run import done, events, read_json, refused

import bitgolf.train.finish
from bitgolf.config import load_config
from bitgolf.data.prepared import open_data
from bitgolf.model import GPT
from bitgolf.run.directory import RunDirectory
from bitgolf.run.ranks import world
from bitgolf.train import attended, stage
from bitgolf.train.checkpoint import state_digest
from bitgolf.train.schedule import StepSettings
from bitgolf.train.trainer import Trainer

Make = Callable[..., Path]
CHOICE: dict[str, Any] = {
    "train__average__choose": "held_out", "train__held_out_tokens": 1300,
    "train__average__swa_weight": 0.5, "train__average__swa_start": 0.9,
}  # fmt: skip


def print_the_weights(trunk: Path, arm: Path) -> None:
    """Train both, `arm` as a branch of `trunk`, and print the digests of this rank's weights."""
    with world("cpu") as peers, pytest.MonkeyPatch.context() as patch:
        make, trainers = stage.Trainer, []
        patch.setattr(stage, "Trainer", lambda *arguments: trainers.append(make(*arguments)) or trainers[-1])
        for run, branch in ((trunk, ""), (arm, str(trunk))):
            attended.train_attended(RunDirectory.open(run), peers, branch=branch)
            sys.stdout.write("digest " + state_digest(trainers[-1].tensors()) + "\n")


def test_the_burst_ends_inside_the_budget_and_the_warm_down_before_it(
    tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "train.max_steps": "0", "budget.train_seconds": "3", "train.warmdown": "0.6", "train.log_every": "1",
        "train.replay.epochs": "3", "train.replay.lr": "0.05", "train.measure.calibration_tokens": "2048",
        "train.average.choose": "held_out", "train.held_out_tokens": "640", "train.batch_tokens": "256",
        "train.micro_batch_tokens": "256",
    }  # fmt: skip
    run = RunDirectory.create(tmp_path / "run", load_config(str(tiny_run / "config.toml"), changes))
    shutil.copytree(tiny_run / "data", run / "data")
    simulate_time(monkeypatch)
    done("train", run.path)
    (begin,), (burst,), (choice,), (end,) = (events(run.path, kind) for kind in ("start", "replay", "choice", "end"))
    steps = events(run.path, "step")
    assert begin["replay_reserve_seconds"] > 0.1
    low = [event for event in steps if event["lr_scale"] < 0.2]
    assert burst["batches"] == min(100, len(low))
    assert burst["first_batch"] == end["step"] - burst["batches"]
    assert burst["planned_steps"] == 3 * burst["batches"]
    assert 0 < burst["replay_steps"] <= burst["planned_steps"]
    assert steps[-1]["lr_scale"] < 0.05  # the warm-down is over where the burst begins
    assert end["steps_seconds"] < burst["elapsed_seconds"] <= choice["elapsed_seconds"] < end["elapsed_seconds"] <= 3.0
    charges = {c["what"]: c["amount"] for c in read_json(run / "budget.json")["charges"] if c["stage"] == "train"}
    assert list(charges) == ["optimizer steps", "replay", "choice of the average", "calibration"]
    assert sum(charges.values()) == pytest.approx(end["elapsed_seconds"])
    assert charges["replay"] == pytest.approx(burst["elapsed_seconds"] - end["steps_seconds"])


def test_the_burst_reads_the_last_batches_again_and_nothing_else(
    untrained: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, float, bool, torch.Tensor]] = []
    real = Trainer.step

    def watched(
        self: Trainer, inputs: torch.Tensor, targets: torch.Tensor, settings: StepSettings, *elapsed: float
    ) -> Any:
        seen.append((settings.snapshots, settings.lr_scale, settings.late, inputs.clone()))
        return real(self, inputs, targets, settings, *elapsed)

    monkeypatch.setattr(Trainer, "step", watched)
    done("train", untrained(train__replay__epochs=2, train__replay__batches=3, train__replay__lr=0.07,
                            qat__mode="ste", qat__start_lr_scale=0.9, pack__grid__matrix_bits=4))  # fmt: skip
    burst = [entry for entry in seen if not entry[0]]
    steps = [entry for entry in seen if entry[0]]
    assert len(burst) == 6
    assert steps[-1][2]  # the late phase was on
    assert {(scale, late) for _, scale, late, _ in burst} == {(0.07, False)}
    for again, before in zip(burst, 2 * steps[-3:], strict=True):
        assert torch.equal(again[3], before[3])


def test_the_best_on_held_out_training_text_is_shipped(untrained: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = untrained(**CHOICE)
    kept: dict[str, dict[str, torch.Tensor]] = {}
    real = bitgolf.train.finish.held_out_losses

    def watched(model: GPT, candidates: dict[str, dict[str, torch.Tensor]], *args: Any) -> Any:
        kept.update({name: {k: v.clone() for k, v in weights.items()} for name, weights in candidates.items()})
        return real(model, candidates, *args)

    monkeypatch.setattr(bitgolf.train.finish, "held_out_losses", watched)
    done("train", run)
    (choice,) = events(run, "choice")
    assert list(choice["losses"]) == list(kept)
    assert len(kept) == 4
    assert choice["configured"].startswith("0.5 x ema 0.8 + 0.5 x swa of")
    assert choice["losses"][choice["chosen"]] == min(choice["losses"].values())
    assert choice["tokens"] == 1280
    shipped = load_file(run / "weights.safetensors")
    for name, weight in kept[choice["chosen"]].items():
        assert torch.equal(shipped[name], weight)
    with safe_open(run / "weights.safetensors", "pt") as file:
        assert file.metadata()["average"] == f"{choice['chosen']}, chosen of 4 on 1280 held-out training tokens"
    # The losses are those of the last 1,281 training tokens, which no step and no calibration row has touched.
    config = load_config(str(run / "config.toml"))
    stream = open_data(run / "data").train
    tail = torch.from_numpy(stream.read(stream.num_tokens - 1281, 1281).astype("int64"))
    for name, weights in kept.items():
        model = GPT(config.model, 64)
        model.load_state_dict(weights)
        with torch.no_grad():
            rows = [float(model(tail[None, i : i + 64], tail[None, i + 1 : i + 65])) for i in range(0, 1280, 64)]
        assert choice["losses"][name] == pytest.approx(sum(rows) / len(rows), rel=1e-4)
    assert events(run, "start")[0]["train_tokens_available"] == stream.num_tokens - 1281


def test_held_out_tokens_are_never_read_before_the_choice(untrained: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitgolf.train.rows import CheckedTokens

    run = untrained(**CHOICE, train__loader="sequential", train__replay__epochs=1)
    last: list[tuple[int, bool]] = []
    real, choosing = CheckedTokens.read, False

    def watched(self: CheckedTokens, first: int, length: int) -> Any:
        last.append((self.num_tokens - (first + length), choosing))
        return real(self, first, length)

    choose = bitgolf.train.finish.held_out_losses

    def noted(*args: Any) -> Any:
        nonlocal choosing
        choosing = True
        try:
            return choose(*args)
        finally:
            choosing = False

    monkeypatch.setattr(CheckedTokens, "read", watched)
    monkeypatch.setattr(bitgolf.train.finish, "held_out_losses", noted)
    done("train", run)
    assert min(left for left, inside in last if inside) == 0
    assert min(left for left, inside in last if not inside) >= 1281


def test_two_ranks_replay_choose_and_branch_alike(untrained: Make, tmp_path: Path) -> None:
    ending = CHOICE | {
        "train__replay__epochs": 2, "train__table_dtype": "bf16", "qat__mode": "ste", "qat__start_lr_scale": 0.5,
        "train__checkpoint__at": [0.5],
    }  # fmt: skip
    alone, two, arm = untrained("alone", **ending), untrained("two", **ending), untrained("arm", **ending)
    done("train", alone)
    statuses, stdout, stderr = run_ranks(tmp_path / "io", print_the_weights, two, arm)
    assert statuses == [0, 0], stderr
    digests = [line for line in stdout.splitlines() if line.startswith("digest ")]
    assert len(digests) == 4
    assert len(set(digests)) == 1  # the ranks agree, and the branch is its trunk
    one, both = (events(run, "choice")[0] for run in (alone, two))
    assert list(one["losses"]) == list(both["losses"])
    assert list(both["losses"].values()) == pytest.approx(list(one["losses"].values()), abs=3e-3)
    assert one["tokens"] == both["tokens"] == 1280
    assert events(two, "replay")[0]["losses"] == pytest.approx(events(alone, "replay")[0]["losses"], abs=3e-3)
    assert [event["world_size"] for event in events(arm, "branch")] == [2]


def test_an_entry_of_passthrough_that_matches_nothing_is_refused_before_training(untrained: Make) -> None:
    message = refused("train", untrained(pack__passthrough=["embeding", "blocks.*.key"]))
    assert message.startswith("pack.passthrough 'embeding' matches none of the model's")
    assert message.endswith("the nearest name is 'embedding'")
