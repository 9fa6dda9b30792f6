"""`bitgolf pack`: quantize and pack the trained weights of a run directory under the byte cap."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.output import print_json, print_line
from bitgolf.errors import ConfigError
from bitgolf.run.directory import RunDirectory


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--artifact-bytes", type=int, help="cap to use instead of the configured one")


def _pack(arguments: Arguments, out: Console) -> int:
    from bitgolf.report.products import require_product
    from bitgolf.run.ranks import choose_device

    run = RunDirectory.open(arguments.run)
    if arguments.artifact_bytes is not None and arguments.artifact_bytes < 1:
        raise ConfigError(f"--artifact-bytes {arguments.artifact_bytes}: the cap must be at least 1")
    pack_run(run, choose_device(run.config.device), arguments.progress, arguments.artifact_bytes)
    packed = require_product(run, "pack")
    if arguments.json:
        print_json(out, packed)
    else:
        print_line(
            out,
            f"{packed['model_bytes']:,} bytes of model + {packed['code_bytes']:,} of code = "
            f"{packed['total_bytes']:,} of {packed['cap_bytes']:,} ({packed['bits_per_weight']:.3f} bits per weight)",
        )
    return 0


def pack_run(run: RunDirectory, device: Any, progress: Any, cap: int | None = None) -> None:
    """Stage `pack` with the size of the single-file program that would ship. `cap`: bytes; None = as configured."""
    from bitgolf.bundle.single_file import code_bytes
    from bitgolf.quantize.pack import pack

    pack(run, device, code_bytes(run.config), artifact_bytes=cap, progress=progress)


PACK = Command(
    "pack",
    "quantize the trained weights and pack them into one file under the byte cap",
    _add_arguments,
    _pack,
    settings=(
        "budget.artifact_bytes",
        "pack.method",
        "pack.compressor",
        "pack.grid.matrix_bits",
        "pack.grid.embed_bits",
    ),
    examples=(("pack runs/mine", "pack again"), ("pack runs/mine --artifact-bytes 500000", "under another cap")),
)
