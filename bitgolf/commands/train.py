"""`bitgolf train`: train the model of a run directory."""

import argparse
from pathlib import Path

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.output import print_result
from bitgolf.errors import RunError
from bitgolf.run.directory import RunDirectory


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="train again a run that is already trained")
    parser.add_argument("--branch", metavar="RUN[@STEP]", default="", help="start from a checkpoint of another run")
    parser.add_argument("--anyway", action="store_true", help="start although this machine is too small or too slow")


def _train(arguments: Arguments, out: Console) -> int:
    from bitgolf.plan.check import require_fit, settled
    from bitgolf.plan.memory import memory_of
    from bitgolf.run.ranks import world
    from bitgolf.train.attended import train_attended
    from bitgolf.train.metrics import read_events
    from bitgolf.train.stage import is_finished

    run = RunDirectory.open(arguments.run)
    if is_finished(run) and not arguments.overwrite:
        raise RunError(
            f"{run.path} is trained already, and training again would replace its weights, log and results; use "
            "--overwrite to do so, or start another run with `bitgolf run PRESET --out DIR`"
        )
    with world(run.config.device) as peers:
        if not arguments.resume:
            require_fit(settled(run.config, peers), peers, anyway=arguments.anyway)
        if not run.config.train.micro_batch_tokens:
            run.replace_config_(settled(run.config, peers), write=peers.is_main)
        with memory_of("train.micro_batch_tokens", run.config.train.micro_batch_tokens):
            train_attended(run, peers, resume=arguments.resume, branch=arguments.branch, progress=arguments.progress)
    end = read_events(run / "train.jsonl")[-1]
    text = (
        f"trained {end['step']} steps, {end['tokens']:,} tokens in {end['elapsed_seconds']:.1f} s "
        f"({end['tokens_per_second']:,.0f} tokens/s)"
    )
    print_result(out, arguments.json, end, text)
    return 0


TRAIN = Command(
    "train",
    "train the model of a run directory and gather calibration statistics",
    _add_arguments,
    _train,
    settings=(
        "budget.train_seconds",
        "train.batch_tokens",
        "train.micro_batch_tokens",
        "train.seq_len",
        "train.matrix_lr",
        "train.warmdown",
        "train.average.ema_decay",
        "train.checkpoint.seconds",
    ),
    examples=(
        ("train runs/mine --resume", "continue a training that was stopped"),
        ("train runs/mine --overwrite", "train again, and remove what was made from the earlier weights"),
    ),
)
