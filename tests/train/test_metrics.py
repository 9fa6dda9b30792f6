"""The training log and the pipe that brings metrics from the device."""

import json
import math
from pathlib import Path

import pytest
import torch

from bitgolf.errors import TrainingDiverged
from bitgolf.train.metrics import MetricsPipe, TrainLog, events_until, read_events

CPU = torch.device("cpu")


def test_events_are_lines_of_json_and_the_same_as_text(tmp_path: Path) -> None:
    log = TrainLog(tmp_path, enabled=True)
    log.begin()
    log.write("start", step=0, device="cpu")
    log.write("step", step=1, loss=2.5)
    lines = [{k: v for k, v in line.items() if k != "seal"} for line in read_events(tmp_path / "train.jsonl")]
    assert lines == [
        {"event": "start", "step": 0, "device": "cpu"},
        {"event": "step", "step": 1, "loss": 2.5},
    ]
    assert (tmp_path / "train.log").read_text() == "[start] step:0 device:cpu\n[step] step:1 loss:2.5\n"


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = TrainLog(tmp_path, enabled=False)
    log.begin()
    log.write("start", step=0)
    assert list(tmp_path.iterdir()) == []


def test_resumption_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log = TrainLog(tmp_path, enabled=True)
    log.begin()
    log.write("start", step=0)
    for step in range(1, 6):
        log.write("step", step=step)
        if step == 3:
            log.write("checkpoint", step=step)
    for event in ("replay", "choice", "calibration", "end"):
        log.write(event, step=3)
    log.begin(events_until(log.events, 3))
    kept = [(event["event"], event["step"]) for event in read_events(tmp_path / "train.jsonl")]
    assert kept == [("start", 0), ("step", 1), ("step", 2), ("step", 3), ("checkpoint", 3)]
    assert (tmp_path / "train.log").read_text().count("\n") == len(kept)


def test_a_branch_begins_with_the_lines_of_its_trunk_up_to_its_step(tmp_path: Path) -> None:
    trunk, log = (TrainLog(tmp_path / name, enabled=True) for name in ("trunk", "branch"))
    for folder in ("trunk", "branch"):
        (tmp_path / folder).mkdir()
    trunk.begin()
    for step in range(4):
        trunk.write("step", step=step)
    trunk.write("end", step=3)
    before = trunk.events.read_bytes()
    log.begin(events_until(trunk.events, 2))
    log.write("branch", step=2)
    assert [(e["event"], e["step"]) for e in read_events(log.events)] == [
        ("step", 0),
        ("step", 1),
        ("step", 2),
        ("branch", 2),
    ]
    assert log.text.read_text().count("\n") == 4
    assert trunk.events.read_bytes() == before
    log.begin(events_until(log.events, 2))
    assert [e["event"] for e in read_events(log.events)] == ["step"] * 3 + ["branch"]  # a resumed branch keeps its line


def test_a_line_cut_by_an_interrupt_ends_the_log(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"event": "start", "step": 0}\n{"event": "step", "st')
    assert read_events(path) == [{"event": "start", "step": 0}]
    log = TrainLog(tmp_path, enabled=True)
    log.begin(events_until(log.events, 0))
    log.write("resume", step=0)
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["start", "resume"]


def test_without_a_file_there_are_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("lag", [0, 2, 5])
def test_metrics_come_in_order_lag_steps_late_and_none_is_lost(lag: int) -> None:
    pipe = MetricsPipe(CPU, ["a"], lag)
    seen: list[int] = []
    for step in range(1, 9):
        due = pipe.push(step, torch.tensor([step / 10, float(step), 1.0, 1.0]))
        assert len(due) == (step > lag)
        seen += [number for number, _ in due]
    seen += [number for number, values in pipe.drain() if values[1] == number]
    assert seen == list(range(1, 9))
    assert pipe.drain() == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_tensor_with_a_bad_gradient_is_named_with_its_step(bad: float) -> None:
    pipe = MetricsPipe(CPU, ["embedding", "mlp.up", "mlp.down"], lag=1)
    pipe.push(7, torch.tensor([0.1, 2.0, 1.0, bad, 1.0, bad]))
    with pytest.raises(TrainingDiverged, match=r"step 7: .*1 of 3 tensors, first 'mlp\.up'.*learning rates"):
        pipe.push(8, torch.tensor([0.2, 2.0, 1.0, 1.0, 1.0, 1.0]))


def test_a_loss_that_is_not_finite_is_named() -> None:
    pipe = MetricsPipe(CPU, ["embedding"], lag=0)
    with pytest.raises(TrainingDiverged, match="step 3: loss nan, not finite in the loss"):
        pipe.push(3, torch.tensor([0.1, math.nan, 1.0, 1.0]))
