"""`bitgolf compare`: compare runs with a baseline, over seeds and document by document."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.files import check_output, is_standard_output, write_output
from bitgolf.commands.output import make_table, plain, print_json, print_line
from bitgolf.errors import ConfigError

if TYPE_CHECKING:
    from bitgolf.report.comparison.contrasts import Comparison
    from bitgolf.report.comparison.t_tests import Sample

_COLORS = {"pass": "green", "fail": "red", "open": "yellow", "": "default"}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directories; runs that differ by seed only form a set"
    )
    parser.add_argument(
        "--baseline",
        nargs="+",
        type=Path,
        default=[],
        metavar="RUN",
        help="runs of the baseline (default: the first set)",
    )
    parser.add_argument(
        "--published", nargs="+", type=_number, metavar="BPB", help="published baseline: bits per byte of each seed"
    )
    parser.add_argument(
        "--published-summary",
        nargs=3,
        type=_number,
        metavar=("MEAN", "STD", "N"),
        help="published baseline: mean and standard deviation in bits per byte, number of seeds",
    )
    parser.add_argument(
        "--method", default="headline", help="score to compare: headline, a method of score.json, or float-METHOD"
    )
    parser.add_argument("--margin-nats", type=_number, default=0.005, help="margin in nats per token (0.005)")
    parser.add_argument(
        "--resamples", type=int, default=10_000, help="resamples of the bootstrap over documents (10000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (0)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a self-contained page")


def _compare(arguments: Arguments, out: Console) -> int:
    from bitgolf.report.comparison.compare import compare
    from bitgolf.report.comparison.contrasts import Settings

    if arguments.seed < 0:
        raise ConfigError(f"--seed {arguments.seed}: give 0 or more")
    if arguments.html is not None:
        check_output(arguments.html, "--html")
    comparison = compare(
        arguments.runs,
        baseline=arguments.baseline,
        published=_published(arguments),
        settings=Settings(arguments.method, arguments.margin_nats, arguments.resamples, arguments.seed),
        progress=arguments.progress,
    )
    if arguments.html is not None:
        from bitgolf.report.comparison.compare_page import render

        write_output(arguments.html, render(comparison).encode())
        if is_standard_output(arguments.html):
            return 0
    if arguments.json:
        print_json(out, comparison.to_json())
        return 0
    print_comparison(comparison, out)
    if arguments.html is not None:
        print_line(out, f"page: {arguments.html}")
    return 0


def print_comparison(comparison: Comparison, out: Console) -> None:
    """Print runs, sets of seeds, contrasts, differences of configuration and notes."""
    from bitgolf.report.comparison.compare_rows import contrast_rows, difference_rows, run_rows, set_rows

    rows = [
        (label, seed, method, hardware, bpb, nats)
        for label, _, seed, method, bpb, nats, hardware in run_rows(comparison)
    ]
    columns: tuple[str, ...] = ("run", "seed", "method", "hardware", "bits per byte", "nats per token")
    out.print(make_table("runs", columns, rows, numeric=2))
    sets = set_rows(comparison)
    if sets:
        columns = ("set of seeds", "seeds", "n", "mean bpb", "std")
        out.print(make_table("over seeds", columns, sets, numeric=3))
    for contrast in comparison.contrasts:
        title = f"{contrast.candidate} against {contrast.baseline} (negative is better)"
        lines = [(row.question, plain(row.answer, _COLORS[row.state]), row.detail) for row in contrast_rows(contrast)]
        out.print(make_table(title, ("question", "answer", "detail"), lines))
    differences = [(key, *values) for key, values in difference_rows(comparison)]
    if differences:
        columns = ("key", *(group.name for group in comparison.sets))
        out.print(make_table("configuration, where it differs", columns, differences))
    for note in comparison.notes:
        print_line(out, f"note: {note}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _published(arguments: Arguments) -> Sample | None:
    from bitgolf.report.comparison.t_tests import Sample

    if arguments.published and arguments.published_summary:
        raise ConfigError("--published and --published-summary are two forms of one baseline; give one of them")
    if arguments.published:
        return Sample.from_values("published", arguments.published)
    if arguments.published_summary:
        mean, std, count = arguments.published_summary
        if not count.is_integer():  # inf and nan are none
            raise ConfigError(f"--published-summary {mean:g} {std:g} {count:g}: the third must be a number of seeds")
        return Sample.from_summary("published", mean, std, int(count))
    return None


COMPARE = Command(
    "compare",
    "compare runs with a baseline: over seeds, and document by document",
    _add_arguments,
    _compare,
    examples=(
        ("compare runs/mine --baseline runs/other", "is the difference between two runs real?"),
        ("compare runs/a1 runs/a2 --baseline runs/b1 runs/b2 --html comparison.html", "two sets of seeds, as a page"),
    ),
)
