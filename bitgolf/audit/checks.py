"""Checks of records: bytes, clocks, the tape's event log, counts, the score's identity, seals and splits.

Every function takes explicit values (nothing here opens a run directory), recomputes what was claimed and returns a
`Check` with both. Source: rules B1, B4, B6, B7, C3, C4 and tests 3 and 6 of the challenge's audit.

Legend: N tokens, N-1 targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bitgolf.audit.verdict import Check, MissingEvidence, Rule
from bitgolf.errors import DataError
from bitgolf.evaluate.bits import bpb_per_nat
from bitgolf.evaluate.tape import NEGATIVE_NLL_TOLERANCE

ARTIFACT_BYTES = Rule("artifact-bytes", "B1", "code and model together fit the byte budget")
TRAIN_CLOCK = Rule("train-clock", "B4", "training data was last read within the training budget")
EVAL_CLOCK = Rule("eval-clock", "B6", "all scoring work fits the evaluation budget")
SEALED = Rule("artifact-sealed", "B7", "the artifact is the one that was scored")
DISJOINT = Rule("disjoint-splits", "B7", "no document is in both training and validation data")
SCORED_ONCE = Rule("scored-once", "C4", "one left-to-right pass scores every target exactly once")
SCORE_FIRST = Rule("score-first", "C3", "no update learned from a token before its score")
COUNTS = Rule("counts", "C4", "scored targets are all N-1, scored bytes are all bytes of the documents")
IDENTITY = Rule("identity", "identity", "bits per byte follow from the losses and the byte total")

# Clock readings of one process differ by the work between taking them and charging them.
CLOCK_SLACK_SECONDS = 0.5
CLOCK_SLACK_SHARE = 0.05
# Room for a report that rounds bits per byte to eight decimals.
IDENTITY_TOLERANCE = 1e-7


def artifact_bytes(
    model_bytes: int,  # of the artifact file on disk
    code_bytes: int,  # of the code that ships, counted now
    limit: float,
    claimed: Mapping[str, Any],  # pack.json: model_bytes, code_bytes, total_bytes
    charged: float,  # artifact_bytes in the budget ledger
) -> Check:
    """B1: the files' real sizes against the cap and against what was claimed and charged for them."""
    total = model_bytes + code_bytes
    stated = [_number(claimed, key, "pack.json") for key in ("model_bytes", "code_bytes", "total_bytes")]
    problems = []
    if total > limit:
        problems.append(f"{total:,} bytes are {total - limit:,.0f} over the cap of {limit:,.0f}")
    if stated[0] != model_bytes:
        problems.append(f"pack.json claims {stated[0]:,} bytes of model, the file has {model_bytes:,}")
    if stated[0] + stated[1] != stated[2]:
        problems.append(f"pack.json's total {stated[2]:,} is not its model {stated[0]:,} + code {stated[1]:,}")
    if stated[2] > limit:
        problems.append(f"pack.json itself claims {stated[2]:,} bytes, over the cap of {limit:,.0f}")
    if charged != stated[2]:
        problems.append(f"the budget was charged {charged:,.0f} bytes, pack.json claims {stated[2]:,}")
    note = "" if stated[1] == code_bytes else f" (code was {stated[1]:,} bytes when packed)"
    return ARTIFACT_BYTES.judge(
        problems,
        f"{model_bytes:,} model + {code_bytes:,} code = {total:,} of {limit:,.0f} bytes{note}",
        model_bytes=model_bytes,
        code_bytes=code_bytes,
        total_bytes=total,
        limit_bytes=limit,
        claimed_model_bytes=stated[0],
        claimed_code_bytes=stated[1],
        claimed_total_bytes=stated[2],
        charged_bytes=charged,
    )


def train_clock(charged_seconds: float, limit: float, events: Sequence[Mapping[str, Any]]) -> Check:
    """B4: the clock of the training log, calibration included, against the budget and what was charged.

    Args:
        events: lines of train.jsonl; `elapsed_seconds` counts from the first timed step and must not run back,
            except where a `resume` returns to an earlier checkpoint.
    """
    timed = [
        (str(event.get("event")), float(_number(event, "elapsed_seconds", "train.jsonl")))
        for event in events
        if "elapsed_seconds" in event
    ]
    if not any(name == "end" for name, _ in timed):
        raise MissingEvidence(
            "train.jsonl has no `end` event: training did not finish, so the last read of training data is unknown"
        )
    problems = []
    before = 0.0
    for name, elapsed in timed:
        if elapsed < before and name not in ("start", "resume"):
            problems.append(f"the training clock runs back from {before:.2f} s to {elapsed:.2f} s at `{name}`")
        before = elapsed
    last_name, last = timed[-1]
    if last_name != "end":
        problems.append(f"train.jsonl goes on after `end`, with `{last_name}` at {last:.2f} s")
    longest = max(elapsed for _, elapsed in timed)
    used = max(longest, charged_seconds)
    if used > limit:
        problems.append(f"training data was in use for {used:.2f} s, {used - limit:.2f} over the budget of {limit:g} s")
    if charged_seconds + CLOCK_SLACK_SECONDS < longest:
        problems.append(f"{charged_seconds:.2f} s were charged, the log runs to {longest:.2f} s")
    calibrations = [elapsed for name, elapsed in timed if name == "calibration"]
    return TRAIN_CLOCK.judge(
        problems,
        f"{used:.2f} of {limit:g} s" + (", calibration included" if calibrations else ""),
        charged_seconds=charged_seconds,
        limit_seconds=limit,
        log_seconds=longest,
        timed_events=len(timed),
        calibration_end_seconds=calibrations[-1] if calibrations else None,
        resumes=sum(name == "resume" for name, _ in timed),
    )


def eval_clock(
    charged_seconds: float,
    limit: float,
    method_seconds: Mapping[str, float],
    claimed_seconds: float = 0.0,
    untimed_seconds: float = 0.0,
) -> Check:
    """B6: seconds charged to evaluation against the budget and the methods' own times.

    Args:
        method_seconds: seconds by method of score.json; together they may not exceed what was charged.
        claimed_seconds: the whole evaluation as score.json gives it, 0 when it does not.
        untimed_seconds: charged by the stage `score` as outside all clocks; there is no such work in an evaluation.
    """
    if charged_seconds <= 0:
        raise MissingEvidence("nothing is charged to eval_seconds; run `bitgolf score` first")
    used, methods = max(charged_seconds, claimed_seconds), sum(method_seconds.values())
    problems = []
    if used > limit:
        problems.append(f"evaluation took {used:.2f} s, {used - limit:.2f} over the budget of {limit:g} s")
    if charged_seconds + CLOCK_SLACK_SECONDS < methods:
        problems.append(f"{charged_seconds:.2f} s were charged, scoring alone took {methods:.2f} s")
    if claimed_seconds - charged_seconds > max(CLOCK_SLACK_SECONDS, CLOCK_SLACK_SHARE * claimed_seconds):
        problems.append(
            f"the evaluation took {claimed_seconds:.2f} s, {charged_seconds:.2f} are charged: something ran outside "
            "the clock"
        )
    if untimed_seconds:
        problems.append(f"{untimed_seconds:.2f} s of evaluation are booked as untimed; all of it counts")
    return EVAL_CLOCK.judge(
        problems,
        f"{used:.2f} of {limit:g} s",
        charged_seconds=charged_seconds,
        limit_seconds=limit,
        claimed_seconds=claimed_seconds,
        untimed_seconds=untimed_seconds,
        method_seconds=dict(method_seconds),
    )


def artifact_sealed(file_sha256: str, scored_sha256: str) -> Check:
    """B7: the artifact on disk is bit for bit the one that score.json belongs to."""
    problems = (
        []
        if file_sha256 == scored_sha256
        else [
            f"model.bitgolf has SHA-256 {file_sha256[:12]}..., the scores belong to {scored_sha256[:12]}...: it was "
            "changed after scoring"
        ]
    )
    return SEALED.judge(
        problems,
        f"SHA-256 {file_sha256[:12]}... on disk and in score.json",
        file_sha256=file_sha256,
        scored_sha256=scored_sha256,
    )


def disjoint_splits(
    num_train: int,
    num_val: int,
    overlap: int,
    changed_files: Sequence[str] = (),
    in_shards: tuple[int, int] = (0, 0),
) -> Check:
    """B7: hashes of the documents of both splits have nothing in common, and neither have the shards.

    Args:
        num_train, num_val: documents (or distinct hashes) of each split.
        overlap: training documents that are also in validation.
        changed_files: files of hashes that are not those that the manifest names.
        in_shards: documents of the training shards that were looked at, and those that are validation documents.
    """
    if num_train == 0 or num_val == 0:
        raise MissingEvidence(f"no document hashes to compare: {num_train} of training, {num_val} of validation")
    looked_at, found = in_shards
    problems = [f"{overlap:,} training documents are validation documents too"] if overlap else []
    if found:
        problems.append(f"{found:,} documents of the training shards are validation documents, token by token")
    problems += [f"{name} is not the file of hashes that the manifest names" for name in changed_files]
    return DISJOINT.judge(
        problems,
        f"{num_train:,} training and {num_val:,} validation documents, none in common"
        + (f"; {looked_at:,} documents of the training shards compared" if looked_at else ""),
        num_train=num_train,
        num_val=num_val,
        overlap=overlap,
        shard_documents=looked_at,
        shard_overlap=found,
        changed_files=list(changed_files),
    )


def scored_once(event_log: Mapping[str, Any], num_tokens: int, tokens_sha256: str, num_losses: int) -> Check:
    """C4: the log's score events cover targets 0..N-2 in order, once, on these tokens.

    Args:
        event_log: `ScoreTape.event_log` of the headline method.
        num_tokens, tokens_sha256: of the validation data, from the shards.
        num_losses: length of nll.npy.
    """
    problems, position = [], 0
    scores = [event for event in _events(event_log) if event[0] == "score"]
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
    if event_log.get("tokens_sha256") != tokens_sha256:
        problems.append("the tokens on the tape are not the validation shards'")
    return SCORED_ONCE.judge(
        problems,
        f"{position:,} targets in {len(scores)} runs of score events, each once and in order",
        num_targets=position,
        num_tokens=num_tokens,
        score_events=len(scores),
        num_losses=num_losses,
        tokens_sha256=tokens_sha256,
    )


def score_first(event_log: Mapping[str, Any]) -> Check:
    """C3: every update's source tokens were scored before it, and scores name the state they were made with."""
    problems, scored, state, updates = [], 0, 0, 0
    for name, start, stop, version in _events(event_log):
        if name == "update":
            updates += 1
            state += 1
            if stop > scored + 1:
                problems.append(
                    f"update {updates} learned from tokens {max(start, scored + 1)}..{stop - 1} before they were scored"
                )
            if version != state:
                problems.append(f"update {updates} made state {version}, expected {state}")
        else:
            if version != state:
                problems.append(
                    f"targets {start}..{stop - 1} were scored with state {version} when {state} updates had been made"
                )
            scored = max(scored, stop)
    return SCORE_FIRST.judge(
        problems[:8],
        f"{updates} updates, each from tokens already scored" if updates else "the model was never updated",
        updates=updates,
        num_problems=len(problems),
    )


def counts(
    num_tokens: int,
    num_documents: int,
    byte_total: int,
    manifest: Mapping[str, int | None],
    score: Mapping[str, Any],
    headline: Mapping[str, Any],
) -> Check:
    """C4: token, byte and document totals, recounted from the shards, against manifest and claims.

    Args:
        num_tokens, num_documents, byte_total: recounted: tokens, BOS tokens, sum of byte costs of all targets.
        manifest: `tokens`, `documents`, `bytes` of the validation split (None where the manifest does not say).
        score: score.json with `val_tokens` and `val_bytes`.
        headline: the headline method's entry with `tokens` and `bytes`.
    """
    claims = [
        ("manifest tokens", manifest.get("tokens"), num_tokens),
        ("manifest documents", manifest.get("documents"), num_documents),
        ("manifest bytes", manifest.get("bytes"), byte_total),
        ("score.json val_tokens", _number(score, "val_tokens", "score.json"), num_tokens),
        ("score.json val_bytes", _number(score, "val_bytes", "score.json"), byte_total),
        ("scored tokens", _number(headline, "tokens", "score.json"), num_tokens - 1),
        ("scored bytes", _number(headline, "bytes", "score.json"), byte_total),
    ]
    problems = [
        f"{what}: {claimed:,} claimed, {counted:,} counted"
        for what, claimed, counted in claims
        if claimed is not None and claimed != counted
    ]
    unknown = [what for what, claimed, _ in claims if claimed is None]
    if "manifest bytes" in unknown and not problems:
        raise MissingEvidence("the manifest does not give the bytes of the validation documents")
    return COUNTS.judge(
        problems,
        f"{num_tokens - 1:,} targets, {byte_total:,} bytes, {num_documents:,} documents",
        num_tokens=num_tokens,
        num_documents=num_documents,
        byte_total=byte_total,
        claims={what: claimed for what, claimed, _ in claims},
    )


def identity(
    nll: np.ndarray,  # (N-1,) floats, nats, of the headline method
    byte_total: int,
    methods: Mapping[str, Mapping[str, Any]],  # score.json: bpb, loss_nats, tokens, bytes by method
    headline: str,
) -> Check:
    """Test 6: the headline follows from nll.npy; bpb / loss is tokens / (bytes ln 2) for every method."""
    constant = bpb_per_nat(len(nll), byte_total)
    loss = float(np.sum(nll, dtype=np.float64)) / len(nll)
    problems = []
    if not np.isfinite(loss) or nll.min() < -NEGATIVE_NLL_TOLERANCE:
        problems.append(
            f"nll.npy holds losses that are negative or not finite (least {nll.min():.4g}, mean {loss:.4g})"
        )
    for what, claimed, recomputed in (
        (f"{headline} loss_nats", float(_number(methods[headline], "loss_nats", "score.json")), loss),
        (f"{headline} bpb", float(_number(methods[headline], "bpb", "score.json")), loss * constant),
    ):
        if not abs(claimed - recomputed) <= IDENTITY_TOLERANCE * abs(recomputed):
            problems.append(f"{what} is {claimed:.8f} in score.json, {recomputed:.8f} from nll.npy")
    ratios = {}
    for name, entry in methods.items():
        loss_claimed = float(_number(entry, "loss_nats", "score.json"))
        ratios[name] = float(_number(entry, "bpb", "score.json")) / loss_claimed if loss_claimed else float("inf")
        if not abs(ratios[name] - constant) <= 2 * IDENTITY_TOLERANCE * constant:
            problems.append(f"{name}: bpb / loss is {ratios[name]:.8f}, tokens / (bytes ln 2) is {constant:.8f}")
    return IDENTITY.judge(
        problems,
        f"{headline} {loss * constant:.6f} bpb = {loss:.6f} nats x {constant:.6f}",
        bpb=_plain(loss * constant),
        loss_nats=_plain(loss),
        bpb_per_nat=constant,
        ratios={name: _plain(ratio) for name, ratio in ratios.items()},
    )


def _plain(value: float) -> float | str:
    """JSON has no NaN: such values become text."""
    return value if np.isfinite(value) else str(value)


def _number(values: Mapping[str, Any], key: str, where: str) -> int | float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where} has no number {key!r} (found {value!r})")
    return value


def _events(event_log: Mapping[str, Any]) -> list[tuple[str, int, int, int]]:
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
