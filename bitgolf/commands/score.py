"""`bitgolf score`: score the artifact of a run directory on its validation text."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.output import print_json
from bitgolf.commands.tables import score_table
from bitgolf.run.directory import RunDirectory


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run directory")


def _score(arguments: Arguments, out: Console) -> int:
    from bitgolf.evaluate.score import score
    from bitgolf.report.products import require_product
    from bitgolf.run.ranks import world

    run = RunDirectory.open(arguments.run)
    if not arguments.json:
        require_product(run, "pack")  # the table needs it, so a missing one is an error before the work
    with world(run.config.device) as peers:
        score(run, peers, progress=arguments.progress)
    scored = require_product(run, "score")
    if arguments.json:
        print_json(out, scored)
    else:
        out.print(score_table(run.config.name, scored, require_product(run, "pack")))
    return 0


SCORE = Command("score", "score the artifact on the validation text", _add_arguments, _score)
