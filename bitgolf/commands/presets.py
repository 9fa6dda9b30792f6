"""`bitgolf presets`: list the presets, or show one with the description of every setting."""

import argparse

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.output import print_json, print_line, print_result
from bitgolf.commands.tables import presets_table
from bitgolf.config import Config, all_settings, load_config, preset_names
from bitgolf.errors import ConfigError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("list", "show"), default="list")
    parser.add_argument("name", nargs="?", help="preset name or .toml file")


def _presets(arguments: Arguments, out: Console) -> int:
    return _show(arguments, out) if arguments.action == "show" else _list(arguments, out)


def _show(arguments: Arguments, out: Console) -> int:
    if arguments.name is None:
        raise ConfigError(f"presets show needs a name: {', '.join(preset_names())}")
    config = load_config(arguments.name, arguments.overrides)
    print_result(out, arguments.json, config.model_dump(mode="json"), annotated(config))
    return 0


def _list(arguments: Arguments, out: Console) -> int:
    from bitgolf.model.gpt import count_parameters

    configs = [load_config(name) for name in preset_names()]
    rows = [
        {
            "name": config.name,
            "description": config.description,
            "parameters": count_parameters(config.model),
            "vocab_size": config.model.vocab_size,
            "artifact_bytes": config.budget.artifact_bytes,
            "train_seconds": config.budget.train_seconds,
            "eval_seconds": config.budget.eval_seconds,
        }
        for config in configs
    ]
    if arguments.json:
        print_json(out, rows)
        return 0
    out.print(presets_table(rows))
    for config in configs:
        print_line(out, f"{config.name}: {config.description}")
    return 0


def annotated(config: Config) -> str:
    """The resolved configuration as TOML, with the description of every setting."""
    settings = all_settings()
    section, lines = "", []
    for line in config.to_toml().splitlines():
        if line.startswith("["):
            section = line.strip("[]") + "."
        setting = settings.get(section + line.split(" = ")[0]) if " = " in line else None
        lines.append(f"{line:<40} # {setting.description}" if setting and setting.description else line)
    return "\n".join(lines)


PRESETS = Command(
    "presets",
    "list the presets, or `show NAME` with every setting",
    _add_arguments,
    _presets,
    True,
    examples=(
        ("presets", "what there is"),
        ("presets show demo > mine.toml", "a file to edit; `bitgolf run mine.toml --out DIR` uses it"),
        ("presets show demo --train.matrix_lr 0.02 --json", "the configuration that a command would use"),
    ),
)
