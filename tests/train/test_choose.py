"""The choice of the average: its rows are never trained on, its losses follow the definition, all ranks agree."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bitgolf.run.clock
from bitgolf.config import ModelConfig, TrainConfig
from bitgolf.config.train import AverageConfig
from bitgolf.data.row_order import HeldOut, RowOrder
from bitgolf.errors import ConfigError
from bitgolf.model import GPT
from bitgolf.run.clock import SAFETY, Clock, Deadline
from bitgolf.run.ranks import World
from bitgolf.train.average import Averages, num_candidates
from bitgolf.train.choose import best, choice_seconds, held_out_losses

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
MODEL = ModelConfig(vocab_size=260, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1)


class Stream:
    """A token stream in memory."""

    def __init__(self, num_tokens: int) -> None:
        self.tokens = np.random.default_rng(0).integers(260, size=num_tokens).astype(np.uint16)
        self.num_tokens = num_tokens

    def read(self, start: int, length: int) -> np.ndarray:
        assert start >= 0
        assert start + length <= self.num_tokens
        return self.tokens[start : start + length]


def weights(seed: int) -> dict[str, torch.Tensor]:
    model = GPT(MODEL, 8).initialize_(torch.Generator().manual_seed(seed))
    return {name: p.detach() + 0.1 for name, p in model.named_parameters()}


def no_deadline(world: World = ALONE) -> Deadline:
    return Deadline(world, Clock(0.0), math.inf)


@settings(deadline=None)
@given(st.integers(30, 400), st.integers(1, 12), st.integers(0, 200), st.booleans(), st.integers(0, 5))
@example(33, 8, 24, False, 0)  # eight tokens are left, a row takes nine
@example(34, 8, 24, False, 0)
def test_training_rows_and_held_out_rows_share_no_token_and_leave_none_out(
    num_tokens: int, seq_len: int, held_out_tokens: int, shuffled: bool, seed: int
) -> None:
    seq_len = max(seq_len, 8)
    if held_out_tokens < seq_len:
        held_out_tokens = 0
    config = TrainConfig(
        seq_len=seq_len, batch_tokens=seq_len, micro_batch_tokens=seq_len, held_out_tokens=held_out_tokens
    )
    rows = held_out_tokens // seq_len
    if rows and num_tokens - rows * seq_len - 1 <= seq_len:
        with pytest.raises(ConfigError, match="held_out_tokens"):
            HeldOut.of(num_tokens, config)
        return
    held_out = HeldOut.of(num_tokens, config)
    assert held_out.num_rows == rows
    assert held_out.first < num_tokens if rows else HeldOut.of(seq_len, config) == HeldOut(seq_len, 0, seq_len)
    stream = Stream(num_tokens)
    order = RowOrder(held_out.first, seq_len, shuffled, seed)
    starts = [order.spans(row)[0][0] for row in range(2 * order.rows_per_epoch)]
    trained = {i for start in starts for i in range(start, start + seq_len + 1)}
    assert max(trained) < held_out.first
    if rows:
        read = held_out.rows(stream, 0, rows)
        assert read.shape == (rows, seq_len + 1)
        assert read.dtype == torch.int64
        for number in range(rows):
            start = held_out.first + number * seq_len
            assert read[number].tolist() == stream.tokens[start : start + seq_len + 1].tolist()
            assert held_out.rows(stream, number, 1)[0].tolist() == read[number].tolist()
        assert held_out.first + rows * seq_len + 1 == num_tokens  # up to the very last token
    else:
        assert held_out.first == num_tokens


def slow_loss(candidate: dict[str, torch.Tensor], held_out: HeldOut, stream: Stream) -> float:
    """Mean of -log p over every held-out target, one row and one position at a time, in float64."""
    model = GPT(MODEL, 8)
    model.load_state_dict(candidate, strict=False)
    total = []
    for number in range(held_out.num_rows):
        start = held_out.first + number * held_out.seq_len
        row = torch.from_numpy(stream.tokens[start : start + held_out.seq_len + 1].astype(np.int64))
        with torch.no_grad():
            logits = model(row[None, :-1])[0].double().numpy()
        for position, target in enumerate(row[1:].tolist()):
            shifted = logits[position] - logits[position].max()
            total.append(np.log(np.exp(shifted).sum()) - shifted[target])
    return float(np.mean(total))


@pytest.fixture(scope="module")
def setting() -> tuple[GPT, dict[str, Any], HeldOut, Stream]:
    stream = Stream(200)
    held_out = HeldOut.of(200, TrainConfig(seq_len=8, batch_tokens=8, micro_batch_tokens=8, held_out_tokens=60))
    assert held_out.num_rows == 7
    return (
        GPT(MODEL, 8).initialize_(torch.Generator().manual_seed(9)),
        {f"w{i}": weights(i) for i in range(3)},
        held_out,
        stream,
    )


@pytest.mark.parametrize("micro_rows", [1, 3, 7, 50])
def test_losses_are_the_mean_over_all_held_out_targets(setting: Any, micro_rows: int) -> None:
    model, candidates, held_out, stream = setting
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses, tokens = held_out_losses(model, candidates, held_out, stream, micro_rows, ALONE, no_deadline())
    assert tokens == 56
    assert list(losses) == list(candidates)
    for name, candidate in candidates.items():
        assert losses[name] == pytest.approx(slow_loss(candidate, held_out, stream), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    assert best(losses, ALONE) == min(losses, key=losses.__getitem__)


@pytest.mark.parametrize(("size", "micro_rows"), [(2, 1), (2, 3), (3, 2), (4, 2), (5, 7)])
def test_ranks_share_the_rows_and_get_the_loss_of_all_of_them(setting: Any, size: int, micro_rows: int) -> None:
    model, candidates, held_out, stream = setting
    sums: list[torch.Tensor] = []

    class Rank(World):
        """Collects the sums of a rank instead of averaging them."""

        def mean_(self, tensors: list[torch.Tensor]) -> None:
            sums.append(tensors[0].clone())
            tensors[0].fill_(1.0)

        def from_main(self, value: float) -> float:
            return value

    for rank in range(size):
        world = Rank(rank, size, CPU)
        held_out_losses(model, candidates, held_out, stream, micro_rows, world, no_deadline(world))
    total = torch.stack(sums).sum(0)
    assert float(total[-1]) == held_out.num_rows  # each row once
    alone, _ = held_out_losses(model, candidates, held_out, stream, 7, ALONE, no_deadline())
    assert (total[:-1] / total[-1]).tolist() == pytest.approx(list(alone.values()), rel=1e-6)


def test_if_the_clock_ends_the_scoring_all_candidates_have_the_same_rows(setting: Any) -> None:
    model, candidates, held_out, stream = setting

    class Twice(Deadline):
        asked = 0

        def another_fits(self) -> bool:
            self.asked += 1
            return self.asked < 2

    losses, tokens = held_out_losses(model, candidates, held_out, stream, 2, ALONE, Twice(ALONE, Clock(0.0), 0.0))
    assert tokens == 2 * 2 * 8
    first_four = HeldOut(held_out.first, 4, 8)
    for name, candidate in candidates.items():
        assert losses[name] == pytest.approx(slow_loss(candidate, first_four, stream), rel=1e-5)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({"a": 2.0, "b": 1.0}, "b"),
        ({"a": 1.0, "b": 1.0}, "a"),
        ({"a": math.nan, "b": 3.0}, "b"),
        ({"a": math.inf, "b": math.nan, "c": 9.0}, "c"),
        ({"a": math.nan, "b": math.nan}, "a"),
    ],
)
def test_the_least_finite_loss_wins_and_the_first_of_equals(losses: dict[str, float], expected: str) -> None:
    assert best(losses, ALONE) == expected


@pytest.mark.parametrize(
    ("changes", "snapshots", "expected"),
    [
        ({}, 3, ["last weights"]),
        ({"ema_decay": 0.5}, 3, ["ema 0.5", "last weights"]),
        ({"swa_weight": 1.0}, 3, ["swa of 3", "last weights"]),
        ({"swa_weight": 1.0, "ema_decay": 0.5}, 3, ["swa of 3", "ema 0.5", "last weights"]),
        ({"swa_weight": 0.25}, 3, ["0.75 x last weights + 0.25 x swa of 3", "swa of 3", "last weights"]),
        (
            {"swa_weight": 0.25, "ema_decay": 0.5},
            3,
            ["0.75 x ema 0.5 + 0.25 x swa of 3", "swa of 3", "ema 0.5", "last weights"],
        ),
        ({"swa_weight": 0.5, "ema_decay": 0.5}, 0, ["ema 0.5 (no swa snapshot was due)", "last weights"]),
        (
            {"ema_decay": 0.5, "ema_candidates": (0.75, 0.9)},
            3,
            ["ema 0.5", "ema 0.75", "ema 0.9", "last weights"],
        ),
        ({"swa_weight": 1.0}, 0, ["last weights (no swa snapshot was due)"]),
    ],
)
def test_candidates_are_everything_that_was_averaged_the_configured_one_first(
    changes: dict[str, Any], snapshots: int, expected: list[str]
) -> None:
    config = AverageConfig(**changes, swa_start=0.5, swa_spacing=0.1)
    parameter = torch.zeros(1)
    averages = Averages({"p": parameter}, config)
    emas = dict.fromkeys((0.5, 0.75, 0.9), 0.0)
    for step in range(3):
        parameter.fill_(2.0**step)
        averages.update(step / 4, 0.1 if snapshots else 0.9)
        emas = {decay: decay * value + (1 - decay) * 2.0**step for decay, value in emas.items()}
    swa, last = 7 / 3, 4.0
    base, weight = emas[0.5] if "ema_decay" in changes else last, changes.get("swa_weight", 0.0)
    restarted = Averages({"p": parameter}, config)
    for name, tensor in restarted.state().items():
        tensor.copy_(averages.state()[name])
    for kept in (averages, restarted):
        candidates = kept.candidates()
        assert list(candidates) == expected
        assert len(candidates) <= num_candidates(config)
        for name, candidate in candidates.items():
            if name.startswith("swa"):
                value = swa
            elif " x " in name:
                value = (1 - weight) * base + weight * swa
            else:
                value = emas[float(name.split()[1])] if name.startswith("ema") else last
            assert candidate["p"].item() == pytest.approx(value)
        weights, description = kept.shipped()
        assert description == expected[0] and torch.equal(weights["p"], candidates[description]["p"])


@pytest.mark.parametrize(("micro_rows", "size", "rounds"), [(1, 1, 1000), (500, 1, 2), (300, 2, 2), (400, 2, 2)])
def test_time_is_reserved_for_every_candidate_and_round(
    micro_rows: int, size: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = GPT(MODEL, 8).initialize_(torch.Generator().manual_seed(0))
    config = TrainConfig().updated(
        {
            "seq_len": 8,
            "batch_tokens": 8,
            "micro_batch_tokens": 8,
            "average.ema_decay": 0.5,
            "average.swa_weight": 0.5,
            "held_out_tokens": 8000,
        }
    )
    ticks = itertools.count()
    monkeypatch.setattr(bitgolf.run.clock.time, "perf_counter", lambda: float(next(ticks)))
    tokens = torch.zeros(micro_rows, 9, dtype=torch.int64)
    seconds = choice_seconds(model, config.average, HeldOut.of(10_000, config), tokens, World(0, size, CPU))
    assert seconds == pytest.approx(SAFETY * 4 * rounds)  # one second per pass, four candidates
