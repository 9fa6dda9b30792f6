"""Predictors give token by token what the evaluation scores: windows, adaptation between chunks, documents."""

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_gpt import BOS, WINDOW, adapted, config, text, tiny_gpt
from toy_models import make_scorer

from bitgolf.codec import document_predictor, window_predictor
from bitgolf.codec.document_predictor import DocumentPredictor
from bitgolf.codec.predictors import _deterministic_attention, fresh_adapters, fresh_predictor
from bitgolf.codec.range_coder import Streams
from bitgolf.codec.window_predictor import WindowPredictor
from bitgolf.config import Config
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import RuleViolation
from bitgolf.evaluate import ScoreTape, evaluate
from bitgolf.evaluate.window_scorer import Windows
from bitgolf.language_model import LanguageModel
from bitgolf.model import cached_steps
from bitgolf.model.gpt import GPT

CLOSE = 2e-4  # nats; cached and whole passes round differently, and updates carry that along


@pytest.fixture(params=["numpy", "growing", "fixed"])
def caches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps in NumPy, in PyTorch, and with fixed shapes as they are recorded on CUDA (here run anew each time)."""
    if request.param != "numpy":
        monkeypatch.setattr(window_predictor, "is_small", lambda *_: False)
    if request.param == "fixed":
        monkeypatch.setattr(cached_steps, "_LEAST_REACH", 4)  # steps of four reaches
        for module in (window_predictor, document_predictor):
            monkeypatch.setattr(module, "recorder_for", lambda model: lambda run: run)


def language_model(gpt: GPT, lossless: Tokenizer) -> LanguageModel:
    assert lossless.bos_id == BOS
    return LanguageModel(gpt, lossless, WINDOW, 4, "math")


def losses(predictor: WindowPredictor | DocumentPredictor, streams: list[np.ndarray]) -> list[np.ndarray]:
    """The loss of every token of every stream, by running the predictor over them."""
    predicted: list[list[float]] = [[] for _ in streams]
    for step in range(max(map(len, streams))):
        going = np.array([len(stream) > step for stream in streams])
        log_p = torch.log_softmax(predictor.logits(going).double(), -1)
        tokens = np.zeros(len(streams), dtype=np.int64)
        for s in np.flatnonzero(going):
            tokens[s] = streams[s][step]
            predicted[s].append(-float(log_p[s, tokens[s]]))
        predictor.accept(tokens)
    return [np.array(values) for values in predicted]


def run(settings: Config, gpt: GPT, lossless: Tokenizer, streams: list[np.ndarray], targets: int) -> list[np.ndarray]:
    longest = max(map(len, streams))
    with fresh_predictor(
        language_model(gpt, lossless),
        settings.ttt,
        Windows.of(settings),
        Streams(len(streams), longest, targets, BOS),
        seed=settings.seed,
    ) as predictor:
        return losses(predictor, streams)


def with_stride(settings: Config, stride: int, method: str = "sliding") -> Config:
    score = settings.score.model_copy(update={"stride": stride, "methods": (method,)})
    return settings.model_copy(update={"score": score})


@pytest.mark.parametrize(
    ("method", "stride", "piece"),
    [
        ("sliding", 1, 16_384),
        ("sliding", 4, 1),
        ("sliding", 4, 5),
        ("sliding", 4, 16_384),
        ("sliding", 16, 16_384),
        ("chunked", 4, 16_384),
    ],
)
@pytest.mark.parametrize("attention", [{}, {"attention.window": 3, "attention.full_layers": (1,)}], ids=str)
@pytest.mark.usefixtures("caches")
def test_windows_are_those_of_the_scorer(
    method: str, stride: int, piece: int, attention: dict, lossless: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_steps, "FILL_TOKENS", piece)  # caches filled token by token, in pieces, at once
    gpt = tiny_gpt(config().model.updated(attention))
    streams = [text(n + 1, seed=n)[1:].astype(np.int64) for n in (45, 3, 38)]
    predicted = run(with_stride(config(), stride, method), gpt, lossless, streams, 45)
    scorer = make_scorer(method, gpt, window=WINDOW, stride=stride, batch_tokens=64)
    for stream, mine in zip(streams, predicted, strict=True):
        expected = evaluate(ScoreTape(np.concatenate([[BOS], stream])), scorer)
        assert np.abs(mine - expected).max() < 1e-5


@pytest.mark.parametrize("document_tokens", [0, 6])
@pytest.mark.usefixtures("caches")
def test_documents_stay_apart_where_the_model_keeps_them_apart(document_tokens: int, lossless: Tokenizer) -> None:
    settings = config()
    documents = {"attention.within_documents": True, "smear.document_mask": True}
    gpt = tiny_gpt(settings.model.updated(documents | {"attention.document_tokens": document_tokens}))
    streams = [text(60, seed=seed)[1:].astype(np.int64) for seed in (8, 9)]
    scorer = make_scorer("sliding", gpt, window=WINDOW, stride=4, batch_tokens=64)
    for stream, predicted in zip(streams, run(settings, gpt, lossless, streams, 118), strict=True):
        expected = evaluate(ScoreTape(np.concatenate([[BOS], stream])), scorer)
        assert np.abs(predicted - expected).max() < 1e-5
    (seen_through,) = run(settings, tiny_gpt(), lossless, streams[1:], 59)
    assert np.abs(predicted - seen_through).max() > 1e-2


CHUNKS: list[dict[str, Any]] = [
    # Windows begin at targets 16, 20, 24, ...: with chunks of 37 the weights change in the middle of a window.
    {"method": "full", "weights": {"lr": 0.05, "epochs": 2, "batch_rows": 1, "chunk_tokens": 37}},
    {"method": "last_blocks", "weights": {"last_blocks": 1, "optimizer": "adamw", "lr": 0.003}},
]


@pytest.mark.parametrize("ttt", CHUNKS, ids=str)
@pytest.mark.usefixtures("caches")
def test_one_stream_adapts_as_the_evaluation_does(ttt: dict[str, Any], lossless: Tokenizer) -> None:
    settings = config(**ttt)
    tokens = text(151, period=13)
    tape = ScoreTape(tokens)
    gpt = tiny_gpt()
    adapted(settings, gpt, 150).run(tape)
    gpt = tiny_gpt()
    (predicted,) = run(settings, gpt, lossless, [tokens[1:].astype(np.int64)], 150)
    assert np.abs(predicted - tape.nll).max() < CLOSE
    plain = evaluate(ScoreTape(tokens), make_scorer("sliding", gpt, window=16, stride=4, batch_tokens=64))
    assert np.abs(plain - tape.nll).max() > 50 * CLOSE, "nothing was adapted: the test shows nothing"
    fresh = tiny_gpt()
    assert all(torch.equal(a, b) for a, b in zip(gpt.parameters(), fresh.parameters(), strict=True))
    assert not any(p.requires_grad for p in gpt.parameters())


def test_streams_share_what_their_chunks_teach_round_by_round(lossless: Tokenizer) -> None:
    """The chunks of all streams are scored with equal weights, and then learned in turn."""
    settings = config(method="full", weights={"lr": 0.05, "epochs": 2, "batch_rows": 1})
    streams = [text(n + 1, seed=n, period=9)[1:].astype(np.int64) for n in (100, 95, 45)]
    gpt = tiny_gpt()
    predicted = run(settings, gpt, lossless, streams, 100)
    by_chunks = adapted(settings, gpt, 100)
    assert by_chunks.adapter is not None
    texts = [np.concatenate([[BOS], stream]) for stream in streams]
    expected: list[list[np.ndarray]] = [[] for _ in streams]
    for start in range(0, 100, 40):
        rounds = [(s, min(start + 40, len(streams[s]))) for s in range(3) if len(streams[s]) > start]
        for s, stop in rounds:
            expected[s].append(by_chunks.scorer.score(lambda a, b, s=s: texts[s][a:b], start, stop))  # type: ignore[misc]
        for s, stop in rounds if start < 80 else []:
            by_chunks.adapter.update(lambda a, b, s=s: texts[s][a:b], start, stop)  # type: ignore[misc]
    for mine, theirs in zip(predicted, expected, strict=True):
        assert np.abs(mine - np.concatenate(theirs)).max() < CLOSE


def test_an_adapter_cannot_read_ahead() -> None:
    program = WindowPredictor(tiny_gpt(), Streams(2, 9, 9, BOS), window=WINDOW, stride=4)
    for token in (5, 6):
        program.logits(np.array([True, True]))
        program.accept(np.array([token, token + 10]))
    read = program._reader(1, 2)
    assert read(0, 3).tolist() == [BOS, 15, 16]
    for first, last in ((0, 4), (-1, 2), (2, 1)):
        with pytest.raises(RuleViolation, match=r"0\.\.2 are coded"):
            read(first, last)


@pytest.mark.parametrize(
    ("longest", "earlier", "positions"), [(9, False, 64), (70, False, 128), (990, False, 200), (9, True, 200)]
)
def test_steps_have_positions_for_the_longest_stream_and_earlier_ones_for_the_window(
    longest: int, earlier: bool, positions: int, lossless: Tokenizer
) -> None:
    for settings in (config(), config(method="lora")):
        with fresh_predictor(
            language_model(tiny_gpt(), lossless),
            settings.ttt,
            Windows("sliding", 200, 4, batch_tokens=200),
            Streams(2, longest, longest, BOS),
            seed=0,
            earlier=earlier,
        ) as predictor:
            assert (predictor.steps.window, predictor.steps.whole) == (positions, earlier)
            assert (predictor.steps.small is None) == (earlier or settings.ttt.enabled)


DOCUMENTS: list[dict[str, Any]] = [
    {"targets": ("q", "v", "head")},
    {"targets": ("k", "o", "mlp"), "chunk_tokens": 16},
    {"keep_a": True, "documents": 3},
]


@pytest.mark.parametrize("lora", DOCUMENTS, ids=str)
@pytest.mark.usefixtures("caches")
def test_documents_adapt_as_the_evaluation_does(lora: dict[str, Any], lossless: Tokenizer) -> None:
    settings = config(method="lora", lora={"lr": 0.02, **lora})
    tokens = text(400, seed=4, period=17)
    tape = ScoreTape(tokens)
    gpt = tiny_gpt()
    adapted(settings, gpt, 399).run(tape)
    borders = [0, *(np.flatnonzero(tokens[1:-1] == BOS) + 1).tolist(), 399]
    streams = [tokens[a + 1 : b + 1].astype(np.int64) for a, b in pairwise(borders)]
    predicted: list[np.ndarray] = []
    size = settings.ttt.lora.documents
    model = language_model(gpt, lossless)
    a = fresh_adapters(model, settings.ttt.lora, settings.seed, size)
    for begin in range(0, len(streams), size):
        batch = streams[begin : begin + size]
        with fresh_predictor(
            model,
            settings.ttt,
            Windows.of(settings),
            Streams(len(batch), 399, 399, BOS),
            seed=settings.seed,
            a=[tensor[: len(batch)] for tensor in a],
        ) as predictor:
            assert isinstance(predictor, DocumentPredictor)
            predicted += losses(predictor, batch)
            if settings.ttt.lora.keep_a:
                for tensor, handed in zip(a, predictor.hand_down(), strict=True):
                    tensor[: len(batch)] = handed
    assert np.abs(np.concatenate(predicted) - tape.nll).max() < CLOSE
    plain = np.concatenate(run(with_stride(config(), 4), gpt, lossless, streams, 399))
    assert np.abs(plain - tape.nll).max() > 50 * CLOSE
    assert math.isfinite(float(tape.nll.sum()))


def test_on_cuda_weights_learn_with_attention_that_repeats_its_gradients() -> None:
    for device, masked, used in (
        ("cpu", False, []),
        ("cuda", False, ["flash", "own"]),
        ("cuda", True, ["math", "own"]),
    ):
        backends: list[str] = []
        attention = SimpleNamespace(is_masked=masked)
        model = SimpleNamespace(config=SimpleNamespace(attention=attention), set_attention_backend=backends.append)
        packed: Any = SimpleNamespace(device=torch.device(device), model=model, attention="own")
        with _deterministic_attention(packed):
            assert backends == used[:1]
        assert backends == used
