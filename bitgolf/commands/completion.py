"""`bitgolf completion`: a script that lets a shell complete commands, options and settings."""

import argparse

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.files import write_standard_output
from bitgolf.commands.help import build_parser


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="shell to make the script for")


def _completion(arguments: Arguments, out: Console) -> int:
    import shtab

    parser, _ = build_parser(arguments.commands, with_settings=True)
    if not out.quiet:
        write_standard_output(f"{shtab.complete(parser, arguments.shell)}\n".encode())
    return 0


COMPLETION = Command(
    "completion",
    "print a script that completes commands, options and settings in a shell",
    _add_arguments,
    _completion,
    examples=(
        ("completion bash > ~/.bash_completion", "for bash; open a new shell afterwards"),
        ("completion zsh > ~/.zfunc/_bitgolf", "for zsh; the folder must be in fpath"),
    ),
)
