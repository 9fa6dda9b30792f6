"""Fisher statistics: the cost of an error in each matrix, to second order in the loss.

For y = W x and the loss L per token, the Fisher information of W is E[dy dy^T (x) x x^T]. Two factors of it are
stored. One is the input moments, in which each token counts by its squared output gradient:
H = E[|dy|^2 x x^T] / E[|dy|^2]. The other is the diagonal on the output side, g_i = E[dy_i^2]. An error E in W then
costs about 1/2 sum_i g_i E_i H E_i^T nats per token. The labels are drawn from the model itself. This makes the Fisher
information equal to the curvature of the cross entropy, and it needs no text beyond the inputs.

The same passes sum the gradients G of the matrices and tables to be quantized. The labels of different tokens are drawn
independently, so the expectation of G_a G_b over all labels is the sum over tokens of the Fisher information of weights
a and b. `curvature.curvature_from_gradient` computes the cost of rounding from it.
All of it is gathered on the training clock, after the plain moments of `calibration`.
Sources: K-FAC (Martens and Grosse 2015); the output side as in YAQA (arXiv 2505.22988).

Legend: B batch, T time, V vocabulary, R outputs and C inputs of a matrix.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitgolf.grids.roles import is_table
from bitgolf.measure.calibration import tf32_products
from bitgolf.model.gpt import GPT
from bitgolf.model.layers import Linear
from bitgolf.run.clock import SAFETY, seconds_of_second_run
from bitgolf.run.ranks import World

_ROWS_TOKENS = 32_768  # tokens per backward pass; bounds the memory of an eager graph; longer rows are cut


@dataclass(frozen=True)
class Fisher:
    """Second-order statistics of one matrix."""

    inputs: Tensor  # (C, C) fp32 moments of the inputs, weighted by the squared output gradient; the mean weight is 1
    rows: Tensor  # (R,) fp32 mean over tokens of the squared output gradient, in nats^2 per squared unit of output


class FisherCollector:
    """Sums `Fisher` for every linear layer of `model`, and for the tied embedding as the output head.

    Args:
        model: evaluated with its float weights, without fake quantization.
        generator: draws the labels, on the model's device.
        quantized: names of the parameters whose gradients are summed.
    """

    def __init__(self, model: GPT, generator: torch.Generator, quantized: Sequence[str] = ()) -> None:
        self.model, self.generator = model, generator
        parameters = dict(model.named_parameters())
        self.quantized = {name: parameters[name] for name in quantized}
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}
        self.gradients: dict[str, Tensor] = {}
        self.num_tokens = 0

    def add(self, tokens: Tensor) -> None:
        """Run the model forward and backward on tokens (B, T) and add their statistics."""
        T = _row_tokens(tokens.size(1))
        for rows in tokens.reshape(-1, T).split(max(1, _ROWS_TOKENS // T)):
            self._add(rows)
        self.num_tokens += tokens.numel()

    def finish(self, world: World) -> tuple[dict[str, Fisher], dict[str, Tensor]]:
        """Over the tokens of all ranks by parameter name, on the CPU: statistics, and summed gradients of `quantized`
        per root of the number of tokens, (R, C) fp32. The mean square of those is the Fisher information per token."""
        names = sorted(self.sums)
        flat = [part for name in names for part in self.sums[name]]
        world.mean_(flat + list(self.gradients.values()))
        result = {}
        for name, inputs, rows in zip(names, flat[0::2], flat[1::2], strict=True):
            weight = rows.sum()
            scaled = inputs / weight if float(weight) > 0 else inputs
            result[name] = Fisher(scaled.cpu(), (rows / self.num_tokens).cpu())
        scale = (world.size / self.num_tokens) ** 0.5
        return result, {name: (gradient * scale).cpu() for name, gradient in self.gradients.items()}

    def _add(self, tokens: Tensor) -> None:
        model = self.model
        trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
        # Gradients of the tables suffice for a graph through every layer.
        tables = {name: parameter for name, parameter in model.named_parameters() if is_table(name)}
        learned = tables | self.quantized
        hooks = [
            module.register_forward_hook(self._hook(f"{name}.weight"))
            for name, module in model.named_modules()
            if isinstance(module, Linear)
        ]
        try:
            model.requires_grad_(False)
            for parameter in learned.values():
                parameter.requires_grad_(True)
            with torch.enable_grad(), model.layer_by_layer():
                hidden = model.hidden(tokens)
                scores = F.linear(hidden, model.embedding.to(hidden.dtype))
                self._add_on_backward("embedding", hidden.detach(), scores)
                cap = model.config.logit_softcap
                logits = (cap * torch.tanh(scores.float() / cap)).flatten(0, 1)  # (B * T, V)
                labels = _draw(logits.detach(), self.generator)
                loss = F.cross_entropy(logits, labels, reduction="sum")
            gradients = dict(zip(learned, torch.autograd.grad(loss, list(learned.values())), strict=True))
        finally:
            for hook in hooks:
                hook.remove()
            for parameter, flag in trained.items():
                parameter.requires_grad_(flag)
        for name in self.quantized:
            if name in self.gradients:
                self.gradients[name] += gradients[name]
            else:
                self.gradients[name] = gradients[name].float()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._add_on_backward(name, inputs[0].detach(), output)

        return hook

    def _add_on_backward(self, name: str, x: Tensor, y: Tensor) -> None:
        """Add the statistics of input `x` (..., C) when the backward pass has the gradient of output `y` (..., R)."""

        def add(gradient: Tensor) -> None:
            rows = x.reshape(-1, x.size(-1)).float()
            squared = gradient.reshape(-1, gradient.size(-1)).float().square()  # (B * T, R)
            if name not in self.sums:
                C, R = rows.size(1), squared.size(1)
                self.sums[name] = rows.new_zeros(C, C), rows.new_zeros(R)
            moments, importance = self.sums[name]
            with tf32_products(rows.device):
                moments.addmm_(rows.mT * squared.sum(1), rows)
            importance.add_(squared.sum(0))

        y.register_hook(add)


def _row_tokens(T: int) -> int:
    """The longest row of at most _ROWS_TOKENS tokens into which rows of T tokens divide evenly."""
    return next(T // n for n in range(1, T + 1) if T % n == 0 and T // n <= _ROWS_TOKENS)


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One label per row from softmax(logits), (N, V) fp32 -> (N,) int64, by the Gumbel-max method."""
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device).clamp_(1e-20, 1.0)
    return (logits - (-uniform.log()).log()).argmax(-1)


def gather_fisher(
    model: GPT,
    batches: Iterable[Tensor],
    quantized: Sequence[str],  # names of the parameters whose gradients are summed
    seed: int,  # of the labels; each rank draws its own
    world: World,
    another_fits: Callable[[], bool],  # asked after each batch; the first False ends the gathering
) -> tuple[dict[str, Fisher], dict[str, Tensor]]:
    """What `FisherCollector.finish` returns for this rank's `batches`, (B, T) int64 each, and those of all ranks."""
    generator = torch.Generator(device=world.device).manual_seed(seed + 1_000_003 * (world.rank + 1))
    collector = FisherCollector(model, generator, quantized)
    for tokens in batches:
        collector.add(tokens)
        if not another_fits():
            break
    return collector.finish(world)


def fisher_seconds(model: GPT, tokens: Tensor, num_batches: int, quantized: Sequence[str], world: World) -> float:
    """Seconds to reserve for `num_batches` batches of the size of `tokens`, (B, T), measured on `tokens`."""
    collector = FisherCollector(model, torch.Generator(device=world.device).manual_seed(0), quantized)
    batch_seconds = seconds_of_second_run(lambda: collector.add(tokens), world)
    begin = time.perf_counter()
    collector.finish(world)
    return SAFETY * (num_batches * batch_seconds + time.perf_counter() - begin)
