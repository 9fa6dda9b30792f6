"""Every violation of the challenge's table that software can see, planted, and the audit naming it.

`ROWS` are the rows of that table (section 6 of its rules; pull requests and issues in brackets). Each case plants one
in a copy of a clean run or in a made-up submission folder and says which check must fail and what it must say; the
last test counts rows and cases. A clean run passes every check.
"""

import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cheating_headline
import numpy as np
import pytest
import torch
from local_process import LocalProcess
from safetensors.torch import load_file, save_file
from sandbox_support import needs_isolation
from synthetic_submission import CODE, CONSTANT, Folder, Plant, add, claimed, for_seed, instead, judged, logged, script
from tiny_run import change_artifact, read_json, shard
from toy_models import ChunkBias, SecretBonus, TargetPeek, Wrapped

from bitgolf.audit.headline import Headline
from bitgolf.audit.run import audit_run
from bitgolf.audit.sandbox.client import SealedProcess
from bitgolf.audit.verdict import Check
from bitgolf.data.shards import write_shard
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.evaluate.document_scorer import DocumentScorer
from bitgolf.evaluate.score import score
from bitgolf.referee.run import audit_submission
from bitgolf.run import atomic
from bitgolf.run.directory import RunDirectory
from bitgolf.run.ranks import World
from bitgolf.run.seal import file_digest
from bitgolf.train.metrics import TrainLog

ROWS = {
    "trained on validation before scoring": "PR 1376, 672, 1416, 1485, 348",
    "scored again after learning, best of passes": "PR 576, 991",
    "the last epoch's score": "PR 568, 762",
    "two-pass n-gram rescoring": "PR 846, 853, 868, 870, 959",
    "hashed n-gram cache": "PR 674, 727, 779, 886",
    "expert gated by the target": "PR 1420, 1967, 2018, 2041",
    "SLOT": "PR 1229, 1278, 1313, 1321",
    "byte mixtures": "PR 1991, 2039, 2083",
    "calibrated on validation": "PR 728, 1919",
    "calibrated after the clock": "PR 535, 569, 593, 639, 693",
    "training over the budget": "PR 1908, 1945",
    "evaluation over the budget": "PR 1129, 1972, 585",
    "hints outside the timer": "PR 1967",
    "training and validation overlap": "issue 2127",
    "partial validation": "PR 1923, 2109",
    "byte denominator": "PR 1545, 1576, 1632; issue 897; PR 1143",
    "cross-document leak": "PR 1667, 1797",
    "warm-up on validation": "PR 1530",
    "checkpoint chosen by validation": "PR 576, 585",
    "tail scored repeatedly": "PR 549",
    "over the cap": "PR 1412, 1855, 505",
    "mixed or copied logs": "PR 2101, 2124",
    "settings ignored": "PR 1945, 2041",
    "README contradicts": "PR 576, 348, 2135",
    "best seed as headline": "early records",
    "training on validation": "PR 44",
    "text opened in mid-scoring": "B7, section 7",
}
InRun = Callable[[Path, pytest.MonkeyPatch], object]


# --- planted in runs -------------------------------------------------------------------------------------------------


def edit(path: Path, change: Callable[[Any], object]) -> None:
    value = read_json(path)
    change(value)
    atomic.write_json(path, value)


def record(name: str, change: Callable[[Any], object]) -> InRun:
    """A change of a JSON file."""
    return lambda root, _: edit(root / name, change)


def tape(change: Callable[[list[dict[str, Any]], int], object]) -> InRun:
    """A change of the events on the tape, which get the number of targets too."""
    return record("tape.json", lambda tape: change(tape["events"], tape["num_targets"]))


def scored(start: int, stop: int, state: int = 0) -> dict[str, Any]:
    return {"event": "score", "targets": [start, stop], "state": state}


def learned(stop: int) -> dict[str, Any]:
    return {"event": "update", "tokens": [0, stop], "state": 1}


def update_before_the_first_score(events: list[dict[str, Any]], targets: int) -> None:
    events.insert(0, learned(targets + 1))
    events[1]["state"] = 1


def epochs_over_a_chunk(events: list[dict[str, Any]], targets: int) -> None:
    events[:] = [scored(0, 500), learned(501), scored(0, targets, 1)]


def wrapped(cheat: type[Wrapped]) -> InRun:
    """The run's evaluation inside a cheat."""

    def plant(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        honest = Headline.build
        monkeypatch.setattr(Headline, "build", lambda self, tokens: (cheat(honest(self, tokens)[0]), None))

    return plant


class RealizedTokenAlone(Wrapped):
    """A cache that gives the realized token half of the rest, and takes it from no other."""

    def distributions(self, read: Any, start: int, stop: int) -> np.ndarray:
        log_p = super().distributions(read, start, stop)
        place = np.arange(len(log_p)), read(start + 1, stop + 1).astype(int)
        log_p[place] = np.log(0.5 * np.exp(log_p[place]) + 0.5)
        return log_p


def log(change: Callable[[list[dict[str, Any]]], object]) -> InRun:
    """A change of train.jsonl, and of train.log with it: only the content gives it away."""

    def plant(root: Path, _: Any) -> None:
        events = [json.loads(line) for line in (root / "train.jsonl").read_text().splitlines()]
        change(events)
        log = TrainLog(root, True)
        log.begin()
        for event in events:
            log.write(**event)

    return plant


def calibration(events: list[dict[str, Any]]) -> dict[str, Any]:
    return next(event for event in events if event["event"] == "calibration")


def statistics_made_again(root: Path, _: Any) -> None:
    path = root / "calibration" / "hessians.safetensors"
    save_file(load_file(path), path, {"tokens": "14762"})


def charge(kind: str, stage: str, what: str, amount: float) -> InRun:
    return lambda root, _: RunDirectory.open(root).budget().charge(kind, stage, what, amount)


def replace_shard(root: Path, split: str, tokens: np.ndarray) -> None:
    """Put other tokens into the only shard of a split, and the manifest in order for it."""
    path = root / "data" / f"{split}_000000.bin"
    write_shard(path, tokens)

    def change(manifest: dict[str, Any]) -> None:
        manifest["splits"][split]["tokens"] = len(tokens)
        manifest["splits"][split]["shards"][0] |= {"tokens": len(tokens), "sha256": file_digest(path)}

    edit(root / "data" / "manifest.json", change)


def validation_document_among_the_training_shards(root: Path, _: Any) -> None:
    val = shard(root, "val")
    second = np.flatnonzero(val == val[0])[1]
    replace_shard(root, "train", np.concatenate([shard(root, "train"), val[:second]]))


def part_of_the_validation_text(root: Path, _: Any) -> None:
    nll = np.load(root / "nll.npy")[:10_000]
    np.save(root / "nll.npy", nll)
    edit(root / "tape.json", lambda tape: tape["events"][-1].update(targets=[0, 10_000]))


def leading_spaces_counted_twice(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Tokenizer.byte_costs

    def twice(self: Tokenizer, tokens: np.ndarray) -> np.ndarray:
        spaces = np.array([text.startswith(b" ") for text in self._text])
        return honest(self, tokens) + spaces[tokens[1:]]

    monkeypatch.setattr(Tokenizer, "byte_costs", twice)


def adapters_that_start_from_the_document_before(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = {"ttt.lora.chunk_tokens": 32, "ttt.lora.rank": 2, "ttt.lora.documents": 16}
    new = RunDirectory.open(root).config.updated({"ttt.method": "lora"} | lora)
    (root / "config.toml").write_text(new.to_toml())
    score(RunDirectory.open(root), World(0, 1, torch.device("cpu")))
    score_text, begin = DocumentScorer._score, DocumentScorer._begin
    text: list[np.ndarray] = []

    def remembering(self: DocumentScorer, tokens: np.ndarray, offset: int, *rest: Any, **options: Any) -> Any:
        text[:] = [np.concatenate([np.zeros(offset, tokens.dtype), tokens])]
        return score_text(self, tokens, offset, *rest, **options)

    def smeared(self: DocumentScorer, adapters: Any, row: Any) -> None:
        begin(self, adapters, row)
        for a in adapters.a:
            a[row.place] *= 1 + float(text[0][max(0, row.line[0].start - 1)]) / 100

    monkeypatch.setattr(DocumentScorer, "_score", remembering)
    monkeypatch.setattr(DocumentScorer, "_begin", smeared)


def more_bytes_than_there_are(score: dict[str, Any]) -> None:
    for method in score["methods"].values():
        method["bpb"] *= method["bytes"] / (method["bytes"] * 1.04)
        method["bytes"] = round(method["bytes"] * 1.04)


def in_text(name: str, pattern: str, text: str) -> InRun:
    """The first match of a pattern in a text file, replaced."""
    return lambda root, _: (root / name).write_text(re.sub(pattern, text, (root / name).read_text(), count=1))


def cut(name: str, start: int = 0, stop: int | None = None) -> InRun:
    return lambda root, _: (root / name).write_bytes((root / name).read_bytes()[start:stop])


def grown(root: Path, _: Any) -> None:
    with (root / "model.bitgolf").open("ab") as file:
        file.write(bytes(1_000_000))


def scorer_that_opens_the_corpus(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cheating = functools.partial(SealedProcess, evaluation=cheating_headline.build)
    monkeypatch.setattr("bitgolf.audit.sealed_run.SealedProcess", cheating)


CASES: list[tuple[str, str, str, InRun]] = [  # the row, the check that must fail, words of its reason, the plant
    ("trained on validation before scoring", "score-first", "learned from tokens 1..",
     tape(update_before_the_first_score)),
    ("scored again after learning, best of passes", "scored-once", "are scored a second time",
     tape(lambda events, targets: events.extend([learned(targets + 1), scored(0, targets, 1)]))),
    ("scored again after learning, best of passes", "headline-pass", "which the configuration does not name",
     record("score.json", lambda score: score["methods"].update({"sliding, T = 0.98": score["methods"]["sliding"]}))),
    ("the last epoch's score", "scored-once", "targets 0..499 are scored a second time", tape(epochs_over_a_chunk)),
    ("hashed n-gram cache", "normalization", "sum to", wrapped(RealizedTokenAlone)),
    ("expert gated by the target", "target-flip", "moved the prediction of target", wrapped(TargetPeek)),
    ("SLOT", "future-flip", "moved the prediction of target", wrapped(ChunkBias)),
    ("byte mixtures", "losses-match", "its distribution says", wrapped(SecretBonus)),
    ("calibrated on validation", "train-log", "calibration` at step 40 reports val_tokens",
     log(lambda events: calibration(events).update(val_tokens=8192))),
    ("calibrated on validation", "train-log", "they were made again", statistics_made_again),
    ("calibrated after the clock", "train-clock", "goes on after `end`, with `calibration`",
     log(lambda events: events.append(calibration(events) | {"elapsed_seconds": 123.4}))),
    ("training over the budget", "train-clock", "over the budget of 120 s",
     charge("train_seconds", "train", "forced steps", 121.2)),
    ("evaluation over the budget", "eval-clock", "over the budget of 120 s",
     charge("eval_seconds", "score", "sliding", 125.0)),
    ("hints outside the timer", "eval-clock", "booked as untimed",
     charge("untimed_seconds", "score", "n-gram hints", 33.0)),
    ("hints outside the timer", "eval-clock", "something ran outside the clock",
     record("score.json", lambda score: score.update(evaluation_seconds=score["evaluation_seconds"] + 33.0))),
    ("training and validation overlap", "disjoint-splits", "1 documents of the training shards are validation",
     validation_document_among_the_training_shards),
    ("training and validation overlap", "disjoint-splits", "is not the file of hashes that the manifest names",
     cut("data/train_documents.bin", 8)),
    ("partial validation", "scored-once", "validation tokens have 14,762", part_of_the_validation_text),
    ("partial validation", "counts", "manifest documents: 61 claimed",
     lambda root, _: replace_shard(root, "val", shard(root, "val")[:9_000])),
    ("byte denominator", "byte-accounting", "its text has", leading_spaces_counted_twice),
    ("byte denominator", "counts", "scored bytes", record("score.json", more_bytes_than_there_are)),
    ("cross-document leak", "document-isolation", "rewriting the document before token",
     adapters_that_start_from_the_document_before),
    ("warm-up on validation", "score-first", "were scored with state 1 when 0 updates had been made",
     tape(lambda events, targets: events[0].update(state=1))),
    ("checkpoint chosen by validation", "train-log", "reports losses.val_bpb: validation data",
     log(lambda events: events.insert(-2, {"event": "choice", "step": 40, "losses": {"val_bpb": 0.33}}))),
    ("tail scored repeatedly", "scored-once", "are scored a second time",
     tape(lambda events, targets: events.append(scored(targets - 32, targets)))),
    ("over the cap", "artifact-bytes", "over the cap of 1,000,000", grown),
    ("over the cap", "artifact-sealed", "changed after scoring", lambda root, _: change_artifact(root)),
    ("mixed or copied logs", "one-configuration", "was trained, the artifact is of",
     log(lambda events: events[0].update(config_sha256="0" * 64))),
    ("mixed or copied logs", "numbers-agree", "train.log has loss:0.5", in_text("train.log", r"loss:\S+", "loss:0.5")),
    ("settings ignored", "one-configuration", "model.logit_softcap is",
     in_text("config.toml", r"logit_softcap = \S+", "logit_softcap = 12.5")),
    ("README contradicts", "numbers-agree", "quantization_tax is",
     record("score.json", lambda score: score.update(quantization_tax=0.001))),
    ("training on validation", "disjoint-splits", "documents of the training shards are validation documents",
     lambda root, _: replace_shard(root, "train", shard(root, "val"))),
    ("text opened in mid-scoring", "sealed-evaluation", "tried to open", scorer_that_opens_the_corpus),
]  # fmt: skip


@pytest.fixture
def clean_copy(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the clean run; its audit's sealed process is a thread, unless a plant says otherwise."""
    monkeypatch.setattr("bitgolf.audit.sealed_run.SealedProcess", LocalProcess)
    return Path(shutil.copytree(tiny_run, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint", "*.html")))


@pytest.mark.parametrize(
    ("row", "check", "words", "plant"),
    [pytest.param(*case, marks=[needs_isolation] if "mid-scoring" in case[0] else []) for case in CASES],
)
def test_violations_planted_in_a_run_are_named(
    clean_copy: Path, monkeypatch: pytest.MonkeyPatch, row: str, check: str, words: str, plant: InRun
) -> None:
    plant(clean_copy, monkeypatch)
    only = [check, "reproduction"] if check == "sealed-evaluation" else [check]
    named(audit_run(RunDirectory.open(clean_copy), quick=True, only=only, entropy=1)[check], words)


def test_the_same_checks_pass_on_the_clean_run(clean_copy: Path) -> None:
    verdict = audit_run(RunDirectory.open(clean_copy), quick=True)
    assert [made for made in verdict.checks if made.verdict != "PASS"] == []
    assert {check for _, check, *_ in CASES} - {made.name for made in verdict.checks} == {"document-isolation"}


# --- planted in submissions ------------------------------------------------------------------------------------------


def second_pass(folder: Folder) -> None:
    add(folder, "def eval_val_second_pass(h, model, val_data):\n    return min(first, eval_val(h, val_data))")
    folder.code += "\neval_val_second_pass(h, model, val_data)\n"


def prequant_ttt(folder: Folder) -> None:
    loop = "    for epoch in range(10):\n        model(val_tokens).backward()\n        optimizer.step()"
    add(folder, f"def adapt_to_val(model, val_tokens):\n{loop}")
    instead("    serialize(h,", "    adapt_to_val(model, val_data.val_tokens)\n    serialize(h,")(folder)


def score_of_the_last_epoch(folder: Folder) -> None:
    for seed in folder.seeds:
        epochs = [seed.bpb + 0.2, seed.bpb + 0.05, seed.bpb]
        seed.in_evaluation = [
            f"ttt epoch {n} val_loss:{bpb / CONSTANT:.8f} val_bpb:{bpb:.8f}" for n, bpb in enumerate(epochs, 1)
        ]


def more_targets_than_tokens(folder: Folder) -> None:
    folder.seeds[0].target_tokens = folder.seeds[0].val_tokens + 1_984


def bytes_counted_twice(folder: Folder) -> None:
    for seed in folder.seeds:
        seed.constant, seed.bpb = CONSTANT / 1.0413, round(seed.bpb / 1.0413, 8)


def code_counted_in_another_form(folder: Folder) -> None:
    folder.code += "# " + "a comment that ships\n# " * 5_000
    folder.counted_code = 1_200


def helper_that_is_not_counted(folder: Folder) -> None:
    instead("import math", "import lossless_caps")(folder)
    folder.extra["lossless_caps.py"] = "TITLE = '\\ue001'\n"


PREPARATION = """import argparse
parser = argparse.ArgumentParser()
parser.add_argument('--val-docs', type=int, default=10000)
"""
KEEP = """def keep(model, val_bpb, best_bpb, best):
    if val_bpb < best_bpb:
        best.update(copy.deepcopy(model.state_dict()))"""
NGRAM = """def ngram_probability(table, context_hash, tgt):
    key = (context_hash ^ (tgt * 36313)) & 0x3FFFFF
    return table[key] / table.total"""
LOSSES = [9.0087, 12.8281, 10.2124, 8.6857, 7.9438]
FOLDERS: list[tuple[str, str, str, Plant]] = [  # the row, the check that must fail, words of its reason, the plant
    ("trained on validation before scoring", "validation-unseen",
     "adapt_to_val trains on validation tokens before", prequant_ttt),
    ("trained on validation before scoring", "validation-unseen", "'prequant_ttt: epoch 3/10 loss:2.1'",
     logged(1, "prequant_ttt: epoch 3/10 loss:2.1", "before_seal")),
    ("scored again after learning, best of passes", "single-pass",
     "eval_val_second_pass: targets scored a second", second_pass),
    ("the last epoch's score", "single-pass", "scored in 3 epochs", score_of_the_last_epoch),
    ("two-pass n-gram rescoring", "single-pass", "'ngram two-pass rescore: chunks 1..60 done'",
     logged(0, "ngram two-pass rescore: chunks 1..60 done")),
    ("hashed n-gram cache", "distribution", "ngram_probability hashes its target into the key", script(NGRAM)),
    ("expert gated by the target", "causal", "looks its target up in starts_word_lut",
     script("def tilt_logits(logits, tgt, starts_word_lut):\n    return logits * (1 + starts_word_lut[tgt])")),
    ("expert gated by the target", "causal", "within_gate=9871234",
     logged(2, "ngram_tilt:hints total=47851520 token_gate=628130 within_gate=9871234 word_gate=0")),
    ("expert gated by the target", "causal", "chooses its chunks by the length of the document",
     script("def ttt_chunks(doc_len):\n    if doc_len <= 256:\n        chunk_size = 8\n    return chunk_size")),
    ("SLOT", "causal", "slot_score optimizes on the positions that it scores",
     script("def slot_score(model, x, y, delta):\n    loss(model(x) + delta, y).backward()\n    opt.step()")),
    ("byte mixtures", "distribution", "ppm_mix mixes in a byte model",
     script("def ppm_mix(p, piece_bytes):\n    return 0.9 * p + 0.1 * product(order4[b] for b in piece_bytes)")),
    ("calibrated on validation", "validation-unseen", "collect_hessians gathers its statistics on validation",
     instead("collect_hessians(model, train_loader, 16)", "collect_hessians(model, val_data, 16)")),
    ("calibrated after the clock", "train-clock", "until 602.2 s", for_seed(2, stop_ms=597_511, hessian_seconds=4.7)),
    ("training over the budget", "train-clock", "training stopped at 601.20 s", for_seed(0, stop_ms=601_201)),
    ("evaluation over the budget", "eval-clock", "evaluation took 688.2 s", for_seed(1, eval_ms=688_210)),
    ("hints outside the timer", "eval-clock", "comes before the evaluation timer starts",
     logged(0, "ngram_tilt:hints built total=47851520 in 126.4s", "before_timer")),
    ("training and validation overlap", "split", "--val-docs is 10000 by default",
     lambda folder: folder.extra.update({"prepare_caseops_data.py": PREPARATION})),
    ("partial validation", "tokens-scored", "9,660,000 validation tokens, 20.2% of the full split",
     for_seed(1, val_tokens=9_660_000)),
    ("partial validation", "tokens-scored", "10,000 validation documents", for_seed(0, documents=10_000)),
    ("tail scored repeatedly", "tokens-scored", "some twice", more_targets_than_tokens),
    ("tail scored repeatedly", "single-pass", "the last targets are scored by several of them",
     instead("if ws + h.seq_len <= total]", "if min(ws + h.seq_len, total) - ws >= 1]")),
    ("byte denominator", "identity", "the bytes are +4.13% off", bytes_counted_twice),
    ("byte denominator", "json-schema", "val_loss 1.0616513 is bits per byte, not nats",
     lambda folder: folder.claims.update(val_loss=folder.metadata()["val_bpb"])),
    ("warm-up on validation", "causal", "ttt_warmup takes optimizer steps on validation tokens",
     script("def ttt_warmup(model, val_tokens):\n    model(val_tokens[:64]).backward()\n    opt.step()")),
    ("checkpoint chosen by validation", "validation-unseen", "weights are kept by best_bpb and val_bpb", script(KEEP)),
    ("over the cap", "artifact-bytes", "16,110,000 bytes in train_seed0.log, 110,000 over the cap",
     lambda folder: setattr(folder.seeds[1], "model_bytes", 16_110_000 - folder.code_bytes)),
    ("over the cap", "artifact-bytes", "as they ship are", code_counted_in_another_form),
    ("over the cap", "artifact-bytes", "lossless_caps.py is imported by train_gpt.py and not counted",
     helper_that_is_not_counted),
    ("mixed or copied logs", "logs-distinct", "have the same run id 'record_s42'", for_seed(1, run_id="record_s42")),
    ("mixed or copied logs", "logs-distinct", "have the same losses at steps 1, 2, 3, 4, 5",
     lambda folder: [setattr(folder.seeds[n], "losses", LOSSES) for n in (0, 2)]),
    ("mixed or copied logs", "identity", "bpb / loss is 0.456525 in train_seed1234.log, 0.456961 in train_seed42.log",
     for_seed(2, constant=0.456525)),
    ("mixed or copied logs", "one-configuration", "warmdown_frac differs",
     lambda folder: folder.seeds[2].settings.update(warmdown_frac=0.75)),
    ("settings ignored", "settings-read", "TTT_MASK=no_qv is never read by train_gpt.py",
     lambda folder: folder.command.update(TTT_MASK="no_qv")),
    ("README contradicts", "claims-agree", "README sets WARMDOWN_FRAC=0.50",
     lambda folder: folder.command.update(WARMDOWN_FRAC="0.50")),
    ("README contradicts", "claims-agree", "README claims LeakyReLU",
     instead("leaky_relu(self.up(x), negative_slope=0.5)", "relu(self.up(x))")),
    ("README contradicts", "numbers-agree", "README: Post-TTT val_bpb of seed 0 is 1.05995",
     lambda folder: folder.readme_rows.update({0: {"bpb": "**1.05995**"}})),
    ("README contradicts", "numbers-agree", "README's headline is 1.05900, val_bpb of submission.json",
     lambda folder: setattr(folder, "readme_headline", "1.05900")),
    ("README contradicts", "numbers-agree", "val_bpb_std is 0.0001 in submission.json", claimed(val_bpb_std=0.0001)),
    ("README contradicts", "logged-source", "was written by another script",
     for_seed(0, log_source=CODE.replace("0.75", "0.85"))),
    ("best seed as headline", "seeds", "is the best seed (42) of 3",
     lambda folder: folder.claims.update(val_bpb=folder.seeds[0].bpb)),
    ("best seed as headline", "seeds", "3 seeds are the rule", lambda folder: folder.seeds.__delitem__(slice(1, None))),
    ("training on validation", "validation-unseen", "training reads",
     lambda folder: folder.seeds[0].settings.update(train_files="./data/fineweb_val_*.bin")),
    ("training on validation", "validation-unseen", "training reads 'fineweb_val_*.bin'",
     instead('"fineweb_train_*.bin")', '"fineweb_val_*.bin")')),
    ("text opened in mid-scoring", "self-contained", "train_gpt.py imports requests",
     instead("import math", "import requests")),
]  # fmt: skip


@pytest.mark.parametrize(("row", "check", "words", "plant"), FOLDERS)
def test_violations_planted_in_a_submission_are_named(
    tmp_path: Path, row: str, check: str, words: str, plant: Plant
) -> None:
    named(judged(check, tmp_path, plant), words)


def test_an_honest_submission_fails_nothing(tmp_path: Path) -> None:
    verdict = audit_submission(Folder().write(tmp_path / "2026-04-27_Stack"))
    assert [made for made in verdict.checks if made.verdict == "FAIL"] == []
    open_questions = {made.name for made in verdict.checks if made.verdict == "NOT RUN"}
    assert open_questions == {"logged-source", "split", "validation-unseen", "causal", "distribution", "single-pass"}


def named(check: Check, words: str) -> None:
    """The check failed and says why; its evidence is plain JSON."""
    assert check.verdict == "FAIL", check
    assert words in check.reason
    json.dumps(check.evidence, allow_nan=False)


def test_enough_rows_of_the_table_are_planted() -> None:
    in_runs, in_folders = {row for row, *_ in CASES}, {row for row, *_ in FOLDERS}
    assert in_runs | in_folders == set(ROWS)
    assert len(in_runs) >= 18 and len(CASES) >= 25
    assert len(CASES) + len(FOLDERS) >= 70
