"""What each tensor of a model is for, and the grid it is packed on; training fakes the same grid that packing uses."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from bitgolf.config import PackConfig
from bitgolf.errors import ConfigError
from bitgolf.grids.grid import Grid


def is_table(name: str) -> bool:
    """True for tensors whose rows are looked up by token: the tied embedding, bigram and value tables."""
    return name == "embedding" or name.endswith(".table")


def role(name: str) -> str:
    """The part of a tensor's name that says what it is for: `blocks.3.mlp.up.weight` -> `mlp.up`."""
    parts = [part for part in name.split(".") if part not in ("blocks", "weight") and not part.isdigit()]
    return ".".join(parts)


def passes_through(name: str, config: PackConfig) -> bool:
    """True for tensors that `pack.passthrough` keeps in float (PR 348: the embedding and one key matrix)."""
    return any(fnmatchcase(name, pattern) for pattern in config.passthrough)


def require_passthrough_names(names: Iterable[str], config: PackConfig) -> None:
    """Raises ConfigError for an entry of `pack.passthrough` that matches none of `names`, with the nearest name."""
    names = list(names)
    for pattern in config.passthrough:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
            raise ConfigError(
                f"pack.passthrough {pattern!r} matches none of the model's {len(names)} tensors; the nearest name is "
                f"{near[0] if near else 'none'!r}"
            )


def grid_of(name: str, shape: tuple[int, ...], config: PackConfig) -> Grid | None:
    """The grid of a tensor, or None when it stays in float (small, one-dimensional, exempt, or all is lossless)."""
    if config.method == "lossless" or len(shape) != 2 or shape[0] * shape[1] <= config.small_tensor:
        return None
    if passes_through(name, config):
        return None
    if is_table(name):
        return Grid(config.grid.embed_bits, clip_sigmas=config.grid.embed_clip_sigmas)
    bits = config.grid.matrix_bits
    if ".mlp." in name:
        bits = config.grid.mlp_bits or bits
    elif ".attention." in name:
        bits = config.grid.attention_bits or bits
    floor = 1 / (2 ** (bits - 1) - 1) if config.grid.scale_floor else 0.0
    return Grid(bits, floor, config.grid.clip_sigmas)
