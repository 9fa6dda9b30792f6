"""Adapters under the audit: honest ones pass the flip tests bit-exactly, each cheat is caught by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_evidence import evidence
from tiny_gpt import ALONE, BOS, VOCAB, WINDOW, adapted, config, text, tiny_gpt
from torch import Tensor

from bitgolf.audit.distribution import losses_of, normalized
from bitgolf.audit.flips import all_after, flip_test, only_target
from bitgolf.audit.registry import attempt
from bitgolf.audit.tape_log import score_first, scored_once
from bitgolf.audit.traces import deterministic_kernels, trace
from bitgolf.audit.verdict import Finding
from bitgolf.errors import RuleViolation
from bitgolf.evaluate import ScoreTape, evaluate
from bitgolf.evaluate.chunk_training import ChunkTTT
from bitgolf.evaluate.document_scorer import DocumentScorer
from bitgolf.evaluate.lora import DocumentAdapters
from bitgolf.evaluate.tape import TokenReader
from bitgolf.model.backends import reproducible_backend
from bitgolf.model.build import build_model
from bitgolf.run.ranks import World

TOKENS = text(91, seed=3)
CHUNK = 40


def future_flip(evaluation: Any, chunk_targets: int = 0) -> Finding:
    return flips(evaluation, all_after, chunk_targets)


def target_flip(evaluation: Any, chunk_targets: int = 0) -> Finding:
    return flips(evaluation, only_target, chunk_targets)


def flips(evaluation: Any, span: Any, chunk_targets: int) -> Finding:
    return flip_test(
        evaluation,
        TOKENS,
        span,
        vocab_size=VOCAB,
        bos_id=BOS,
        num_flips=6,
        rng=np.random.default_rng(0),
        chunk_targets=chunk_targets,
    )


def evaluation_of(device: str = "cpu", **ttt: Any):
    """An `Evaluation` as the audit builds it: a fresh model for every run."""
    place = torch.device(device)

    def evaluation(tokens: np.ndarray):
        model, _ = build_model(config().model, WINDOW, place)
        if place.type == "cuda":
            model.set_attention_backend(reproducible_backend(documents=False))
        model.load_state_dict(tiny_gpt().state_dict())
        model.eval().requires_grad_(False)
        found = adapted(config(**ttt), model, len(tokens) - 1, world=World(0, 1, place))
        return found.scorer, found.adapter

    return evaluation


HONEST = {
    "full, sgd": {"method": "full", "lr": 0.05},
    "last blocks, adamw": {"method": "last_blocks", "optimizer": "adamw", "lr": 0.01},
    "adapters a document": {"method": "lora", "lora_documents": 3},
    "adapters that hand A down": {
        "method": "lora",
        "lora_documents": 2,
        "lora_keep_a": True,
        "lora_targets": ["q", "k", "v", "o", "mlp", "head"],
    },
}


def chunk_of(ttt: dict[str, Any]) -> int:
    return 0 if ttt.get("method") == "lora" else CHUNK


ON_GPU = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize("name", HONEST)
def test_honest_adapters_pass_bit_exactly(name: str, device: str) -> None:
    evaluation, chunk = evaluation_of(device, **HONEST[name]), chunk_of(HONEST[name])
    with deterministic_kernels(torch.device(device)):
        for check in (future_flip, target_flip):
            found = check(evaluation, chunk_targets=chunk)
            assert found.verdict == "PASS", found
            assert found.evidence["noise_nats"] == 0 and found.evidence["moved_later"] > 0
        shown = trace(evaluation, TOKENS, chunk, with_losses=True)
    assert normalized(shown.log_p, VOCAB).verdict == "PASS"
    assert losses_of(shown, TOKENS).verdict == "PASS"


@pytest.mark.parametrize("name", HONEST)
def test_what_is_learned_reaches_later_chunks(name: str) -> None:
    """The flips above prove something: a token of the first chunk moves predictions that its window cannot reach."""
    ttt = HONEST[name]
    tokens = TOKENS.copy()
    tokens[1:] = np.where(tokens[1:] == BOS, 5, tokens[1:])  # one document
    flipped = tokens.copy()
    flipped[3] = 11 if tokens[3] != 11 else 12
    a, b = (trace(evaluation_of(**ttt), t, chunk_of(ttt)).log_p for t in (tokens, flipped))
    assert (a[CHUNK + WINDOW + 4 :] != b[CHUNK + WINDOW + 4 :]).any()


class PeekingTTT(ChunkTTT):
    """Trains on the chunk to come, from a copy of the tokens that never went over the tape."""

    def __init__(self, *args: Any, smuggled: np.ndarray, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.smuggled = smuggled

    def update(self, revealed: TokenReader, start: int, stop: int) -> None:
        super().update(revealed, start, stop)
        super().update(lambda a, b: self.smuggled[a:b], stop, min(2 * stop - start, len(self.smuggled) - 1))


class EagerTTT(ChunkTTT):
    """Asks the tape itself for the chunk to come."""

    def update(self, revealed: TokenReader, start: int, stop: int) -> None:
        super().update(revealed, stop, 2 * stop - start)


def cheating_ttt(cheat: type[ChunkTTT], **extra: Any):
    def evaluation(tokens: np.ndarray):
        settings, model = config(method="full", lr=0.05), tiny_gpt()
        found = adapted(settings, model, len(tokens) - 1)
        smuggled = dict.fromkeys(extra, tokens)
        return found.scorer, cheat(
            model,
            model,
            settings.ttt,
            window=WINDOW,
            num_targets=len(tokens) - 1,
            batch_tokens=48,
            world=ALONE,
            **smuggled,
        )

    return evaluation


def test_training_on_the_next_chunk_is_caught_by_flips_alone() -> None:
    evaluation = cheating_ttt(PeekingTTT, smuggled=True)
    for check in (future_flip, target_flip):
        found = check(evaluation, chunk_targets=CHUNK)
        assert found.verdict == "FAIL" and "moved the prediction of target" in found.reason
        assert all(leak["moved_target"] >= CHUNK for leak in found.evidence["leaks"]), "the first chunk is honest"
    tape = ScoreTape(TOKENS)
    evaluate(tape, *evaluation(TOKENS), chunk_targets=CHUNK)
    assert score_first(evidence(event_log=tape.event_log)).verdict == "PASS", "its ledger looks clean"


def test_asking_the_tape_for_the_next_chunk_is_refused_by_name() -> None:
    found = attempt(lambda evaluation: future_flip(evaluation, chunk_targets=CHUNK), cheating_ttt(EagerTTT))
    assert found.verdict == "FAIL" and "an adapter asked for tokens" in found.reason
    assert found.evidence["error"] == "RuleViolation"


class LearnsBeforeScoring:
    """A scorer that takes gradient steps on the chunk it is about to score."""

    def __init__(self, inner, model) -> None:
        self.inner, self.model = inner, model

    def _learn(self, read: TokenReader, start: int, stop: int) -> None:
        tokens = torch.from_numpy(read(start, stop).astype(np.int64))
        rows = tokens[: len(tokens) // 8 * 8].view(-1, 8)
        self.model.requires_grad_(True)
        F.cross_entropy(self.model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad
                    parameter.grad = None

    def score(self, read, start, stop, tick=None):
        self._learn(read, start, stop)
        return self.inner.score(read, start, stop, tick)

    def distributions(self, read, start, stop):
        self._learn(read, start, stop)
        return self.inner.distributions(read, start, stop)


def test_optimizing_on_the_chunk_before_scoring_is_caught() -> None:
    def evaluation(tokens: np.ndarray):
        model = tiny_gpt()
        found = adapted(config(method="full", lr=0.05), model, len(tokens) - 1)
        return LearnsBeforeScoring(found.scorer, model), found.adapter

    for check in (future_flip, target_flip):
        found = check(evaluation, chunk_targets=CHUNK)
        assert found.verdict == "FAIL" and "moved the prediction of target" in found.reason


class SlotDocuments(DocumentScorer):
    """Documents whose adapters learn a chunk first and score it afterwards."""

    def _logits(self, adapters: DocumentAdapters, tapes: list[ScoreTape], chunk: int) -> Tensor:
        with torch.enable_grad():
            for tensor in adapters.parameters:
                tensor.requires_grad_(True)
            logits = super()._logits(adapters, tapes, chunk)
            targets = torch.zeros(logits.shape[:2], dtype=torch.int64)
            for row, tape in enumerate(tapes):
                start, stop = chunk * logits.shape[1], min((chunk + 1) * logits.shape[1], tape.num_targets)
                targets[row, : stop - start] = torch.from_numpy(tape.chunk(stop)(start + 1, stop + 1).astype(np.int64))
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            gradients = list(torch.autograd.grad(loss, adapters.parameters))
        for tensor in adapters.parameters:
            tensor.requires_grad_(False)
        adapters.step(gradients)
        return super()._logits(adapters, tapes, chunk).requires_grad_()

    def _gradients(self, adapters, tapes, logits, chunk):
        return [torch.zeros_like(tensor) for tensor in adapters.parameters]


class LeakyBatch(DocumentScorer):
    """Documents whose adapters start from what the batch's last document says."""

    def _score_batch(self, batch, slots, a, with_log_p):
        favorite = float(batch.tokens[-1][:-1].sum() % 97) / 97
        a[0][:] = self.first_a[0] * (1 + favorite)
        return super()._score_batch(batch, slots, a, with_log_p)


@pytest.mark.parametrize("cheat, checks", [(SlotDocuments, (future_flip, target_flip)), (LeakyBatch, (future_flip,))])
def test_documents_that_cheat_are_caught(cheat: type[DocumentScorer], checks: tuple[Any, ...]) -> None:
    def evaluation(tokens: np.ndarray):
        settings = config(method="lora", lora_documents=3)
        return cheat(tiny_gpt(), settings.ttt.lora, window=WINDOW, bos_id=BOS, seed=0, world=ALONE), None

    for check in checks:
        found = check(evaluation)
        assert found.verdict == "FAIL" and "moved the prediction of target" in found.reason


def adapted_tape() -> ScoreTape:
    tape = ScoreTape(TOKENS)
    evaluate(tape, *evaluation_of(**HONEST["full, sgd"])(TOKENS), chunk_targets=CHUNK)
    return tape


def test_second_score_is_refused_by_the_tape() -> None:
    tape = ScoreTape(TOKENS)
    scorer, adapter = evaluation_of(**HONEST["full, sgd"])(TOKENS)
    tape.commit(0, CHUNK, scorer.score(tape.chunk(CHUNK), 0, CHUNK))
    adapter.update(tape.revealed, 0, CHUNK)
    tape.record_update(0, CHUNK + 1)
    better = scorer.score(lambda a, b: TOKENS[a:b], 0, CHUNK)
    with pytest.raises(RuleViolation, match=r"targets 0\.\.39 are already scored"):
        tape.commit(0, CHUNK, better)


def test_second_score_in_a_ledger_is_named_by_its_check() -> None:
    tape = adapted_tape()
    ledger = tape.event_log
    ledger["events"].append({"event": "score", "targets": [0, 40], "state": tape.state})
    found = scored_once(evidence(event_log=ledger, tokens=TOKENS, nll=tape.nll))
    assert found.verdict == "FAIL" and "targets 0..39 are scored a second time" in found.reason


def test_learning_ahead_in_a_ledger_is_named_by_its_check() -> None:
    ledger = adapted_tape().event_log
    update = next(event for event in ledger["events"] if event["event"] == "update")
    update["tokens"] = [0, CHUNK + 2]
    found = score_first(evidence(event_log=ledger))
    assert found.verdict == "FAIL" and f"learned from tokens {CHUNK + 1}..{CHUNK + 1} before" in found.reason
