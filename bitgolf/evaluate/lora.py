"""Low-rank adapters, one set per document: delta = (alpha / r) B (A x), added to a model that stays as it is.

The deltas of q, k and v are added to the outputs of these projections. Those of `o` and `mlp` are added to the outputs
of a layer's attention and MLP, as a bypass that reads the same normalized input. The delta of `head` is added to the
logits before their softcap, from the final norm. Query, key, value and head adapters are exactly a change of the
weight, W + (alpha / r) B A. Each run of a looped layer has adapters of its own. A starts uniform in +-1 / sqrt(inputs),
B at zero. Source: LoRA (arXiv 2106.09685); per document the challenge's baseline and PR 1530.

Legend: N rows of adapters, n documents of a pass, W tokens of their windows, C scored positions, r rank, P adapter
values of a document, D model width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitgolf.config.evaluate import LoraTTTConfig
from bitgolf.model.gpt import GPT
from bitgolf.model.layers import Block, Delta, Linear, add_delta

# Of AdamW in the published per-document runs; B's first gradients are far below the usual 1e-8.
_EPS = 1e-10
_PROJECTIONS = {"q": "attention.query", "k": "attention.key", "v": "attention.value", "o": "attention", "mlp": "mlp"}


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
        for target, name in _PROJECTIONS.items():
            if target in targets:
                block = model.blocks[position.layer]
                assert isinstance(block, Block)
                module = block.get_submodule(name)
                outputs = module.out_features if isinstance(module, Linear) else width
                sites.append(Site(f"blocks.{position.layer}.{name}", width, outputs))
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
    """Adapters and AdamW state of N documents, each with a number of steps of its own.

    All values of a document are one row (P,), so that an update takes few operations.

    Attributes:
        parameters: every A (N, r, inputs), then every B (N, outputs, r); views of the rows.
    """

    def __init__(
        self,
        sites: Sequence[Site],  # where they are added
        a: Sequence[Tensor],  # A of every site, (N, r, inputs) fp32; copied
        config: LoraTTTConfig,  # rank, alpha and the settings of AdamW
        update: Callable[..., None] | None = None,  # `adamw_`, or the same compiled
    ) -> None:
        self.sites, self.config, self.update = list(sites), config, update or adamw_
        self.shapes = [(config.rank, site.inputs) for site in sites] + [(site.outputs, config.rank) for site in sites]
        count = sum(rows * columns for rows, columns in self.shapes)
        self.values, self.mean, self.square = (a[0].new_zeros(len(a[0]), count) for _ in range(3))  # (N, P)
        self.num_steps = torch.zeros(len(a[0]), 1, dtype=torch.float64)
        self.parameters = self.split(self.values)
        for ours, theirs in zip(self.a, a, strict=True):
            ours.copy_(theirs)

    @property
    def a(self) -> list[Tensor]:
        return self.parameters[: len(self.sites)]

    @property
    def b(self) -> list[Tensor]:
        return self.parameters[len(self.sites) :]

    def split(self, values: Tensor) -> list[Tensor]:
        """Views of the matrices, as `parameters`, of values (n, P)."""
        parts = values.split([rows * columns for rows, columns in self.shapes], 1)
        return [part.view(len(values), *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def drop_others(self, documents: Tensor) -> None:
        """Drop all but `documents`, (n,) int64 positions among the N."""
        self.values, self.mean, self.square = (x[documents] for x in (self.values, self.mean, self.square))
        self.num_steps = self.num_steps[documents.cpu()]
        self.parameters = self.split(self.values)

    def begin(self, row: int, a: Sequence[Tensor] | None) -> None:
        """Start a document in a row: with A (r, inputs) of every site, or None for those of the document before."""
        for values in (self.mean[row], self.square[row], self.num_steps[row], *(b[row] for b in self.b)):
            values.zero_()
        for ours, theirs in zip(self.a, a or (), strict=a is not None):
            ours[row] = theirs

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rows: Sequence[int] | None = None) -> None:
        """One AdamW update of `rows`, by default of all; the first rows of `gradients`, which are as `parameters`."""
        config, device = self.config, self.values.device
        at = torch.tensor(range(len(self.values)) if rows is None else rows)
        self.num_steps[at] += 1
        # Of every row, (n, 1); computed in fp64, because 1 - beta is small.
        correct1, correct2 = (
            (1 - beta ** self.num_steps[at]).to(device, torch.float32) for beta in (config.beta1, config.beta2)
        )
        gradient = torch.cat([gradient.flatten(1) for gradient in gradients], 1)  # (n or more, P)
        self.update(self.values, self.mean, self.square, gradient, at.to(device), correct1, correct2, config)


def adamw_(
    values: Tensor,  # (N, P), as the next two
    mean: Tensor,
    square: Tensor,
    gradient: Tensor,  # (n or more, P)
    rows: Tensor,  # (n,) int64
    correct1: Tensor,  # (n, 1) 1 - beta1^steps
    correct2: Tensor,  # (n, 1) 1 - beta2^steps
    config: LoraTTTConfig,
) -> None:
    """An AdamW update of some rows, in place."""
    g = gradient[: len(rows)].float()
    m = torch.lerp(mean[rows], g, 1 - config.beta1) if config.beta1 else g
    s = square[rows] * config.beta2 + g * g * (1 - config.beta2)
    v = values[rows] * (1 - config.lr * config.weight_decay)
    v = v - config.lr * (m / correct1) / ((s / correct2).sqrt() + _EPS)
    values[rows], square[rows] = v, s
    if config.beta1:
        mean[rows] = m


def adapted_logits(
    model: GPT,
    adapters: DocumentAdapters,
    tokens: Tensor,  # (n, W) int64, one window per document
    last: int,  # C, 1..W
    parameters: Sequence[Tensor] = (),  # of the n documents, by default of all N in `adapters`
    ends: Tensor | None = None,  # (n,) int64, one past the last scored position of each window; None = W
    **options: Any,  # of `GPT.hidden`
) -> Tensor:
    """Logits (n, C, V) float32, softcapped, of C positions of each window, each with its document's adapters."""
    count, scale = len(adapters.sites), adapters.config.alpha / adapters.config.rank
    parameters = parameters or adapters.parameters
    deltas: list[Delta] = [(a, b, scale) for a, b in zip(parameters[:count], parameters[count:], strict=True)]
    head = deltas.pop() if adapters.sites[-1].name == "head" else None
    names = {site.name.split(".", 2)[-1] for site in adapters.sites}
    targets = [target for target, name in _PROJECTIONS.items() if name in names]
    per_run = [
        dict(zip(targets, deltas[i : i + len(targets)], strict=True)) for i in range(0, len(deltas), len(targets) or 1)
    ]
    hidden = model.hidden(tokens, deltas=per_run, **options)
    if ends is None:
        hidden, tokens = hidden[:, -last:], tokens[:, -last:]  # (n, C, D), (n, C)
    else:
        places = ends[:, None] + torch.arange(-last, 0, device=tokens.device)  # (n, C)
        tokens = tokens.gather(1, places)
        hidden = hidden.gather(1, places[..., None].expand(-1, -1, hidden.size(-1)))
    raw = F.linear(hidden, model.embedding.to(hidden.dtype))
    return model.capped(add_delta(raw, hidden, head), tokens)
