"""Adapters under the audit: honest ones pass the flip tests bit-exactly, each cheat is caught by name."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_gpt import ALONE, BOS, VOCAB, WINDOW, adapted, config, text, tiny_gpt
from torch import Tensor

from bitgolf.audit.distribution import losses_of, normalized
from bitgolf.audit.flips import all_after, flip_test, only_target
from bitgolf.audit.traces import Passage, deterministic_kernels, trace
from bitgolf.audit.verdict import Finding
from bitgolf.evaluate.document_scorer import DocumentScorer
from bitgolf.evaluate.lora import DocumentAdapters
from bitgolf.evaluate.tape import TokenReader
from bitgolf.model.backends import reproducible_backend
from bitgolf.model.build import build_model
from bitgolf.run.ranks import World

TOKENS = text(91, seed=3)
CHUNK = 40


def flips(evaluation: Any, span: Any, chunk_targets: int = 0) -> Finding:
    return flip_test(Passage(evaluation, TOKENS, VOCAB, BOS, chunk_targets), span, 6, np.random.default_rng(0))


def evaluation_of(device: str = "cpu", **ttt: Any):
    """An `Evaluation` as the audit builds it: a fresh model for every run."""
    place = torch.device(device)

    def evaluation(tokens: np.ndarray):
        model, _ = build_model(config().model, WINDOW, place)
        if place.type == "cuda":
            model.set_attention_backend(reproducible_backend(masked=False))
        model.load_state_dict(tiny_gpt().state_dict())
        model.eval().requires_grad_(False)
        finding = adapted(config(**ttt), model, len(tokens) - 1, world=World(0, 1, place))
        return finding.scorer, finding.adapter

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
    "all weights after documents": {
        "method": "lora",
        "lora": {"global_after": [1, 2]},
        "weights": {"lr": 0.05, "chunk_tokens": 16, "epochs": 1},
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
        for span in (all_after, only_target):
            finding = flips(evaluation, span, chunk)
            assert finding.verdict == "PASS", finding
            assert finding.evidence["noise_nats"] == 0 and finding.evidence["moved_later"] > 0
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
        finding = adapted(config(method="full", lr=0.05), model, len(tokens) - 1)
        return LearnsBeforeScoring(finding.scorer, model), finding.adapter

    for span in (all_after, only_target):
        finding = flips(evaluation, span, CHUNK)
        assert finding.verdict == "FAIL" and "moved the prediction of target" in finding.reason


class SlotDocuments(DocumentScorer):
    """Documents whose adapters learn a chunk first and score it afterwards."""

    def _logits(self, adapters: DocumentAdapters, parameters: Sequence[Tensor], rows: list[Any]) -> Tensor:
        places = [row.place for row in rows]
        with torch.enable_grad():
            for tensor in parameters:
                tensor.requires_grad_(True)
            logits = super()._logits(adapters, parameters, rows)
            targets = torch.zeros(logits.shape[:2], dtype=torch.int64)
            for i, row in enumerate(rows):
                size, num_targets = logits.shape[1], row.tape.num_targets
                start, stop = row.chunk * size, min((row.chunk + 1) * size, num_targets)
                targets[i, : stop - start] = torch.from_numpy(
                    row.tape.chunk(stop)(start + 1, stop + 1).astype(np.int64)
                )
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            gradients = list(torch.autograd.grad(loss, parameters))
        adapters.step(gradients, places)
        return super()._logits(adapters, adapters.split(adapters.values[places]), rows).requires_grad_()

    def _gradients(self, parameters, rows, logits):
        return [torch.zeros_like(tensor) for tensor in parameters]


class LeakyBatch(DocumentScorer):
    """Documents whose adapters start from what the text's last document says."""

    def _score(self, tokens, *rest, **options):
        last = tokens[np.flatnonzero(tokens[:-1] == BOS)[-1] : -1]
        self.first_a[0] *= 1 + float(last.sum() % 97) / 97
        return super()._score(tokens, *rest, **options)


class LearnsAhead(DocumentScorer):
    """Weights that learn from the document after the phase as well."""

    def _in_order(self, tokens, *rest, **options):
        honest = self.learn
        border = int(np.flatnonzero(tokens[1:] == BOS)[1]) + 1
        self.learn = lambda learned: honest(tokens[: border + 1])
        return super()._in_order(tokens, *rest, **options)


def test_a_phase_that_learns_from_later_documents_is_caught() -> None:
    def evaluation(tokens: np.ndarray):
        settings = config(**HONEST["all weights after documents"])
        adapted_pass = adapted(settings, tiny_gpt(), len(tokens) - 1)
        adapted_pass.scorer.__class__ = LearnsAhead
        return adapted_pass.scorer, None

    check = flips(evaluation, all_after)
    assert check.verdict == "FAIL" and "moved the prediction of target" in check.reason


@pytest.mark.parametrize("cheat, spans", [(SlotDocuments, (all_after, only_target)), (LeakyBatch, (all_after,))])
def test_documents_that_cheat_are_caught(cheat: type[DocumentScorer], spans: tuple[Any, ...]) -> None:
    def evaluation(tokens: np.ndarray):
        settings = config(method="lora", lora_documents=3)
        return cheat(tiny_gpt(), settings.ttt.lora, window=WINDOW, bos_id=BOS, seed=0, world=ALONE), None

    for span in spans:
        finding = flips(evaluation, span)
        assert finding.verdict == "FAIL" and "moved the prediction of target" in finding.reason
