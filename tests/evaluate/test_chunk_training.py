"""Chunk test-time training against a plain loop over single rows, and in the stage `score`."""

import copy
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gpt import ALONE, WINDOW, adapted, config, text, tiny_gpt
from toy_models import make_scorer

from bitgolf.audit.run import audit_run
from bitgolf.config import Config, ModelConfig, TTTConfig, load_config
from bitgolf.errors import TrainingDiverged
from bitgolf.evaluate import ScoreTape, evaluate
from bitgolf.evaluate.adapted_pass import adapted_pass_name
from bitgolf.evaluate.chunk_training import (
    ChunkTTT,
    chunk_rows,
    cosine_lr,
    learning_parameters,
    preserved,
    share,
    step_scale,
)
from bitgolf.evaluate.references import NOT_ADMISSIBLE
from bitgolf.evaluate.score import score
from bitgolf.evaluate.split_model import CompiledModel
from bitgolf.model.gpt import GPT
from bitgolf.run.directory import RunDirectory
from bitgolf.run.ranks import World

TOKENS = text(171)  # targets 0..169: four whole chunks of 40 and one of 10


def run(settings_: Config, model: GPT, tokens: np.ndarray = TOKENS, world: World = ALONE) -> ScoreTape:
    tape = ScoreTape(tokens)
    adapted(settings_, model, tape.num_targets, world=world).run(tape)
    return tape


def weights_sha256(model: GPT) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


def by_definition(settings_: Config, model: GPT, tokens: np.ndarray) -> tuple[np.ndarray, GPT]:
    """After each chunk, for every epoch and batch: the mean loss of its rows, an explicit clip, a step."""
    ttt = settings_.ttt
    model = copy.deepcopy(model)
    names = {
        "last_blocks": lambda n: (
            n.startswith(f"blocks.{len(model.blocks) - 1}.")
            or n.endswith(("attn_scale", "mlp_scale", "bigram.scale", "value_embedding.scale", "layer_scales"))
        ),
        "full": lambda n: not any(n.startswith(f"blocks.{layer}.") for layer in range(ttt.weights.freeze_blocks)),
    }
    learning = [p.requires_grad_() for n, p in model.named_parameters() if names[ttt.method](n)]
    optimizer: torch.optim.Optimizer = torch.optim.SGD(learning, lr=1.0, momentum=ttt.weights.momentum)
    if ttt.weights.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            learning, betas=(ttt.weights.beta1, ttt.weights.beta2), weight_decay=ttt.weights.weight_decay
        )
    total = len(tokens) - 1
    chunks = [(a, min(a + ttt.weights.chunk_tokens, total)) for a in range(0, total, ttt.weights.chunk_tokens)]
    losses = []
    for c, (start, stop) in enumerate(chunks):
        scorer = make_scorer(
            settings_.score.methods[-1], model, window=WINDOW, stride=settings_.score.stride, batch_tokens=48
        )
        losses.append(scorer.score(lambda a, b: tokens[a:b], start, stop))
        if c == len(chunks) - 1:
            break
        rows = [tokens[a : a + WINDOW + 1].astype(np.int64) for a in range(start, stop - WINDOW + 1, WINDOW)]
        step, steps = 0, ttt.weights.epochs * math.ceil(len(rows) / ttt.weights.batch_rows)
        for _ in range(ttt.weights.epochs):
            for first in range(0, len(rows), ttt.weights.batch_rows):
                batch = rows[first : first + ttt.weights.batch_rows]
                loss = sum(
                    F.cross_entropy(model(torch.from_numpy(row[None, :-1]))[0], torch.from_numpy(row[1:]))
                    for row in batch
                ) / len(batch)
                optimizer.zero_grad()
                loss.backward()
                norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in learning))
                for p in learning:
                    p.grad *= min(1.0, ttt.weights.grad_clip / norm) if ttt.weights.grad_clip else 1.0
                lr = ttt.weights.lr * 0.5 * (1 + math.cos(math.pi * c / (len(chunks) - 1)))
                if steps > 1:
                    floor = ttt.weights.step_cosine_floor
                    lr *= floor + (1 - floor) * (1 + math.cos(math.pi * step / (steps - 1))) / 2
                optimizer.param_groups[0]["lr"] = lr
                optimizer.step()
                step += 1
    return np.concatenate(losses), model


@pytest.mark.parametrize("methods", [["sliding"], ["chunked"]])
@pytest.mark.parametrize(
    "ttt",
    [
        {"method": "full", "weights": {"lr": 0.05, "epochs": 2, "batch_rows": 1}},
        {
            "method": "full",
            "weights": {"lr": 0.05, "epochs": 1, "batch_rows": 32, "grad_clip": 0.1},
        },
        {
            "method": "full",
            "weights": {"lr": 0.05, "epochs": 3, "batch_rows": 1, "step_cosine_floor": 0.1, "momentum": 0.5},
        },
        {
            "method": "full",
            "weights": {"lr": 0.05, "batch_rows": 1, "step_cosine_floor": 0.0, "freeze_blocks": 2},
        },
        {
            "method": "full",
            "weights": {"optimizer": "adamw", "lr": 0.003, "freeze_blocks": 3, "step_cosine_floor": 0.4},
        },
        {
            "method": "last_blocks",
            "weights": {"last_blocks": 1, "optimizer": "adamw", "lr": 0.003, "weight_decay": 0.1, "grad_clip": 0},
        },
    ],
)
def test_equals_a_plain_loop(ttt: dict[str, Any], methods: list[str]) -> None:
    settings_ = config(**ttt)
    settings_ = settings_.model_copy(update={"score": settings_.score.model_copy(update={"methods": tuple(methods)})})
    model = tiny_gpt()
    before = {name: p.clone() for name, p in model.named_parameters()}
    nll, expected = by_definition(settings_, model, TOKENS)
    tape = run(settings_, model)
    np.testing.assert_allclose(tape.nll, nll, rtol=0, atol=2e-5)
    moved = 0.0
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.detach(), dict(expected.named_parameters())[name].detach(), rtol=0, atol=2e-5
        )
        moved = max(moved, float((parameter.detach() - before[name]).abs().max()))
        frozen = name.startswith(tuple(f"blocks.{layer}." for layer in range(settings_.ttt.weights.freeze_blocks)))
        assert not frozen or torch.equal(parameter, before[name])
    assert moved > 1e-3
    assert tape.state == 4, "the last chunk is not learned from"


def test_scores_up_to_the_first_update_are_those_without_it() -> None:
    plain = ScoreTape(TOKENS)
    evaluate(plain, make_scorer("sliding", tiny_gpt(), window=WINDOW, stride=4, batch_tokens=48))
    trained = run(config(method="full", weights={"lr": 0.05}), tiny_gpt())
    np.testing.assert_allclose(trained.nll[:40], plain.nll[:40], rtol=0, atol=1e-6)
    assert np.abs(trained.nll[40:] - plain.nll[40:]).max() > 1e-3
    updates = [event["tokens"] for event in trained.event_log["events"] if event["event"] == "update"]
    assert updates == [[c * 40, c * 40 + 33] for c in range(4)], "two rows of 16 and their targets"


def test_gradients_are_accumulated_over_forward_passes() -> None:
    nll = []
    for batch_tokens in (WINDOW, 48):
        model = tiny_gpt()
        tape = ScoreTape(TOKENS)
        adapted(config(method="full", weights={"lr": 0.05}), model, 170, batch_tokens=batch_tokens).run(tape)
        nll.append(tape.nll)
    np.testing.assert_allclose(nll[0], nll[1], rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it traces
def test_a_compiled_forward_sees_what_is_learned() -> None:
    eager = run(config(method="full", weights={"lr": 0.05}), tiny_gpt()).nll
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model, tape = tiny_gpt(), ScoreTape(TOKENS)
    compiled = CompiledModel(model, backend="eager")
    adapted(config(method="full", weights={"lr": 0.05}), model, 170, forward=compiled).run(tape)
    np.testing.assert_allclose(tape.nll, eager, rtol=0, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3, "hidden states, head, and losses of rows"


def test_weights_come_back_even_after_an_error() -> None:
    model = tiny_gpt()
    before = weights_sha256(model)
    with preserved(model):
        run(config(method="full", weights={"lr": 0.05}), model)
        assert weights_sha256(model) != before
    assert weights_sha256(model) == before
    with (
        pytest.raises(TrainingDiverged, match=r"test-time training: the gradient norm is .* lower ttt\.weights\.lr"),
        preserved(model),
    ):
        with torch.no_grad():
            model.embedding[3, 0] = torch.inf
        model.requires_grad_(True)
        ttt = ChunkTTT(
            model, model, config(method="full").ttt, window=WINDOW, num_targets=170, batch_tokens=48, world=ALONE
        )
        ttt.update(lambda a, b: np.full(b - a, 3), 0, 40)
    assert weights_sha256(model) == before
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_last_blocks_of_the_seed_system_learn_as_many_weights_as_published() -> None:
    """In PR 576 and 585, 5,780,500 of 33.6 million weights learn."""
    seed = ModelConfig(
        vocab_size=1024,
        num_layers=11,
        model_dim=512,
        num_heads=8,
        num_kv_heads=8,
        mlp_multiple=3.5,
        bigram_rows=6144,
        bigram_dim=128,
        ve_layers=(9, 10),
        ve_dim=128,
        smear="v1",
        rope_dims=16,
    )
    with torch.device("meta"):
        model = GPT(seed, 2048)
    learning = learning_parameters(model, load_config("demo", {"ttt.method": "last_blocks"}).ttt)
    assert sum(p.numel() for p in learning.values()) == 5_780_500
    assert "embedding" not in learning and "blocks.8.attn_scale" in learning and "blocks.8.resid_mix" not in learning


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 30), st.integers(1, 60), st.integers(1, 20))
def test_rows_are_consecutive_and_the_remainder_is_dropped(start: int, length: int, window: int) -> None:
    tokens = np.arange(200, dtype=np.uint16)
    limit = start + length + 1

    def revealed(a: int, b: int) -> np.ndarray:
        assert b <= limit
        return tokens[a:b]

    rows = chunk_rows(revealed, start, start + length, window)
    assert rows.shape == (length // window, window + 1) and rows.dtype == np.int64
    for number, row in enumerate(rows):
        assert row.tolist() == list(range(start + number * window, start + (number + 1) * window + 1))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(1, 9))
def test_shares_of_all_ranks_are_the_batch(count: int, size: int) -> None:
    rows = np.arange(count)
    shares = [share(rows, World(rank, size, torch.device("cpu"))) for rank in range(size)]
    assert len({len(picked) for picked, _ in shares}) == 1, "every rank makes as many forward passes"
    assert sorted(r for picked, weights in shares for r, w in zip(picked, weights, strict=True) if w) == rows.tolist()
    mean = np.mean([(picked * weights).sum() for picked, weights in shares])
    assert mean == pytest.approx(rows.mean(), rel=1e-5)


def test_cosine_over_chunks() -> None:
    assert [cosine_lr(0.2, c, 5) for c in (0, 2, 4)] == pytest.approx([0.2, 0.1, 0.0])
    assert cosine_lr(0.2, 0, 1) == 0.2


def test_cosine_over_the_steps_of_a_chunk() -> None:
    published = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(5)]
    assert [step_scale(0.1, k, 5) for k in range(5)] == pytest.approx(published)
    assert (published[0], published[4]) == (1.0, pytest.approx(0.1))
    assert [step_scale(1.0, k, 5) for k in range(5)] == [1.0] * 5, "off is exactly off"
    assert step_scale(0.1, 0, 1) == 1.0


def test_first_blocks_are_frozen_and_nothing_else() -> None:
    model = tiny_gpt()
    learning = learning_parameters(model, config(method="full", weights={"freeze_blocks": 2}).ttt)
    assert set(dict(model.named_parameters())) - set(learning) == {
        name for name, _ in model.named_parameters() if name.startswith(("blocks.0.", "blocks.1."))
    }
    many = GPT(ModelConfig(num_layers=12, model_dim=16, num_heads=2, num_kv_heads=1), WINDOW)
    learning = learning_parameters(many, config(method="full", weights={"freeze_blocks": 2}).ttt)
    assert "blocks.10.attn_scale" in learning and "blocks.1.attn_scale" not in learning


def test_the_pass_has_a_name_for_what_it_does() -> None:
    names = {"none": "", "full": "chunked+ttt", "last_blocks": "chunked+ttt", "lora": "documents+lora"}
    for method, name in names.items():
        assert adapted_pass_name(config(method=method).ttt, "chunked") == name


def reconfigure(root: Path, **ttt: Any) -> RunDirectory:
    """The run directory with another `ttt` section."""
    new = RunDirectory.open(root).config.model_copy(update={"ttt": TTTConfig.model_validate(ttt)})
    (root / "config.toml").write_text(new.to_toml())
    return RunDirectory.open(root)


@pytest.mark.parametrize(
    "ttt, name",
    [
        (
            {"method": "full", "weights": {"chunk_tokens": 1024, "lr": 0.02, "epochs": 1}, "rescore_temperature": 0.98},
            "sliding+ttt",
        ),
        ({"method": "lora", "lora": {"chunk_tokens": 64, "rank": 2, "documents": 16}}, "documents+lora"),
    ],
)
def test_the_adapted_pass_is_the_headline_and_passes_the_audit(run_copy: Path, ttt: dict[str, Any], name: str) -> None:
    run_directory = reconfigure(run_copy, **ttt)
    plain = json.loads((run_copy / "score.json").read_text())
    artifact = (run_copy / "model.bitgolf").read_bytes()
    score(run_directory, ALONE)
    stored = json.loads((run_copy / "score.json").read_text())
    assert stored["headline"] == name and stored["headline_bpb"] == stored["methods"][name]["bpb"]
    for method in ("chunked", "sliding"):
        assert stored["methods"][method]["bpb"] == pytest.approx(plain["methods"][method]["bpb"], abs=1e-6)
    losses = np.load(run_copy / "nll.npy")
    assert losses.astype(np.float64).mean() == pytest.approx(stored["methods"][name]["loss_nats"], rel=1e-9)
    log = json.loads((run_copy / "tape.json").read_text())
    assert sum(event["event"] == "update" for event in log["events"]) == stored["methods"][name]["updates"] > 0
    charges = json.loads((run_copy / "budget.json").read_text())["charges"]
    charged = {charge["what"] for charge in charges if charge["stage"] == "score"}
    assert name in charged and "rescored" not in charged
    if "rescore_temperature" in ttt:
        again = stored["diagnostic"]["rescored"]
        assert again["label"] == NOT_ADMISSIBLE and again["temperature"] == 0.98
        assert again["bpb"] != stored["headline_bpb"] and "rescored" not in stored["methods"]
    else:
        assert stored["diagnostic"] == {}
    assert stored["headline_bpb"] != stored["methods"]["sliding"]["bpb"]
    assert (run_copy / "model.bitgolf").read_bytes() == artifact
    names = ("reproduction", "losses-match", "score-first", "scored-once", "numbers-agree", "identity")
    verdict = audit_run(run_directory, quick=True, only=names)
    not_run = [] if ttt["method"] == "lora" else ["reproduction"]  # the tail of a chain of updates is not scored again
    assert [c.name for c in verdict.checks if c.verdict != "PASS"] == not_run, verdict
    tampered = losses.copy()
    tampered[:700] += 0.01
    np.save(run_copy / "nll.npy", tampered)
    assert audit_run(run_directory, quick=True, only=("reproduction",))["reproduction"].verdict == "FAIL"


def test_a_chunk_as_long_as_the_text_is_pointed_out(run_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    score(reconfigure(run_copy, method="full", weights={"chunk_tokens": 10_000_000}), ALONE)
    assert "ttt.weights.chunk_tokens 10000000 holds all" in caplog.text and "nothing is learned" in caplog.text
