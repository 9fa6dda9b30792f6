"""Low-rank correction: its approximation against numpy's truncated decomposition, its rounding and its account."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from bitgolf.compress import lowrank
from bitgolf.compress.lowrank import correct, fold_
from bitgolf.errors import ArtifactError, ConfigError


def problem(rows: int, columns: int, rank: int = 2, noise: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """A residual that is a low-rank matrix and noise, and the moments of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)
    residual = residual + noise * torch.randn(rows, columns, generator=generator)
    inputs = torch.randn(800, columns, generator=generator)
    inputs[:, 1:] += 0.7 * inputs[:, :-1]
    return residual * 0.01, inputs.T @ inputs / 800


def test_errors_and_bits_are_what_is_stored() -> None:
    residual, hessian = problem(24, 32)
    found = correct(residual, hessian, rank=2, group=16)
    assert set(found.left.unique().tolist()) <= {-3, -1, 1, 3}
    assert bool((found.right.abs() <= 15).all()) and bool((found.right % 2 != 0).all())
    product = np.zeros((24, 32))
    for i in range(24):
        for j in range(32):
            product[i, j] = sum(
                int(found.left[i, k]) * int(found.right[k, j]) * float(found.scales[k, j // 16]) for k in range(2)
            )
    np.testing.assert_allclose(found.product().numpy(), product, rtol=1e-5, atol=1e-9)
    h, e = hessian.double().numpy(), residual.double().numpy()
    assert found.error_before == pytest.approx(np.trace(e @ h @ e.T), rel=1e-9)
    assert found.error_after == pytest.approx(np.trace((e - product) @ h @ (e - product).T), rel=1e-4)
    assert found.gain == found.error_before - found.error_after
    assert found.bits == 2 * 24 * 2 + 4 * 2 * 32 + 16 * 2 * 2
    left, right = found.stored("lqer")
    restored = left.restore() @ right.restore().reshape(2, 32)
    torch.testing.assert_close(restored, found.product())


def test_folding_adds_exactly_what_was_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowrank, "_BLOCK", 7 * 32)  # rows go in blocks of 7
    residual, hessian = problem(24, 32)
    found = correct(residual, hessian, rank=3, group=16)
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(5))
    left, right = found.stored("lqer")
    tensors = {"a.weight": weight.clone(), "a.weight.lqer.left": left.restore(), "a.weight.lqer.right": right.restore()}
    tensors["b.weight"] = weight.clone()
    fold_(tensors)
    assert list(tensors) == ["a.weight", "b.weight"]
    exact = [[Fraction(float(weight[i, j])) for j in range(32)] for i in range(24)]
    for i in range(24):
        for j in range(32):
            for k in range(3):
                exact[i][j] += (
                    int(found.left[i, k]) * int(found.right[k, j]) * Fraction(float(found.scales[k, j // 16]))
                )
    assert tensors["a.weight"].tolist() == [[float(np.float32(float(x))) for x in row] for row in exact]
    assert torch.equal(tensors["b.weight"], weight)


@pytest.mark.parametrize(
    "changes",
    [
        {"a.lqer.left": None}, {"a.lqer.right": None}, {"a": None}, {"a": torch.ones(5, 8)}, {"a": torch.ones(4, 9)},
        {"a.lqer.left": torch.ones(4)}, {"a.lqer.right": torch.ones(3, 8)}, {"a": torch.ones(4, 2, 4)},
        {"a.lqer.left": torch.ones(4, 65), "a.lqer.right": torch.ones(65, 8)},
    ],
    ids=str,
)  # fmt: skip
def test_corrections_that_fit_no_weight_are_refused(changes: dict[str, torch.Tensor | None]) -> None:
    tensors = {"a": torch.ones(4, 8), "a.lqer.left": torch.ones(4, 2), "a.lqer.right": torch.ones(2, 8)} | changes
    with pytest.raises(ArtifactError, match=r"tensor a\.lqer\.(left|right): weight .* do not fit"):
        fold_({name: tensor for name, tensor in tensors.items() if tensor is not None})


def test_unrounded_it_is_the_best_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    residual, hessian = problem(20, 16, rank=6, noise=1.0)
    monkeypatch.setattr(lowrank, "_odd", lambda x, largest: x * 2**-20)  # no rounding to speak of ...
    seen = {}
    monkeypatch.setattr(lowrank.torch.linalg, "lstsq", _spy(seen))
    correct(residual, hessian, rank=3, group=16, damping=1e-9)
    root = np.linalg.cholesky(hessian.double().numpy())
    singular = np.linalg.svd(residual.double().numpy() @ root, compute_uv=False)
    # ... so the space that left spans is that of the strongest output errors.
    left = np.linalg.qr(seen["left"])[0]
    remaining = residual.double().numpy() @ root
    remaining = remaining - left @ (left.T @ remaining)
    assert (remaining**2).sum() == pytest.approx((singular[3:] ** 2).sum(), rel=1e-6)


def _spy(seen: dict[str, np.ndarray]):
    original = torch.linalg.lstsq

    def lstsq(a: torch.Tensor, b: torch.Tensor, driver: str):
        seen["left"] = a.numpy()
        return original(a, b, driver=driver)

    return lstsq


def test_a_low_rank_residual_is_mostly_repaired_and_noise_is_not() -> None:
    residual, hessian = problem(64, 64)
    repaired = correct(residual, hessian, rank=2)
    assert repaired.error_after < 0.3 * repaired.error_before
    noise, _ = problem(64, 64, rank=1, noise=100.0)
    found = correct(noise, hessian, rank=2)
    saved = 0.5 * math.log2(found.error_before / found.error_after)  # bits a weight that a finer step would cost
    assert saved < found.bits / noise.numel()


def test_what_does_not_fit_is_refused() -> None:
    residual, hessian = problem(8, 16)
    for arguments, message in (
        ({"rank": 0}, "rank 0"),
        ({"rank": 9}, "rank 9 must lie between 1 and 8"),
        ({"group": 5}, "group 5 divide 16"),
    ):
        with pytest.raises(ConfigError, match=message):
            correct(residual, hessian, **{"group": 16, **arguments})
    with pytest.raises(ConfigError, match="does not fit a Hessian"):
        correct(residual, hessian[:4, :4])
    with pytest.raises(ConfigError, match="NaN"):
        correct(residual * math.nan, hessian, group=16)


def test_a_zero_residual_stays_finite() -> None:
    found = correct(torch.zeros(6, 8), torch.eye(8), rank=2, group=8)
    assert found.error_before == 0 and float(found.product().abs().max()) < 1e-4
