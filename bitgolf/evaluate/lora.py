"""Low-rank adapters, one set per document: delta = (alpha / r) B (A x), added to a model that stays as it is.

The deltas of q, k and v are added to the outputs of these projections. Those of `o` and `mlp` are added to the outputs
of a layer's attention and MLP, as a bypass that reads the same normalized input. The delta of `head` is added to the
logits before their softcap, from the final norm. Query, key, value and head adapters are exactly a change of the
weight, W + (alpha / r) B A. Each run of a looped layer has adapters of its own. Forward hooks add the deltas, so the
model is defined in one place. A starts uniform in +-1 / sqrt(inputs), B at zero.
Source: LoRA (arXiv 2106.09685); per document the challenge's baseline and PR 1530.

Legend: N documents side by side, W tokens of their windows, r rank, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitgolf.config.evaluate import LoraTTTConfig
from bitgolf.model.gpt import GPT
from bitgolf.model.layers import Block, Linear

# Of AdamW in the published per-document runs; B's first gradients are far below the usual 1e-8.
_EPS = 1e-10

Delta = Callable[[Tensor], Tensor]
"""Input of a site (N, W, inputs) -> what is added to its output, (N, W, outputs)."""


@dataclass(frozen=True)
class Site:
    """A place where an adapter is added: one run of a module of the model in a pass (or "head"), and the widths there.

    A module of a looped layer has one site per run. They have the same name and stand in the order of the runs.
    """

    name: str
    inputs: int
    outputs: int


def lora_sites(model: GPT, targets: Sequence[str]) -> list[Site]:
    """Places of the adapters for `targets` (of q, k, v, o, mlp, head), in the order of a pass; the head is last."""
    sites: list[Site] = []
    width = model.config.model_dim
    for position in model.orders[True]:
        block, prefix = model.blocks[position.layer], f"blocks.{position.layer}"
        assert isinstance(block, Block)
        for target, name in (("q", "query"), ("k", "key"), ("v", "value")):
            if target in targets:
                linear: Linear = getattr(block.attention, name)
                sites.append(Site(f"{prefix}.attention.{name}", linear.in_features, linear.out_features))
        sites += [
            Site(f"{prefix}.{name}", width, width)
            for target, name in (("o", "attention"), ("mlp", "mlp"))
            if target in targets
        ]
    if "head" in targets:
        sites.append(Site("head", width, model.config.vocab_size))
    return sites


def initial_a(sites: Sequence[Site], rank: int, seed: int, device: torch.device) -> list[Tensor]:
    """A of every site, (r, inputs) fp32, drawn on the CPU: the same for every document, device and rank."""
    generator = torch.Generator().manual_seed(seed)
    matrices = []
    for site in sites:
        bound = site.inputs**-0.5
        matrices.append(torch.empty(rank, site.inputs).uniform_(-bound, bound, generator=generator).to(device))
    return matrices


class DocumentAdapters:
    """Adapters and AdamW state of N documents that advance in step.

    Args:
        sites: where they are added.
        a: A of every site, (N, r, inputs) fp32; copied.
        config: rank, alpha and the settings of AdamW.
    """

    def __init__(self, sites: Sequence[Site], a: Sequence[Tensor], config: LoraTTTConfig) -> None:
        self.sites, self.config = list(sites), config
        self.a = [tensor.clone() for tensor in a]
        self.b = [
            tensor.new_zeros(len(tensor), site.outputs, config.rank) for site, tensor in zip(sites, a, strict=True)
        ]
        self.mean = [torch.zeros_like(p) for p in self.parameters]
        self.square = [torch.zeros_like(p) for p in self.parameters]
        self.num_steps = 0

    @property
    def parameters(self) -> list[Tensor]:
        """Every A, then every B; the first axis of each is the document."""
        return [*self.a, *self.b]

    def keep(self, documents: Tensor) -> None:
        """Drop all but `documents`, (n,) int64 positions among the N."""
        for tensors in (self.a, self.b, self.mean, self.square):
            tensors[:] = [tensor[documents] for tensor in tensors]

    @torch.no_grad()
    def step(self, gradients: list[Tensor]) -> None:
        """One AdamW update of every document; `gradients` in the order of `parameters`."""
        config = self.config
        self.num_steps += 1
        torch._foreach_lerp_(self.mean, gradients, 1 - config.beta1)
        torch._foreach_mul_(self.square, config.beta2)
        torch._foreach_addcmul_(self.square, gradients, gradients, 1 - config.beta2)
        parameters = self.parameters
        torch._foreach_mul_(parameters, 1 - config.lr * config.weight_decay)
        root = torch._foreach_sqrt(self.square)
        torch._foreach_div_(root, (1 - config.beta2**self.num_steps) ** 0.5)
        torch._foreach_add_(root, _EPS)
        torch._foreach_addcdiv_(parameters, self.mean, root, -config.lr / (1 - config.beta1**self.num_steps))


def adapted_logits(model: GPT, adapters: DocumentAdapters, tokens: Tensor, last: int) -> Tensor:
    """Logits of the last positions of one window per document, each with its document's adapters.

    Args:
        tokens: (N, W) int64.
        last: number of positions, 1..W.
    Returns:
        (N, last, V) float32, softcapped.
    """
    config = adapters.config
    scale = config.alpha / config.rank
    deltas: dict[str, list[Delta]] = {}
    for site, a, b in zip(adapters.sites, adapters.a, adapters.b, strict=True):
        deltas.setdefault(site.name, []).append(_delta(a, b, scale))
    head = deltas.pop("head", None)
    with _hooked(model, deltas):
        hidden = model.hidden(tokens)[:, -last:]  # (N, last, D)
    if head is None:
        return model.logits(hidden, tokens[:, -last:])
    return model.capped(F.linear(hidden, model.embedding.to(hidden.dtype)) + head[0](hidden), tokens[:, -last:])


def _delta(a: Tensor, b: Tensor, scale: float) -> Delta:
    """x (N, W, inputs) -> scale * B (A x), (N, W, outputs), in the dtype of x."""

    def delta(x: Tensor) -> Tensor:
        low = torch.bmm(x, a.to(x.dtype).transpose(1, 2))  # (N, W, r)
        return scale * torch.bmm(low, b.to(x.dtype).transpose(1, 2))

    return delta


@contextmanager
def _hooked(model: nn.Module, deltas: dict[str, list[Delta]]) -> Iterator[None]:
    """For one pass, the named modules add a delta of their input to their output (to its first part if a tuple).

    The first run of a module in the pass adds the first of its deltas, and so on.
    """

    def hook(runs: Iterator[Delta]) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        def add(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            delta = next(runs)
            if isinstance(output, tuple):
                return (output[0] + delta(args[0]), *output[1:])
            return output + delta(args[0])

        return add

    handles = [model.get_submodule(name).register_forward_hook(hook(iter(runs))) for name, runs in deltas.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
