"""`bitgolf bench` measures every part of a step; MFU is what its formula says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import PRESET, done, refused

from bitgolf.config import load_config
from bitgolf.model.flops import flops_per_token, mfu, peak_flops
from bitgolf.plan.bench import PARTS


def test_every_part_is_measured_and_the_summary_has_a_table(tmp_path: Path, one_thread: None) -> None:
    summary, trace, run = tmp_path / "speed" / "summary.json", tmp_path / "trace.json", tmp_path / "run"
    summary.parent.mkdir()
    summary.write_text(json.dumps({"other": {"tokens_per_second": 1, "ms_per_step": 2, "mfu": 0.5,
                                             "peak_memory_mib": 3, "gpu": "H200", "commit": "abc"}}))  # fmt: skip
    run.mkdir()
    (run / "pack.json").write_text('{"seconds": 12.5}')
    words = ["bench", str(PRESET), "--steps", "5", "--json", "--train.micro_batch_tokens", "512"]
    out = done(*words, "--run", str(run), "--profile", str(trace), "--summary", str(summary))
    figures = json.loads(out.stdout)
    assert set(figures["ms_per_part"]) == set(PARTS)
    assert all(figures["ms_per_part"][part] > 0 for part in ("loader", "forward", "backward", "optimizer", "averaging"))
    assert figures["tokens_per_second"] == pytest.approx(1e3 * figures["batch_tokens"] / figures["ms_per_step"])
    assert figures["packing_seconds"] == 12.5 and figures["evaluation_tokens_per_second"] > 0
    assert json.loads(trace.read_text())["traceEvents"]
    entries = json.loads(summary.read_text())
    assert set(entries) == {"other", "tiny"} and set(entries["tiny"]) == set(entries["other"])
    table = (summary.parent / "README.md").read_text()
    assert "| `other` | 1 | 2.0 | 50.0% | 3 | H200 | abc |" in table and "| `tiny` |" in table


def test_mfu_is_operations_over_the_peak_of_all_gpus() -> None:
    config = load_config(str(PRESET), {}).model
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    expected = 1e6 * flops_per_token(config, 64) / (2 * 989.4e12)
    assert mfu(config, 64, 1e6, "NVIDIA H200", 2) == pytest.approx(expected)
    assert mfu(config, 64, 1e6, "Abacus") is None
    cut = config.updated({"attention.within_documents": True, "attention.document_tokens": 32, "smear.gate": "none"})
    assert flops_per_token(cut, 64) == flops_per_token(config, 32) < flops_per_token(config, 64)
    loops = config.updated({"loop.repeats": 1, "loop.first": 1, "loop.last": 1})
    assert flops_per_token(loops, 64, False) == flops_per_token(config, 64) < flops_per_token(loops, 64)


@pytest.mark.parametrize("content", ["", "[" * 9999, "[]", "{}", '{"seconds": null}', '{"seconds": "1"}', None])
def test_a_run_without_a_packing_time_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "pack.json").write_text(content)
    assert "has no packing time" in refused("bench", PRESET, "--run", tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"demo": 1}', '{"demo": {"mfu": "x"}}'])
def test_a_summary_of_something_else_is_refused_before_the_work(tmp_path: Path, content: str) -> None:
    summary, readme = tmp_path / "summary.json", tmp_path / "README.md"
    summary.write_text(content)
    assert "is no summary of `bitgolf bench`" in refused("bench", PRESET, "--summary", summary)
    readme.write_text("# My project")
    assert "would replace" in refused("bench", PRESET, "--summary", tmp_path / "new.json")
    assert readme.read_text() == "# My project"
    assert "is a directory" in refused("bench", PRESET, "--profile", tmp_path)


def test_too_few_steps_are_refused() -> None:
    assert "at least 5" in refused("bench", str(PRESET), "--steps", "1")
