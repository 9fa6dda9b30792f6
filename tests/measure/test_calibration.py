"""Hessians against float64 sums over the recorded inputs of every layer."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitgolf.measure.calibration import HessianCollector, gather_hessians, hessian_key
from bitgolf.measure.fisher import gather_fisher
from bitgolf.model import GPT
from bitgolf.model.layers import Linear
from bitgolf.run.ranks import World

ALONE = World(0, 1, torch.device("cpu"))


def batches(count: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(2)
    return [torch.randint(260, (3, 8), generator=rng) for _ in range(count)]


def reference(model: GPT, tokens: list[torch.Tensor]) -> dict[str, np.ndarray]:
    """H of every matrix by parameter name, as a sum of one outer product per position."""
    inputs_of: dict[str, list[np.ndarray]] = {}

    def remember(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            inputs_of.setdefault(name, []).append(inputs[0].detach().double().reshape(-1, inputs[0].size(-1)).numpy())

        return hook

    hooks = [
        m.register_forward_pre_hook(remember(f"{n}.weight")) for n, m in model.named_modules() if type(m) is Linear
    ]
    with torch.no_grad():
        for batch in tokens:
            hidden = model.hidden(batch)
            inputs_of.setdefault("embedding", []).append(hidden.double().reshape(-1, hidden.size(-1)).numpy())
    for hook in hooks:
        hook.remove()
    hessians = {}
    for name, parts in inputs_of.items():
        total = np.zeros((parts[0].shape[1],) * 2)
        rows = np.concatenate(parts)
        for row in rows:
            total += np.outer(row, row)
        hessians[name] = total / len(rows)
    return hessians


def test_every_matrix_has_the_second_moments_of_its_inputs(model: GPT) -> None:
    tokens = batches(3)
    hessians, count = gather_hessians(model, tokens, ALONE, lambda: True)
    expected = reference(model, tokens)
    assert count == 3 * 3 * 8
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear)}
    assert set(expected) == linear | {"embedding"}
    for name, moments in expected.items():
        key = hessian_key(name)
        assert key is not None
        assert hessians[key].dtype == torch.float32
        np.testing.assert_allclose(hessians[key].numpy(), moments, rtol=1e-4, atol=1e-5 * np.abs(moments).max())
    assert set(hessians) == {hessian_key(name) for name in expected}


def test_query_key_and_value_share_one(model: GPT) -> None:
    keys = {hessian_key(f"blocks.0.attention.{part}.weight") for part in ("query", "key", "value")}
    assert keys == {"blocks.0.attention.input"}
    assert hessian_key("blocks.0.attention.out.weight") == "blocks.0.attention.out"


@pytest.mark.parametrize("name", ["bigram.table", "blocks.0.resid_mix", "skip_weights", "blocks.1.attention.q_gain"])
def test_parameters_that_multiply_no_activations_have_none(name: str) -> None:
    assert hessian_key(name) is None


def test_gathering_stops_at_the_first_no_but_not_before_one_batch(model: GPT) -> None:
    calls: list[int] = []

    def another_fits() -> bool:
        calls.append(1)
        return len(calls) < 2

    hessians, count = gather_hessians(model, batches(9), ALONE, another_fits)
    assert count == 2 * 3 * 8
    np.testing.assert_allclose(
        hessians["head"].numpy(), reference(model, batches(2))["embedding"], rtol=1e-4, atol=1e-5
    )
    assert gather_hessians(model, batches(9), ALONE, lambda: False)[1] == 3 * 8


def test_gathering_does_not_change_the_model(model: GPT) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gather_hessians(model, batches(1), ALONE, lambda: True)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_hooks_are_removed_when_the_model_fails(model: GPT) -> None:
    collector = HessianCollector(model)
    with pytest.raises(IndexError):
        collector.add(torch.tensor([[999]]))
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_ranks_are_averaged(model: GPT) -> None:
    class Pair(World):
        """The mean over two ranks, of which the other one has twice the sums."""

        def mean_(self, tensors: list[torch.Tensor]) -> None:
            for tensor in tensors:
                tensor.mul_(1.5)

    alone, _ = gather_hessians(model, batches(1), ALONE, lambda: True)
    both, _ = gather_hessians(model, batches(1), Pair(0, 2, torch.device("cpu")), lambda: True)
    torch.testing.assert_close(both["head"], 1.5 * alone["head"])


def test_layers_that_a_kernel_replaces_are_measured_all_the_same(model: GPT) -> None:
    """Both kinds of statistics, with a stand-in for the kernel, which is used again afterwards."""
    calls: list[float] = []

    def kernel(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, slope: float) -> torch.Tensor:
        calls.append(slope)
        return F.leaky_relu(x @ up.T, slope).square() @ down.T

    def statistics() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        fisher, _ = gather_fisher(model, batches(1), [], 0, ALONE, lambda: True)
        return gather_hessians(model, batches(1), ALONE, lambda: True)[0], {n: f.inputs for n, f in fisher.items()}

    tokens, expected = batches(1)[0], statistics()
    hidden = model.hidden(tokens)
    try:
        for block in model.blocks:
            block.mlp.kernel = kernel
        torch.testing.assert_close(model.hidden(tokens), hidden)
        assert calls == [model.config.mlp.slope] * len(model.blocks)
        torch.testing.assert_close(statistics(), expected)
        assert len(calls) == len(model.blocks)
        model.hidden(tokens)
        assert len(calls) == 2 * len(model.blocks)
    finally:
        for block in model.blocks:
            block.mlp.kernel = None
