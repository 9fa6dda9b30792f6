"""Filling a cap: landing on the byte, dividing by curvature, and refusing what cannot be."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.errors import BudgetError, ConfigError
from bitgolf.quantize.allocate import Rated, equal_slope_steps
from bitgolf.quantize.fill_cap import SLACK, Priced, Settings, fill, prices
from bitgolf.quantize.tensors import QuantizedTensor

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = Settings(0, False, 0.01, 128, torch.device("cpu"))
FIXED = 2_000


def model(columns: int = 48, rows: int = 300) -> dict[str, Priced]:
    """Three matrices that matter differently, and a table without a Hessian."""
    rng = torch.Generator().manual_seed(0)
    mix = torch.randn(columns, columns, generator=rng)
    hessian = mix @ mix.T / columns + 0.1 * torch.eye(columns)
    tensors = {}
    for number, rise in enumerate((1e-4, 1e-3, 4e-3)):
        weight = torch.randn(rows, columns, generator=rng) * 0.05 * (number + 1)
        tensors[f"matrix{number}"] = Priced(weight, hessian, None, rise, 1e-6, 0.02)
    table = torch.randn(rows, columns, generator=rng)
    return tensors | {"table": Priced(table, None, None, 5e-4, 1e-6, 0.1)}


def ideal(tensors: dict[str, QuantizedTensor]) -> bytes:
    """A file as long as an order-0 coder's: what matters here is how its length reacts."""
    return bytes(FIXED + round(sum(t.code_bits * t.codes.numel() for t in tensors.values()) / 8))


@pytest.mark.parametrize("bits", [1.0, 2.5, 4.0, 8.0])
@pytest.mark.parametrize("trellis", [0, 8])
def test_the_file_fills_any_cap(bits: float, trellis: int) -> None:
    tensors = model()
    weights = sum(t.weight.numel() for t in tensors.values())
    cap = FIXED + int(weights * bits / 8)
    sizes: list[int] = []

    def encode(quantized: dict[str, QuantizedTensor]) -> bytes:
        sizes.append(len(ideal(quantized)))
        return ideal(quantized)

    filled = fill(tensors, encode, cap, replace(PLAIN, trellis=trellis, column_steps=True))
    assert len(sizes) <= 4, sizes
    assert cap - SLACK <= len(filled.data) <= cap
    assert ideal(filled.tensors) == filled.data and filled.tensors.keys() == tensors.keys()
    for name, tensor in filled.tensors.items():
        assert tensor.grid.step == filled.choices[name]["step"]  # type: ignore[union-attr]
        assert (tensor.column_scales is None) == (name == "table")
    total = sum(choice["predicted_nats"] for choice in filled.choices.values())
    assert filled.predicted_nats == pytest.approx(total)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), roughness=st.sampled_from([600, 3_000, 20_000]), bits=st.floats(1.0, 6.0))
def test_sizes_however_rough_never_exceed_the_cap(seed: int, roughness: int, bits: float) -> None:
    tensors = model(rows=64)
    cap = FIXED + int(4 * 64 * 48 * bits / 8)

    def rough(quantized: dict[str, QuantizedTensor]) -> bytes:
        steps = [f"{t.grid.step:.3g}" for t in quantized.values()]  # type: ignore[union-attr]
        noise = zlib.crc32(f"{seed} {steps}".encode()) % roughness
        return bytes(len(ideal(quantized)) + noise * any(bool(t.codes.any()) for t in quantized.values()))

    filled = fill(tensors, rough, cap, PLAIN)
    assert len(filled.data) <= cap and rough(filled.tensors) == filled.data
    for name, tensor in filled.tensors.items():
        assert tensor.grid.step == filled.choices[name]["step"]  # type: ignore[union-attr]


def test_no_exchange_of_bytes_lowers_the_loss() -> None:
    tensors = model()
    cap = FIXED + 300 * 48 * 4 * 4 // 8
    filled = fill(tensors, ideal, cap, PLAIN)
    rated, sources = prices(tensors, PLAIN)
    assert set(sources.values()) == {"measured"}
    steps = equal_slope_steps(rated, filled.landing.log2_theta)

    def cost(at: dict[str, float]) -> float:
        return sum(tensors[n].increase_nats * (s / tensors[n].step) ** 2 for n, s in at.items())  # type: ignore[operator]

    for one, other in itertools.permutations(steps, 2):
        for share in (0.9, 0.97):
            # All have as many weights, so one's loss of bits is the other's gain.
            assert cost(steps | {one: steps[one] * share, other: steps[other] / share}) > cost(steps)


def test_what_was_not_measured_gets_a_price() -> None:
    tensors = model()
    tensors["matrix0"] = replace(tensors["matrix0"], increase_nats=1e-6, error_nats=1e-5)
    tensors["table"] = replace(tensors["table"], increase_nats=None)
    rated, sources = prices(tensors, PLAIN)
    assert list(rated) == list(tensors)
    assert sources == {
        "matrix0": "two standard errors",
        "matrix1": "measured",
        "matrix2": "measured",
        "table": "median of the others",
    }
    assert rated["matrix0"] == Rated(300 * 48, pytest.approx(2e-5 / 0.02**2))  # type: ignore[arg-type]

    def shares(name: str) -> float:
        mean_square = float(tensors[name].weight.square().mean())
        return rated[name].nats_per_squared_step * mean_square / rated[name].num_weights

    assert shares("table") == pytest.approx(sorted(shares(f"matrix{i}") for i in range(3))[1], rel=1e-5)
    with pytest.raises(ConfigError, match="curvature_tokens"):
        prices({name: replace(t, increase_nats=None) for name, t in tensors.items()}, PLAIN)


def test_caps_out_of_reach() -> None:
    with pytest.raises(BudgetError, match=r"rounded to zero 2,000 bytes remain .* 500 over the 1,500"):
        fill(model(), ideal, FIXED - 500, PLAIN)
    zero = fill(model(), ideal, FIXED, PLAIN)
    assert len(zero.data) == FIXED and all(not t.codes.any() for t in zero.tensors.values())
    finest = fill(model(), ideal, 10_000_000, PLAIN)  # more than codes can use: the finest there is
    assert len(finest.data) < 10_000_000 and max(int(t.codes.abs().max()) for t in finest.tensors.values()) > 5_000


def test_the_finest_file_has_room_for_the_finest_columns() -> None:
    """Pivots of very unequal inputs make steps that differ by far more than weights do."""
    tensors = model()
    scales = torch.logspace(-3, 0, 48)
    hessian = torch.diag(scales.square()) + 1e-9 * torch.eye(48)
    tensors["matrix1"] = replace(tensors["matrix1"], hessian=hessian)
    finest = fill(tensors, ideal, 10_000_000, replace(PLAIN, column_steps=True, damping=1e-6))
    assert all(5_000 < int(t.codes.abs().max()) <= 32_767 for t in finest.tensors.values())
    cap = len(finest.data) - 4_000  # where some tensors have their least step and others have not
    assert cap - 500 <= len(fill(tensors, ideal, cap, replace(PLAIN, column_steps=True, damping=1e-6)).data) <= cap


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_cannot_be_quantized_is_named_before_anything_is_encoded(bad: float) -> None:
    def never(_: dict[str, QuantizedTensor]) -> bytes:
        raise AssertionError("encoded")

    tensors = model()
    weight = tensors["matrix1"].weight.clone()
    weight[3, 4] = bad
    with pytest.raises(ConfigError, match=r"matrix1: .*infinite"):
        fill(tensors | {"matrix1": replace(tensors["matrix1"], weight=weight)}, never, 20_000, PLAIN)
    with pytest.raises(ConfigError, match=r"matrix2: .*positive semi-definite"):
        fill(tensors | {"matrix2": replace(tensors["matrix2"], hessian=-torch.eye(48))}, never, 20_000, PLAIN)
