"""Quantizing tensors: the errors that are reported, batching, and messages that name the tensor."""

import math

import numpy as np
import pytest
import torch
from grid_gptq import quantize_tensor

from bitgolf.artifact.trellis import trellis_levels
from bitgolf.errors import ConfigError
from bitgolf.grids.grid import Grid, scale_levels
from bitgolf.quantize import tensors as quantize
from bitgolf.quantize.column_steps import Steps
from bitgolf.quantize.gptq import factorize
from bitgolf.quantize.tensors import QuantizeTask, quantize_tensors


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.05
    inputs = torch.randn(400, columns, generator=generator).cumsum(dim=1)
    return weight, inputs.T @ inputs


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_reported_errors_equal_their_definitions(method: str) -> None:
    weight, hessian = problem(12, 30)
    result = quantize_tensor("w", weight, Grid(5), method, hessian)
    w, h, q = weight.double().numpy(), hessian.double().numpy(), result.dequantized().double().numpy()
    nearest = np.clip(np.round(weight.numpy() / result.scales.numpy()[:, None]), -15, 15)
    nearest = nearest * result.scales.double().numpy()[:, None]

    def output(e: np.ndarray) -> float:
        return float(np.trace(e @ h @ e.T) / np.trace(w @ h @ w.T))

    assert result.weight_error == pytest.approx(((w - q) ** 2).sum() / (w**2).sum(), rel=1e-4)
    assert result.hessian_error == pytest.approx(output(w - q), rel=1e-3)
    assert result.rtn_hessian_error == pytest.approx(output(w - nearest), rel=1e-3)
    if method == "gptq":
        assert result.hessian_error < 0.5 * result.rtn_hessian_error
    else:
        assert np.array_equal(q, nearest) and result.hessian_error == result.rtn_hessian_error
    values, counts = np.unique(result.codes.numpy(), return_counts=True)
    share = counts / counts.sum()
    assert result.code_bits == pytest.approx(-(share * np.log2(share)).sum(), rel=1e-9)
    assert abs(values).max() <= 15


def test_stored_form_gives_the_same_weights() -> None:
    weight, hessian = problem(8, 16)
    result = quantize_tensor("w", weight.half(), Grid(6), "gptq", hessian)
    stored = result.stored()
    assert stored.kind == "int6"
    assert torch.equal(stored.restore(), result.dequantized())


def test_rtn_without_statistics_reports_none() -> None:
    weight, _ = problem(4, 8)
    result = quantize_tensor("w", weight, Grid(8), "rtn")
    assert result.hessian_error is None and result.rtn_hessian_error is None and result.weight_error < 1e-3


def mixed_tasks() -> list[QuantizeTask]:
    tasks = []
    for i, (rows, columns, bits) in enumerate([(6, 8, 6), (4, 8, 6), (6, 8, 6), (6, 8, 5), (6, 8, 6)]):
        weight, hessian = problem(rows, columns, i)
        tasks.append(QuantizeTask(f"t{i}", weight, Grid(bits), "gptq", hessian))
    return [*tasks, QuantizeTask("t5", tasks[0].weight, Grid(6), "rtn")]


def test_many_equal_one_by_one_in_order_and_report_progress() -> None:
    tasks, seen = mixed_tasks(), []
    results = quantize_tensors(tasks, progress=lambda stage, done, total, note="": seen.append((done, total)))
    for task, result in zip(tasks, results, strict=True):
        alone = quantize_tensor(task.name, task.weight, task.grid, task.method, task.hessian)
        assert result.name == task.name and torch.equal(result.codes, alone.codes)
        assert torch.equal(result.scales, alone.scales) and result.hessian_error == alone.hessian_error
    total = sum(task.weight.numel() for task in tasks)
    assert seen[-1] == (total, total) and seen == sorted(seen)


def test_batches_share_shape_grid_and_method(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = mixed_tasks()
    assert quantize._batches(tasks, "cuda") == [[0, 2, 4], [1], [3], [5]]
    assert quantize._batches(tasks, "cpu") == [[0], [1], [2], [3], [4], [5]]
    monkeypatch.setattr(quantize, "_BATCH_BYTES", 2 * 4 * (3 * 64 + 6 * 48))
    assert quantize._batches(tasks, "cuda") == [[0, 2], [1], [3], [4], [5]]


def test_a_batch_equals_its_members_and_names_the_bad_one() -> None:
    tasks = [QuantizeTask(f"t{i}", *_with_grid(problem(6, 8, i))) for i in range(3)]
    batch = quantize._quantize_batch(tasks, (1.0,), 0.01, 128, torch.float64, None)
    for task, result in zip(tasks, batch, strict=True):
        alone = quantize_tensor(task.name, task.weight, task.grid, "gptq", task.hessian, (1.0,), dtype=torch.float64)
        assert torch.equal(result.codes, alone.codes)
    tasks[1] = QuantizeTask("t1", tasks[1].weight, Grid(6), "gptq", -tasks[1].hessian)
    with pytest.raises(ConfigError, match=r"^t1: the Hessian is not positive"):
        quantize._quantize_batch(tasks, (1.0,), 0.01, 128, torch.float32, None)


def _with_grid(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, Grid, str, torch.Tensor]:
    return pair[0], Grid(6), "gptq", pair[1]


def test_errors_name_the_tensor() -> None:
    weight, hessian = problem(4, 8)
    nan = weight.clone()
    nan[0, 0] = math.nan
    huge = weight.clone()
    huge[2, 2] = 1e30
    cases = [
        (nan, "gptq", hessian, "NaN or infinite"),
        (huge, "gptq", hessian, "row 2 .*fp16"),
        (weight, "gptq", None, "needs a Hessian"),
        (weight, "gptq", hessian[:4, :4], r"\(4, 4\)"),
        (weight, "rtn", hessian[:4, :4], r"\(4, 4\)"),
        (weight, "gptq", -hessian, "positive semi-definite"),
        (weight[0], "rtn", None, "matrix"),
    ]
    for bad, method, statistics, message in cases:
        with pytest.raises(ConfigError, match=rf"blocks\.3\.up: .*{message}"):
            quantize_tensor("blocks.3.up", bad, Grid(6), method, statistics)


ALL_STEPS = [
    Steps(0.02),
    Steps(0.02, columns="pivot"),
    Steps(0.02, columns="pivot", trellis=8),
    Steps(0.02, trellis=8),
]


@pytest.mark.parametrize("steps", ALL_STEPS, ids=lambda s: f"{s.columns}-{s.trellis}")
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_steps_report_errors_by_definition_and_are_stored_exactly(steps: Steps, method: str) -> None:
    weight, hessian = problem(20, 16)
    importance = torch.rand(20, generator=torch.Generator().manual_seed(2)) + 0.2
    result = quantize_tensor("w", weight, steps, method, hessian, importance=importance)
    assert result.codes.dtype == torch.int16 and result.bits == 16 and result.trellis == steps.trellis
    assert (result.column_scales is None) == (steps.columns == "one")
    q = result.dequantized()
    assert torch.equal(
        q, scale_levels(trellis_levels(result.codes, steps.trellis), result.scales, result.column_scales)
    )
    assert torch.equal(result.stored().restore(), q)
    w, h, g = weight.double().numpy(), hessian.double().numpy(), importance.double().numpy()
    e = w - q.double().numpy()
    assert result.weight_error == pytest.approx((e**2).sum() / (w**2).sum(), rel=1e-4)

    def output(x: np.ndarray) -> float:
        return float(sum(gi * xi @ h @ xi for gi, xi in zip(g, x, strict=True)))

    assert result.hessian_error == pytest.approx(output(e) / output(w), rel=1e-3)
    assert result.rtn_hessian_error == (result.hessian_error if method == "rtn" else None)
    if steps.trellis == 0:
        counts = np.unique(result.codes.numpy(), return_counts=True)[1]
        share = counts / counts.sum()
        assert result.code_bits == pytest.approx(-(share * np.log2(share)).sum(), rel=1e-9)


def test_entropy_with_a_trellis_is_given_the_quantizer() -> None:
    weight, hessian = problem(200, 40)
    result = quantize_tensor("w", weight, Steps(0.06, trellis=8), "gptq", hessian)
    z = (result.levels() & 1).numpy()
    total = 0.0
    for bit in (0, 1):
        counts = np.unique(result.codes.numpy()[z == bit], return_counts=True)[1]
        total -= (counts * np.log2(counts / counts.sum())).sum()
    assert result.code_bits == pytest.approx(total / z.size, rel=1e-9)


def test_the_step_sets_the_bits_with_and_without_a_trellis() -> None:
    weight, hessian = problem(256, 64)
    results = [
        quantize_tensor("w", weight, Steps(0.02, trellis=states, columns="pivot"), "gptq", hessian) for states in (0, 8)
    ]
    assert max(r.code_bits for r in results) - min(r.code_bits for r in results) < 0.02
    plain, eight = (r.hessian_error for r in results)
    assert eight < 0.81 * plain


def test_importance_moves_error_to_the_rows_that_matter_less() -> None:
    weight, hessian = problem(64, 48)
    importance = torch.logspace(-2, 2, 64)[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    blind = quantize_tensor("w", weight, Steps(0.05, trellis=8), "gptq", hessian)
    share = importance.sqrt().unsqueeze(1) * (weight - blind.dequantized())
    signal = importance.sqrt().unsqueeze(1) * weight
    relative = float(((share @ hessian) * share).sum() / ((signal @ hessian) * signal).sum())
    seeing = quantize_tensor("w", weight, Steps(0.05, trellis=8), "gptq", hessian, importance=importance)
    assert seeing.hessian_error < 0.9 * relative


def test_a_known_factor_saves_the_work_and_changes_nothing() -> None:
    weight, hessian = problem(8, 12)
    factor = factorize(weight, hessian, 0.01, torch.float32)
    for grid in (Grid(5), Steps(0.03, columns="pivot", trellis=8)):
        own = quantize_tensor("w", weight, grid, "gptq", hessian)
        reused = quantize_tensors([QuantizeTask("w", weight, grid, "gptq", hessian, factor=factor)])[0]
        assert torch.equal(own.codes, reused.codes) and own.hessian_error == reused.hessian_error
        blind = quantize_tensors([QuantizeTask("w", weight, grid, "gptq", None, factor=factor)])[0]
        assert torch.equal(own.codes, blind.codes) and blind.hessian_error is None


def test_steps_of_one_batch_may_differ_in_size() -> None:
    tasks = []
    for i in range(5):
        weight, hessian = problem(6, 8, i)
        steps = Steps(0.01 * (i + 1), columns="pivot", trellis=8)
        tasks.append(QuantizeTask(f"t{i}", weight, steps, "gptq", hessian))
    tasks.append(QuantizeTask("t5", tasks[0].weight, Steps(0.01), "gptq", tasks[0].hessian))
    assert quantize._batches(tasks, "cpu") == [[0, 1, 2, 3, 4], [5]]
    for task, result in zip(tasks, quantize_tensors(tasks, dtype=torch.float64), strict=True):
        alone = quantize_tensors([task], dtype=torch.float64)[0]
        assert torch.equal(result.codes, alone.codes) and torch.equal(result.scales, alone.scales)
        assert (result.column_scales is None) == (alone.column_scales is None) == (task.name == "t5")
        if alone.column_scales is not None:
            assert torch.equal(result.column_scales, alone.column_scales)


@pytest.mark.parametrize(
    "levels", [Grid(8), Steps(0.001, columns="pivot"), Steps(0.001, columns="pivot", trellis=8)], ids=str
)
def test_one_row_one_column_and_zeros(levels: Grid | Steps) -> None:
    for rows, columns in ((1, 9), (9, 1), (1, 1)):
        weight, hessian = problem(rows, columns)
        assert quantize_tensor("w", weight, levels, "gptq", hessian).weight_error < 1e-3
    zero = quantize_tensor("w", torch.zeros(3, 4), levels, "gptq", torch.eye(4))
    assert not zero.codes.any() and zero.weight_error == 0 and zero.hessian_error == 0


@pytest.mark.parametrize("trellis", [0, 8])
def test_zero_rows_dead_columns_and_half_precision(trellis: int) -> None:
    steps = Steps(0.02, columns="pivot", trellis=trellis)
    weight, hessian = problem(12, 10)
    weight[3] = 0
    hessian[4] = hessian[:, 4] = 0
    result = quantize_tensor("w", weight, steps, "gptq", hessian)
    assert float(result.dequantized()[3].abs().max()) < 1e-5
    assert not result.codes[:, 4].any() and result.column_scales[4] == 1
    half = weight.half()
    strided = half.t().contiguous().t()
    before = half.clone()
    result = quantize_tensor("w", strided, steps, "gptq", hessian)
    assert torch.equal(result.codes, quantize_tensor("w", half.float(), steps, "gptq", hessian).codes)
    assert torch.equal(half, before)


@pytest.mark.parametrize("trellis", [0, 8])
def test_the_advised_step_is_the_least_that_is_accepted(trellis: int) -> None:
    """Codes are at most 32,767. A trellis has two levels per step."""
    weight, hessian = problem(4, 8)
    weight = weight * 1e5
    method = "gptq" if trellis else "rtn"
    least = float(weight.abs().max()) / 32_767
    with pytest.raises(ConfigError, match="codes would reach") as error:
        quantize_tensor("w", weight, Steps(least * 0.99, trellis=trellis), method, hessian)
    advised = float(str(error.value).partition("take a step of ")[2].split()[0])
    assert advised == pytest.approx(least, rel=1e-3)
    quantize_tensor("w", weight, Steps(advised * 1.01, trellis=trellis), method, hessian)


def test_steps_errors_name_the_tensor() -> None:
    weight, hessian = problem(4, 8)
    nan, infinite = weight.clone(), weight.clone()
    nan[1, 2], infinite[0, 0] = math.nan, math.inf
    importance = torch.ones(4)
    cases = [
        (nan, Steps(0.1), "gptq", hessian, None, r"NaN or infinite, the first at index \(1, 2\)"),
        (infinite, Steps(0.1), "rtn", None, None, "NaN or infinite"),
        (weight, Steps(1e-6), "gptq", hessian, None, "step of 1e-06 is too small: codes would reach"),
        (weight * 1e30, Steps(1.0), "rtn", None, None, r"too small: codes would reach \d\.\d+e\+2\d"),
        (weight * 1e30, Steps(1.0, trellis=8), "gptq", hessian, None, r"too small: codes would reach \d\.\d+e\+2\d"),
        (weight, Steps(1e6), "rtn", None, None, "does not fit fp16"),
        (weight, Steps(0.1, columns="pivot"), "rtn", None, None, "needs a Hessian"),
        (weight, Steps(0.1), "gptq", hessian, importance[:2], "for 4 rows"),
        (weight, Steps(0.1), "gptq", hessian, -importance, "finite and >= 0"),
        (weight, Steps(0.1), "gptq", None, None, "needs a Hessian"),
        (weight, Steps(0.1), "gptq", hessian[:4, :4], None, r"\(4, 4\)"),
        (weight, Steps(0.1), "gptq", -hessian, None, "positive semi-definite"),
        (weight[0], Steps(0.1), "rtn", None, None, "matrices"),
    ]
    for bad, steps, method, statistics, rows, message in cases:
        with pytest.raises(ConfigError, match=rf"blocks\.3\.up: .*{message}"):
            quantize_tensor("blocks.3.up", bad, steps, method, statistics, importance=rows)
