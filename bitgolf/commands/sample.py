"""`bitgolf sample`: continue a prompt. The text is printed untouched, as UTF-8, while it is made."""

import argparse
from pathlib import Path

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.files import artifact_path, write_standard_output
from bitgolf.commands.output import print_json


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="run directory, or its model.bitgolf")
    parser.add_argument("--prompt", default="", help="text to continue (default: the beginning of a document)")
    parser.add_argument("--max-tokens", type=int, default=200, metavar="N", help="tokens to add at most (200)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0 = always the most likely token (0.8)"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="among the K most likely tokens; 0 = all (0)")
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="among the likely tokens that have this probability (1)"
    )
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--seed", type=int, default=None, help="a number repeats a sample (default: a random one)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def _sample(arguments: Arguments, out: Console) -> int:
    from bitgolf.language_model import load

    def show(text: str) -> None:
        if not arguments.json:
            write_standard_output(text.encode("utf-8", "surrogateescape"))

    model = load(artifact_path(arguments.model), arguments.device)
    show(arguments.prompt)
    text = model.generate(
        arguments.prompt,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        stop=arguments.stop,
        seed=arguments.seed,
        each=show,
    )
    show("\n")
    if arguments.json:
        print_json(out, {"prompt": arguments.prompt, "continuation": text})
    return 0


SAMPLE = Command(
    "sample",
    "continue a text with a model",
    _add_arguments,
    _sample,
    examples=(
        ('sample runs/mine --prompt "The "', "200 tokens after a prompt"),
        ('sample runs/mine --prompt "The " --top-p 0.9 --stop "." --seed 1', "likely words, to the end of a sentence"),
    ),
)
