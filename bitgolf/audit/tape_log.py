"""Checks of the score tape's event log (tape.json): each target is scored once (C4) and before it is learned (C3).

The log lists, in order, every score (a range of targets) and every update (a range of tokens that was learned), with
the number of updates before it (`state`). Rules: docs/rules.md; test 3 there.

Legend: N tokens, N-1 targets.
"""

from collections.abc import Mapping
from typing import Any

from bitgolf.audit.evidence import Evidence, run_checks
from bitgolf.audit.verdict import Finding, judge
from bitgolf.errors import DataError
from bitgolf.evaluate.tape import tokens_sha256


@run_checks.register("scored-once", "C4", "one left-to-right pass scores every target exactly once")
def scored_once(evidence: Evidence) -> Finding:
    """C4: the score events cover targets 0..N-2 in order, once, on the tokens of the validation shards."""
    num_tokens, num_losses, digest = len(evidence.tokens), len(evidence.nll), tokens_sha256([evidence.tokens])
    problems, position = [], 0
    scores = [event for event in tape_events(evidence.event_log) if event[0] == "score"]
    for _, start, stop, _ in scores:
        if start < position:
            problems.append(f"targets {start}..{min(stop, position) - 1} are scored a second time")
        elif start > position:
            problems.append(f"targets {position}..{start - 1} are skipped")
        if stop <= start:
            problems.append(f"the score event [{start}, {stop}) is empty or runs backwards")
        position = max(position, stop)
    if position != num_tokens - 1:
        problems.append(f"{position:,} targets are scored, {num_tokens:,} validation tokens have {num_tokens - 1:,}")
    if num_losses != position:
        problems.append(f"nll.npy has {num_losses:,} losses, the event log {position:,} targets")
    if evidence.event_log.get("tokens_sha256") != digest:
        problems.append("the tokens on the tape are not those of the validation shards")
    return judge(
        problems[:8],
        f"{position:,} targets in {len(scores)} runs of score events, each once and in order",
        num_targets=position,
        num_tokens=num_tokens,
        score_events=len(scores),
        num_losses=num_losses,
        tokens_sha256=digest,
        num_problems=len(problems),
    )


@run_checks.register("score-first", "C3", "no update learned from a token before its score")
def score_first(evidence: Evidence) -> Finding:
    """C3: every update's tokens were scored before it, and every score names the state that it was made with."""
    problems, scored, state = [], 0, 0
    for name, start, stop, version in tape_events(evidence.event_log):
        if name == "update":
            state += 1
            if stop > scored + 1:
                problems.append(
                    f"update {state} learned from tokens {max(start, scored + 1)}..{stop - 1} before they were scored"
                )
            if version != state:
                problems.append(f"update {state} made state {version}, expected {state}")
        else:
            if version != state:
                problems.append(
                    f"targets {start}..{stop - 1} were scored with state {version} when {state} updates had been made"
                )
            scored = max(scored, stop)
    reason = f"{state} updates, each from tokens already scored" if state else "the model was never updated"
    return judge(problems[:8], reason, updates=state, num_problems=len(problems))


def tape_events(event_log: Mapping[str, Any]) -> list[tuple[str, int, int, int]]:
    """Events as (name, start, stop, state). Raises DataError for an event log of another shape."""
    try:
        events = []
        for event in event_log["events"]:
            name = event["event"]
            start, stop = event["targets" if name == "score" else "tokens"]
            if name not in ("score", "update") or not all(type(v) is int for v in (start, stop, event["state"])):
                raise ValueError(f"event {event}")
            events.append((name, start, stop, event["state"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"tape.json is not an event log of scores and updates: {error!r}") from error
    return events
