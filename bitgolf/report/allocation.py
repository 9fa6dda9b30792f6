"""Packing to the byte in the report: the rate-distortion curve of the run, and the share of every role.

The values come from the allocation that method `rate` records in `pack.json`, and from `score.json`.
"""

import math
from dataclasses import dataclass
from typing import Any

from bitgolf.grids.roles import role
from bitgolf.report.charts import LineChart

_OCTAVES = 3.0  # of theta drawn to either side of the run's own
_POINTS = 61


@dataclass(frozen=True)
class Share:
    """The tensors of one role."""

    role: str  # see `bitgolf.grids.roles`
    weights: int  # number of weights
    bits: float  # coded bits per weight, with side information
    entropy_bits: float  # order-0 entropy of their codes, bits per weight
    percent: float  # share of the predicted loss increase


@dataclass(frozen=True)
class Outcome:
    """Predicted and measured cost of rounding, in nats per token. `measured` is None before scoring."""

    predicted: float
    measured: float | None
    passes: int


def outcome(pack: dict[str, Any], score: dict[str, Any] | None) -> Outcome | None:
    """The predicted cost of rounding and, if float weights were scored too, the measured one."""
    allocation = pack.get("allocation")
    if not allocation:
        return None
    measured = None
    if score:
        for method, reference in score["float"].items():
            if method in score["methods"]:
                measured = score["methods"][method]["loss_nats"] - reference["loss_nats"]
    return Outcome(allocation["predicted_nats"], measured, len(allocation["passes"]))


def shares(pack: dict[str, Any]) -> list[Share]:
    """Every role of the allocation, the one with most weights first."""
    allocation = pack.get("allocation")
    if not allocation:
        return []
    groups: dict[str, list[str]] = {}
    for name in allocation["tensors"]:
        groups.setdefault(role(name), []).append(name)
    rows = []
    for what, names in groups.items():
        tensors = [pack["tensors"][name] for name in names]
        weights = sum(math.prod(tensor["shape"]) for tensor in tensors)
        entropy = sum(tensor["code_bits"] * math.prod(tensor["shape"]) for tensor in tensors)
        predicted = sum(allocation["tensors"][name]["predicted_nats"] for name in names)
        total = allocation["predicted_nats"]
        rows.append(
            Share(
                what,
                weights,
                8 * sum(tensor["bytes"] for tensor in tensors) / weights,
                entropy / weights,
                100 * predicted / total if total else 0.0,
            )
        )
    return sorted(rows, key=lambda row: -row.weights)


def rate_distortion(pack: dict[str, Any]) -> LineChart | None:
    """Predicted loss increase by the size of the whole submission, around the size of this run.

    The solver's high-rate law gives it: a doubling of theta doubles the loss increase and saves half a bit per weight.
    The vertical line is the cap.
    """
    allocation = pack.get("allocation")
    if not allocation or allocation["predicted_nats"] <= 0:
        return None
    weights = sum(math.prod(pack["tensors"][name]["shape"]) for name in allocation["tensors"])
    steps = [_OCTAVES * (2 * i / (_POINTS - 1) - 1) for i in range(_POINTS)]
    sizes = [pack["total_bytes"] - step * weights / 16 for step in steps]
    rises = [allocation["predicted_nats"] * 2**step for step in steps]
    points = [(size, rise) for size, rise in zip(sizes, rises, strict=True) if size > pack["code_bytes"]][::-1]
    return LineChart(
        key="rate-distortion",
        title="Loss increase by size (nats per token, predicted)",
        summary=(
            f"{pack['total_bytes']:,} bytes are predicted to cost {allocation['predicted_nats']:.4g} nats per token; "
            f"{weights // 8:,} bytes more would quarter it, and the same number fewer would quadruple it"
        ),
        x_label="bytes of model and code",
        x=[size for size, _ in points],
        y=[rise for _, rise in points],
        from_zero=True,
        marks=((float(pack["cap_bytes"]), "cap"),),
    )
