"""Checks of what a run says about itself: one configuration, one headline, numbers that agree wherever they stand.

A score is lost to a review when prose, JSON and logs disagree, when the best of several passes is reported, or when
what was trained is not what was configured. Every number that stands in two places is compared here, every figure that
follows from others is computed again. Source: rules B4, B7 and C4; number 9 of the challenge's pre-submission gate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bitgolf.audit.verdict import Check, MissingEvidence, Rule
from bitgolf.config import Config
from bitgolf.data.held_out import HeldOut
from bitgolf.evaluate.adapted_pass import adapted_pass_name
from bitgolf.run.budget import Charge

HEADLINE = Rule("headline-pass", "C4", "the headline is the pass that the configuration names, not the best of several")
ONE_CONFIGURATION = Rule("one-configuration", "config", "training, artifact and scores are of one configuration")
TRAIN_LOG = Rule("train-log", "B7", "the training log adds up, and tells of no validation data")
NUMBERS_AGREE = Rule("numbers-agree", "numbers", "numbers that stand in several records are the same in all of them")

_SAME_SECONDS = 1e-6  # both were written from one variable
_LOG_DIGITS = 6  # significant digits of train.log
_LOG_LINE = re.compile(r"\[(\w+)\] (.*)")
_PAIR = re.compile(r"(\S+?):(\S*)")


def headline_pass(score: Mapping[str, Any], config: Config) -> Check:
    """C4: score.json has the configured passes and no others, and its headline is the last of them."""
    adapted = adapted_pass_name(config.ttt, config.score.methods[-1])
    wanted = [*config.score.methods, *([adapted] if adapted else [])]
    found = list(score["methods"])
    problems = []
    extra = [name for name in found if name not in wanted]
    if extra:
        problems.append(f"score.json has the passes {', '.join(extra)}, which the configuration does not name")
    if missing := [name for name in wanted if name not in found]:
        problems.append(f"the configured passes {', '.join(missing)} are not in score.json")
    if score["headline"] != wanted[-1]:
        problems.append(f"the headline is {score['headline']!r}, the configuration's is {wanted[-1]!r}")
    for key, value in (("window", config.window), ("stride", config.score.stride)):
        if score.get(key) != value:
            problems.append(f"{key} is {score.get(key)} in score.json, {value} in config.toml")
    return HEADLINE.judge(
        problems,
        f"{score['headline']}, decided before scoring ({len(wanted)} passes configured, {len(found)} reported)",
        configured=wanted,
        reported=found,
        headline=score["headline"],
    )


def one_configuration(
    config: Config,
    events: Sequence[Mapping[str, Any]],  # train.jsonl
    artifact_meta: Mapping[str, Any],
    artifact_model: Mapping[str, Any],  # configuration of the artifact's model
) -> Check:
    """The digest in the training log is the artifact's, and what both say of themselves is what config.toml says.

    config.toml may have been given other evaluation settings since: those need no training, and are noted.
    """
    begun = [event for event in events if "config_sha256" in event]
    if not begun:
        raise MissingEvidence("train.jsonl does not say which configuration was trained")
    trained, packed, now = str(begun[-1]["config_sha256"]), str(artifact_meta.get("config_sha256")), config.digest()
    problems = []
    if trained != packed:
        problems.append(f"configuration {trained[:12]}... was trained, the artifact is of {packed[:12]}...")
    facts = [
        ("seed", begun[-1].get("seed"), config.seed),
        ("vocab_size", begun[-1].get("vocab_size"), config.model.vocab_size),
        ("name", artifact_meta.get("preset"), config.name),
        ("window", artifact_meta.get("window"), config.window),
    ]
    known = config.model.model_dump(mode="json")
    facts += [(f"model.{key}", artifact_model.get(key, value), value) for key, value in known.items()]
    problems += [
        f"{key} is {found!r} in training log or artifact, {value!r} in config.toml"
        for key, found, value in facts
        if found != value
    ]
    note = "" if now == packed else "; config.toml has been given other settings since, none that these contradict"
    return ONE_CONFIGURATION.judge(
        problems,
        f"configuration {trained[:12]}... was trained and packed{note}",
        trained=trained,
        packed=packed,
        config_toml=now,
        facts=len(facts),
    )


def train_log(
    events: Sequence[Mapping[str, Any]],
    config: Config,
    train_tokens: int,  # in the training shards
    calibration_tokens: int | None,  # as the statistics' own file says; None when there is none
) -> Check:
    """B7 and B4: tokens are steps times the batch, the statistics are those of the log, nothing was measured on
    validation data."""
    problems, steps = [], 0
    to_draw_from = HeldOut.of(train_tokens, config.train).first
    for event in events:
        name = event.get("event")
        reported = sorted(_mentions_of_validation(event))
        if reported:
            problems.append(f"`{name}` at step {event.get('step')} reports {', '.join(reported)}: validation data")
        if name in ("step", "end") and event.get("tokens") != event.get("step", 0) * config.train.batch_tokens:
            problems.append(
                f"{event.get('tokens'):,} tokens at step {event.get('step')}, "
                f"{config.train.batch_tokens:,} a step are configured"
            )
        if name in ("start", "resume", "branch") and event.get("train_tokens_available", to_draw_from) != to_draw_from:
            held_out = train_tokens - to_draw_from
            problems.append(
                f"training had {event['train_tokens_available']:,} tokens to draw from, the shards hold "
                f"{train_tokens:,}" + (f", {held_out:,} of them held out" if held_out else "")
            )
        steps += name == "step"
    calibrated = [event for event in events if event.get("event") == "calibration"]
    if calibration_tokens is not None and calibrated and calibrated[-1].get("tokens") != calibration_tokens:
        problems.append(
            f"the statistics in calibration/ are of {calibration_tokens:,} tokens, training gathered them from "
            f"{calibrated[-1].get('tokens'):,}: they were made again"
        )
    ends = [event for event in events if event.get("event") == "end"]
    if not ends:
        raise MissingEvidence("train.jsonl has no `end` event: training did not finish")
    tokens = ends[-1].get("tokens", 0)
    return TRAIN_LOG.judge(
        problems[:8],
        f"{steps} log lines, {tokens:,} tokens = {tokens / max(1, train_tokens):.2f} passes over {train_tokens:,}; "
        "no validation data",
        tokens=tokens,
        train_tokens=train_tokens,
        calibration_tokens=calibration_tokens,
        num_problems=len(problems),
    )


def _mentions_of_validation(event: Mapping[str, Any]) -> set[str]:
    """Keys of an event, at any depth, that name validation."""
    found = set()
    for key, value in event.items():
        if re.match(r"(val|validation)(_|$)", key):
            found.add(key)
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}" for inner in _mentions_of_validation(value)}
    return found


def numbers_agree(
    score: Mapping[str, Any],
    pack: Mapping[str, Any],
    charges: Iterable[Charge],
    events: Sequence[Mapping[str, Any]],
    log_text: str,  # train.log
) -> Check:
    """Sums, differences and copies of the records, made again."""
    charges = list(charges)
    problems = [
        *_packing(pack, score),
        *_scores(score, charges),
        *_training(events, charges),
        *_log(events, log_text),
    ]
    return NUMBERS_AGREE.judge(
        problems[:8],
        f"pack.json, score.json, budget.json, train.jsonl and train.log agree ({len(events)} events, "
        f"{len(charges)} charges)",
        events=len(events),
        charges=len(charges),
        num_problems=len(problems),
        all_problems=problems[:40],
    )


def _packing(pack: Mapping[str, Any], score: Mapping[str, Any]) -> list[str]:
    problems = []
    streams = pack.get("stream_bytes")
    if isinstance(streams, Mapping) and "header_bytes" in pack:
        total = pack["header_bytes"] + sum(streams.values())
        if total != pack.get("model_bytes"):
            problems.append(
                f"pack.json's header and streams are {total:,} bytes, its model {pack.get('model_bytes'):,}"
            )
    if pack.get("model_sha256", score.get("model_sha256")) != score.get("model_sha256"):
        problems.append("pack.json and score.json name different artifacts")
    return problems


def _scores(score: Mapping[str, Any], charges: list[Charge]) -> list[str]:
    problems = []
    headline = score["methods"][score["headline"]].get("bpb")
    if score.get("headline_bpb", headline) != headline:
        problems.append(f"headline_bpb is {score['headline_bpb']}, its pass scored {headline}")
    first = next(iter(score["methods"].values()))
    references = list((score.get("float") or {}).values())
    if references and score.get("quantization_tax") is not None:
        tax = first["bpb"] - references[0]["bpb"]
        if abs(tax - score["quantization_tax"]) > 1e-9:
            problems.append(f"quantization_tax is {score['quantization_tax']:.6f}, the scores differ by {tax:.6f}")
    charged = {charge.what: charge.amount for charge in charges if charge.stage == "score"}
    for name, method in score["methods"].items():
        seconds = method.get("seconds")
        if name in charged and seconds is not None and abs(charged[name] - seconds) > _SAME_SECONDS:
            problems.append(f"{name} took {seconds:.3f} s in score.json, {charged[name]:.3f} s are charged for it")
    return problems


def _training(events: Sequence[Mapping[str, Any]], charges: list[Charge]) -> list[str]:
    ends = [event for event in events if event.get("event") == "end"]
    charged = sum(charge.amount for charge in charges if charge.kind == "train_seconds")
    if ends and abs(charged - ends[-1]["elapsed_seconds"]) > _SAME_SECONDS:
        return [f"training ended at {ends[-1]['elapsed_seconds']:.3f} s in train.jsonl, {charged:.3f} s are charged"]
    return []


def _log(events: Sequence[Mapping[str, Any]], text: str) -> list[str]:
    """train.log, line by line against train.jsonl."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) != len(events):
        return [f"train.log has {len(lines)} lines, train.jsonl {len(events)} events"]
    problems = []
    for number, (line, event) in enumerate(zip(lines, events, strict=True), 1):
        found = _LOG_LINE.match(line)
        if not found or found[1] != event.get("event"):
            problems.append(f"line {number} of train.log is not the event `{event.get('event')}`")
            continue
        printed = dict(_PAIR.findall(found[2]))
        for key, value in event.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and key in printed:
                shown = f"{value:.{_LOG_DIGITS}g}" if isinstance(value, float) else str(value)
                if printed[key] != shown:
                    problems.append(f"line {number} of train.log has {key}:{printed[key]}, train.jsonl {shown}")
    return problems
