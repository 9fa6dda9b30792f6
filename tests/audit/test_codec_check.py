"""The codec check: a real run's text decodes at the size of its score; leaks and false losses are found."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import done, read_json

from bitgolf.audit import codec
from bitgolf.audit.evidence import Evidence
from bitgolf.audit.registry import attempt
from bitgolf.audit.verdict import Finding
from bitgolf.codec.window_predictor import WindowPredictor
from bitgolf.config import Config
from bitgolf.data.prepare import open_data
from bitgolf.errors import ConfigError
from bitgolf.evaluate import ScoreTape
from bitgolf.evaluate.adapted_pass import adapted_pass, adapted_pass_name
from bitgolf.evaluate.window_scorer import Windows
from bitgolf.language_model import load
from bitgolf.run.directory import RunDirectory
from bitgolf.run.ranks import World


def checked(run: Path, num_bytes: int = 400) -> Finding:
    return attempt(codec.codec, Evidence(RunDirectory.open(run), codec_bytes=num_bytes))


def beginning(run: Path, num_bytes: int) -> Any:
    evidence = Evidence(RunDirectory.open(run))
    return codec.beginning(evidence.data, evidence.nll, num_bytes)


def adapt(run: Path, num_bytes: int, ttt: dict[str, Any]) -> None:
    """Change dotted keys of a run's [ttt]; write the losses of that evaluation for the first bytes, zeros after."""
    num_targets = len(beginning(run, num_bytes).tokens) - 1
    config = RunDirectory.open(run).config.updated({f"ttt.{name}": value for name, value in ttt.items()})
    (run / "config.toml").write_text(config.to_toml())
    tokens = open_data(run / "data").val.read(0, num_targets + 1)
    gpt = load(run / "model.bitgolf", "cpu").model
    nll = np.zeros(len(np.load(run / "nll.npy")), dtype=np.float32)
    world = World(0, 1, torch.device("cpu"))
    adapted = adapted_pass(
        config.ttt,
        Windows.of(config),
        gpt,
        gpt,
        num_targets=len(nll),
        bos_id=int(tokens[0]),
        seed=config.seed,
        world=world,
    )
    nll[:num_targets] = adapted.run(ScoreTape(tokens))
    np.save(run / "nll.npy", nll)
    score = read_json(run / "score.json")
    headline = adapted_pass_name(config.ttt, config.score.methods[-1])
    score["methods"][headline] = {}
    (run / "score.json").write_text(json.dumps(score | {"headline": headline}))


def test_a_run_passes_with_evidence(tiny_run: Path) -> None:
    check = checked(tiny_run)
    assert check.verdict == "PASS", check.reason
    finding = check.evidence
    nll = np.load(tiny_run / "nll.npy")[: finding["targets"]]
    assert finding["score_bytes"] == pytest.approx(nll.sum(dtype=np.float64) / np.log(2) / 8)
    assert 0 < finding["coded_bytes"] - finding["score_bytes"] < 12
    assert 400 <= finding["text_bytes"] < 420
    assert (finding["streams"], finding["updates"]) == (1, 0)
    assert "decoded exactly" in check.reason


def test_the_whole_text_is_enough(tiny_run: Path) -> None:
    text = beginning(tiny_run, 10**9)
    score = read_json(tiny_run / "score.json")
    assert (len(text.tokens), text.num_bytes) == (score["val_tokens"], score["val_bytes"])
    one = beginning(tiny_run, 1)
    assert len(one.tokens) >= 2 and one.num_bytes >= 1
    assert one.whole_targets == score["val_tokens"] - 1


ADAPTED: list[dict[str, Any]] = [
    {"method": "full", "weights.chunk_tokens": 64, "weights.lr": 0.02},
    {"method": "lora", "lora.chunk_tokens": 32, "lora.documents": 2, "lora.keep_a": True},
]


@pytest.mark.parametrize("settings", ADAPTED, ids=lambda settings: settings["method"])
def test_adapted_runs_pass_and_their_updates_took_part(settings: dict[str, Any], run_copy: Path) -> None:
    num_bytes = 1300 if "lora.keep_a" in settings else 450
    adapt(run_copy, num_bytes, settings)
    check = checked(run_copy, num_bytes)
    assert check.verdict == "PASS", check.reason
    assert check.evidence["updates"] >= 2 and f"{check.evidence['updates']} updates on the way" in check.reason
    if "lora.keep_a" in settings:
        assert check.evidence["streams"] == 3, "two batches, so that adapters were handed down"
    np.save(run_copy / "nll.npy", np.load(run_copy / "nll.npy") * np.float32(3))
    failed = checked(run_copy, num_bytes)
    assert failed.verdict == "FAIL" and "the losses on record promise" in failed.reason


def test_text_shorter_than_a_chunk_says_that_nothing_was_learned(run_copy: Path) -> None:
    adapt(run_copy, 64, {"method": "full", "weights.chunk_tokens": 64})
    check = checked(run_copy, 60)
    assert check.verdict == "PASS" and "nothing was learned on the way, give more bytes" in check.reason


def test_predictions_that_know_their_target_cannot_be_decoded(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that looks into the text: it scores splendidly, and its code cannot be read."""
    text = beginning(tiny_run, 400).tokens
    programs = []
    honest = WindowPredictor.logits

    def peeking(self: WindowPredictor, going: np.ndarray) -> np.ndarray:
        logits = honest(self, going)
        programs.append(id(self))
        if programs[0] == id(self):  # the coder has the text, the decoder does not
            logits[0, text[self.position + 1]] += 3
        return logits

    monkeypatch.setattr(WindowPredictor, "logits", peeking)
    check = checked(tiny_run)
    assert check.verdict == "FAIL"
    assert "decoding breaks down" in check.reason or "decoding gives another text from target" in check.reason


def test_a_token_costs_at_most_three_bytes_of_code() -> None:
    """As in runs that know their training text by heart, whose losses on other text exceed ln 2^24 = 16.6 nats."""
    assert codec.promised_bytes(np.array([50.0]), 1_024) == pytest.approx(3, abs=1e-6)
    assert codec.promised_bytes(np.full(8, np.log(2)), 1_024) == pytest.approx(1, abs=1e-4)


def test_a_run_whose_losses_exceed_that_cost_passes() -> None:
    run = SimpleNamespace(
        config=Config(), documents=False, updates=0, num_targets=8, packed=SimpleNamespace(device=torch.device("cpu"))
    )
    text = codec._Text(np.arange(9), 8, np.full(8, 50.0, dtype=np.float32), 8)
    seconds = {"coding": 1.0, "decoding": 1.0}
    check = codec._judge(run, text, [bytes(8 * 3)], [text.tokens[1:]], seconds)  # type: ignore[arg-type]
    assert check.verdict == "PASS" and "of the score" in check.reason
    assert codec._judge(run, text, [bytes(72)], [text.tokens[1:]], seconds).verdict == "FAIL"  # type: ignore[arg-type]
    for sizes, verdict in (([32], "PASS"), ([16], "PASS"), ([33], "FAIL"), ([15], "FAIL"), ([20, 20], "PASS")):
        payloads = [bytes(size) for size in sizes]  # a payload may be 8 bytes off
        assert codec._judge(run, text, payloads, [text.tokens[1:]], seconds).verdict == verdict  # type: ignore[arg-type]


def test_losses_that_no_code_reaches_fail(run_copy: Path) -> None:
    np.save(run_copy / "nll.npy", np.load(run_copy / "nll.npy") * np.float32(0.5))
    check = checked(run_copy)
    assert check.verdict == "FAIL" and "coded bytes, but the losses on record promise" in check.reason


def test_what_is_missing_or_damaged_is_named(run_copy: Path) -> None:
    nll = np.load(run_copy / "nll.npy")
    np.save(run_copy / "nll.npy", nll[:-1])
    assert checked(run_copy).verdict == "FAIL"
    (run_copy / "nll.npy").write_bytes(b"no array")
    assert "is not an array" in checked(run_copy).reason
    (run_copy / "nll.npy").unlink()
    assert checked(run_copy).verdict == "NOT RUN" and "bitgolf score" in checked(run_copy).reason
    np.save(run_copy / "nll.npy", nll)
    score = (run_copy / "score.json").read_text()
    (run_copy / "score.json").write_text("{")
    assert checked(run_copy).verdict == "FAIL"
    (run_copy / "score.json").write_text(score.replace('"sliding"', '"magic"'))
    assert checked(run_copy).verdict == "NOT RUN" and "'magic'" in checked(run_copy).reason
    (run_copy / "score.json").write_text(score)
    (run_copy / "model.bitgolf").unlink()
    assert checked(run_copy).verdict == "NOT RUN"


def test_a_device_without_deterministic_kernels_proves_nothing(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def impossible(*_: object, **__: object) -> None:
        raise ConfigError("exact coding on cuda is not possible: no deterministic kernel")

    monkeypatch.setattr(codec, "exact_arithmetic", impossible)
    check = checked(tiny_run)
    assert check.verdict == "NOT RUN" and "no deterministic kernel" in check.reason


def test_the_command_line_asks_for_it(tiny_run: Path, run_copy: Path) -> None:
    verdict = done("audit", run_copy, "--quick", "--codec", "200", "--json").json
    check = verdict["checks"][-1]
    assert (check["name"], check["verdict"], check["rule"]) == ("codec", "PASS", "C1-C4")
    assert check["evidence"]["text_bytes"] >= 200
    assert read_json(run_copy / "audit.json")["checks"][-1] == check
    assert all(check["name"] != "codec" for check in read_json(tiny_run / "audit.json")["checks"])
