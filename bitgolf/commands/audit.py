"""`bitgolf audit`: check a run directory, or the folder of a submission that anybody made.

The verdict on a run is written to its audit.json. Nothing is written into the folder of a submission; `--out` names a
file for its verdict. The exit status is 1 if a check fails, and 3 if none fails and one
could not run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from bitgolf.commands.codec import ask_for_reproducible_cublas
from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.files import check_output, is_standard_output, write_output
from bitgolf.commands.output import print_result
from bitgolf.commands.tables import audit_table
from bitgolf.config.units import read_bytes_text, read_seconds_text
from bitgolf.errors import ConfigError
from bitgolf.run.directory import RunDirectory

if TYPE_CHECKING:
    from bitgolf.audit.verdict import Verdict


def _with_unit(read: Callable[[str], float]) -> Callable[[str], float]:
    """A type of an option that takes units, as settings do."""

    def value(text: str) -> float:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return value


# Limits of the process that scores again: keyword of `Limits.of`, type and description of each option.
_LIMITS: dict[str, tuple[str, Callable[[str], float], str]] = {
    "sealed_seconds": ("wall_seconds", _with_unit(read_seconds_text), "time to score again (default: an hour)"),
    "sealed_gib": ("memory_gib", float, "memory for that (default: by the artifact's size)"),
    "sealed_processes": ("processes", int, "processes and threads for that (default: 128 + 4 per CPU)"),
    "sealed_mib": ("file_mib", float, "the largest file that may be written (default: 256)"),
}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run directory, or the folder of a submission")
    parser.add_argument("--quick", action="store_true", help="smaller samples for the checks that run the model")
    parser.add_argument("--all", action="store_true", help="score every target again in the sealed process")
    parser.add_argument(
        "--codec", type=_with_unit(read_bytes_text), default=0, metavar="BYTES", help="code and decode this much text"
    )
    for name, (_, kind, help_text) in _LIMITS.items():
        parser.add_argument(_option(name), type=kind, metavar=name.rpartition("_")[2][0].upper(), help=help_text)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="also write the verdict to this file, as JSON; - = stdout"
    )


def _audit(arguments: Arguments, out: Console) -> int:
    for name in _LIMITS:
        value = getattr(arguments, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{_option(name)} {value:g}: give a positive number")
    if arguments.out is not None:
        check_output(arguments.out, "--out")
    verdict = _verdict(arguments)
    values = verdict.to_json()
    if arguments.out is not None:
        write_output(arguments.out, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())
    if arguments.out is not None and is_standard_output(arguments.out):
        return verdict.exit_code
    print_result(out, arguments.json, values, audit_table(values))
    return verdict.exit_code


def _verdict(arguments: Arguments) -> Verdict:
    from bitgolf.referee.run import audit_submission, is_submission

    if is_submission(arguments.run):
        for name in ("quick", "all", "codec", *_LIMITS):
            if getattr(arguments, name):
                what = f"{arguments.run} is the folder of a submission, which is not run"
                raise ConfigError(f"{_option(name)} is for run directories; {what}")
        return audit_submission(arguments.run, progress=arguments.progress)
    from bitgolf.audit.run import audit_run

    if arguments.codec:
        ask_for_reproducible_cublas()
    return audit_run(
        RunDirectory.open(arguments.run),
        quick=arguments.quick,
        everything=arguments.all,
        codec_bytes=arguments.codec,
        sealed_limits={keyword: getattr(arguments, name) for name, (keyword, *_) in _LIMITS.items()},
        progress=arguments.progress,
    )


AUDIT = Command(
    "audit",
    "check a run, or a submission, against the rules (exit status 1: a check failed; 3: one could not run)",
    _add_arguments,
    _audit,
    examples=(
        ("audit runs/mine", "all checks of a run"),
        ("audit runs/mine --quick", "smaller samples, about a minute"),
        ("audit submissions/mine --out verdict.json", "a submission that anybody made; nothing in it is run"),
    ),
)
