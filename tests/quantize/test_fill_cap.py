"""Method rate: the file fills its cap, bytes are divided by curvature, and impossible caps are refused."""

import itertools
import math
import zlib
from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.artifact.sizes import ArtifactSizes
from bitgolf.config import PackConfig
from bitgolf.errors import BudgetError, ConfigError
from bitgolf.measure.curvature import Curvature
from bitgolf.measure.fisher import Fisher
from bitgolf.measure.statistics import Statistics
from bitgolf.quantize.allocate import MeasuredTensor, TensorCurvature, curvatures, equal_slope_steps
from bitgolf.quantize.fill_cap import SLACK, _correction, fill_cap, measured_tensors
from bitgolf.quantize.packed import Packed
from bitgolf.quantize.tensors import QuantizedTensor

PLAIN = PackConfig(method="rate").updated({"rate.trellis": 0, "rate.column_steps": False})
BY_COLUMN = PLAIN.updated({"rate.column_steps": True})
FIXED = 2_000


def model(columns: int = 48, rows: int = 300) -> dict[str, MeasuredTensor]:
    """Three matrices that matter differently, and a table without a Hessian."""
    rng = torch.Generator().manual_seed(0)
    mix = torch.randn(columns, columns, generator=rng)
    hessian = mix @ mix.T / columns + 0.1 * torch.eye(columns)
    tensors = {}
    for number, rise in enumerate((1e-4, 1e-3, 4e-3)):
        weight = torch.randn(rows, columns, generator=rng) * 0.05 * (number + 1)
        tensors[f"matrix{number}"] = MeasuredTensor(weight, hessian, None, Curvature(0.02, rise))
    table = torch.randn(rows, columns, generator=rng)
    return tensors | {"table": MeasuredTensor(table, None, None, Curvature(0.1, 5e-4))}


def file_of(num_bytes: int, tensors: Iterable[QuantizedTensor]) -> Packed:
    sizes = ArtifactSizes(num_bytes, 0, {}, {}, {})
    return Packed(bytes(num_bytes), sizes, {tensor.name: tensor for tensor in tensors}, {})


def ideal_bytes(tensors: Iterable[QuantizedTensor]) -> int:
    return FIXED + round(sum(t.code_bits * t.codes.numel() for t in tensors) / 8)


def ideal(tensors: Iterable[QuantizedTensor]) -> Packed:
    """A file as long as that of an order-0 coder. Only its length matters here."""
    return file_of(ideal_bytes(tensors := list(tensors)), tensors)


def choices(packed: Packed) -> dict[str, dict[str, float]]:
    assert packed.allocation is not None
    return packed.allocation["tensors"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("bits", [1.0, 2.5, 4.0, 8.0])
@pytest.mark.parametrize("trellis", [0, 8])
def test_the_file_fills_any_cap(bits: float, trellis: int) -> None:
    tensors = model()
    weights = sum(t.weight.numel() for t in tensors.values())
    cap = FIXED + int(weights * bits / 8)
    sizes: list[int] = []

    def encode(quantized: Iterable[QuantizedTensor]) -> Packed:
        packed = ideal(quantized)
        sizes.append(len(packed))
        return packed

    filled = fill_cap(tensors, encode, cap, BY_COLUMN.updated({"rate.trellis": trellis}))
    assert len(sizes) <= 4, sizes
    assert cap - SLACK <= len(filled) <= cap
    assert filled.quantized.keys() == tensors.keys() and len(filled) == ideal_bytes(filled.quantized.values())
    for name, tensor in filled.quantized.items():
        assert tensor.grid.step == choices(filled)[name]["step"]  # type: ignore[union-attr]
        assert (tensor.column_scales is None) == (name == "table")
    total = sum(choice["predicted_nats"] for choice in choices(filled).values())
    assert filled.allocation is not None and filled.allocation["predicted_nats"] == pytest.approx(total)


@pytest.mark.parametrize(("response", "corrections"), [(1, 1), (3, 2)])
def test_single_tensors_bring_a_near_file_into_the_slack(
    response: int, corrections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file is 100 bytes above the cap. With response 3, sizes change three times as much as predicted.

    Then the first correction goes too far, and half of it is right.
    """
    monkeypatch.setattr("bitgolf.quantize.fill_cap._REACH", 10)
    tensors = model()
    cap = FIXED + 300 * 48 * 4 * 3 // 8
    ideals: list[int] = []

    def encode(quantized: Iterable[QuantizedTensor]) -> Packed:
        tensors = list(quantized)
        ideals.append(ideal_bytes(tensors))
        return file_of(cap + 100 + response * (ideals[-1] - ideals[0]), tensors)

    filled = fill_cap(tensors, encode, cap, PLAIN)
    assert filled.allocation is not None and len(filled.allocation["passes"]) == 1
    assert len(ideals) == 1 + corrections
    assert cap - SLACK <= len(filled) <= cap


@pytest.mark.parametrize(
    ("bits", "name", "halvings"),
    [(25.0, "small", 0.25), (-25.0, "small", -0.25), (26.0, "large", 0.026), (250.0, "large", 0.25),
     (5_000.0, "large", 0.5), (-5_000.0, "large", -0.5)],
)  # fmt: skip
def test_the_smallest_tensor_that_need_not_change_much_is_corrected(bits: float, name: str, halvings: float) -> None:
    """A quarter of a bit per weight at most, or the largest tensor, by half a bit per weight at most."""
    sizes = {"large": 1_000, "small": 100}
    fake: Any = SimpleNamespace(
        names=list(sizes),
        curvature={name: SimpleNamespace(num_weights=size) for name, size in sizes.items()},
        forecast=SimpleNamespace(bits=lambda step, which: -list(sizes.values())[which] * np.log2(step)),
    )
    which, step = _correction(fake, {"large": 0.5, "small": 0.125}, bits)
    before = {"large": 0.5, "small": 0.125}[name]
    assert which == name and math.log2(before / step) == pytest.approx(halvings, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), roughness=st.sampled_from([600, 3_000, 20_000]), bits=st.floats(1.0, 6.0))
def test_sizes_however_rough_never_exceed_the_cap(seed: int, roughness: int, bits: float) -> None:
    tensors = model(rows=64)
    cap = FIXED + int(4 * 64 * 48 * bits / 8)

    sizes: list[int] = []

    def rough(quantized: Iterable[QuantizedTensor]) -> Packed:
        tensors = list(quantized)
        steps = [f"{t.grid.step:.3g}" for t in tensors]  # type: ignore[union-attr]
        noise = zlib.crc32(f"{seed} {steps}".encode()) % roughness
        sizes.append(ideal_bytes(tensors) + noise * any(bool(t.codes.any()) for t in tensors))
        return file_of(sizes[-1], tensors)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("bitgolf.quantize.fill_cap._KEPT_FILES", 100)
        filled = fill_cap(tensors, rough, cap, PLAIN)
    assert len(filled) == max(size for size in sizes if size <= cap)
    assert len(rough(filled.quantized.values())) == len(filled) <= cap
    for name, tensor in filled.quantized.items():
        assert tensor.grid.step == choices(filled)[name]["step"]  # type: ignore[union-attr]


def test_no_exchange_of_bytes_lowers_the_loss() -> None:
    tensors = model()
    cap = FIXED + 300 * 48 * 4 * 4 // 8
    filled = fill_cap(tensors, ideal, cap, PLAIN)
    curvature = curvatures(tensors, trellis=0)
    assert {tensor.source for tensor in curvature.values()} == {"measured"}
    assert filled.allocation is not None
    steps = equal_slope_steps(curvature, filled.allocation["log2_theta"])

    def increase(at: dict[str, float]) -> float:
        measured = {name: tensor.curvature for name, tensor in tensors.items() if tensor.curvature}
        return sum(measured[name].increase_nats * (step / measured[name].step) ** 2 for name, step in at.items())

    for one, other in itertools.permutations(steps, 2):
        for share in (0.9, 0.97):
            # All tensors have equally many weights, so one loses the bits that the other gains.
            assert increase(steps | {one: steps[one] * share, other: steps[other] / share}) > increase(steps)


@pytest.mark.parametrize("missing", [None, Curvature(0.0, 1.0)])
def test_missing_and_vanishing_measurements_are_replaced(missing: Curvature | None) -> None:
    tensors = model()
    tensors["matrix0"] = replace(tensors["matrix0"], curvature=Curvature(0.02, 0.0))
    tensors["table"] = replace(tensors["table"], curvature=missing)
    curvature = curvatures(tensors, trellis=0)
    assert list(curvature) == list(tensors)
    assert {name: tensor.source for name, tensor in curvature.items()} == {
        "matrix0": "measured",
        "matrix1": "measured",
        "matrix2": "measured",
        "table": "median of the others",
    }
    assert curvature["matrix0"] == TensorCurvature(300 * 48, pytest.approx(1e-12 / 0.02**2))  # type: ignore[arg-type]

    def shares(name: str) -> float:
        mean_square = float(tensors[name].weight.square().mean())
        return curvature[name].nats_per_squared_step * mean_square / curvature[name].num_weights

    assert shares("table") == pytest.approx(sorted(shares(f"matrix{i}") for i in range(3))[1], rel=1e-5)
    with pytest.raises(ConfigError, match="fisher_tokens"):
        curvatures({name: replace(t, curvature=None) for name, t in tensors.items()}, trellis=0)


@pytest.mark.parametrize("increase", [math.inf, math.nan])
def test_a_curvature_that_is_no_number_is_named(increase: float) -> None:
    tensors = model()
    tensors["matrix1"] = replace(tensors["matrix1"], curvature=Curvature(0.02, increase))
    with pytest.raises(ConfigError, match="matrix1: curvature"):
        curvatures(tensors, trellis=0)


def test_the_error_of_a_trellis_scales_the_curvature() -> None:
    """Curvature is measured with noise of mean square step^2 / 12; 8 states leave 0.0652 step^2."""
    plain, trellis = curvatures(model(), trellis=0), curvatures(model(), trellis=8)
    for name, tensor in model().items():
        assert tensor.curvature is not None
        expected = tensor.curvature.increase_nats / tensor.curvature.step**2
        assert plain[name].nats_per_squared_step == pytest.approx(expected)
        assert trellis[name].nats_per_squared_step == pytest.approx(12 * 0.0652 * expected)


def largest_codes(packed: Packed) -> list[int]:
    return [int(t.codes.abs().max()) for t in packed.quantized.values()]


def test_caps_out_of_reach() -> None:
    with pytest.raises(BudgetError, match=r"rounded to zero 2,000 bytes remain .* 500 over the 1,500"):
        fill_cap(model(), ideal, FIXED - 500, PLAIN)
    zero = fill_cap(model(), ideal, FIXED, PLAIN)
    assert len(zero) == FIXED and not any(largest_codes(zero))
    finest = fill_cap(model(), ideal, 10_000_000, PLAIN)  # more than codes can use: the finest steps there are
    assert len(finest) < 10_000_000 and max(largest_codes(finest)) > 5_000


def test_where_the_search_finds_nothing_the_coarsest_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitgolf.quantize.fill_cap.find_theta", lambda *_, **__: None)
    filled = fill_cap(model(), ideal, FIXED, PLAIN)
    assert len(filled) == FIXED and not any(largest_codes(filled))
    assert filled.allocation is not None
    expected = {"log2_theta": filled.allocation["log2_theta"], "model_bytes": FIXED}
    assert filled.allocation["passes"] == [expected]
    with pytest.raises(BudgetError, match=r"2,000 bytes remain .* 1 over the 1,999"):
        fill_cap(model(), ideal, FIXED - 1, PLAIN)


def test_the_finest_file_has_room_for_the_finest_columns() -> None:
    """Pivots of very unequal inputs make steps that differ by far more than weights do."""
    tensors = model()
    scales = torch.logspace(-3, 0, 48)
    hessian = torch.diag(scales.square()) + 1e-9 * torch.eye(48)
    tensors["matrix1"] = replace(tensors["matrix1"], hessian=hessian)
    fine = BY_COLUMN.updated({"gptq.damping": 1e-6})
    finest = fill_cap(tensors, ideal, 10_000_000, fine)
    assert all(5_000 < largest <= 32_767 for largest in largest_codes(finest))
    cap = len(finest) - 4_000  # where some tensors have their least step and others have not
    assert cap - 500 <= len(fill_cap(tensors, ideal, cap, fine)) <= cap


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_tensor_that_cannot_be_quantized_is_named_before_encoding(bad: float) -> None:
    def never(_: Iterable[QuantizedTensor]) -> Packed:
        raise AssertionError("encoded")

    tensors = model()
    weight = tensors["matrix1"].weight.clone()
    weight[3, 4] = bad
    with pytest.raises(ConfigError, match=r"matrix1: .*infinite"):
        fill_cap(tensors | {"matrix1": replace(tensors["matrix1"], weight=weight)}, never, 20_000, PLAIN)
    with pytest.raises(ConfigError, match=r"matrix2: .*positive semi-definite"):
        fill_cap(tensors | {"matrix2": replace(tensors["matrix2"], hessian=-torch.eye(48))}, never, 20_000, PLAIN)


def test_each_tensor_is_measured_with_its_own_statistics() -> None:
    names = ["embedding", "blocks.0.attention.key.weight", "blocks.0.mlp.up.weight", "bigram.table", "final_norm"]
    weights = {name: torch.full((64, 64), float(n)) for n, name in enumerate(names)} | {"final_norm": torch.zeros(64)}
    hessians = {
        "head": torch.eye(64),
        "blocks.0.attention.input": 2 * torch.eye(64),
        "blocks.0.mlp.up": 3 * torch.eye(64),
    }
    fisher = {"blocks.0.mlp.up.weight": Fisher(4 * torch.eye(64), torch.arange(64.0))}
    curvature = {"bigram.table": Curvature(0.5, 1e-3)}
    measured = measured_tensors(
        weights,
        Statistics(hessians, fisher=fisher, curvature=curvature),
        PLAIN.updated({"small_tensor": 0}),
        torch.device("cpu"),
    )
    assert list(measured) == names[:4]
    assert [float(made.weight[0, 0]) for made in measured.values()] == [0, 1, 2, 3]
    scales = [None if made.hessian is None else float(made.hessian[0, 0]) for made in measured.values()]
    assert scales == [1, 2, 4, None]
    assert [made.importance is not None for made in measured.values()] == [False, False, True, False]
    assert torch.equal(measured[names[2]].importance, torch.arange(64.0))  # type: ignore[arg-type]
    assert [made.curvature for made in measured.values()] == [None, None, None, curvature["bigram.table"]]
