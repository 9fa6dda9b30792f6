"""`bitgolf prepare`: text to tokenizer and shards, in a folder of its own."""

import argparse
import json
from pathlib import Path

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.files import save_standard_input
from bitgolf.commands.output import print_result
from bitgolf.commands.tables import data_table
from bitgolf.config import resolve
from bitgolf.errors import ConfigError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        help="a file or folder, - (standard input), stdlib, file:PATH, dir:PATH, jsonl:PATH, parquet:PATH, "
        "hf:NAME[:CONFIG][@SPLIT], shards:PATH, fineweb[:VARIANT], fineweb-docs",
    )
    parser.add_argument("--out", required=True, type=Path, help="data directory")


def _prepare(arguments: Arguments, out: Console) -> int:
    from bitgolf.data.prepare import prepare

    if "data.source" in arguments.overrides:
        raise ConfigError("the source is the argument after `prepare`; leave out --data.source")
    for key in arguments.overrides:
        if not key.startswith("data.") and key != "model.vocab_size":
            raise ConfigError(f"`prepare` does not use --{key}; it takes --data.KEY and --model.vocab_size")
    source = arguments.source if arguments.source != "-" else save_standard_input(arguments.out)
    config = resolve({}, arguments.overrides | {"data.source": json.dumps(source)})
    data = prepare(config.data, config.model.vocab_size, arguments.out, arguments.progress)
    print_result(out, arguments.json, data.manifest, data_table(str(arguments.out), data.manifest))
    return 0


PREPARE = Command(
    "prepare",
    "turn text into a tokenizer and token shards, for use in several runs",
    _add_arguments,
    _prepare,
    True,
    settings=("data.val_fraction", "data.val_source", "data.val_bytes", "data.tokenizer", "model.vocab_size"),
    examples=(
        ("prepare dir:notes --out data/notes --model.vocab_size 1024", "the text files of a folder"),
        ("run demo --out runs/notes --data.source shards:data/notes --data.val_bytes 0", "train on the result"),
    ),
)
