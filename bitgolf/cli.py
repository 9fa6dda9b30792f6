"""The command line: it parses, runs one command of `bitgolf/commands/` and reports errors.

`bitgolf --help` lists the commands. Every stage runs alone on a run directory, and `bitgolf run` runs all of them.
Settings are dotted overrides (`--train.matrix_lr 0.02`). An error that the user can correct is one line.
"""

import argparse
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

from rich.console import Console

from bitgolf.commands.audit import AUDIT
from bitgolf.commands.bench import BENCH
from bitgolf.commands.codec import COMPRESS, DECOMPRESS
from bitgolf.commands.compare import COMPARE
from bitgolf.commands.completion import COMPLETION
from bitgolf.commands.console import ConsoleProgress
from bitgolf.commands.doctor import DOCTOR
from bitgolf.commands.export import EXPORT
from bitgolf.commands.help import build_parser, did_you_mean
from bitgolf.commands.output import print_error, print_line
from bitgolf.commands.pack import PACK
from bitgolf.commands.plan import PLAN
from bitgolf.commands.prepare import PREPARE
from bitgolf.commands.presets import PRESETS
from bitgolf.commands.report import REPORT
from bitgolf.commands.run import RUN
from bitgolf.commands.sample import SAMPLE
from bitgolf.commands.score import SCORE
from bitgolf.commands.serve import SERVE
from bitgolf.commands.settings import SETTINGS
from bitgolf.commands.submit import SUBMIT
from bitgolf.commands.sweep import SWEEP
from bitgolf.commands.train import TRAIN
from bitgolf.config.overrides import parse_overrides
from bitgolf.config.settings import all_settings
from bitgolf.errors import BitgolfError, ConfigError, require_type
from bitgolf.foreign import harmless
from bitgolf.run import atomic
from bitgolf.run.workers import END_SIGNALS, end_in_order

COMMANDS = (
    RUN, PLAN, PREPARE, TRAIN, PACK, SCORE, AUDIT, REPORT, COMPARE, SUBMIT, SWEEP, SAMPLE, SERVE, COMPRESS,
    DECOMPRESS, EXPORT, PRESETS, SETTINGS, DOCTOR, BENCH, COMPLETION,
)  # fmt: skip

_LEAST_COLUMNS = 40  # narrower tables hold nothing
_WELCOME = """bitgolf trains the best language model that fits in N bytes in T seconds, and measures how good it is.

Begin with:
  bitgolf doctor                                             what this machine offers
  bitgolf run demo --out runs/demo                           train and score a small model, under four minutes on a CPU
  bitgolf sample runs/demo --prompt "The "                   let the model continue a text

`bitgolf run demo --out runs/mine --data.source dir:FOLDER` trains on your own text files.
`bitgolf --help` lists all commands, `bitgolf COMMAND --help` explains one, `bitgolf settings` lists all settings."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: done. 1: an audit failed, or a plan does not fit. 2: an error that the user can correct. 3: an audit could not
    make all checks. 130: interrupted. 141: nobody reads the output. Raises SystemExit with 129 after SIGHUP, 143 after
    SIGTERM.
    """
    require_type("argv", argv, (list, tuple, NoneType), "a list of texts")
    for word in argv or ():
        require_type("a word of argv", word, str, "a text")
    is_main = os.environ.get("RANK", "0") == "0"
    # PyTorch's OpenMP threads read this when they are loaded. Long spinning while they wait makes a step four times
    # slower on shared cores (0.60 s against 0.15 s, two cores and two busy neighbors). Brief spinning costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode shows escapes
    out, err = _console(is_main), _console(is_main, stderr=True)
    _set_up_logging(logging.WARNING if is_main else logging.ERROR)
    if "RANK" not in os.environ and threading.current_thread() is threading.main_thread():
        end_in_order()
    try:
        with ConsoleProgress(err, is_main) as progress:
            return _run(argv, progress, out)
    except BitgolfError as error:
        print_error(err, f"error: {error}")
        return 2
    except BrokenPipeError:
        return 141  # whoever read the output has ended; the status of programs that SIGPIPE ends
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print_error(err, f"error: {error.strerror or error}{where}; files written earlier are intact")
        return 2
    except KeyboardInterrupt:
        print_error(err, "interrupted; continue a run with --resume")
        return 130
    except SystemExit as end:
        if isinstance(end.code, int) and end.code - 128 in END_SIGNALS:
            print_error(err, f"ended by {signal.Signals(end.code - 128).name}; continue a run with --resume")
        raise
    finally:
        if argv is None:
            _prepare_to_end()


def _run(argv: Sequence[str] | None, progress: ConsoleProgress, out: Console) -> int:
    """Run one command and return its exit status. What it printed has been written, or OSError is raised."""
    status = 0
    try:
        arguments = parse(argv)
        arguments.progress = progress
        status = arguments.run_command(arguments, out)
    except SystemExit as end:
        if end.code:
            raise  # 0: of --help and --version
    with atomic.naming("standard output"):
        sys.stdout.flush()
    return status


def _prepare_to_end() -> None:
    """Nothing more is printed while Python ends, which takes a second: no trace of a signal, no error of a stream.

    Python writes what is left in the buffers of the standard streams. Those that cannot be written lead to the null
    device from now on.
    """
    for number in (signal.SIGINT, *END_SIGNALS):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            handle = os.open(os.devnull, os.O_WRONLY)
            os.dup2(handle, descriptor)
            os.close(handle)


def _open_closed_streams() -> None:
    """Standard streams that are closed lead to the null device, so that no other file gets their number.

    Reading from a standard input that is closed stays an error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_WRONLY)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


class _Console(Console):
    """A console whose errors are those of any stream. Rich would end the process when nobody reads its output."""

    def print(self, *objects: Any, **options: Any) -> None:
        with atomic.naming("standard output"):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _console(is_main: bool, stderr: bool = False) -> Console:
    """Standard output or error; at least 40 characters wide, also where COLUMNS says 0."""
    console = _Console(stderr=stderr, quiet=not is_main, emoji=False)
    if console.width < _LEAST_COLUMNS:
        console.width = _LEAST_COLUMNS
    return console


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of one command line (None = of this process).

    The result holds the command's arguments, `run_command` and `overrides` (text by dotted key).
    Raises ConfigError.
    """
    parser, options = build_parser(COMMANDS)
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        return argparse.Namespace(run_command=_welcome)
    if not words[0].startswith("-"):
        if words[0] not in options:
            near = did_you_mean(words[0], options)
            raise ConfigError(f"unknown command {words[0]!r}{near}; commands: {', '.join(options)}")
        words = [_hyphens(word, options[words[0]]) for word in words]
    try:
        arguments, rest = parser.parse_known_args(words)
    except ConfigError:
        _require_no_misspelled_option(words, options)
        raise
    _require_no_misspelled_option([words[0], *rest], options)
    if rest and not arguments.takes_overrides:
        if rest[0].removeprefix("--").partition("=")[0] in all_settings():
            raise ConfigError(
                f"{rest[0]} is a setting, and `{words[0]}` takes none: a run has those in its config.toml; give it to "
                "`bitgolf run`"
            )
        raise ConfigError(f"unexpected argument {rest[0]!r}; see --help")
    arguments.overrides, arguments.commands = parse_overrides(rest), COMMANDS
    return arguments


def _require_no_misspelled_option(words: Sequence[str], options: Mapping[str, set[str]]) -> None:
    """Name the option that an unknown one is close to; `words` begin with the command."""
    for word in words[1:]:
        name = word.partition("=")[0]
        allowed = options.get(words[0], set()) | {f"--{key}" for key in all_settings()}
        if name.startswith("--") and name not in allowed and (near := did_you_mean(name, options.get(words[0], ()))):
            raise ConfigError(f"unknown option {name}{near}; see `bitgolf {words[0]} --help`")


def _hyphens(word: str, options: set[str]) -> str:
    """`--max_tokens` as the option `--max-tokens`."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.replace("_", "-") in options else word


def _welcome(_: argparse.Namespace, out: Console) -> int:
    """What `bitgolf` alone prints."""
    print_line(out, _WELCOME)
    return 0


def _set_up_logging(level: int) -> None:
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")
    for handler in logging.getLogger().handlers:
        handler.setFormatter(SafeFormatter("%(levelname)s %(message)s"))
    logging.captureWarnings(True)


class SafeFormatter(logging.Formatter):
    """Log lines without control characters, because they may quote text of others."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))
