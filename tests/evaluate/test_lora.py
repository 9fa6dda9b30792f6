"""Adapters per document against merged weights and torch's AdamW on one document at a time, in batches of any size."""

import copy
import itertools
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_evidence import evidence
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gpt import ALONE, BOS, VOCAB, WINDOW, adapted, config, text, tiny_gpt
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from bitgolf.audit.tape_log import score_first, scored_once
from bitgolf.codec.predictors import fresh_predictor
from bitgolf.codec.range_coder import Streams
from bitgolf.config import Config
from bitgolf.errors import ConfigError, RuleViolation
from bitgolf.evaluate import ScoreTape, document_scorer
from bitgolf.evaluate.chunk_training import preserved
from bitgolf.evaluate.document_batches import document_lines, end_of_batches
from bitgolf.evaluate.document_scorer import DocumentScorer, evaluate_documents, share_lines
from bitgolf.evaluate.lora import DocumentAdapters, Site, adapted_logits, initial_a, lora_sites
from bitgolf.evaluate.split_model import compiled_blocks_
from bitgolf.evaluate.window_scorer import Windows
from bitgolf.model.gpt import GPT
from bitgolf.run.ranks import World

ALL = ("q", "k", "v", "o", "mlp", "head")
TOKENS = text(240, seed=4)


def scorer_of(settings_: Config, world: World = ALONE) -> DocumentScorer:
    return DocumentScorer(tiny_gpt(settings_.model), settings_.ttt.lora, window=WINDOW, bos_id=BOS, seed=5, world=world)


def run(tokens: np.ndarray = TOKENS, **ttt: Any) -> ScoreTape:
    tape = ScoreTape(tokens)
    evaluate_documents(tape, scorer_of(config(method="lora", **ttt)))
    return tape


class Bypass(nn.Module):
    """A module with a low-rank path around it."""

    def __init__(self, inner: nn.Module, delta: Tensor) -> None:
        super().__init__()
        self.inner, self.delta = inner, delta

    def forward(self, x: Tensor, *rest: Any) -> Any:
        out = self.inner(x, *rest)
        extra = x @ self.delta.T
        return (out[0] + extra, *out[1:]) if isinstance(out, tuple) else out + extra


def merged_logits(model: GPT, deltas: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits (W, V) of one document's tokens (W,) under a model whose own weights hold the deltas (out, in)."""
    model = copy.deepcopy(model)
    for name, delta in deltas.items():
        if name == "head":
            continue
        if name.endswith(("query", "key", "value")):
            linear = model.get_submodule(name)
            weight = linear.weight.detach() + delta
            del linear.weight
            linear.weight = weight  # a plain tensor, so that gradients reach A and B
        else:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Bypass(model.get_submodule(name), delta))
    head = model.embedding.detach() + deltas.get("head", torch.zeros(()))
    return 30 * torch.tanh(model.hidden(tokens[None])[0] @ head.T / 30)


@pytest.mark.parametrize("targets", [("q",), ("k", "v"), ("o",), ("mlp",), ("head",), ALL])
def test_each_document_sees_its_own_merged_weights(targets: tuple[str, ...]) -> None:
    settings_ = config(method="lora", lora={"targets": list(targets)})
    model, generator = tiny_gpt(), torch.Generator().manual_seed(2)
    sites = lora_sites(model, targets)
    adapters = DocumentAdapters(
        sites, [torch.randn(4, 3, s.inputs, generator=generator) for s in sites], settings_.ttt.lora
    )
    tokens = torch.randint(VOCAB, (4, 11), generator=generator)
    plain = model(tokens)[:, -5:]
    torch.testing.assert_close(adapted_logits(model, adapters, tokens, 5), plain, rtol=0, atol=2e-5)  # B is zero
    for b in adapters.b:
        b.normal_(0, 0.1, generator=generator)
    logits = adapted_logits(model, adapters, tokens, 5)
    for document in range(4):
        deltas = {
            s.name: 4.5 / 3 * b[document] @ a[document] for s, a, b in zip(sites, adapters.a, adapters.b, strict=True)
        }
        torch.testing.assert_close(
            logits[document], merged_logits(model, deltas, tokens[document])[-5:], rtol=0, atol=2e-4
        )
    assert (logits - plain).abs().max() > 0.05
    torch.testing.assert_close(model(tokens)[:, -5:], plain, rtol=0, atol=0)  # no hook stays behind


@pytest.mark.parametrize("size", [1.0, 1e-9])  # B's first gradients are tiny
def test_a_step_is_that_of_adamw_with_the_published_epsilon(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    lora = config(method="lora", lora={"weight_decay": 0.3, "beta1": 0.8, "beta2": 0.9, "lr": 0.02}).ttt.lora
    a = torch.randn(2, 3, 5, generator=generator)
    adapters = DocumentAdapters([Site("x", 5, 4)], [a], lora)
    expected = [a.clone(), torch.zeros(2, 4, 3)]
    optimizer = torch.optim.AdamW(expected, lr=0.02, betas=(0.8, 0.9), eps=1e-10, weight_decay=0.3)
    for _ in range(3):
        gradients = [size * torch.randn(p.shape, generator=generator) for p in expected]
        adapters.step([gradient.clone() for gradient in gradients])
        for parameter, gradient in zip(expected, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for ours, theirs in zip(adapters.parameters, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("targets", [ALL, ("v", "head"), ("mlp", "q")])
def test_sites_are_the_modules_in_order_with_their_widths(targets: tuple[str, ...]) -> None:
    sites = lora_sites(tiny_gpt(), targets)
    assert [(site.name, site.outputs) for site in sites] == places_by_definition(targets)
    assert {site.inputs for site in sites} == {32}


@pytest.mark.parametrize(("rank", "inputs"), [(2, 400), (50, 9)])
def test_the_initial_a_is_uniform_within_the_root_of_the_inputs(rank: int, inputs: int) -> None:
    """LoRA's Kaiming uniform with a = sqrt(5): +-1 / sqrt(inputs), whatever the rank."""
    (a,) = initial_a([Site("x", inputs, 7)], rank, 3, torch.device("cpu"))
    bound = 1 / math.sqrt(inputs)
    assert a.shape == (rank, inputs)
    assert 0.95 * bound < float(a.abs().max()) <= bound and float(a.abs().mean()) == pytest.approx(bound / 2, rel=0.1)


LOOPED = {
    "num_layers": 4, "loop.repeats": 1, "loop.first": 1, "loop.last": 2, "skip_gates": True, "attention.gate": True,
    "attention.xsa_layers": 4, "value_embedding.layers": (), "attention.value_residual": False,
}  # fmt: skip


def unrolled(model: GPT) -> GPT:
    """A model without loop whose layers are the six runs 0, 1, 2, 1, 2, 3 of the looped model's layers."""
    changes = {"num_layers": 6, "loop.repeats": 0, "loop.first": 0, "loop.last": 0, "attention.xsa_layers": 6}
    longer = tiny_gpt(model.config.updated(changes))
    weights = {name: p for name, p in model.state_dict().items() if not name.startswith("blocks.")}
    for place, layer in enumerate((0, 1, 2, 1, 2, 3)):
        block = model.blocks[layer].state_dict()
        weights |= {f"blocks.{place}.{name}": p for name, p in block.items()}
    longer.load_state_dict(weights)
    return longer


def test_every_run_of_a_looped_layer_has_its_own_adapters() -> None:
    settings_ = config(method="lora")
    model, generator = tiny_gpt(settings_.model.updated(LOOPED)), torch.Generator().manual_seed(3)
    longer = unrolled(model)
    sites, single_runs = lora_sites(model, ALL), lora_sites(longer, ALL)
    assert [(s.inputs, s.outputs) for s in sites] == [(s.inputs, s.outputs) for s in single_runs]
    assert len(sites) == 6 * 5 + 1
    a = [torch.randn(2, 3, s.inputs, generator=generator) for s in sites]
    adapters, expected = (DocumentAdapters(places, a, settings_.ttt.lora) for places in (sites, single_runs))
    for ours, theirs in zip(adapters.b, expected.b, strict=True):
        ours.normal_(0, 0.1, generator=generator)
        theirs.copy_(ours)
    tokens = torch.randint(VOCAB, (2, 11), generator=generator)
    torch.testing.assert_close(
        adapted_logits(model, adapters, tokens, 5), adapted_logits(longer, expected, tokens, 5), rtol=0, atol=1e-5
    )
    assert (adapted_logits(model, adapters, tokens, 5) - model(tokens)[:, -5:]).abs().max() > 0.05


def places_by_definition(targets: Sequence[str]) -> list[tuple[str, int]]:
    """Module and number of outputs of every adapter of the tiny model, in order."""
    modules = {
        "q": ("attention.query", 32),
        "k": ("attention.key", 16),
        "v": ("attention.value", 16),
        "o": ("attention", 32),
        "mlp": ("mlp", 32),
    }
    places = [
        (f"blocks.{layer}.{name}", width)
        for layer in range(3)
        for target, (name, width) in modules.items()
        if target in targets
    ]
    return places + [("head", VOCAB)] * ("head" in targets)


def by_definition(settings_: Config, tokens: np.ndarray) -> np.ndarray:
    """One document after the other, unpadded windows, merged weights, torch's AdamW."""
    ttt, model = settings_.ttt, tiny_gpt(settings_.model)
    sites = places_by_definition(ttt.lora.targets)
    generator = torch.Generator().manual_seed(5)
    bound = 1 / math.sqrt(32)  # every site reads 32 channels
    fresh = [torch.empty(ttt.lora.rank, 32).uniform_(-bound, bound, generator=generator) for _ in sites]
    starts = [0, *(i for i in range(1, len(tokens) - 1) if tokens[i] == BOS), len(tokens) - 1]
    ids = torch.from_numpy(tokens.astype(np.int64))
    left: list[list[Tensor]] = []
    losses = []
    for number, (first, last) in enumerate(itertools.pairwise(starts)):
        inherits = ttt.lora.keep_a and number >= ttt.lora.documents
        a = [t.clone().requires_grad_() for t in (left[number - ttt.lora.documents] if inherits else fresh)]
        b = [torch.zeros(outputs, ttt.lora.rank, requires_grad=True) for _, outputs in sites]
        optimizer = torch.optim.AdamW(
            [*a, *b],
            lr=ttt.lora.lr,
            betas=(ttt.lora.beta1, ttt.lora.beta2),
            eps=1e-10,
            weight_decay=ttt.lora.weight_decay,
        )
        for start in range(0, last - first, ttt.lora.chunk_tokens):
            end = start + ttt.lora.chunk_tokens
            stop = min(end, last - first)
            begin = max(0, end - WINDOW)
            deltas = {
                name: ttt.lora.alpha / ttt.lora.rank * bb @ aa for (name, _), aa, bb in zip(sites, a, b, strict=True)
            }
            logits = merged_logits(model, deltas, ids[first + begin : first + stop])[start - begin :]
            chunk = F.cross_entropy(logits, ids[first + start + 1 : first + stop + 1], reduction="none")
            losses.append(chunk.detach().numpy())
            if end < last - first:
                optimizer.zero_grad()
                chunk.mean().backward()
                optimizer.step()
        left.append([t.detach() for t in a])
    return np.concatenate(losses)


@pytest.mark.parametrize(
    "ttt",
    [
        {},
        {"lora": {"targets": list(ALL), "documents": 3, "weight_decay": 0.5}},
        {"lora": {"keep_a": True, "documents": 4, "lr": 0.02}},
        {"lora": {"chunk_tokens": 16}},
    ],
)
def test_equals_one_document_at_a_time_with_torch_adamw(ttt: dict[str, Any]) -> None:
    nll = run(**ttt).nll
    np.testing.assert_allclose(nll, by_definition(config(method="lora", **ttt), TOKENS), rtol=0, atol=2e-4)
    plain = by_definition(config(method="lora", lora={**ttt.get("lora", {}), "lr": 1e-9}), TOKENS)
    assert np.abs(nll - plain).max() > 0.05, "adaptation changes something"


@pytest.mark.parametrize("documents", [1, 2, 5, 64])
def test_any_number_side_by_side_scores_the_same(documents: int) -> None:
    np.testing.assert_allclose(
        run(lora={"documents": documents}).nll, run(lora={"documents": 7}).nll, rtol=0, atol=1e-4
    )


def test_scores_do_not_depend_on_where_the_document_ends() -> None:
    document = text(60, seed=9)
    document[1:] = np.where(document[1:] == BOS, 7, document[1:])
    whole = run(document).nll
    for length in (2, 6, 7, 8, 13, 40):
        np.testing.assert_allclose(run(document[:length]).nll, whole[: length - 1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("keep", [False, True])
def test_the_event_log_is_that_of_one_document_after_the_other(keep: bool) -> None:
    tape = run(lora={"documents": 3, "keep_a": keep})
    log = tape.event_log
    assert score_first(evidence(event_log=log)).verdict == "PASS"
    assert scored_once(evidence(event_log=log, tokens=TOKENS, nll=tape.nll)).verdict == "PASS"
    borders = [0, *(i for i in range(1, len(TOKENS) - 1) if TOKENS[i] == BOS), len(TOKENS) - 1]
    expected: list[tuple[str, int, int]] = []
    for number, (first, last) in enumerate(itertools.pairwise(borders)):
        if number:
            handed = keep and number >= 3
            expected.append(("update", borders[number % 3], borders[number - 2] + 1) if handed else ("update", 0, 0))
        for start in range(first, last, 6):
            if start > first:
                expected.append(("update", start - 6, start + 1))
            expected.append(("score", start, min(start + 6, last)))
    assert [(e["event"], *e["targets" if e["event"] == "score" else "tokens"]) for e in log["events"]] == expected


def test_distributions_are_those_of_the_losses_and_stop_before_the_last_target() -> None:
    scorer = scorer_of(config(method="lora", lora={"documents": 3, "keep_a": True}))

    def read(start: int, stop: int) -> np.ndarray:
        assert stop <= 200, "target 199 is token 200"
        return TOKENS[start:stop]

    log_p = scorer.distributions(read, 0, 200)
    nll = scorer.score(lambda a, b: TOKENS[a:b], 0, 200)
    assert log_p.shape == (200, VOCAB) and log_p.dtype == np.float32
    np.testing.assert_allclose(np.exp(log_p.astype(np.float64)).sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(-log_p[np.arange(200), TOKENS[1:201]], nll, rtol=0, atol=5e-6)


def test_it_helps_on_text_that_repeats_and_leaves_the_model_alone() -> None:
    document = text(400, period=25)
    document[1:] = np.where(document[1:] == BOS, 7, document[1:])
    scorer = scorer_of(config(method="lora"))
    before = [p.clone() for p in scorer.model.parameters()]
    tape = ScoreTape(document)
    evaluate_documents(tape, scorer)
    assert tape.nll[200:].mean() < run(document, lora={"lr": 1e-9}).nll[200:].mean() - 0.3
    assert all(torch.equal(p, q) for p, q in zip(before, scorer.model.parameters(), strict=True))
    assert not any(p.requires_grad for p in scorer.model.parameters())


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(0, 99), st.integers(1, 4), st.integers(1, 5))
def test_every_target_once_whatever_the_documents(length: int, seed: int, documents: int, updates: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 40, size=length).astype(np.uint16)
    tokens[rng.random(length) < 0.3] = BOS
    settings_ = config(method="lora", lora={"documents": documents, "targets": ["head"]})
    scorer, tape = scorer_of(settings_), ScoreTape(tokens)
    evaluate_documents(tape, scorer)
    assert tape.complete and score_first(evidence(event_log=tape.event_log)).verdict == "PASS"
    starts = sorted({0, *np.flatnonzero(tokens[:-1] == BOS).tolist()})
    at = updates * documents
    assert end_of_batches(tokens, BOS, documents, updates) == (starts[at] if at < len(starts) else length - 1)


def test_a_document_cannot_be_entered_in_its_middle() -> None:
    scorer = scorer_of(config(method="lora"))
    start = int(np.flatnonzero(TOKENS[1:] == BOS)[0]) + 1
    assert scorer.score(lambda a, b: TOKENS[a:b], start, 200).shape == (200 - start,)
    with pytest.raises(RuleViolation, match="in the middle of a document"):
        scorer.score(lambda a, b: TOKENS[a:b], start + 1, 200)


def test_no_document_waits_for_a_longer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One document of ten chunks and 20 of one chunk take ten passes of three rows."""
    tokens = np.full(481, 7, dtype=np.uint16)
    tokens[[0, *range(160, 480, 16)]] = BOS
    passes: list[int] = []
    one_pass = DocumentScorer._pass

    def counting(self: DocumentScorer, adapters: Any, rows: list[Any], *rest: Any) -> Any:
        passes.append(len(rows))
        return one_pass(self, adapters, rows, *rest)

    monkeypatch.setattr(DocumentScorer, "_pass", counting)
    run(tokens, lora={"documents": 3, "chunk_tokens": 16})
    assert passes == [3] * 10


def test_lines_are_shared_out_by_work() -> None:
    tokens = np.full(700, 7, dtype=np.uint16)
    tokens[[0, 400, 500, 600]] = BOS
    lines = document_lines(tokens, 0, BOS, 4, keep_a=False)
    shares = share_lines(lines, lambda document: len(document.tokens), 2)
    assert [[document.start for line in share for document in line] for share in shares] == [[0], [400, 500, 600]]


@pytest.mark.parametrize("lora", [{}, {"keep_a": True, "documents": 3, "targets": list(ALL), "beta1": 0.0}])
def test_full_passes_for_the_compiler_score_the_same(lora: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)
    monkeypatch.setattr(document_scorer, "_PASS_TOKENS", 64)
    settings_ = config(method="lora", lora=lora).updated({"model.ln_scale": True})
    losses = []
    for compiled in (False, True):
        tape = ScoreTape(TOKENS)
        model = tiny_gpt(settings_.model)
        scorer = DocumentScorer(
            model, settings_.ttt.lora, window=WINDOW, bos_id=BOS, seed=5, world=ALONE, compiled=compiled
        )
        evaluate_documents(tape, scorer)
        losses.append(tape.nll)
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-5)


def test_layers_that_are_alike_share_one_compiled_graph() -> None:
    """Six runs of layers that differ in their norm scales: the first has an input without gradients."""
    model = tiny_gpt(config().model.updated(LOOPED | {"ln_scale": True}))
    counter = CompileCounterWithBackend("eager")
    sites = lora_sites(model, ALL)
    a = initial_a(sites, 3, 0, torch.device("cpu"))
    adapters = DocumentAdapters(sites, [t.expand(2, *t.shape) for t in a], config(method="lora").ttt.lora)
    tokens = torch.randint(VOCAB, (2, 11), generator=torch.Generator().manual_seed(0))
    for parameter in adapters.parameters:
        parameter.requires_grad_()
    expected = adapted_logits(model, adapters, tokens, 5)
    logits = adapted_logits(model, adapters, tokens, 5, blocks=compiled_blocks_(model, counter))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
    assert counter.frame_count == 2


def phased(tokens: np.ndarray, **lora: Any) -> tuple[ScoreTape, GPT]:
    """A pass whose weights learn after two and after four documents, and the model that it restored."""
    weights = {"lr": 0.05, "epochs": 1, "chunk_tokens": 16}
    settings_ = config(method="lora", weights=weights, lora={"global_after": [2, 4], **lora})
    tape, model = ScoreTape(tokens), tiny_gpt(settings_.model)
    with preserved(model):
        adapted(settings_, model, len(tokens) - 1).run(tape)
    return tape, model


def test_all_weights_learn_from_the_documents_so_far() -> None:
    """By definition: documents 0 and 1, SGD on their tokens, documents 2 and 3, SGD on all four, then the rest."""
    tape, model = phased(TOKENS)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), tiny_gpt().parameters(), strict=True))
    starts = [0, *(i for i in range(1, len(TOKENS) - 1) if TOKENS[i] == BOS), len(TOKENS) - 1]
    spans = list(itertools.pairwise(starts))
    settings_ = config(method="lora")
    scorer = DocumentScorer(tiny_gpt(), settings_.ttt.lora, window=WINDOW, bos_id=BOS, seed=settings_.seed, world=ALONE)
    plain = scorer.score(lambda a, b: TOKENS[a:b], 0, len(TOKENS) - 1)
    losses = []
    for first, last in ((0, 2), (2, 4), (4, len(spans))):
        start, stop = spans[first][0], spans[last - 1][1]
        losses.append(scorer.score(lambda a, b: TOKENS[a:b], start, stop))
        if last < len(spans):
            scorer.model.requires_grad_(True)
            optimizer = torch.optim.SGD(scorer.model.parameters(), lr=0.05, momentum=0.9)
            stream = np.concatenate([TOKENS[a : b + 1] for a, b in spans[:last]]).astype(np.int64)
            chunks = -(-(len(stream) - 1) // 16)
            assert chunks > 1
            for chunk in range(chunks - 1):
                rows = torch.from_numpy(stream[16 * chunk : 16 * chunk + 17])[None]
                optimizer.param_groups[0]["lr"] = 0.025 * (1 + math.cos(math.pi * chunk / (chunks - 1)))
                optimizer.zero_grad()
                F.cross_entropy(scorer.model(rows[:, :-1])[0], rows[0, 1:]).backward()
                nn.utils.clip_grad_norm_(scorer.model.parameters(), 1.0)
                optimizer.step()
            scorer.model.requires_grad_(False)
    np.testing.assert_allclose(tape.nll, np.concatenate(losses), rtol=0, atol=1e-4)
    assert np.abs(tape.nll - plain).max() > 0.05, "the weights change something"


def test_a_phase_is_an_update_from_the_documents_so_far() -> None:
    tape, _ = phased(TOKENS, keep_a=True, documents=1)
    log = tape.event_log
    assert score_first(evidence(event_log=log)).verdict == "PASS"
    borders = [i for i in range(1, len(TOKENS) - 1) if TOKENS[i] == BOS]
    updates = [event["tokens"] for event in log["events"] if event["event"] == "update"]
    assert [0, borders[1] + 1] in updates and [0, borders[3] + 1] in updates


def test_phases_are_refused_by_the_codec_and_where_no_row_is_learned() -> None:
    settings_ = config(method="lora", lora={"global_after": [2]})
    packed = SimpleNamespace(model=tiny_gpt(settings_.model), device=torch.device("cpu"))
    with (
        pytest.raises(ConfigError, match=r"ttt\.lora\.global_after"),
        fresh_predictor(packed, settings_.ttt, Windows.of(settings_), Streams(1, 9, 9, 1), seed=0),
    ):
        pass
