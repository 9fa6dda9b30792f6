"""`bitgolf plan`: bytes, memory and seconds that a preset will need on this machine, before anything is trained."""

import argparse

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.output import print_json, print_line
from bitgolf.commands.tables import plan_table
from bitgolf.config import load_config


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", help="name of a preset (see `bitgolf presets`), or path of a .toml file")


def _plan(arguments: Arguments, out: Console) -> int:
    from bitgolf.plan.predict import predict
    from bitgolf.run.ranks import world

    config = load_config(arguments.preset, arguments.overrides)
    with world(config.device) as peers:
        prediction = predict(config, peers, arguments.progress)
    if arguments.json:
        print_json(out, prediction)
    else:
        out.print(plan_table(prediction))
        for problem in prediction["problems"]:
            print_line(out, f"does not fit: {problem}", "yellow")
    return 0 if prediction["fits"] else 1


PLAN = Command(
    "plan",
    "predict bytes, memory and seconds on this machine, before training",
    _add_arguments,
    _plan,
    takes_overrides=True,
    settings=("budget.artifact_bytes", "budget.train_seconds", "model.model_dim", "train.micro_batch_tokens"),
    examples=(
        ("plan demo", "what the demo will need"),
        ("plan demo --model.model_dim 256 --budget.artifact_bytes 2MB", "a larger model under a larger cap"),
    ),
)
