"""The main function of a submission's program, with stages that only note what they are called with."""

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import PRESET

from bitgolf.config import load_config
from bitgolf.errors import ConfigError
from bitgolf.run.directory import RunDirectory
from bitgolf.run.ranks import World
from bitgolf.submit import train_gpt

CONFIG = load_config(str(PRESET))
SETTINGS = CONFIG.model_dump_json(exclude={"seed"})


class Calls(list[tuple[str, Any]]):
    """Stages in the order of their calls, each with what it got."""

    def run(self, *words: object) -> int | str | None:
        with pytest.raises(SystemExit) as ended:
            train_gpt.main(SETTINGS, [str(word) for word in words], 4_321)
        return ended.value.code


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()

    def train(run: RunDirectory, peers: Any, attendant: Any, progress: Any) -> None:
        calls.append(("train", (run.config, type(progress))))
        (run / "weights.safetensors").write_bytes(b"")

    def pack(run: RunDirectory, device: Any, code_bytes: int, *, progress: Any = None) -> None:
        calls.append(("pack", (run.config, code_bytes, type(progress))))
        (run / "pack.json").write_text(json.dumps({"code_bytes": code_bytes, "total_bytes": 54_321}))

    def score(run: RunDirectory, peers: Any, *, progress: Any = None) -> None:
        calls.append(("score", (run.config, type(progress))))
        methods = {"chunked": {"loss_nats": 0.5, "bpb": 0.25}}
        (run / "score.json").write_text(
            json.dumps({"methods": methods, "headline": "chunked", "evaluation_seconds": 7.25})
        )

    for stage in (train, pack, score):
        monkeypatch.setattr(train_gpt, stage.__name__, stage)
    return calls


def begun(root: Path) -> tuple[Path, Path]:
    (root / "data").mkdir(parents=True)
    return root / "data", root / "out" / "run"


def test_all_stages_get_the_configuration_and_report_their_progress(
    calls: Calls, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, out = begun(tmp_path)
    with caplog.at_level(logging.INFO):
        assert calls.run("--data", data, "--out", out, "--seed", 5, "--train.max_steps", 3) == 0
    config = CONFIG.updated({"seed": 5, "train.max_steps": 3})
    alone = config.updated({"score.float_reference": False, "score.last_reference": False, "score.compressors": False})
    lines = train_gpt._Progress
    assert calls == [("train", (config, lines)), ("pack", (config, 4_321, lines)), ("score", (alone, lines))]
    assert RunDirectory.open(out).config == config and (out / "data").samefile(data)
    assert [record.getMessage() for record in caplog.records][-4:] == [
        "Code size: 4321 bytes",
        "Total submission size: 54321 bytes",
        "chunked val_loss:0.50000000 val_bpb:0.25000000",
        "final chunked eval_time:7.2s",
    ]


@pytest.mark.parametrize("stage", ["train", "pack", "score"])
def test_a_stage_may_run_alone_and_again_unless_it_trains(calls: Calls, tmp_path: Path, stage: str) -> None:
    data, out = begun(tmp_path)
    words = ("--data", data, "--out", out, "--stage", stage)
    assert calls.run(*words) == 0
    again = calls.run(*words)
    assert "is trained already" in str(again) if stage == "train" else again == 0
    assert [name for name, _ in calls] == [stage] * (1 if stage == "train" else 2)
    (out / "weights.safetensors").touch()
    assert "is trained already" in str(calls.run("--data", data, "--out", out))
    assert "belongs to another configuration" in str(calls.run(*words, "--seed", 8))
    other, _ = begun(tmp_path / "other")
    assert "is not" in str(calls.run("--data", other, "--out", out, "--stage", "pack"))


def test_other_ranks_neither_write_nor_pack_nor_log(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data, out = begun(tmp_path)
    out.mkdir(parents=True)
    monkeypatch.setattr(World, "barrier", lambda world: None)
    monkeypatch.setattr(train_gpt, "world", lambda device: nullcontext(World(1, 2, torch.device("cpu"))))
    with caplog.at_level(logging.INFO):
        assert calls.run("--data", data, "--out", out) == 0
    assert [name for name, _ in calls] == ["train", "score"] and not caplog.records
    assert not (out / "config.toml").exists() and not (out / "data").exists()


def test_progress_is_logged_at_most_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr("bitgolf.submit.train_gpt.time.monotonic", lambda: now[0])
    progress = train_gpt._Progress()
    with caplog.at_level(logging.INFO):
        for seconds in (109.9, 110.0, 119.9, 120.0):
            now[0] = seconds
            progress("pack", seconds, 200, "codes")
    assert [record.getMessage() for record in caplog.records] == ["pack 110 of 200 codes", "pack 120 of 200 codes"]


def test_an_option_is_no_abbreviation(calls: Calls, tmp_path: Path) -> None:
    data, out = begun(tmp_path)
    assert calls.run("--dat", data, "--out", out) == 2
    with pytest.raises(ConfigError, match="unknown key 'sta'"):
        train_gpt.main(SETTINGS, ["--data", str(data), "--out", str(out), "--sta", "pack"], 4_321)
    assert calls == []
