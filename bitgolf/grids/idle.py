"""Settings of `pack` that change nothing in the artifact of a model, and settings of any section that nothing reads."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from bitgolf.config import PackConfig
from bitgolf.config.section import Section
from bitgolf.grids.roles import grid_of


def idle_packing(pack: PackConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One sentence for every setting of `pack` that will change nothing in the artifact."""
    found = []
    if pack.fit.prune and pack.method != "gptq":
        found.append(f"pack.fit.prune: only GPTQ matrices are pruned, and pack.method is {pack.method!r}")
    why = f"pack.method is {pack.method!r}"
    if pack.method == "rate":
        bits = ("matrix_bits", "attention_bits", "mlp_bits", "embed_bits", "clip_sigmas", "embed_clip_sigmas")
        found += idle_keys(pack.grid, "pack.grid", bits, why)
    else:
        found += idle_keys(pack.rate, "pack.rate", tuple(type(pack.rate).model_fields), why)
    without = pack.model_copy(update={"passthrough": ()})
    for pattern in pack.passthrough:
        matched = [name for name in shapes if fnmatchcase(name, pattern)]
        if not any(grid_of(name, shapes[name], without) for name in matched):
            found.append(f"pack.passthrough {pattern!r}: what it matches stays in float anyway")
    return found


def idle_keys(section: Section, name: str, keys: tuple[str, ...], why: str) -> list[str]:
    """Keys that are not at their defaults although nothing reads them."""
    fields = type(section).model_fields
    return [
        f"{name}.{key} {getattr(section, key)}: {why}, so nothing reads it"
        for key in keys
        if getattr(section, key) != fields[key].default
    ]
