"""The command line: it parses, runs one command of `bitgolf/commands/` and reports errors.

`bitgolf --help` lists the commands. Every stage runs alone on a run directory, and `bitgolf run` runs all of them.
Settings are dotted overrides (`--train.matrix_lr 0.02`). An error that the user can correct is one line.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from rich.console import Console

from bitgolf.commands.audit import AUDIT
from bitgolf.commands.codec import COMPRESS, DECOMPRESS
from bitgolf.commands.compare import COMPARE
from bitgolf.commands.console import ConsoleProgress
from bitgolf.commands.doctor import DOCTOR
from bitgolf.commands.output import print_error
from bitgolf.commands.pack import PACK
from bitgolf.commands.prepare import PREPARE
from bitgolf.commands.presets import PRESETS
from bitgolf.commands.report import REPORT
from bitgolf.commands.run import RUN
from bitgolf.commands.sample import SAMPLE
from bitgolf.commands.score import SCORE
from bitgolf.commands.submit import SUBMIT
from bitgolf.commands.train import TRAIN
from bitgolf.config.overrides import parse_overrides
from bitgolf.errors import BitgolfError, ConfigError
from bitgolf.foreign import harmless
from bitgolf.version import __version__

COMMANDS = (
    RUN, PREPARE, TRAIN, PACK, SCORE, AUDIT, REPORT, COMPARE, SUBMIT, COMPRESS, DECOMPRESS, SAMPLE, PRESETS, DOCTOR,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: done. 1: an audit failed. 2: an error that the user can correct. 3: an audit could not make all checks.
    130: interrupted.
    """
    is_main = os.environ.get("RANK", "0") == "0"
    # PyTorch's OpenMP threads read this when they are loaded. Long spinning while they wait makes a step four times
    # slower on shared cores (0.60 s against 0.15 s, two cores and two busy neighbors). Brief spinning costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode shows escapes
    out = Console(quiet=not is_main, emoji=False)
    err = Console(stderr=True, quiet=not is_main, emoji=False)
    _set_up_logging(logging.WARNING if is_main else logging.ERROR)
    try:
        with ConsoleProgress(err, is_main) as progress:
            arguments = parse(argv)
            arguments.progress = progress
            status: int = arguments.run_command(arguments, out)
            return status
    except BitgolfError as error:
        print_error(err, f"error: {error}")
        return 2
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print_error(err, f"error: {error.strerror or error}{where}; files written earlier are intact")
        return 2
    except KeyboardInterrupt:
        print_error(err, "interrupted; continue a run with --resume")
        return 130


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of one command line (None = of this process).

    The result holds the command's arguments, `run_command` and `overrides` (text by dotted key).
    Raises ConfigError.
    """
    arguments, rest = _parser().parse_known_args(argv)
    if rest and not arguments.takes_overrides:
        raise ConfigError(f"unexpected argument {rest[0]!r}; see --help")
    arguments.overrides = parse_overrides(rest)
    return arguments


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as a ConfigError, which is one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bitgolf",
        description="Train the best language model that fits in N bytes in T seconds, and prove its score.",
        epilog="Settings are dotted overrides, for example --train.matrix_lr 0.02; "
        "`bitgolf presets show NAME` lists them all.",
    )
    parser.add_argument("--version", action="version", version=f"bitgolf {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.text, description=command.text, allow_abbrev=False)
        sub.set_defaults(run_command=command.run, takes_overrides=command.takes_overrides)
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        command.add_arguments(sub)
    return parser


def _set_up_logging(level: int) -> None:
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")
    for handler in logging.getLogger().handlers:
        handler.setFormatter(SafeFormatter("%(levelname)s %(message)s"))
    logging.captureWarnings(True)


class SafeFormatter(logging.Formatter):
    """Log lines without control characters, because they may quote text of others."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))
