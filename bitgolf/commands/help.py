"""The parser of the command line, with the help of every command: a sentence, arguments, settings, examples."""

import argparse
import difflib
from collections.abc import Iterable
from typing import NoReturn

from bitgolf.commands.command import Command
from bitgolf.config.settings import all_settings, as_text
from bitgolf.errors import ConfigError
from bitgolf.version import __version__

_EPILOG = """Settings are dotted overrides, for example --train.matrix_lr 0.02. `bitgolf settings` lists them all.
`bitgolf COMMAND --help` has the arguments, the settings that matter and examples."""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as a ConfigError, which is one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def build_parser(
    commands: Iterable[Command], *, with_settings: bool = False
) -> tuple[argparse.ArgumentParser, dict[str, set[str]]]:
    """The parser, and the options of every command.

    Args:
        with_settings: every setting is an option of the commands that take them, for the completion of shells.
    """
    parser = _Parser(
        prog="bitgolf",
        description="Train the best language model that fits in N bytes in T seconds, and prove its score.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bitgolf {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    options = {}
    for command in commands:
        sub = subparsers.add_parser(
            command.name,
            help=command.text,
            description=command.text[0].upper() + command.text[1:] + ".",
            epilog=_details(command),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(run_command=command.run, takes_overrides=command.takes_overrides)
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        command.add_arguments(sub)
        if with_settings and command.takes_overrides:
            for setting in all_settings().values():
                if f"--{setting.key}" not in sub._option_string_actions:
                    sub.add_argument(f"--{setting.key}", help=setting.description.replace("%", "%%"))
        options[command.name] = set(sub._option_string_actions)
    return parser, options


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of an error about an unknown `word`: the name that is closest to it, or nothing."""
    near = difflib.get_close_matches(word, sorted(names), n=1, cutoff=0.7)
    return f", did you mean {near[0]}?" if near else ""


def _details(command: Command) -> str:
    parts = []
    if command.settings:
        settings = [all_settings()[key] for key in command.settings]
        rows = [(f"--{setting.key} {as_text(setting.default)}", setting.description) for setting in settings]
        where = "`bitgolf presets show NAME`" if command.takes_overrides else "the config.toml of the run"
        title = f"settings that matter, with their defaults (those in force: {where}; all: `bitgolf settings`):"
        parts.append("\n".join([title, *(f"  {name:<42} {text}" for name, text in rows)]))
    if command.examples:
        lines = [f"  bitgolf {line}\n      {meaning}" for line, meaning in command.examples]
        parts.append("\n".join(["examples:", *lines]))
    return "\n\n".join(parts)
