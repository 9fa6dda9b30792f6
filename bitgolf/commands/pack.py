"""`bitgolf pack`: quantize and pack the trained weights of a run directory under the byte cap."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.output import print_json, print_line
from bitgolf.errors import RunError
from bitgolf.run.directory import RunDirectory


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run directory")


def _pack(arguments: Arguments, out: Console) -> int:
    from bitgolf.report.products import require_product
    from bitgolf.run.ranks import choose_device

    run = RunDirectory.open(arguments.run)
    is_scored = (run / "score.json").exists()
    pack_run(run, choose_device(run.config.device), arguments.progress, arguments.overrides)
    packed = require_product(run, "pack")
    if arguments.json:
        print_json(out, packed)
    else:
        print_line(
            out,
            f"{packed['model_bytes']:,} bytes of model + {packed['code_bytes']:,} of code = "
            f"{packed['total_bytes']:,} of {packed['cap_bytes']:,} ({packed['bits_per_weight']:.3f} bits per weight)",
        )
        if is_scored:
            print_line(out, f"its scores are those of the earlier artifact; run `bitgolf score {run.path}`, then audit")
    return 0


def pack_run(run: RunDirectory, device: Any, progress: Any, overrides: Mapping[str, str] | None = None) -> None:
    """Stage `pack` with the size of the single-file program that would ship.

    `overrides`: other settings of packing, text by dotted key. They are recorded, as are those of an earlier call.
    """
    import torch

    from bitgolf.bundle.single_file import code_bytes
    from bitgolf.quantize.pack import pack
    from bitgolf.quantize.repack import is_repacked, repack
    from bitgolf.train.stage import is_finished

    if all((run / name).exists() for name in ("train.jsonl", "weights.safetensors")) and not is_finished(run):
        raise RunError(
            f"the training of {run.path} has not ended, so its weights may be those of an earlier one; run "
            f"`bitgolf train {run.path} --resume` first"
        )
    if device.type == "mps":
        device = torch.device("cpu")  # quantization needs fp64, which Apple GPUs do not have
    if overrides or is_repacked(run):
        repack(run, device, overrides or {}, progress=progress)
    else:
        pack(run, device, code_bytes(run.config), progress=progress)


PACK = Command(
    "pack",
    "quantize the trained weights and pack them into one file under the byte cap",
    _add_arguments,
    _pack,
    takes_overrides=True,
    settings=(
        "budget.artifact_bytes",
        "pack.method",
        "pack.compressor",
        "pack.grid.matrix_bits",
        "pack.grid.embed_bits",
    ),
    examples=(("pack runs/mine", "pack again"), ("pack runs/mine --budget.artifact_bytes 500KB", "under another cap")),
)
