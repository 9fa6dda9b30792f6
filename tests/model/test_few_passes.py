"""Functions with a backward pass of their own: values and gradients are those of the plain operations."""

import pytest
import torch
import torch.nn.functional as F
from tiny_gpt import BOS, VOCAB, WINDOW, tiny_gpt
from torch import Tensor
from torch.autograd import gradcheck

from bitgolf.model import cross_entropy, few_passes, gpt, layers
from bitgolf.model.cross_entropy import softcapped_cross_entropy
from bitgolf.model.rotary import rotate


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_norm_is_that_of_pytorch() -> None:
    x = drawn(2, 3, 8)
    equal(few_passes.rms_norm(x, 0.5), 0.5 * F.rms_norm(x, (8,)))
    assert gradcheck(lambda x: few_passes.rms_norm(x, 0.5), x)


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_the_activation_is_that_of_pytorch(slope: float) -> None:
    x = drawn(5, 8)
    equal(few_passes.squared_relu(x, slope), F.leaky_relu(x, slope).square())
    assert gradcheck(lambda x: few_passes.squared_relu(x, slope), x)


@pytest.mark.parametrize("gained", [True, False])
def test_the_rotation_is_that_of_the_plain_operations(gained: bool) -> None:
    x, gain, angles = drawn(2, 3, 4, 8), drawn(4, seed=1) if gained else None, drawn(3, 3, seed=2).detach()
    cos, sin = angles.cos(), angles.sin()  # of 6 of the 8 channels
    plain = rotate(F.rms_norm(x, (8,)), cos, sin)
    equal(few_passes.rotate_normed(x, gain, cos, sin), plain if gain is None else plain * gain[:, None])
    assert gradcheck(lambda x, gain: few_passes.rotate_normed(x, gain, cos, sin), (x, gain))


@pytest.mark.parametrize(("piece", "weights"), [(131_072, (1.0,)), (9, (1.0,)), (9, (1.0, 0.5, 0.25))])
def test_the_loss_is_cross_entropy_of_softcapped_logits(
    piece: int, weights: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "_PIECE_ENTRIES", piece)
    monkeypatch.setattr(cross_entropy, "_LEAST_ROWS", 2)
    hidden, embedding = drawn(7, 4), drawn(9, 4, seed=1)
    targets = torch.randint(9, (7, len(weights)), generator=torch.Generator().manual_seed(2))
    targets[3] = targets[3, 0]  # the same token several times
    targets[4, 1:] = -1

    def loss(hidden: Tensor, embedding: Tensor) -> Tensor:
        return 3 * softcapped_cross_entropy(hidden, embedding, targets, 2.0, torch.tensor(weights))

    log_p = torch.log_softmax(2 * torch.tanh(hidden @ embedding.T / 2), 1)
    terms = [w * F.nll_loss(log_p, targets[:, k], ignore_index=-1, reduction="sum") / 7 for k, w in enumerate(weights)]
    torch.testing.assert_close(loss(hidden, embedding), 3 * terms[0])
    ours, theirs = (torch.autograd.grad(f, (hidden, embedding)) for f in (loss(hidden, embedding), 3 * sum(terms)))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def test_the_loss_in_bf16_is_close_to_fp32() -> None:
    hidden, embedding = drawn(300, 16, dtype=torch.float32), drawn(70, 16, seed=1, dtype=torch.float32)
    targets = (torch.arange(300)[:, None] % 70, 30.0, torch.ones(1))
    exact = torch.autograd.grad(softcapped_cross_entropy(hidden, embedding, *targets), (hidden, embedding))
    halves = (hidden.bfloat16(), embedding.bfloat16())
    rounded = torch.autograd.grad(softcapped_cross_entropy(*halves, *targets), halves)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs).norm() < 0.01 * theirs.norm()


def test_training_steps_of_the_model_have_the_gradients_of_the_plain_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = torch.randint(2, VOCAB, (3, WINDOW + 1), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = BOS

    def gradients() -> list[Tensor]:
        model = tiny_gpt().requires_grad_()
        loss = model(tokens[:, :-1], tokens[:, 1:])
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    ours = gradients()
    for module in (layers, gpt):
        monkeypatch.setattr(module, "learns_on_cpu", lambda x: False)
    for mine, plain in zip(ours, gradients(), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)
