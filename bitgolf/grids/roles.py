"""The role of each tensor of a model, and the grid that it is packed on.

Training with fake quantization and packing both call `grid_of`, so they use the same grids. The patterns of
`pack.passthrough` are resolved here too.
"""

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from bitgolf.config import PackConfig
from bitgolf.errors import ConfigError
from bitgolf.grids.grid import Grid


def is_table(name: str) -> bool:
    """True for tensors whose rows are looked up by token: the tied embedding, bigram and value tables."""
    return name == "embedding" or name.endswith(".table")


def role(name: str) -> str:
    """A tensor's name without block number and suffix: `blocks.3.mlp.up.weight` -> `mlp.up`.

    Artifacts group their tensors by role, so a change here changes the files that `bitgolf pack` writes.
    """
    parts = [part for part in name.split(".") if part not in ("blocks", "weight") and not part.isdigit()]
    return ".".join(parts) or name


def require_passthrough_names(names: Iterable[str], config: PackConfig) -> None:
    """Raise ConfigError for a pattern of `pack.passthrough` that matches none of `names`, with the nearest name."""
    names = list(names)
    for pattern in config.passthrough:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
            raise ConfigError(
                f"pack.passthrough {pattern!r} matches none of the model's {len(names)} tensors; the nearest name is "
                f"{near[0] if near else 'none'!r}"
            )


def idle_passthrough(config: PackConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One sentence per pattern of `pack.passthrough` that matches only tensors without a grid.

    Args:
        shapes: the model's tensors, name -> shape.
    """
    without = config.model_copy(update={"passthrough": ()})
    return [
        f"pack.passthrough {pattern!r}: all tensors that it matches stay in float without it"
        for pattern in config.passthrough
        if not any(
            grid_of(name, shape, without) is not None for name, shape in shapes.items() if fnmatchcase(name, pattern)
        )
    ]


def grid_of(name: str, shape: tuple[int, ...], config: PackConfig) -> Grid | None:
    """The grid of a tensor, or None if it stays in float: it is small, has not two dimensions, is listed in
    `pack.passthrough` (PR 348 lists the embedding and one key matrix), or the method is lossless."""
    if config.method == "lossless" or len(shape) != 2 or shape[0] * shape[1] <= config.small_tensor:
        return None
    if any(fnmatchcase(name, pattern) for pattern in config.passthrough):
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


def grids_of(shapes: Mapping[str, tuple[int, ...]], config: PackConfig) -> dict[str, Grid]:
    """The grids of all tensors that are quantized, by name, in the order of `shapes`."""
    grids = {name: grid_of(name, shape, config) for name, shape in shapes.items()}
    return {name: grid for name, grid in grids.items() if grid is not None}
