"""Checks of what a run says of itself, of its documents, its borders and of other batches: cheats and slow ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gpt import ALONE, BOS, VOCAB, config, text, tiny_gpt
from tiny_gpt import adapted as adapted_pass
from toy_models import CausalModel

from bitgolf.audit import borders, records, rerun
from bitgolf.audit import validation_documents as documents
from bitgolf.audit.verdict import MissingEvidence
from bitgolf.config import Config
from bitgolf.data.shards import TokenShards, write_shard
from bitgolf.data.split import hash_document
from bitgolf.evaluate import make_scorer
from bitgolf.evaluate.document_scorer import DocumentScorer
from bitgolf.run.budget import Charge
from bitgolf.run.directory import RunDirectory
from bitgolf.train.metrics import TrainLog

TOKENS = text(110, seed=3)


# --- one pass, one configuration, numbers that agree -----------------------------------------------------------------


def scores(**more: Any) -> dict[str, Any]:
    methods = {"chunked": {"bpb": 1.2, "seconds": 2.0}, "sliding": {"bpb": 1.1, "seconds": 5.0}}
    return {"methods": methods, "headline": "sliding", "headline_bpb": 1.1, "window": 1024, "stride": 64} | more


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({"headline": "chunked"}, "the headline is 'chunked', the configuration's is 'sliding'"),
        ({"methods": {"sliding": {"bpb": 1.1}}}, "the configured passes chunked are not in score.json"),
        ({"stride": 32}, "stride is 32 in score.json, 64 in config.toml"),
        ({"window": 2048}, "window is 2048"),
    ],
)
def test_the_headline_is_the_configured_pass(change: dict[str, Any], problem: str) -> None:
    found = records.headline_pass(scores(**change), Config())
    assert (found.verdict, problem in found.reason) == ("FAIL" if problem else "PASS", True)


def test_an_adapted_headline_is_the_configured_one() -> None:
    adapted = Config().model_copy(update={"ttt": Config().ttt.model_validate({"method": "full"})})
    assert records.headline_pass(scores(), adapted).verdict == "FAIL"
    methods = scores()["methods"] | {"sliding+ttt": {"bpb": 1.0}}
    assert records.headline_pass(scores(methods=methods, headline="sliding+ttt"), adapted).verdict == "PASS"
    assert records.headline_pass(scores(methods=methods, headline="sliding+ttt"), Config()).verdict == "FAIL"


def facts(**more: Any) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    digest, now = Config().digest(), Config()
    events = [{"event": "start", "config_sha256": digest, "seed": now.seed, "vocab_size": now.model.vocab_size}]
    meta = {"config_sha256": digest, "preset": now.name, "window": now.window} | more
    return events, meta, now.model.model_dump(mode="json")


def test_one_configuration() -> None:
    assert records.one_configuration(Config(), *facts()).verdict == "PASS"
    other = Config().model_copy(update={"seed": 5})
    assert "seed is 1337 in training log or artifact, 5 in" in records.one_configuration(other, *facts()).reason
    assert "was trained, the artifact is of" in records.one_configuration(Config(), *facts(config_sha256="ab")).reason
    evaluation = Config().model_copy(update={"ttt": Config().ttt.model_validate({"method": "full"})})
    found = records.one_configuration(evaluation, *facts())
    assert found.verdict == "PASS" and "has been given other settings since" in found.reason
    events, meta, model = facts()
    assert "model.model_dim is 7" in records.one_configuration(Config(), events, meta, model | {"model_dim": 7}).reason
    resumed = [*events, {"event": "resume", "config_sha256": "cd"}]
    assert records.one_configuration(Config(), resumed, meta, model).verdict == "FAIL", "the last start counts"
    with pytest.raises(MissingEvidence):
        records.one_configuration(Config(), [{"event": "end"}], meta, model)


def train_events() -> list[dict[str, Any]]:
    batch = Config().train.batch_tokens
    return [
        {"event": "start", "step": 0, "elapsed_seconds": 0.0, "train_tokens_available": 9_000},
        {"event": "step", "step": 10, "loss": 3.25, "tokens": 10 * batch, "elapsed_seconds": 1.5},
        {"event": "choice", "step": 20, "losses": {"ema": 3.1, "swa": 3.2}, "elapsed_seconds": 2.5},
        {"event": "calibration", "step": 20, "tokens": 512, "elapsed_seconds": 3.0},
        {"event": "end", "step": 20, "tokens": 20 * batch, "elapsed_seconds": 3.0},
    ]


@pytest.mark.parametrize(
    ("index", "change", "problem"),
    [
        (0, {}, ""),
        (0, {"train_tokens_available": 8_000}, "training had 8,000 tokens to draw from, the shards hold 9,000"),
        (1, {"tokens": 3}, "3 tokens at step 10"),
        (1, {"val_loss": 3.0}, "`step` at step 10 reports val_loss"),
        (2, {"losses": {"ema": 3.1, "validation": 3.0}}, "reports losses.validation"),
        (3, {"tokens": 400}, "are of 512 tokens, training gathered them from 400"),
    ],
)
def test_the_training_log_adds_up(index: int, change: dict[str, Any], problem: str) -> None:
    events = train_events()
    events[index] |= change
    found = records.train_log(events, Config(), 9_000, 512)
    assert (found.verdict, problem in found.reason) == ("FAIL" if problem else "PASS", True)


def test_a_training_log_without_an_end_proves_nothing() -> None:
    with pytest.raises(MissingEvidence, match="no `end`"):
        records.train_log(train_events()[:-1], Config(), 9_000, 512)


def test_numbers_agree(tmp_path: Path) -> None:
    log = TrainLog(tmp_path, True)
    log.begin(None)
    for event in train_events():
        log.write(**event)
    printed = (tmp_path / "train.log").read_text()
    charges = [Charge("train_seconds", "train", "steps", 2.5), Charge("train_seconds", "train", "calibration", 0.5)]
    charges += [Charge("eval_seconds", "score", "chunked", 2.0), Charge("eval_seconds", "score", "sliding", 5.0)]
    pack = {"model_bytes": 100, "header_bytes": 20, "stream_bytes": {"codes": 50, "tokenizer": 30}}
    score = scores(float={"chunked": {"bpb": 1.15}}, quantization_tax=1.2 - 1.15, model_sha256="ab")

    def reason(**changed: Any) -> str:
        given = {"score": score, "pack": pack, "charges": charges, "events": train_events(), "log_text": printed}
        found = records.numbers_agree(**(given | changed))
        return "" if found.verdict == "PASS" else found.reason

    assert reason() == ""
    assert "header and streams are 100 bytes, its model 101" in reason(pack=pack | {"model_bytes": 101})
    assert "name different artifacts" in reason(pack=pack | {"model_sha256": "cd"})
    assert "headline_bpb is 1.0" in reason(score=score | {"headline_bpb": 1.0})
    assert "quantization_tax is 0.04" in reason(score=score | {"quantization_tax": 0.04})
    assert "4.000 s are charged for it" in reason(
        charges=[*charges[:3], Charge("eval_seconds", "score", "sliding", 4.0)]
    )
    assert "training ended at 3.000 s in train.jsonl, 2.500 s are charged" in reason(charges=charges[:1])
    assert "train.log has 5 lines, train.jsonl 4 events" in reason(events=train_events()[:-1])
    assert "loss:9.9, train.jsonl 3.25" in reason(log_text=printed.replace("loss:3.25", "loss:9.9"))
    assert "is not the event `start`" in reason(log_text=printed.replace("[start]", "[step]"))


# --- documents -------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 4), max_size=40))
def test_documents_are_what_stands_between_bos(ids: list[int]) -> None:
    expected: list[list[int]] = []
    for position, token in enumerate(ids):
        if token == 1:
            expected.append([])
        elif position == 0:
            expected.append([token])
        else:
            expected[-1].append(token)
    found = documents.documents(np.array(ids, dtype=np.uint16), 1)
    assert [part.tolist() for part in found] == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 5000), st.integers(0, 100_000_000))
def test_samples_of_documents_are_spread_and_bounded(count: int, tokens: int) -> None:
    chosen = documents.sample(count, tokens)
    assert list(chosen) == sorted(set(chosen)) and all(0 <= index < count for index in chosen)
    assert len(chosen) == count if tokens <= 2_000_000 else len(chosen) * tokens <= 2_000_000 * count + tokens


class Letters:
    """A tokenizer of one letter a token; id 1 is BOS."""

    bos_id, lossless = 1, True

    def decode(self, ids: np.ndarray) -> str:
        return "".join(chr(96 + int(i)) for i in ids if i != 1)

    def byte_costs(self, tokens: np.ndarray) -> np.ndarray:
        return (tokens[1:] != 1).astype(np.int32)

    def encode_proven(self, texts: list[str]) -> None:
        assert "" in texts and len(texts) > 5


LETTERS = np.array([1, 2, 3, 1, 4, 5, 6, 1, 2, 2], dtype=np.uint16)
HASHES = np.array([hash_document(t.encode()) for t in ("bc", "def", "bb")], dtype=np.uint64)


def order(tokens: np.ndarray = LETTERS, hashes: np.ndarray = HASHES, files: tuple[str, ...] = ("a", "b")) -> Any:
    return documents.one_order(tokens, Letters(), hashes, "utf-8 text", list(files))


def test_one_order() -> None:
    assert order().verdict == "PASS"
    assert "not in the order of their names" in order(files=("b", "a")).reason
    assert "it is document 0 of the hashes" in order(hashes=HASHES[[1, 0, 2]]).reason
    assert "no hash is of its text" in order(tokens=np.where(LETTERS == 5, 7, LETTERS)).reason
    assert "2 documents are on the tape, 3 were hashed" in order(tokens=LETTERS[:7]).reason
    by_tokens = np.array([hash_document(part.tobytes()) for part in documents.documents(LETTERS, 1)], dtype=np.uint64)
    assert documents.one_order(LETTERS, Letters(), by_tokens, "uint16 tokens", ["a"]).verdict == "PASS"


def test_an_order_that_cannot_be_hashed_again_says_so() -> None:
    lossy = Letters()
    lossy.lossless = False
    found = documents.one_order(LETTERS, lossy, HASHES[[1, 0, 2]], "utf-8 text", ["a"])
    assert found.verdict == "PASS" and "cannot be had back" in found.reason and found.evidence["checked"] == 0


def test_byte_accounting() -> None:
    assert documents.byte_accounting(LETTERS, Letters()).verdict == "PASS"
    dear = Letters()
    dear.byte_costs = lambda tokens: 2 * (tokens[1:] != 1).astype(np.int32)  # type: ignore[method-assign]
    assert "document 0 is charged 4 bytes, its text has 2" in documents.byte_accounting(LETTERS, dear).reason


def test_overlap_is_looked_for_in_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    train = np.concatenate([np.append(1, rng.integers(2, 50, size=rng.integers(1, 40))) for _ in range(200)])
    val = np.concatenate([np.append(1, rng.integers(50, 60, size=20)) for _ in range(5)])
    write_shard(tmp_path / "train.bin", np.concatenate([train, val[21:42], val[:21]]))
    stream = TokenShards([tmp_path / "train.bin"])
    assert documents.shard_overlap(stream, val.astype(np.uint16), 1) == (202, 2)
    monkeypatch.setattr(documents, "_OVERLAP_TOKENS", 3_000)
    monkeypatch.setattr(documents, "_OVERLAP_BLOCK", 1_000)
    looked_at, found = documents.shard_overlap(stream, val.astype(np.uint16), 1)
    assert 0 < looked_at < 202 and found == 1, "blocks hold whole documents only; the last one is cut off at the end"


# --- borders ---------------------------------------------------------------------------------------------------------


def adapted(model: Any = tiny_gpt, **ttt: Any) -> Any:
    def evaluation(tokens: np.ndarray) -> Any:
        gpt = model()
        found = adapted_pass(config(**ttt), gpt, len(tokens) - 1)
        return found.scorer, found.adapter

    return evaluation


ALPHABET = {"vocab_size": VOCAB, "bos_id": BOS}
BY_DOCUMENTS = {"method": "lora", "lora_documents": 3}


@pytest.mark.parametrize("ttt", [{}, {"method": "full", "lr": 0.05}, BY_DOCUMENTS])
def test_honest_evaluations_do_not_know_where_documents_end(ttt: dict[str, Any]) -> None:
    found = borders.length_blind(
        adapted(**ttt), TOKENS, **ALPHABET, num_moves=2, seed=0, chunk_targets=0 if "lora_documents" in ttt else 40,
        exact_shapes=True,
    )  # fmt: skip
    assert found.verdict == "PASS" and len(found.evidence["moves"]) == 4, found


class ShortDocumentsDifferently(DocumentScorer):
    """PR 2014: what is learned depends on how long the document will be."""

    def _score_batch(self, batch: Any, slots: list[int], a: Any, with_log_p: bool) -> Any:
        for slot, tokens in enumerate(batch.tokens):
            for tensor in a:
                tensor[slot] *= 0.2 if len(tokens) < 20 else 1
        return super()._score_batch(batch, slots, a, with_log_p)


class Leaks(DocumentScorer):
    """PR 1667: the last token of the document before reaches over the border."""

    def _score_batch(self, batch: Any, slots: list[int], a: Any, with_log_p: bool) -> Any:
        for slot in range(1, len(batch.tokens)):
            a[0][slot] = self.first_a[0] * (1 + float(batch.tokens[slot - 1][-2]) / 50)
        return super()._score_batch(batch, slots, a, with_log_p)


def cheating_documents(cheat: type[DocumentScorer]) -> Any:
    def evaluation(tokens: np.ndarray) -> Any:
        ttt = config(method="lora", lora_documents=8, lora_lr=0.1).ttt.lora
        return cheat(tiny_gpt(), ttt, window=16, bos_id=BOS, seed=0, world=ALONE), None

    return evaluation


def test_a_schedule_by_the_length_of_documents_is_caught() -> None:
    options = {**ALPHABET, "num_moves": 4, "seed": 0, "chunk_targets": 0}
    found = borders.length_blind(cheating_documents(ShortDocumentsDifferently), TOKENS, **options, exact_shapes=True)
    assert found.verdict == "FAIL" and "moving the document border at token" in found.reason
    scattering = borders.length_blind(
        cheating_documents(ShortDocumentsDifferently), TOKENS, **options, exact_shapes=False
    )
    assert scattering.verdict == "NOT RUN", "a device whose other shapes scatter proves neither"


def test_isolation_of_documents() -> None:
    options = {**ALPHABET, "seed": 0}
    assert borders.document_isolation(cheating_documents(DocumentScorer), TOKENS, **options).verdict == "PASS"
    found = borders.document_isolation(cheating_documents(Leaks), TOKENS, **options)
    assert found.verdict == "FAIL" and "moved predictions of the next" in found.reason
    flat = borders.document_isolation(adapted(), TOKENS, **options)
    assert flat.verdict == "FAIL", "a flat stream is not isolated, and does not claim to be"


def test_texts_without_borders_prove_nothing() -> None:
    one = np.where(TOKENS == BOS, 5, TOKENS).astype(TOKENS.dtype)
    one[0] = BOS
    with pytest.raises(MissingEvidence, match="no document border"):
        borders.document_isolation(adapted(), one, **ALPHABET, seed=0)
    with pytest.raises(MissingEvidence, match="too few"):
        borders.length_blind(adapted(), one[:2], **ALPHABET, num_moves=1, seed=0, chunk_targets=0, exact_shapes=True)


# --- other batches and ranks -----------------------------------------------------------------------------------------


def shapes_of(model: Any) -> Any:
    tokens = np.minimum(TOKENS, 12)
    scorer = make_scorer("sliding", CausalModel(), window=16, stride=4, batch_tokens=64, device="cpu")
    nll = scorer.score(lambda a, b: tokens[a:b], 0, len(tokens) - 1)
    return rerun.plain_shapes(model, tokens, nll, window=16, stride=4, device=torch.device("cpu"), same_kernels=True)


def test_other_batches_and_ranks_give_the_same_losses() -> None:
    found = shapes_of(CausalModel())
    assert found.verdict == "PASS" and found.evidence["ranks_with_work"] == 2, found


def test_a_model_that_looks_at_its_batch_is_caught() -> None:
    class Batchy(CausalModel):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return super().forward(tokens) * (1 + 0.01 * len(tokens))

    assert shapes_of(Batchy()).verdict == "FAIL"


def test_adapted_passes_are_the_same_on_two_ranks(tiny_run: Path) -> None:
    """In earnest: two processes that share gradients, against one; the chunk has an odd number of rows."""
    run = RunDirectory.open(tiny_run)
    ttt = run.config.ttt.model_validate({"method": "full", "lr": 0.02, "chunk_tokens": 192})
    tokens = np.array(TokenShards([tiny_run / "data" / "val_000000.bin"]).read(0, 321))
    found = rerun.adapted_shapes(run / "model.bitgolf", run.config.model_copy(update={"ttt": ttt}), tokens)
    assert found.verdict == "PASS", found
    assert found.evidence["targets"] == 320 and 0 < float(found.evidence["largest_nats"]) < 1e-4


def test_ranks_that_cannot_run_are_not_run(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerun, "_PROGRAM", "raise SystemExit('no gloo on this machine')")
    run = RunDirectory.open(tiny_run)
    with pytest.raises(MissingEvidence, match="did not work: no gloo on this machine"):
        rerun.adapted_shapes(run / "model.bitgolf", run.config, np.arange(40))
