"""`bitgolf sample`: continue a prompt with the model of an artifact. The text is printed untouched, as UTF-8."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.files import write_standard_output
from bitgolf.commands.output import print_json


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--prompt", default="", help="text to continue")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def _sample(arguments: Arguments, out: Console) -> int:
    from bitgolf.language_model import load

    text = load(arguments.artifact, arguments.device).generate(
        arguments.prompt,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        seed=arguments.seed,
    )
    if arguments.json:
        print_json(out, {"prompt": arguments.prompt, "continuation": text})
    else:
        write_standard_output((arguments.prompt + text + "\n").encode("utf-8", "surrogateescape"))
    return 0


SAMPLE = Command("sample", "continue a prompt with an artifact", _add_arguments, _sample)
