"""Checks of the configuration: the configured headline, one configuration, a training log that adds up."""

from types import SimpleNamespace
from typing import Any

import pytest
from fake_evidence import evidence, judged

from bitgolf.audit.configuration import headline_pass, one_configuration, train_log
from bitgolf.audit.verdict import Finding, MissingEvidence
from bitgolf.config import Config

ADAPTED = Config().updated({"ttt.method": "full"})


def headline(config: Config = Config(), **more: Any) -> Finding:  # noqa: B008 - frozen
    methods = {"chunked": {"bpb": 1.2, "seconds": 2.0}, "sliding": {"bpb": 1.1, "seconds": 5.0}}
    score = {"methods": methods, "headline": "sliding", "headline_bpb": 1.1, "window": 1024, "stride": 64} | more
    return headline_pass(evidence(config=config, score=score))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({"headline": "chunked"}, "the headline is 'chunked', the configuration's is 'sliding'"),
        ({"methods": {"sliding": {"bpb": 1.1}}}, "the configured passes chunked are not in score.json"),
        ({"stride": 32}, "stride is 32 in score.json, 64 in config.toml"),
        ({"window": 2048}, "window is 2048"),
    ],
)
def test_the_headline_is_the_configured_pass(change: dict[str, Any], problem: str) -> None:
    judged(headline(**change), problem)


def test_an_adapted_headline_is_the_configured_one() -> None:
    assert headline(ADAPTED).verdict == "FAIL"
    methods = {"chunked": {"bpb": 1.2}, "sliding": {"bpb": 1.1}, "sliding+ttt": {"bpb": 1.0}}
    assert headline(ADAPTED, methods=methods, headline="sliding+ttt").verdict == "PASS"
    assert headline(methods=methods, headline="sliding+ttt").verdict == "FAIL"


CONFIG = Config()
START = {"event": "start", "config_sha256": CONFIG.digest(), "seed": CONFIG.seed, "vocab_size": CONFIG.model.vocab_size}


def one(
    config: Config = CONFIG,
    events: tuple[dict[str, Any], ...] = (START,),
    meta: dict[str, Any] | None = None,
    **model: Any,
) -> Finding:
    facts = {"config_sha256": CONFIG.digest(), "preset": CONFIG.name, "window": CONFIG.window} | (meta or {})
    artifact = (facts, CONFIG.model.model_dump(mode="json") | model, "")
    return one_configuration(evidence(config=config, events=events, artifact_facts=artifact, pack={}))


def test_one_configuration() -> None:
    judged(one(), "")
    judged(one(Config().updated({"seed": 5})), "seed is 1337 in training log or artifact, 5 in")
    judged(one(meta={"config_sha256": "ab"}), "was trained, the artifact is of")
    later = one(ADAPTED)
    assert later.verdict == "PASS" and "has other settings now" in later.reason
    judged(one(model_dim=7), "model.model_dim is 7")
    judged(one(events=(START, {"event": "resume", "config_sha256": "cd"})), "configuration cd... was trained")
    with pytest.raises(MissingEvidence):
        one(events=({"event": "end"},))


def train_events() -> list[dict[str, Any]]:
    batch = Config().train.batch_tokens
    return [
        {"event": "start", "step": 0, "elapsed_seconds": 0.0, "train_tokens_available": 9_000},
        {"event": "step", "step": 10, "loss": 3.25, "tokens": 10 * batch, "elapsed_seconds": 1.5},
        {"event": "choice", "step": 20, "losses": {"ema": 3.1, "swa": 3.2}, "elapsed_seconds": 2.5},
        {"event": "calibration", "step": 20, "tokens": 512, "elapsed_seconds": 3.0},
        {"event": "end", "step": 20, "tokens": 20 * batch, "elapsed_seconds": 3.0},
    ]


def logged(events: list[dict[str, Any]]) -> Finding:
    data = SimpleNamespace(train=SimpleNamespace(num_tokens=9_000))
    return train_log(evidence(events=events, data=data, calibration_tokens=512))


@pytest.mark.parametrize(
    ("index", "change", "problem"),
    [
        (0, {}, ""),
        (0, {"train_tokens_available": 8_000}, "training had 8,000 tokens to draw from, the shards hold 9,000"),
        (1, {"tokens": 3}, "3 tokens at step 10"),
        (1, {"val_loss": 3.0}, "`step` at step 10 reports val_loss"),
        (2, {"losses": {"ema": 3.1, "validation": 3.0}}, "reports losses.validation"),
        (1, {"more": {"best_Val_loss": 3.0}}, "reports more.best_Val_loss"),
        (3, {"tokens": 400}, "are of 512 tokens, training gathered them from 400"),
    ],
)
def test_the_training_log_adds_up(index: int, change: dict[str, Any], problem: str) -> None:
    events = train_events()
    events[index] |= change
    judged(logged(events), problem)


def test_a_training_log_without_an_end_proves_nothing() -> None:
    with pytest.raises(MissingEvidence, match="no `end`"):
        logged(train_events()[:-1])
