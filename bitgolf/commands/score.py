"""`bitgolf score`: score the artifact of a run on its validation text, or any text file with `--model`."""

import argparse
from pathlib import Path

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.files import STANDARD, artifact_path, read_input
from bitgolf.commands.output import print_json, print_line, print_result
from bitgolf.commands.tables import score_table, text_score_table
from bitgolf.errors import ConfigError, DataError
from bitgolf.run.directory import RunDirectory

_MAX_TEXT_BYTES = 100_000_000


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", type=Path, metavar="RUN|FILE", help="run directory, or with --model a text file; - = stdin"
    )
    parser.add_argument("--model", type=Path, help="run directory or model.bitgolf that scores the text file")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="for --model")


def _score(arguments: Arguments, out: Console) -> int:
    if arguments.model is not None:
        return _score_text(arguments, out)
    if arguments.target == STANDARD or arguments.target.is_file():
        raise ConfigError(f"{arguments.target} is a text file; name the model that scores it with --model RUN")
    from bitgolf.evaluate.score import score
    from bitgolf.report.products import require_product
    from bitgolf.run.ranks import world

    run = RunDirectory.open(arguments.target)
    if not arguments.json:
        require_product(run, "pack")  # the table needs it, so a missing one is an error before the work
    with world(run.config.device) as peers:
        score(run, peers, progress=arguments.progress)
    scored = require_product(run, "score")
    if arguments.json:
        print_json(out, scored)
    else:
        out.print(score_table(run.config.name, scored, require_product(run, "pack")))
        print_caveats(out, run)
    return 0


def print_caveats(out: Console, run: RunDirectory) -> None:
    """Print what makes the score less than it seems, one line each."""
    from bitgolf.report.caveats import caveats
    from bitgolf.report.products import Products

    for text in caveats(Products.read(run)):
        print_line(out, text, "yellow")


def _score_text(arguments: Arguments, out: Console) -> int:
    data = read_input(arguments.target, _MAX_TEXT_BYTES)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{arguments.target} is not UTF-8 text: byte {error.start:,} is 0x{data[error.start]:02X}"
        ) from error
    from bitgolf.evaluate.references import general_purpose
    from bitgolf.language_model import load

    model = load(artifact_path(arguments.model), arguments.device)
    result = model.score(text)
    values = {
        "text": str(arguments.target),
        "model": str(arguments.model),
        "bytes": len(data),
        "accounting": model.tokenizer.accounting,
        "score": result.to_json(),
        "compressors": general_purpose(data, arguments.progress),
    }
    print_result(out, arguments.json, values, text_score_table(values))
    return 0


SCORE = Command(
    "score",
    "score a model on its validation text, or on any text file with --model",
    _add_arguments,
    _score,
    settings=("score.methods", "score.stride", "score.batch_tokens", "ttt.method", "budget.eval_seconds"),
    examples=(
        ("score runs/mine", "score the run again on its validation text"),
        ("score notes.txt --model runs/mine", "bits per byte of a text file, with xz and zstd beside it"),
    ),
)
