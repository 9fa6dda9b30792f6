"""What an error in each matrix costs at the loss, to second order: weighted input moments and row importances.

For y = W x and the loss L a token, the Fisher information of W is E[dy dy^T (x) x x^T]. Two factors of it are kept:
the input moments weighted by how much each token's output matters, H = E[|dy|^2 x x^T] / E[|dy|^2], and the diagonal
on the output side, g_i = E[dy_i^2], so that an error E in W costs about 1/2 sum_i g_i E_i H E_i^T nats a token.
Labels are drawn from the model itself, which makes the Fisher information equal the curvature of the cross entropy;
they need no text beyond the inputs. Gathered on the training clock, beside the plain moments of `calibration`.
Sources: K-FAC (Martens and Grosse 2015), the output side as in YAQA (arXiv:2505.22988).

Legend: B batch, T time, V vocabulary, R outputs and C inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitgolf.model.gpt import GPT
from bitgolf.model.layers import Linear
from bitgolf.run.ranks import World

_ROWS_TOKENS = 32_768  # tokens of one backward pass: bounds the memory of an eager graph


@dataclass(frozen=True)
class Fisher:
    """Second-order statistics of one matrix.

    Attributes:
        inputs: (C, C) fp32 moments of the inputs, weighted by the squared gradient at the output; weights average 1.
        rows: (R,) fp32 mean squared gradient of a token's output; nats^2 per squared unit of output.
    """

    inputs: Tensor
    rows: Tensor


class FisherCollector:
    """Accumulates `Fisher` for every linear layer of `model` and for the tied embedding as the output head.

    Args:
        model: evaluated as it is (float weights, no fake quantization).
        generator: draws the labels, on the model's device.
    """

    def __init__(self, model: GPT, generator: torch.Generator) -> None:
        self.model, self.generator = model, generator
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}
        self.num_tokens = 0

    def add(self, tokens: Tensor) -> None:
        """Run the model forward and backward on tokens (B, T) and add their statistics."""
        for rows in tokens.split(max(1, _ROWS_TOKENS // tokens.size(1))):
            self._add(rows)
        self.num_tokens += tokens.numel()

    def finish(self, world: World) -> dict[str, Fisher]:
        """Statistics over the tokens of all ranks by parameter name, on the CPU."""
        names = sorted(self.sums)
        flat = [part for name in names for part in self.sums[name]]
        world.mean_(flat)
        result = {}
        for name, inputs, rows in zip(names, flat[0::2], flat[1::2], strict=True):
            weight = rows.sum()
            scaled = inputs / weight if float(weight) > 0 else inputs
            result[name] = Fisher(scaled.cpu(), (rows / self.num_tokens).cpu())
        return result

    def _add(self, tokens: Tensor) -> None:
        model = self.model
        trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
        # Only the tables lead the graph to every layer; gradients of the matrices themselves are not needed.
        tables = [model.embedding] + [part.table for part in (model.bigram, model.value_embedding) if part is not None]
        hooks = [
            module.register_forward_hook(self._hook(f"{name}.weight"))
            for name, module in model.named_modules()
            if isinstance(module, Linear)
        ]
        try:
            model.requires_grad_(False)
            for table in tables:
                table.requires_grad_(True)
            with torch.enable_grad():
                hidden = model.hidden(tokens)
                scores = F.linear(hidden, model.embedding.detach().to(hidden.dtype))
                self._watch("embedding", hidden.detach(), scores)
                cap = model.config.logit_softcap
                logits = (cap * torch.tanh(scores.float() / cap)).flatten(0, 1)  # (B * T, V)
                labels = _draw(logits.detach(), self.generator)
                loss = F.cross_entropy(logits, labels, reduction="sum")
            torch.autograd.grad(loss, tables)
        finally:
            for hook in hooks:
                hook.remove()
            for parameter, flag in trained.items():
                parameter.requires_grad_(flag)

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._watch(name, inputs[0].detach(), output)

        return hook

    def _watch(self, name: str, x: Tensor, y: Tensor) -> None:
        """When the gradient of `y` (..., R) arrives, add it with its input `x` (..., C)."""

        def arrive(gradient: Tensor) -> None:
            rows = x.reshape(-1, x.size(-1)).float()
            squared = gradient.reshape(-1, gradient.size(-1)).float().square()  # (B * T, R)
            if name not in self.sums:
                C, R = rows.size(1), squared.size(1)
                self.sums[name] = rows.new_zeros(C, C), rows.new_zeros(R)
            moments, importance = self.sums[name]
            moments.addmm_(rows.mT * squared.sum(1), rows)
            importance.add_(squared.sum(0))

        y.register_hook(arrive)


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One label a row from softmax(logits), (N, V) fp32 -> (N,) int64, by the Gumbel maximum."""
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device).clamp_(1e-20, 1.0)
    return (logits - (-uniform.log()).log()).argmax(-1)
