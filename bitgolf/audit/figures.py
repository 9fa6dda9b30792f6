"""Checks of the reported figures: counts (C4), the score's identity (test 6), and figures that stand in several files.

Every figure that follows from others is computed again, and every figure that stands in two files is compared.
Source: docs/rules.md, tests 6 and 9.

Legend: N tokens, N-1 targets.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bitgolf.audit.evidence import Evidence, number, run_checks
from bitgolf.audit.verdict import Finding, MissingEvidence, judge
from bitgolf.evaluate.bits import bpb_per_nat
from bitgolf.evaluate.tape import NEGATIVE_NLL_TOLERANCE
from bitgolf.run.budget import Charge

# Room for a report that rounds bits per byte to eight decimals.
IDENTITY_TOLERANCE = 1e-7
_SAME_SECONDS = 1e-6  # both were written from one variable
_LOG_DIGITS = 6  # significant digits of train.log
_LOG_LINE = re.compile(r"\[(\w+)\] (.*)")
_PAIR = re.compile(r"([^\s:]+):(\S*)")


@run_checks.register("counts", "C4", "scored targets are all N-1, scored bytes are all bytes of the documents")
def counts(evidence: Evidence) -> Finding:
    """C4: tokens, bytes and documents, counted again from the shards, against the manifest and score.json."""
    manifest, score = evidence.data.manifest, evidence.score
    num_tokens, byte_total = len(evidence.tokens), evidence.byte_total
    num_documents = int((evidence.tokens == evidence.data.tokenizer.bos_id).sum())
    split, headline = manifest["splits"]["val"], score["methods"][score["headline"]]
    split_bytes = split.get("raw_bytes" if manifest.get("accounting") == "original" else "counted_bytes")
    claims = [
        ("manifest tokens", split.get("tokens"), num_tokens),
        ("manifest documents", split.get("documents"), num_documents),
        ("manifest bytes", split_bytes, byte_total),
        ("score.json val_tokens", number(score, "val_tokens", "score.json"), num_tokens),
        ("score.json val_documents", score.get("val_documents"), num_documents),
        ("score.json val_bytes", number(score, "val_bytes", "score.json"), byte_total),
        ("scored tokens", number(headline, "tokens", "score.json"), num_tokens - 1),
        ("scored bytes", number(headline, "bytes", "score.json"), byte_total),
    ]
    problems = [
        f"{what}: {claimed:,} claimed, {counted:,} counted"
        for what, claimed, counted in claims
        if claimed is not None and claimed != counted
    ]
    if score.get("accounting", manifest.get("accounting")) != manifest.get("accounting"):
        problems.append(f"score.json has {score['accounting']!r} accounting, the data {manifest.get('accounting')!r}")
    if split_bytes is None and not problems:
        raise MissingEvidence("the manifest does not give the bytes of the validation documents")
    return judge(
        problems,
        f"{num_tokens - 1:,} targets, {byte_total:,} bytes, {num_documents:,} documents",
        num_tokens=num_tokens,
        num_documents=num_documents,
        byte_total=byte_total,
        claims={what: claimed for what, claimed, _ in claims},
    )


@run_checks.register("identity", "identity", "bits per byte follow from the losses and the byte total")
def identity(evidence: Evidence) -> Finding:
    """Test 6: the headline follows from nll.npy, and bpb / loss is tokens / (bytes ln 2) for every method."""
    nll, methods, headline = evidence.nll, evidence.score["methods"], evidence.score["headline"]
    constant = bpb_per_nat(len(nll), evidence.byte_total)
    loss = float(np.sum(nll, dtype=np.float64)) / len(nll)
    problems = []
    if not np.isfinite(loss) or nll.min() < -NEGATIVE_NLL_TOLERANCE:
        problems.append(
            f"nll.npy holds losses that are negative or not finite (least {nll.min():.4g}, mean {loss:.4g})"
        )
    for key, recomputed in (("loss_nats", loss), ("bpb", loss * constant)):
        claimed = float(number(methods[headline], key, "score.json"))
        if not abs(claimed - recomputed) <= IDENTITY_TOLERANCE * abs(recomputed):
            problems.append(f"{headline} {key} is {claimed:.8f} in score.json, {recomputed:.8f} from nll.npy")
    ratios = {}
    for name, entry in methods.items():
        loss_claimed = float(number(entry, "loss_nats", "score.json"))
        ratios[name] = float(number(entry, "bpb", "score.json")) / loss_claimed if loss_claimed else float("inf")
        if not abs(ratios[name] - constant) <= 2 * IDENTITY_TOLERANCE * constant:
            problems.append(f"{name}: bpb / loss is {ratios[name]:.8f}, tokens / (bytes ln 2) is {constant:.8f}")
        if not abs(entry.get("bpb_per_nat", constant) - constant) <= 2 * IDENTITY_TOLERANCE * constant:
            problems.append(f"{name}: bpb_per_nat is {entry['bpb_per_nat']}, tokens / (bytes ln 2) is {constant:.8f}")
    return judge(
        problems[:8],
        f"{headline} {loss * constant:.6f} bpb = {loss:.6f} nats x {constant:.6f}",
        bpb=_plain(loss * constant),
        loss_nats=_plain(loss),
        bpb_per_nat=constant,
        ratios={name: _plain(ratio) for name, ratio in ratios.items()},
    )


def _plain(value: float) -> float | str:
    """JSON has no NaN: such values become text."""
    return value if np.isfinite(value) else str(value)


@run_checks.register("numbers-agree", "numbers", "numbers that stand in several records are the same in all of them")
def numbers_agree(evidence: Evidence) -> Finding:
    """Sums, differences and copies of the records, computed again."""
    score, pack, charges, events = evidence.score, evidence.pack, list(evidence.budget.charges), evidence.events
    log_text = evidence.require("train.log").read_text(encoding="utf-8", errors="replace")
    problems = [*_packing(pack, score), *_scores(score, charges), *_training(events, charges), *_log(events, log_text)]
    return judge(
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
    streams, model = pack.get("stream_bytes"), pack.get("model_bytes")
    if isinstance(streams, Mapping) and "header_bytes" in pack:
        total = pack["header_bytes"] + sum(streams.values())
        if total != model:
            problems.append(f"pack.json's header and streams are {total:,} bytes, its model {model:,}")
    if isinstance(model, int) and pack.get("num_parameters") and "bits_per_weight" in pack:
        bits = 8 * model / pack["num_parameters"]
        if not abs(pack["bits_per_weight"] - bits) <= IDENTITY_TOLERANCE * bits:
            problems.append(f"bits_per_weight is {pack['bits_per_weight']}, its bytes and parameters give {bits:.6f}")
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
        if not abs(tax - score["quantization_tax"]) <= 1e-9:
            problems.append(f"quantization_tax is {score['quantization_tax']:.6f}, the scores differ by {tax:.6f}")
    charged = {charge.what: charge.amount for charge in charges if charge.stage == "score"}
    for name, method in score["methods"].items():
        seconds = method.get("seconds")
        if name in charged and seconds is not None and not abs(charged[name] - seconds) <= _SAME_SECONDS:
            problems.append(f"{name} took {seconds:.3f} s in score.json, {charged[name]:.3f} s are charged for it")
    return problems


def _training(events: Sequence[Mapping[str, Any]], charges: list[Charge]) -> list[str]:
    ends = [event for event in events if event.get("event") == "end"]
    charged = sum(charge.amount for charge in charges if charge.kind == "train_seconds")
    if ends and not abs(charged - ends[-1]["elapsed_seconds"]) <= _SAME_SECONDS:
        return [f"training ended at {ends[-1]['elapsed_seconds']:.3f} s in train.jsonl, {charged:.3f} s are charged"]
    return []


def _log(events: Sequence[Mapping[str, Any]], text: str) -> list[str]:
    """train.log, line by line against train.jsonl."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) != len(events):
        return [f"train.log has {len(lines)} lines, train.jsonl {len(events)} events"]
    problems = []
    for index, (line, event) in enumerate(zip(lines, events, strict=True), 1):
        match = _LOG_LINE.match(line)
        if not match or match[1] != event.get("event"):
            problems.append(f"line {index} of train.log is not the event `{event.get('event')}`")
            continue
        printed = dict(_PAIR.findall(match[2]))
        for key, value in event.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and key in printed:
                shown = f"{value:.{_LOG_DIGITS}g}" if isinstance(value, float) else str(value)
                if printed[key] != shown:
                    problems.append(f"line {index} of train.log has {key}:{printed[key]}, train.jsonl {shown}")
    return problems
