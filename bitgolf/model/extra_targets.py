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


def cross_entropy(logits: Tensor, targets: Tensor, extra: ExtraTargets) -> Tensor:
    """The loss of logits (B, T, V) and next tokens (B, T) int64, a scalar. Its value is that of the plain loss.

    Only the gradient has all terms, so that logged losses can be compared over a whole run.
    """
    log_p = torch.log_softmax(logits, dim=-1).flatten(0, 1)

    def mean(tokens: Tensor) -> Tensor:
        return F.nll_loss(log_p, tokens.flatten(), ignore_index=-1, reduction="sum") / tokens.numel()

    plain = mean(targets)
    rest = extra.weights[-1] * mean(extra.prefixes[targets])
    later, ended = targets, torch.zeros_like(targets, dtype=torch.bool)
    for weight in extra.weights[:-1].unbind():
        ended = ended | (later == BOS)
        later = F.pad(later[:, 1:], (0, 1), value=-1)
        rest = rest + weight * mean(later.masked_fill(ended, -1))
    return plain + rest - rest.detach()
