"""The sections of the report: the products of a run as plain rows for the template.

If a product is missing, its section names the command that makes it. If a product belongs to an earlier artifact, the
page shows a warning. This file neither draws nor samples nor writes.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from bitgolf.report.charts import LineChart
from bitgolf.report.products import Products
from bitgolf.run.budget import Charge

_BUDGETS = (
    ("artifact_bytes", "Artifact", "bytes", "pack"),
    ("train_seconds", "Training", "s", "train"),
    ("eval_seconds", "Evaluation", "s", "score"),
)
_SYMBOLS = {"PASS": "\N{HEAVY CHECK MARK}", "FAIL": "\N{HEAVY BALLOT X}"}
_ROLES = {
    "attention.query": "attention, query",
    "attention.key": "attention, key",
    "attention.value": "attention, value",
    "attention.out": "attention, output",
    "mlp.up": "MLP, up",
    "mlp.down": "MLP, down",
    "embedding": "token embedding",
    "bigram.table": "bigram table",
    "bigram.project": "bigram projection",
    "value_embedding.table": "value embedding",
    "value_embedding.project": "value projection",
}
_PRODUCT_NAMES = {"pack": "The artifact is", "score": "The scores are", "audit": "The audit is"}
_SMALL_TENSOR = 8_192  # elements up to which tensors of other roles are shown together


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart. `percent` (0..100) is its length relative to the longest; `kind` selects the color."""

    label: str
    value: str
    percent: float
    kind: str
    note: str = ""


@dataclass(frozen=True)
class Segment:
    """A part of a budget bar, `percent` of its full width."""

    label: str
    value: str
    percent: float


@dataclass(frozen=True)
class Meter:
    """One budget with its charges. `cap_percent` is the position of the cap on the bar."""

    label: str
    used: str
    cap: str
    share: str
    over: bool
    cap_percent: float
    segments: tuple[Segment, ...]
    command: str


def verdict(products: Products) -> tuple[str, str, str, str]:
    """The audit in short: state ("pass", "fail" or "open"), symbol, word, and the number of checks."""
    audit = products.audit
    if audit is None:
        return "open", "\N{EN DASH}", "NOT RUN", ""
    if "audit" in products.outdated():
        return "open", "\N{EN DASH}", "OUTDATED", "the run changed after its audit"
    outcomes = [check["verdict"] for check in audit["checks"]]
    missing = outcomes.count("NOT RUN")
    if not audit["passed"]:
        failed = outcomes.count("FAIL")
        return "fail", _SYMBOLS["FAIL"], "FAIL", f"{failed} of {len(outcomes)} checks failed"
    if missing:
        return "open", "\N{EN DASH}", "INCOMPLETE", f"{missing} of {len(outcomes)} checks not run, none failed"
    return "pass", _SYMBOLS["PASS"], "PASS", f"all {len(outcomes)} checks"


def warnings(products: Products) -> list[str]:
    """Warnings about products that were made from an earlier version of another product."""
    return [
        f"{_PRODUCT_NAMES[stage]} of an earlier `{earlier}`; run `{products.command(stage)}` again."
        for stage, earlier in products.outdated().items()
    ]


def training_charts(products: Products) -> list[LineChart]:
    """Loss by time and by tokens, learning rate and throughput. Empty before training."""
    steps = [event for event in products.events if event["event"] == "step"]
    if not steps:
        return []
    seconds, tokens, loss = ([event[key] for event in steps] for key in ("elapsed_seconds", "tokens", "loss"))
    resumed = tuple((event["elapsed_seconds"], "resumed") for event in products.events if event["event"] == "resume")
    held_out = tuple(
        (event["elapsed_seconds"], event["loss"]) for event in products.events if event["event"] == "held_out"
    )
    config = products.config.train
    fell = f"from {loss[0]:.3f} to {loss[-1]:.3f} nats per token"
    rate = [event["lr_scale"] for event in steps]
    speed = [event["tokens_per_second"] for event in steps]
    steady = steps[1:] or steps  # the first line covers a single step
    speeds = [event["tokens_per_second"] for event in steady]
    return [
        LineChart(
            "loss-time",
            "Training loss, nats per token, against time" + (" (dots: on held-out training text)" if held_out else ""),
            f"Line chart: training loss goes {fell} in {seconds[-1]:.1f} seconds."
            + (f" The loss on held-out training text is {held_out[-1][1]:.3f} at the end." if held_out else ""),
            "seconds",
            seconds,
            loss,
            marks=resumed,
            dots=held_out,
        ),
        LineChart(
            "loss-tokens",
            "Training loss, nats per token, against tokens (logarithmic)",
            f"Line chart: training loss goes {fell} over {tokens[-1]:,} tokens.",
            "tokens",
            tokens,
            loss,
            log_x=True,
        ),
        LineChart(
            "rate",
            f"Learning rate, multiple of its peak (matrices {config.matrix_lr:g}, embedding "
            f"{config.embed_lr:g}, scalars {config.scalar_lr:g})",
            f"Line chart: the learning rate multiplier begins at {rate[0]:.2f}, is {max(rate):.2f} at most and "
            f"ends at {rate[-1]:.2f}.",
            "seconds",
            seconds,
            rate,
            from_zero=True,
            marks=resumed,
        ),
        LineChart(
            "speed",
            "Throughput, tokens per second",
            f"Line chart: between {min(speeds):,.0f} and {max(speeds):,.0f} tokens per second.",
            "seconds",
            seconds[len(speed) - len(speeds) :],
            speeds,
            from_zero=True,
            marks=resumed,
        ),
    ]


def bpb_bars(score: dict[str, Any]) -> list[Bar]:
    """Bits per byte of float weights, of the artifact, and of general-purpose compressors on the same text."""
    rows: list[tuple[str, float, str, str]] = []
    before: float | None = None
    for method, result in score.get("last", {}).items():
        rows.append((f"last weights, {method}", result["bpb"], "reference", "before averaging"))
    for method, result in score["float"].items():
        before = result["bpb"]
        rows.append((f"float weights, {method}", before, "reference", "not part of the evaluation"))
    for index, (method, result) in enumerate(score["methods"].items()):
        note = ""
        if before is not None:
            change = f"{result['bpb'] - before:+.4f}".replace("-", "\N{MINUS SIGN}")
            note = change + (" by packing" if index == 0 else " by adaptation" if "+" in method else " by more context")
        before = result["bpb"]
        rows.append((f"artifact, {method}", before, "headline" if method == score["headline"] else "model", note))
    headline = score["headline_bpb"]
    rows += [
        (name, value, "other", f"{value / headline:.2f} times the headline")
        for name, value in score["compressors"].items()
    ]
    most = max(value for _, value, _, _ in rows)
    return [Bar(label, f"{value:.4f}", 100 * value / most, kind, note) for label, value, kind, note in rows]


def byte_groups(pack: dict[str, Any]) -> list[Bar]:
    """Bytes of the artifact by role, of its other parts and of the code, largest first. Their sum is the total."""
    largest: dict[str, int] = {}  # elements of the largest tensor of each group
    for tensor in pack["tensors"].values():
        largest[tensor["group"]] = max(largest.get(tensor["group"], 0), math.prod(tensor["shape"]))
    sizes: dict[str, int] = {}
    for group, size in pack["group_bytes"].items():
        label = _ROLES.get(group, group if largest[group] > _SMALL_TENSOR else "gains and mixers")
        sizes[label] = sizes.get(label, 0) + size
    sizes |= {
        "tokenizer": pack["stream_bytes"].get("tokenizer", 0),
        "header": pack["header_bytes"],
        "code": pack["code_bytes"],
    }
    most, total = max(sizes.values()), pack["total_bytes"]
    return [
        Bar(name, f"{size:,}", 100 * size / most, "code" if name == "code" else "model", f"{size / total:.1%}")
        for name, size in sorted(sizes.items(), key=lambda item: -item[1])
    ]


def budget_meters(products: Products) -> list[Meter]:
    meters = []
    for kind, label, unit, stage in _BUDGETS:
        charges = [charge for charge in products.budget.charges if charge.kind == kind]
        used, cap = sum(charge.amount for charge in charges), products.budget.limits[kind]
        width = max(used, cap)
        segments = tuple(
            Segment(charge.what, _amount(charge.amount, unit), 100 * charge.amount / width) for charge in charges
        )
        meters.append(
            Meter(
                label,
                _amount(used, unit),
                _amount(cap, unit),
                f"{used / cap:.1%}",
                used > cap,
                100 * cap / width,
                segments,
                "" if charges else products.command(stage),
            )
        )
    return meters


def ledger_rows(charges: list[Charge]) -> list[tuple[str, str, str, str]]:
    """Budget, stage, what for, amount."""
    return [
        (
            charge.kind.replace("_", " ").removesuffix(" bytes").removesuffix(" seconds"),
            charge.stage,
            charge.what,
            _amount(charge.amount, "bytes" if charge.kind.endswith("bytes") else "s"),
        )
        for charge in charges
    ]


def audit_rows(audit: dict[str, Any], most: int) -> list[dict[str, str]]:
    """Rule, title, verdict with its symbol and class, reason, and evidence as text of at most `most` characters."""
    rows = []
    for check in audit["checks"]:
        outcome, evidence = check["verdict"], check.get("evidence") or ""
        if not isinstance(evidence, str):
            evidence = json.dumps(evidence, indent=1, ensure_ascii=False)
        if len(evidence) > most:
            evidence = evidence[:most] + "\n... (all of it is in audit.json)"
        rows.append(
            {
                "rule": check["rule"],
                "title": check["title"],
                "verdict": outcome,
                "symbol": _SYMBOLS.get(outcome, "\N{EN DASH}"),
                "state": {"PASS": "pass", "FAIL": "fail"}.get(outcome, "open"),
                "reason": check.get("reason", ""),
                "evidence": evidence,
            }
        )
    return rows


def facts(products: Products) -> list[tuple[str, list[tuple[str, str]]]]:
    """Training, hardware, model and data as titled lists of (name, value)."""
    start = products.last_launch()
    end, calibration = products.last_event("end"), products.last_event("calibration")
    pack, score, config = products.pack or {}, products.score or {}, products.config
    model, available = config.model, start.get("train_tokens_available")
    titled = {
        "Training": [
            ("optimizer steps", _format(end, "step", "{:,}")),
            ("tokens trained on", _format(end, "tokens", "{:,}")),
            ("passes over the text", f"{end['tokens'] / available:.2f}" if end and available else ""),
            ("tokens per second", _format(end, "tokens_per_second", "{:,.0f}")),
            ("calibration tokens", _format(calibration, "tokens", "{:,}")),
            ("peak GPU memory", _format(end, "peak_memory_mib", "{:,.0f} MiB") if end.get("peak_memory_mib") else ""),
            ("compile warm-up (untimed)", _format(start, "warm_up_seconds", "{:.1f} s")),
        ],
        "Hardware": [
            ("device", str(start.get("device", score.get("device", "")))),
            ("processes", _format(start, "world_size", "{}")),
            ("attention", _format(start, "attention", "{}")),
            ("torch", _format(start, "torch", "{}")),
            ("compiled", ("yes" if start["compiled"] else "no") if "compiled" in start else ""),
        ],
        "Model": [
            ("layers × width", f"{model.num_layers} × {model.model_dim}"),
            ("heads (queries, keys)", f"{model.num_heads}, {model.num_kv_heads}"),
            ("vocabulary", f"{model.vocab_size:,}"),
            ("parameters", _format(pack, "num_parameters", "{:,}")),
            ("bits per weight", _format(pack, "bits_per_weight", "{:.2f}")),
            ("quantizer", _format(pack, "method", "{}")),
            ("compressor", _format(pack, "compressor", "{}")),
            ("artifact sha256", _format(pack, "model_sha256", "{:.16}")),
        ],
        "Validation text": [
            ("source", config.data.source_text),
            ("validation documents", _format(score, "val_documents", "{:,}")),
            ("validation tokens", _format(score, "val_tokens", "{:,}")),
            ("validation bytes", _format(score, "val_bytes", "{:,}")),
            ("byte accounting", _format(score, "accounting", "{}")),
            ("context window", f"{config.window:,} tokens"),
            ("sliding stride", f"{config.score.stride:,} tokens" if "sliding" in config.score.methods else ""),
            ("evaluation", _format(score, "evaluation_seconds", "{:.1f} s")),
        ],
    }
    present = {title: [(name, value) for name, value in rows if value] for title, rows in titled.items()}
    return [(title, rows) for title, rows in present.items() if rows]


def _amount(amount: float, unit: str) -> str:
    return f"{amount:,.0f} bytes" if unit == "bytes" else f"{amount:,.1f} s"


def _format(values: dict[str, Any], key: str, pattern: str) -> str:
    return pattern.format(values[key]) if key in values else ""
