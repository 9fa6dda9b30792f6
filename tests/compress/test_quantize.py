"""Quantizing tensors: the errors that are reported, batching, and messages that name the tensor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bitgolf.compress import quantize
from bitgolf.compress.quantize import QuantizeTask, quantize_tensor, quantize_tensors
from bitgolf.errors import ConfigError
from bitgolf.grid import Grid


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
    stored = result.stored("attention.q")
    assert (stored.kind, stored.group) == ("int6", "attention.q")
    assert torch.equal(stored.restore(), result.dequantized())


def test_rtn_without_statistics_reports_none() -> None:
    weight, _ = problem(4, 8)
    result = quantize_tensor("w", weight, Grid(8), "rtn")
    assert result.hessian_error is None and result.rtn_hessian_error is None and result.weight_error < 1e-3


def test_zero_matrix_has_no_error() -> None:
    result = quantize_tensor("w", torch.zeros(3, 4), Grid(8), "gptq", torch.eye(4))
    assert not result.codes.any() and result.weight_error == 0 and result.hessian_error == 0


def test_one_row_and_one_column() -> None:
    for rows, columns in ((1, 9), (9, 1), (1, 1)):
        weight, hessian = problem(rows, columns)
        assert quantize_tensor("w", weight, Grid(8), "gptq", hessian).weight_error < 1e-3


def test_weighing_the_clip_by_the_hessian_lowers_the_weighted_error() -> None:
    weight, _ = problem(20, 40)
    weight = weight**3
    hessian = torch.diag(torch.logspace(-3, 3, 40))
    plain = quantize_tensor("w", weight, Grid(3), "rtn", hessian, (0.7, 0.8, 0.9, 1.0))
    weighed = quantize_tensor("w", weight, Grid(3), "rtn", hessian, (0.7, 0.8, 0.9, 1.0), weigh_clip=True)
    assert weighed.hessian_error < plain.hessian_error
    assert weighed.weight_error > plain.weight_error


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
    batch = quantize._quantize_batch(tasks, (1.0,), 0.01, 128, False, torch.float64, None)
    for task, result in zip(tasks, batch, strict=True):
        alone = quantize_tensor(task.name, task.weight, task.grid, "gptq", task.hessian, (1.0,), dtype=torch.float64)
        assert torch.equal(result.codes, alone.codes)
    tasks[1] = QuantizeTask("t1", tasks[1].weight, Grid(6), "gptq", -tasks[1].hessian)
    with pytest.raises(ConfigError, match=r"^t1: the Hessian is not positive"):
        quantize._quantize_batch(tasks, (1.0,), 0.01, 128, False, torch.float32, None)


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
        (weight, "magic", hessian, "one of gptq, rtn"),
        (weight[0], "rtn", None, "matrix"),
    ]
    for bad, method, statistics, message in cases:
        with pytest.raises(ConfigError, match=rf"blocks\.3\.up: .*{message}"):
            quantize_tensor("blocks.3.up", bad, Grid(6), method, statistics)
