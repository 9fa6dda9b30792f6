"""Crafted config.toml files: every setting with hostile values, and files that are no TOML."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bitgolf.config import load_config
from crafted.case import Case
from crafted.damage import DAMAGED_BYTES, SETTINGS, SPECIAL


def write(data: bytes, path: Path) -> None:
    """A file of those bytes."""
    path.write_bytes(data)


def read(path: Path) -> object:
    """Read it as a preset, whose name ends in .toml."""
    named = path.with_name("config.toml")
    named.unlink(missing_ok=True)
    if path.is_symlink() or path.exists():
        path.rename(named)
    return load_config(str(named))


def cases() -> list[Case]:
    """All crafted settings."""
    lines = load_config("demo").to_toml().splitlines()
    text = "\n".join(lines).encode()
    made = [Case(what, partial(write, damage(text)), read) for what, damage in DAMAGED_BYTES.items()]
    made += [Case(what, SPECIAL[what], read) for what in SPECIAL if what != "a directory"]
    for number, line in enumerate(lines):
        key, _, value = line.partition(" = ")
        for other in SETTINGS if value else ():
            changed = "\n".join([*lines[:number], f"{key} = {other}", *lines[number + 1 :]])
            made.append(Case(f"line {number}: {key} is {other[:20]}", partial(write, changed.encode()), read))
    return made
