"""A loss with more targets on the same logits: the tokens after the next one, and the token that begins the next one.

    loss = mean over i of  CE(z_i, y_{i+1}) + sum_k w_k CE(z_i, y_{i+1+k}) + w_p CE(z_i, pre(y_{i+1}))

pre(y) is the longest other token whose text begins that of y. The weights fall to 0 during training
(`bitgolf.train.schedule.extra_weights`). All terms share one softmax, so the loss needs no further logits. No term
reaches into the next document. Source: modded-nanogpt, its prefix loss from PR 337.

Legend: B rows, T time, V vocabulary, n tokens after the next one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bitgolf.model.document_borders import BOS


class ExtraTargets(NamedTuple):
    """What the loss needs besides logits and targets."""

    weights: Tensor  # (n + 1,) fp32: of the tokens after the next one, nearest first, then of the prefix
    prefixes: Tensor  # (V,) int64: pre(y), or -1 for a token without one

    def columns(self, targets: Tensor, borders: Tensor) -> tuple[Tensor, Tensor]:
        """All targets of next tokens (B, T) int64, (B, T, n + 2) with -1 for none; and their weights, (n + 2,) fp32.

        `borders` (B, T): the inputs, but a BOS wherever a document begins.
        """
        columns, later, ended = [targets], targets, torch.zeros_like(targets, dtype=torch.bool)
        for _ in range(len(self.weights) - 1):
            borders = F.pad(borders[:, 1:], (0, 1), value=BOS)  # of the position after the last one
            ended = ended | (borders == BOS)
            later = F.pad(later[:, 1:], (0, 1), value=-1)
            columns.append(later.masked_fill(ended, -1))
        return torch.stack((*columns, self.prefixes[targets]), -1), F.pad(self.weights, (1, 0), value=1.0)


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The loss of logits (B, T, V) and targets (B, T, K) int64 with weights (K,), a scalar.

    Its value is that of the first target alone, so that logged losses can be compared over a whole run. The gradient
    has all terms.
    """
    log_p = torch.log_softmax(logits, dim=-1).flatten(0, 1)
    means = [
        F.nll_loss(log_p, column.flatten(), ignore_index=-1, reduction="sum") / column.numel()
        for column in targets.unbind(-1)
    ]
    rest = sum(weight * mean for weight, mean in zip(weights[1:].unbind(), means[1:], strict=True))
    return means[0] + (rest - rest.detach() if isinstance(rest, Tensor) else 0.0)
