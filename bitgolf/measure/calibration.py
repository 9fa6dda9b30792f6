"""Calibration: the second moments of the inputs of every matrix, gathered on the training clock.

For each linear layer H = mean over tokens of x x^T, where x is the layer's input under the final weights. Query, key
and value read the same input, so they share one H. The tied embedding is also the output head; its input is the final
normalized hidden state. `pack` rounds with these Hessians and reads no text itself (rules B4 and B7 in docs/rules.md).
Source: GPTQ (arXiv 2210.17323).

Legend: B batch, T time, C inputs of a matrix.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bitgolf.model.gpt import GPT
from bitgolf.model.layers import Linear
from bitgolf.run.clock import SAFETY, seconds_of_second_run
from bitgolf.run.ranks import World


def hessian_key(parameter: str) -> str | None:
    """Name of the Hessian that belongs to a parameter, or None for parameters that multiply no activations."""
    if parameter == "embedding":
        return "head"
    if not parameter.endswith(".weight"):
        return None
    layer = parameter.removesuffix(".weight")
    for shared in (".attention.query", ".attention.key", ".attention.value"):
        if layer.endswith(shared):
            return layer.removesuffix(shared) + ".attention.input"
    return layer


class HessianCollector:
    """Sums H for every matrix of `model` over forward passes, in fp32 on the model's device."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.sums: dict[str, Tensor] = {}
        self.num_tokens = 0

    @torch.no_grad()
    def add(self, tokens: Tensor) -> None:
        """Run the model on tokens (B, T) and add their second moments."""
        hooks = [
            module.register_forward_pre_hook(self._hook(key))
            for name, module in self.model.named_modules()
            if isinstance(module, Linear)
            and (key := hessian_key(f"{name}.weight"))
            and not name.endswith((".key", ".value"))
        ]
        try:
            with self.model.layer_by_layer():
                self._accumulate("head", self.model.hidden(tokens))
        finally:
            for hook in hooks:
                hook.remove()
        self.num_tokens += tokens.numel()

    def finish(self, world: World) -> dict[str, Tensor]:
        """Means over the tokens of all ranks: key -> (C, C) fp32 on the CPU."""
        sums = [self.sums[key] for key in sorted(self.sums)]
        world.mean_(sums)
        return {key: (total / self.num_tokens).cpu() for key, total in zip(sorted(self.sums), sums, strict=True)}

    def _hook(self, key: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._accumulate(key, inputs[0])

        return hook

    def _accumulate(self, key: str, x: Tensor) -> None:
        rows = x.reshape(-1, x.size(-1)).float()
        if key not in self.sums:
            self.sums[key] = torch.zeros(rows.size(1), rows.size(1), device=rows.device)
        with tf32_products(rows.device):
            self.sums[key].addmm_(rows.mT, rows)


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """TF32 for products on a GPU: inputs in bf16 lose nothing, the sums are fp32, and it is about six times as fast."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def gather_hessians(
    model: GPT, batches: Iterable[Tensor], world: World, another_fits: Callable[[], bool]
) -> tuple[dict[str, Tensor], int]:
    """Hessians over this rank's `batches` of tokens, (B, T) int64 each.

    `another_fits` is asked after each batch; the first False ends the gathering. Returns key -> (C, C) fp32 on the CPU,
    averaged over all ranks, and the tokens that this rank used.
    """
    collector = HessianCollector(model)
    for tokens in batches:
        collector.add(tokens)
        if not another_fits():
            break
    return collector.finish(world), collector.num_tokens


def calibration_seconds(model: GPT, tokens: Tensor, num_batches: int, world: World) -> float:
    """Seconds to reserve for `num_batches` batches of the size of `tokens`, (B, T), measured on `tokens`."""
    collector = HessianCollector(model)
    batch_seconds = seconds_of_second_run(lambda: collector.add(tokens), world)
    begin = time.perf_counter()
    collector.finish(world)
    return SAFETY * (batch_seconds * num_batches + time.perf_counter() - begin)
