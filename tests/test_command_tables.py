"""The tables of the command line show every number that they are given, in its unit, with numbers aligned right."""

from typing import Any

import pytest
from rich.table import Table

from bitgolf.commands import tables


def cells(table: Table) -> list[list[str]]:
    """The rows as plain text."""
    return [list(row) for row in zip(*([cell.plain for cell in column.cells] for column in table.columns), strict=True)]  # type: ignore[union-attr]


def aligned_right(table: Table) -> int:
    """How many of the last columns are aligned right; no other is, and those alone are never wrapped."""
    right = [column.justify == "right" for column in table.columns]
    assert right == sorted(right) and right == [column.no_wrap for column in table.columns]
    return sum(right)


def test_scores_of_all_weights_stand_beside_the_compressors() -> None:
    score: dict[str, Any] = {
        "last": {"chunked": {"bpb": 1.30}}, "float": {"chunked": {"bpb": 1.25}},
        "methods": {"sliding": {"bpb": 1.26004, "seconds": 3.24}}, "compressors": {"xz -9": 2.1},
        "val_bytes": 12_345, "val_documents": 1_000, "accounting": "raw",
    }  # fmt: skip
    table = tables.score_table("mine", score, {"num_parameters": 1_000, "total_bytes": 98_765})
    assert cells(table) == [
        ["last weights, chunked", "1.3000", "4,000", ""],
        ["float weights, chunked", "1.2500", "4,000", ""],
        ["packed, sliding", "1.2600", "98,765", "3.2"],
        ["xz -9", "2.1000", "", ""],
    ]
    assert aligned_right(table) == 3 and "12,345 bytes" in str(table.title) and "1,000 documents" in str(table.title)


def test_a_text_is_scored_beside_the_compressors() -> None:
    values = {"score": {"bpb": 1.5}, "compressors": {"zstd -19": 2.5}, "text": "x", "bytes": 7_000, "accounting": "raw"}
    table = tables.text_score_table(values)
    assert cells(table) == [["model, sliding", "1.5000"], ["zstd -19", "2.5000"]] and aligned_right(table) == 1
    assert "7,000 bytes" in str(table.title)


@pytest.mark.parametrize(
    ("passed", "complete", "title"), [(True, True, "PASS"), (True, False, "INCOMPLETE"), (False, True, "FAIL")]
)
def test_only_a_complete_audit_says_pass(passed: bool, complete: bool, title: str) -> None:
    checks = [
        {"rule": "C1", "title": "causal", "verdict": verdict, "reason": "why"}
        for verdict in ("PASS", "FAIL", "NOT RUN")
    ]
    table = tables.audit_table({"passed": passed, "complete": complete, "checks": checks})
    assert [row[2] for row in cells(table)] == ["PASS", "FAIL", "NOT RUN"] and aligned_right(table) == 0
    assert [str(cell.style) for cell in table.columns[2].cells] == ["green", "bold red", "yellow"]  # type: ignore[union-attr]
    assert str(table.title).removeprefix("audit: ").split(",")[0] == title


def test_presets_are_listed_with_their_sizes_and_budgets() -> None:
    preset = {
        "name": "demo", "parameters": 1_000_000, "vocab_size": 1_024, "artifact_bytes": 2_000, "train_seconds": 600.0,
        "eval_seconds": 0.5,
    }  # fmt: skip
    table = tables.presets_table([preset])
    assert cells(table) == [["demo", "1,000,000", "1,024", "2,000", "600", "0.5"]] and aligned_right(table) == 5


def test_data_has_the_raw_bytes_per_token_and_the_counted_ones_where_the_text_is_unknown() -> None:
    splits = {
        "train": {"documents": 1_000, "tokens": 2_000, "raw_bytes": 5_000, "counted_bytes": 4_000},
        "val": {"documents": 1, "tokens": 1, "raw_bytes": None, "counted_bytes": 10},
        "none": {"documents": 0, "tokens": 0, "raw_bytes": 0, "counted_bytes": 0},
    }
    table = tables.data_table("data", {"splits": splits})
    assert cells(table) == [
        ["train", "1,000", "2,000", "5,000", "2.500"],
        ["val", "1", "1", "10", "10.000"],
        ["none", "0", "0", "0", "0.000"],
    ]
    assert aligned_right(table) == 4


def test_speed_has_every_part_of_a_step() -> None:
    bench: dict[str, Any] = {
        "preset": "demo", "gpu": "H100", "tokens_per_second": 1_234.5, "ms_per_step": 10.04,
        "ms_per_part": {"forward": 4.0}, "idle_ms": 6.04, "mfu": 0.125, "peak_flops": 989.4e12,
        "peak_memory_mib": 2_048.4, "evaluation_tokens_per_second": 9_000, "packing_seconds": 12.34, "load": 1.25,
    }  # fmt: skip
    table = tables.bench_table(bench)
    assert [row[1] for row in cells(table)] == [
        "1,234", "10.0", "4.0", "6.0", "12.5% of 989 TFLOP/s", "2,048", "9,000", "12.3", "1.2",
    ]  # fmt: skip
    assert aligned_right(table) == 1
    unknown = [row[1] for row in cells(tables.bench_table(bench | {"mfu": None, "packing_seconds": None}))]
    assert unknown[4] == "unknown device" and unknown[7] == ""


def test_a_plan_stands_beside_what_there_is() -> None:
    plan: dict[str, Any] = {
        "preset": "demo", "device": "cpu", "free_memory_bytes": 8e9, "measured": True, "evaluation_seconds": 1_234.4,
        "parameters": 1_000, "code_bytes": 2_000, "total_bytes": 3_000, "cap_bytes": 4_000, "step_seconds": 0.12345,
        "training_memory_bytes": 2.5e9, "evaluation_memory_bytes": 1.5e9, "num_steps": 5_000, "train_seconds": 6_000,
        "eval_seconds_limit": 7_000,
    }  # fmt: skip
    table = tables.plan_table(plan)
    assert [row[1:] for row in cells(table)] == [
        ["1,000", ""], ["2,000", ""], ["about 3,000", "4,000"], ["2.5 GB", "8.0 GB free"], ["1.5 GB", "8.0 GB free"],
        ["0.123", ""], ["5,000", "in 6,000 s"], ["about 1,234", "7,000"],
    ]  # fmt: skip
    assert aligned_right(table) == 2 and "(measured)" in cells(table)[5][0]
    other = cells(tables.plan_table(plan | {"measured": False, "evaluation_seconds": None, "step_seconds": 100}))
    assert "(estimated)" in other[5][0] and other[5][1] == "100" and other[7][1].startswith("unknown")
    assert cells(tables.plan_table(plan | {"step_seconds": 99.96}))[5][1] == "100"
    assert cells(tables.plan_table(plan | {"step_seconds": 12_345.6}))[5][1] == "12,346"
