"""`bitgolf bench`: tokens per second, milliseconds per part of a step and memory of a preset on this machine."""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.files import check_output, write_output
from bitgolf.commands.output import print_result
from bitgolf.commands.tables import bench_table
from bitgolf.config import load_config
from bitgolf.errors import ConfigError, ForeignError
from bitgolf.foreign import as_number, as_object, as_text, conform, field, read_json, read_text
from bitgolf.run import atomic

# The figures of a preset in a summary.
_SUMMARY = {
    "tokens_per_second": as_number,
    "ms_per_step": as_number,
    "mfu": (as_number, None),
    "peak_memory_mib": as_number,
    "gpu": as_text,
    "commit": as_text,
}
_TITLE = "# Speed by preset"  # first line of the table beside it


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
    packing = _packing_seconds(arguments.run) if arguments.run else None
    if arguments.profile:
        check_output(arguments.profile, "--profile")
    summary = _read_summary(arguments.summary) if arguments.summary else {}
    with world(config.device) as peers, TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json") if arguments.profile else None  # the profiler would replace a device
        figures = measure(config, peers, steps=arguments.steps, packing_seconds=packing, trace=trace)
        if trace is not None and peers.is_main:
            write_output(arguments.profile, trace.read_bytes())
        if arguments.summary and peers.is_main:
            _write_summary(arguments.summary, summary | {figures["preset"]: {key: figures[key] for key in _SUMMARY}})
    print_result(out, arguments.json, figures, bench_table(figures))
    return 0


def _packing_seconds(run: Path) -> float:
    """The seconds that packing took, from the record of a run."""
    path = run / "pack.json"
    try:
        return as_number(field(as_object(read_json(path), "the file"), "seconds"), "seconds", low=0)
    except (ForeignError, FileNotFoundError, NotADirectoryError) as error:
        reason = error if isinstance(error, ForeignError) else "there is no such file"
        raise ConfigError(f"--run {run} has no packing time: {path}: {reason}; give a run that is packed") from error


def _read_summary(path: Path) -> dict[str, Any]:
    """The entries by preset so far. Raises ConfigError for a file, or a README.md beside it, of something else."""
    check_output(path, "--summary")
    table = path.with_name("README.md")
    try:
        if table.exists() and not read_text(table).startswith(_TITLE):
            raise ConfigError(f"--summary {path} would replace {table}; give the path of a file in a folder of its own")
        summary = as_object(read_json(path), "the file") if path.exists() else {}
        conform(summary, {"*": _SUMMARY}, "the file")
    except ForeignError as error:
        raise ConfigError(f"--summary {path} is no summary of `bitgolf bench`: {error}; give another file") from error
    return summary


def _write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write the summary, and its table beside it as README.md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, summary)
    lines = [_TITLE, "", "Made by `bitgolf bench PRESET --summary FILE`.", ""]
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
