"""`bitgolf bench`: tokens per second, milliseconds per part of a step and memory of a preset on this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.output import print_result
from bitgolf.commands.tables import bench_table
from bitgolf.config import load_config
from bitgolf.errors import ConfigError
from bitgolf.foreign import read_json
from bitgolf.run import atomic

_SUMMARY = ("tokens_per_second", "ms_per_step", "mfu", "peak_memory_mib", "gpu", "commit")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", nargs="?", default="demo", help="name of a preset, or path of a .toml file")
    parser.add_argument("--steps", type=int, default=20, help="timed steps (default 20)")
    parser.add_argument("--run", type=Path, help="a finished run whose packing time is reported too")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write a trace of three steps")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="put the figures into this JSON file of presets")


def _bench(arguments: Arguments, out: Console) -> int:
    from bitgolf.plan.bench import measure
    from bitgolf.run.ranks import world

    if arguments.steps < 5:
        raise ConfigError(f"--steps {arguments.steps} is too few; use at least 5")
    config = load_config(arguments.preset, arguments.overrides)
    packing = float(read_json(arguments.run / "pack.json")["seconds"]) if arguments.run else None
    with world(config.device) as peers:
        figures = measure(config, peers, steps=arguments.steps, packing_seconds=packing, trace=arguments.profile)
        if arguments.summary and peers.is_main:
            _add_to_summary(arguments.summary, figures)
    print_result(out, arguments.json, figures, bench_table(figures))
    return 0


def _add_to_summary(path: Path, figures: dict[str, Any]) -> None:
    """Replace the preset's entry in the summary, and write the table beside it as README.md."""
    summary = json.loads(path.read_text()) if path.exists() else {}
    summary[figures["preset"]] = {key: figures[key] for key in _SUMMARY}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, summary)
    lines = ["# Speed by preset", "", "Made by `bitgolf bench PRESET --summary FILE`.", ""]
    lines += ["| preset | tokens/s | ms per step | MFU | peak memory, MiB | device | commit |"]
    lines += ["|---|---:|---:|---:|---:|---|---|"]
    for preset, entry in summary.items():
        share = "" if entry["mfu"] is None else f"{entry['mfu']:.1%}"
        lines.append(
            f"| `{preset}` | {entry['tokens_per_second']:,.0f} | {entry['ms_per_step']:.1f} | {share} | "
            f"{entry['peak_memory_mib']:,.0f} | {entry['gpu']} | {entry['commit']} |"
        )
    atomic.write_text(path.with_name("README.md"), "\n".join(lines) + "\n")


BENCH = Command(
    "bench",
    "measure speed and memory of a preset on this machine",
    _add_arguments,
    _bench,
    takes_overrides=True,
    settings=("train.batch_tokens", "train.micro_batch_tokens", "train.attention", "train.kernels", "train.compile"),
    examples=(
        ("bench demo", "the demo's model"),
        ("bench golf-8192 --profile trace.json", "a larger model, with a trace for chrome://tracing"),
    ),
)
