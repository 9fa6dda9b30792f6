"""Checks that a run is what its configuration says: one configuration, the configured pass, an honest training log.

A score is lost to a review when the best of several passes is reported, or when what was trained is not what was
configured. Rules B7, C4 and config: docs/rules.md.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from bitgolf.audit.evidence import Evidence, run_checks
from bitgolf.audit.verdict import Finding, MissingEvidence, judge
from bitgolf.data.row_order import HeldOut
from bitgolf.errors import ForeignError
from bitgolf.evaluate.adapted_pass import adapted_pass_name
from bitgolf.quantize.repack import packed_config, trained_digest


@run_checks.register("one-configuration", "config", "training, artifact and scores are of one configuration")
def one_configuration(evidence: Evidence) -> Finding:
    """The training log, the artifact and config.toml name one configuration, and their facts agree.

    config.toml may have other evaluation settings than at training time. They need no new training and are reported.
    """
    config, (meta, artifact_model, _) = evidence.config, evidence.artifact_facts
    begun = [event for event in evidence.events if "config_sha256" in event]
    if not begun:
        raise MissingEvidence("train.jsonl does not say which configuration was trained")
    trained, packed, current = str(begun[-1]["config_sha256"]), str(meta.get("config_sha256")), config.digest()
    problems = list(_other_configuration(evidence.pack, trained, packed)) if trained != packed else []
    facts = [
        ("seed", begun[-1].get("seed"), config.seed),
        ("vocab_size", begun[-1].get("vocab_size"), config.model.vocab_size),
        ("name", meta.get("preset"), config.name),
        ("window", meta.get("window"), config.window),
    ]
    configured = config.model.model_dump(mode="json")
    facts += [(f"model.{key}", artifact_model.get(key, value), value) for key, value in configured.items()]
    problems += [
        f"{key} is {recorded!r} in training log or artifact, {value!r} in config.toml"
        for key, recorded, value in facts
        if recorded != value
    ]
    note = "" if current == packed else "; config.toml has other settings now, none that these contradict"
    again = "" if trained == packed else f" as {packed[:12]}..., which differs in settings of packing only"
    reason = f"configuration {trained[:12]}... was trained and packed{again}{note}"
    return judge(problems[:8], reason, trained=trained, packed=packed, config_toml=current, facts=len(facts))


def _other_configuration(pack: Mapping[str, Any], trained: str, packed: str) -> Iterator[str]:
    """Problems of a packed configuration that is not the trained one, other than by a recorded `bitgolf pack`."""
    try:
        config = packed_config(pack)
        if config is None:
            yield f"configuration {trained[:12]}... was trained, the artifact is of {packed[:12]}..."
        elif config.digest() != packed or trained_digest(config, pack) != trained:
            yield (
                f"pack.json says that weights of another configuration were packed again: configuration "
                f"{trained[:12]}... was trained, the artifact is of {packed[:12]}..., and the recorded settings of "
                "packing are not their difference"
            )
    except ForeignError as error:
        yield f"pack.json: {error}"


@run_checks.register("train-log", "B7", "the training log adds up, and tells of no validation data")
def train_log(evidence: Evidence) -> Finding:
    """B7 and B4: tokens are steps times the batch, the statistics are those of the log, and nothing was measured on
    validation data."""
    config, events = evidence.config, evidence.events
    available, calibration_tokens = evidence.data.train.num_tokens, evidence.calibration_tokens
    problems, steps = [], 0
    to_draw_from = HeldOut.of(available, config.train).first
    for event in events:
        name = event.get("event")
        if reported := sorted(_mentions_of_validation(event)):
            problems.append(f"`{name}` at step {event.get('step')} reports {', '.join(reported)}: validation data")
        sizes, step = config.train.batch_sizes, event.get("step", 0)
        if name in ("step", "end") and not step * min(sizes) <= event.get("tokens", -1) <= step * max(sizes):
            problems.append(
                f"{event.get('tokens'):,} tokens at step {step}, "
                f"{' to '.join(f'{size:,}' for size in sorted({min(sizes), max(sizes)}))} per step are configured"
            )
        if name in ("start", "resume", "branch") and event.get("train_tokens_available", to_draw_from) != to_draw_from:
            held_out = available - to_draw_from
            problems.append(
                f"training had {event['train_tokens_available']:,} tokens to draw from, the shards hold "
                f"{available:,}" + (f", {held_out:,} of them held out" if held_out else "")
            )
        steps += name == "step"
    last = {event.get("event"): event for event in events}
    gathered = last["calibration"].get("tokens") if "calibration" in last else calibration_tokens
    if calibration_tokens is not None and gathered != calibration_tokens:
        problems.append(
            f"the statistics in calibration/ are of {calibration_tokens:,} tokens, training gathered them from "
            f"{gathered:,}: they were made again"
        )
    if "end" not in last:
        raise MissingEvidence("train.jsonl has no `end` event: training did not finish")
    tokens = last["end"].get("tokens", 0)
    return judge(
        problems[:8],
        f"{steps} log lines, {tokens:,} tokens = {tokens / max(1, available):.2f} passes over {available:,}; "
        "no validation data",
        tokens=tokens,
        train_tokens=available,
        calibration_tokens=calibration_tokens,
        num_problems=len(problems),
    )


def _mentions_of_validation(event: Mapping[str, Any]) -> set[str]:
    """Keys of an event, at any depth, that name validation."""
    mentions = set()
    for key, value in event.items():
        if re.search(r"(?i)(^|_)(val|valid|validation)(_|$)", key):
            mentions.add(key)
        if isinstance(value, Mapping):
            mentions |= {f"{key}.{inner}" for inner in _mentions_of_validation(value)}
    return mentions


@run_checks.register("headline-pass", "C4", "the headline is the configured pass, not the best of several")
def headline_pass(evidence: Evidence) -> Finding:
    """C4: score.json has the configured passes and no others, and its headline is the last of them."""
    score, config = evidence.score, evidence.config
    adapted = adapted_pass_name(config.ttt, config.score.methods[-1])
    configured, reported = [*config.score.methods, *([adapted] if adapted else [])], list(score["methods"])
    problems = []
    if extra := [name for name in reported if name not in configured]:
        problems.append(f"score.json has the passes {', '.join(extra)}, which the configuration does not name")
    if missing := [name for name in configured if name not in reported]:
        problems.append(f"the configured passes {', '.join(missing)} are not in score.json")
    if score["headline"] != configured[-1]:
        problems.append(f"the headline is {score['headline']!r}, the configuration's is {configured[-1]!r}")
    for key, value in (("window", config.window), ("stride", config.score.stride)):
        if score.get(key) != value:
            problems.append(f"{key} is {score.get(key)} in score.json, {value} in config.toml")
    reason = (
        f"{score['headline']}, decided before scoring ({len(configured)} passes configured, {len(reported)} reported)"
    )
    return judge(problems, reason, configured=configured, reported=reported, headline=score["headline"])
