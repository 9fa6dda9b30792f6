"""What a command of the command line is. One file of this folder per command; `bitgolf.cli` collects them.

The files import nothing slow. PyTorch and the stages are imported when a command runs.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

Arguments = argparse.Namespace


@dataclass(frozen=True)
class Command:
    name: str  # as it is typed
    text: str  # one line of help
    # adds the command's arguments to its parser. All commands have `--json` already.
    add_arguments: Callable[[argparse.ArgumentParser], None]
    # does the work, prints to the console and returns the exit status. `arguments` also holds `overrides` (text by
    # dotted key) and `progress` (a `ConsoleProgress`).
    run: Callable[[Arguments, Console], int]
    takes_overrides: bool = False  # whether `--section.key value` is allowed
    settings: tuple[str, ...] = ()  # keys of the settings that matter most for the command; its help lists them
    examples: tuple[tuple[str, str], ...] = ()  # command lines without the word `bitgolf`, each with what it does
