"""Rotary position embedding on the first `rotary_dims` channels of every head (RoFormer, arXiv 2104.09864).

Channel i is paired with i + r/2; the pair is rotated by position * base^(-2i/r) radians. If the context is longer than
`rope.train_length`, the base grows by the NTK rule, base * (T / T_train)^(r / (r - 2)), as in PR 585 and 693.

Legend: B batch, T time, H heads, K head width, r rotated channels per head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitgolf.config import ModelConfig


def rotary_base(config: ModelConfig, context_length: int) -> float:
    """Base of the rotary frequencies for windows of `context_length` tokens."""
    r = config.rotary_dims
    if config.rope.train_length and context_length > config.rope.train_length:
        return float(config.rope.base * (context_length / config.rope.train_length) ** (r / (r - 2)))
    return config.rope.base


def rotary_frequencies(config: ModelConfig, context_length: int) -> Tensor:
    """Radians per position for each rotated pair, (r/2,) fp32."""
    r = config.rotary_dims
    exponents = torch.arange(0, r, 2, dtype=torch.float32, device="cpu") / r  # meta would import a compiler, in 1 s
    return 1.0 / rotary_base(config, context_length) ** exponents


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first r channels of x (B, T, H, K) by angles with this `cos` and `sin`, (T, r/2) of x's dtype."""
    half = cos.size(-1)
    cos, sin = cos[None, :, None, :], sin[None, :, None, :]
    x1, x2, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin, rest), dim=-1)
