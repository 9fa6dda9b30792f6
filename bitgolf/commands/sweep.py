"""`bitgolf sweep`: try settings of training by themselves, on held-out training text."""

import argparse
from pathlib import Path

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.output import print_json, print_line


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, help="TOML file of the sweep (docs/experiments.md)")
    parser.add_argument("--data", type=Path, required=True, help="folder that `bitgolf prepare` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the sweep; the same one again continues")
    parser.add_argument(
        "--storage", default="", metavar="URL", help="database, such as postgresql://...; several hosts"
    )


def _sweep(arguments: Arguments, out: Console) -> int:
    from bitgolf.sweep.study import read_sweep
    from bitgolf.sweep.sweep import run_sweep

    study = read_sweep(arguments.study)
    results = run_sweep(study, arguments.data, arguments.out, arguments.storage, arguments.progress)
    if arguments.json:
        print_json(out, results)
        return 0
    best = results["best"]
    if best is None:
        print_line(out, "no trial was completed", "yellow")
        return 0
    settings = " ".join(f"--{key} {value}" for key, value in best["settings"].items())
    print_line(
        out, f"best of {len(results['trials'])} trials: {best['held_out_nats']:.5f} nats per token with {settings}"
    )
    print_line(out, f"table: {arguments.out / 'README.md'}")
    return 0


SWEEP = Command(
    "sweep",
    "try settings of training automatically, measured on held-out training text",
    _add_arguments,
    _sweep,
    examples=(("sweep study.toml --data runs/mine/data --out sweeps/rates", "as docs/experiments.md describes"),),
)
