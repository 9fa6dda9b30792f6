"""One command from text to a scored, audited artifact: every product is there, and they agree with each other."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_run import (
    MAX_STEPS,
    cli,
    documents,
    done,
    events,
    file_digest,
    read_json,
    settings,
    weights_digest,
    write_jsonl,
)

from bitgolf.data.prepare import open_data

PRODUCTS = [
    "config.toml", "data/manifest.json", "data/tokenizer.model", "train.jsonl", "train.log", "weights.safetensors",
    "calibration/hessians.safetensors", "model.bitgolf", "pack.json", "score.json", "nll.npy", "tape.json",
    "audit.json", "budget.json", "report.html",
]  # fmt: skip


def test_every_product_is_made_and_no_temporary_file_is_left(tiny_run: Path) -> None:
    assert all((tiny_run / name).stat().st_size > 0 for name in PRODUCTS)
    assert [p for p in tiny_run.rglob("*") if p.name.endswith((".tmp", ".partial"))] == []


def test_the_model_learns_more_than_token_frequencies(tiny_run: Path) -> None:
    data = open_data(tiny_run / "data")
    train = data.train.read(0, data.train.num_tokens)
    val = data.val.read(0, data.val.num_tokens)
    counts = np.bincount(train, minlength=data.tokenizer.vocab_size) + 1.0
    unigram_bits = -np.log2(counts[val[1:]] / counts.sum()).sum() / data.tokenizer.byte_costs(val).sum()
    score = read_json(tiny_run / "score.json")
    assert score["headline_bpb"] < 0.5 * unigram_bits < 4.0
    assert score["methods"]["sliding"]["bpb"] < score["methods"]["chunked"]["bpb"]


def test_bits_per_byte_follow_from_the_losses_and_the_held_out_documents(tiny_run: Path) -> None:
    data = open_data(tiny_run / "data")
    val = data.val.read(0, data.val.num_tokens)
    parts = np.split(val, np.flatnonzero(val == data.tokenizer.bos_id))[1:]
    texts = [data.tokenizer.decode(part[1:]) for part in parts]
    assert set(texts) < set(documents())
    raw_bytes = sum(len(text.encode()) for text in texts)
    losses = np.load(tiny_run / "nll.npy").astype(np.float64)
    score = read_json(tiny_run / "score.json")
    assert len(losses) == len(val) - 1 == score["methods"]["sliding"]["tokens"]
    assert (score["val_bytes"], score["val_documents"]) == (raw_bytes, len(texts))
    assert score["headline_bpb"] == pytest.approx(losses.sum() / math.log(2) / raw_bytes, rel=1e-9)


def test_the_audit_makes_every_check_and_none_fails(tiny_run: Path) -> None:
    audit = read_json(tiny_run / "audit.json")
    assert audit["complete"]
    assert audit["passed"]
    assert {check["verdict"] for check in audit["checks"]} == {"PASS"}


def test_the_ledger_charges_what_the_stages_report(tiny_run: Path) -> None:
    charges = read_json(tiny_run / "budget.json")["charges"]
    kinds = ("artifact_bytes", "train_seconds")
    spent = {kind: sum(c["amount"] for c in charges if c["kind"] == kind) for kind in kinds}
    assert spent["artifact_bytes"] == read_json(tiny_run / "pack.json")["total_bytes"]
    end = events(tiny_run, "end")[0]
    assert spent["train_seconds"] == pytest.approx(end["elapsed_seconds"])
    assert end["steps_seconds"] < end["elapsed_seconds"] < 120
    assert end["step"] == MAX_STEPS


def test_the_report_is_one_page_that_loads_nothing(tiny_run: Path) -> None:
    page = (tiny_run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<(iframe|object|embed)\b", page)
    sources = re.findall(r"""\b(?:src|href|srcset)\s*=\s*["']([^"']*)""", page)
    assert [source for source in sources if not source.startswith(("#", "data:"))] == []
    assert not re.search(r"""@import|url\(\s*["']?(?!data:|#)""", page)
    assert f"{read_json(tiny_run / 'score.json')['headline_bpb']:.4f}" in page


def test_the_configuration_on_disk_reproduces_the_run_bit_for_bit(tiny_run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    done("run", tiny_run / "config.toml", "--out", again)
    for name in ("config.toml", "data/manifest.json", "data/tokenizer.model", "model.bitgolf", "nll.npy", "tape.json"):
        assert file_digest(again / name) == file_digest(tiny_run / name), name
    assert weights_digest(again) == weights_digest(tiny_run)


def test_stages_run_alone_replace_their_products_by_equal_ones(run_copy: Path) -> None:
    before = {name: file_digest(run_copy / name) for name in ("model.bitgolf", "nll.npy", "tape.json")}
    headline = read_json(run_copy / "score.json")["headline_bpb"]
    for name in before:
        (run_copy / name).unlink()
    done("pack", run_copy)
    done("score", run_copy)
    assert {name: file_digest(run_copy / name) for name in before} == before
    assert read_json(run_copy / "score.json")["headline_bpb"] == headline
    charges = read_json(run_copy / "budget.json")["charges"]
    assert sum(c["what"] == "model" for c in charges) == 1
    assert done("audit", run_copy, "--quick", "--json").json["passed"]


COMMANDS: dict[str, tuple[Callable[[Path], tuple[object, ...]], set[str]]] = {
    "run": (lambda run: ("run", run / "config.toml", "--out", run, "--resume"), {"run", "pack", "score", "report"}),
    "train": (lambda run: ("train", run, "--overwrite"), {"event", "step", "tokens", "elapsed_seconds"}),
    "pack": (lambda run: ("pack", run), {"model_bytes", "total_bytes", "tensors"}),
    "score": (lambda run: ("score", run), {"headline_bpb", "methods", "val_bytes"}),
    "audit": (lambda run: ("audit", run, "--quick"), {"passed", "complete", "checks"}),
    "report": (lambda run: ("report", run), {"report"}),
    "sample": (
        lambda run: ("sample", run / "model.bitgolf", "--prompt", "The ", "--max-tokens", 8, "--seed", 1),
        {"prompt", "continuation"},
    ),
    "presets show": (lambda run: ("presets", "show", "demo"), {"name", "model", "train", "budget"}),
    "doctor": (lambda run: ("doctor",), set()),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_json_output_is_one_document_and_nothing_else(run_copy: Path, name: str) -> None:
    words, keys = COMMANDS[name]
    result = done(*map(str, words(run_copy)), "--json").json
    assert keys <= set(result)


def test_json_of_prepare_is_the_manifest(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "few.jsonl", documents()[:200])
    arguments = ("--model.vocab_size", "320", "--data.val_fraction", "0.1")
    printed = done("prepare", f"jsonl:{source}", "--out", tmp_path / "data", "--json", *arguments).json
    assert printed == read_json(tmp_path / "data" / "manifest.json")


def test_the_tables_for_people_name_what_was_measured(tiny_run: Path, corpus: Path) -> None:
    outcome = cli("run", *settings(corpus), "--out", tiny_run, "--resume")
    score = read_json(tiny_run / "score.json")
    assert outcome.status == 0
    for method in score["methods"].values():
        assert f"{method['bpb']:.4f}" in outcome.stdout
    for words in ("zstd-22", "xz-9", "float weights", "PASS", "report.html"):
        assert words in outcome.stdout
