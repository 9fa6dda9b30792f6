"""A comparison as rows of text, for the terminal and the page.

All numbers come from `compare`. Differences are candidate - baseline, so negative is better.
"""

import json
from dataclasses import dataclass

from bitgolf.report.comparison.contrasts import Comparison, Contrast
from bitgolf.report.comparison.t_tests import AUDIT_P, BAR_P, TTest

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Row:
    """One row of a contrast: the question, the numbers, and the outcome ("pass", "fail" or "open")."""

    question: str
    answer: str
    state: str = ""
    detail: str = ""


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign, with a minus sign in place of the hyphen."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def p_value(p: float) -> str:
    """A p-value as text: "p = 0.0131", "p = 0.240", "p < 0.0001"."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}" if p < 0.1 else f"p = {p:.3f}"


def contrast_rows(contrast: Contrast) -> list[Row]:
    """The rows of a contrast: the difference, the documents, and the tests over seeds."""
    difference = f"{signed(contrast.difference_bpb)} bits per byte"
    word = "better" if contrast.difference_bpb < 0 else "worse" if contrast.difference_bpb > 0 else "equal"
    rows = [
        Row(
            "Difference",
            f"{difference} ({signed(contrast.difference_nats)} nats per token)",
            detail=f"{contrast.candidate} is {word}" if word != "equal" else "the scores are equal",
        ),
        _documents_row(contrast),
    ]
    if isinstance(contrast.welch, str) and contrast.welch == contrast.paired:
        return [*rows, Row("Over seeds", "not tested", "open", contrast.welch)]
    return [*rows, *_test_rows(contrast, contrast.welch, "Welch"), *_test_rows(contrast, contrast.paired, "paired")]


def set_rows(comparison: Comparison) -> list[tuple[str, str, str, str, str]]:
    """Name, seeds, number of seeds, mean and standard deviation of every set and of published numbers."""
    samples = [(group.sample, ", ".join(str(run.seed) for run in group.runs)) for group in comparison.sets]
    rows = [(sample, seeds) for sample, seeds in samples if not isinstance(sample, str)]
    if comparison.published is not None:
        rows.append((comparison.published, "as published"))
    return [
        (sample.name, seeds, str(sample.count), f"{sample.mean:.5f}", f"{sample.std:.5f}") for sample, seeds in rows
    ]


def run_rows(comparison: Comparison) -> list[tuple[str, str, str, str, str, str, str]]:
    """Label, set, seed, method, bits per byte, nats per token and hardware of every run."""
    return [
        (
            run.label,
            group.name,
            str(run.seed),
            run.method,
            f"{run.bpb:.5f}",
            f"{run.loss_nats:.5f}",
            run.hardware,
        )
        for group in comparison.sets
        for run in group.runs
    ]


def difference_rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Key and the value of each set, as in a configuration file."""
    return [
        (key, [value if isinstance(value, str) else json.dumps(value) for value in values])
        for key, values in comparison.differences.items()
    ]


def _documents_row(contrast: Contrast) -> Row:
    documents = contrast.documents
    if isinstance(documents, str):
        return Row("Over documents", "not compared", "open", documents)
    interval = documents.interval
    state = "open" if not interval.excludes_zero else "pass" if interval.high < 0 else "fail"
    return Row(
        "Over documents, 95 % interval",
        f"{signed(interval.low)} to {signed(interval.high)} bits per byte",
        state,
        f"{interval.documents:,} documents, {interval.resamples:,} resamples; better in "
        f"{documents.share_of_documents_better:.1%} of the documents ({documents.share_of_bytes_better:.1%} of the "
        "bytes)",
    )


def _test_rows(contrast: Contrast, test: TTest | str, name: str) -> list[Row]:
    if isinstance(test, str):
        return [Row(f"Over seeds, {name}", "not tested", "open", test)]
    numbers = f"standard error {test.standard_error:.5f}, df {test.df:.1f}"
    return [
        Row(
            f"Better at all, {name}",
            _verdict(test.p_any, AUDIT_P),
            "pass" if test.p_any < AUDIT_P else "fail",
            f"one-sided; t = {_plain(test.t_any)}, {numbers}; late audits used p < {AUDIT_P:g}",
        ),
        Row(
            f"Better by {contrast.margin_nats:g} nats ({contrast.margin_bpb:.4f} bpb), {name}",
            _verdict(test.p, BAR_P),
            "pass" if test.clears_bar else "fail",
            f"one-sided; t = {_plain(test.t)}; the bar of the challenge is p < {BAR_P:g}",
        ),
    ]


def _verdict(p: float, bar: float) -> str:
    return f"{p_value(p)}, {'' if p < bar else 'not '}below {bar:g}"


def _plain(value: float) -> str:
    return f"{value:.2f}".replace("-", MINUS)
