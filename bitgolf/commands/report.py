"""`bitgolf report`: the page of one run, or with `--out` a site of several runs."""

import argparse
from pathlib import Path

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.output import print_json, print_line, print_result
from bitgolf.errors import ConfigError
from bitgolf.run.directory import RunDirectory


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run directory, or with --out a folder that holds some")
    parser.add_argument("more", nargs="*", type=Path, metavar="RUN", help="further runs, or folders that hold runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write a site of all runs into this folder")


def _report(arguments: Arguments, out: Console) -> int:
    if arguments.out is not None:
        return _site([arguments.run, *arguments.more], arguments, out)
    if arguments.more:
        raise ConfigError("a report of several runs is a site; choose its folder with --out DIR")
    from bitgolf.report.report import report
    from bitgolf.run.ranks import choose_device

    run = RunDirectory.open(arguments.run)
    page = report(run, device=choose_device(run.config.device).type, progress=arguments.progress)
    print_result(out, arguments.json, {"report": str(page)}, f"report: {page}")
    return 0


def _site(paths: list[Path], arguments: Arguments, out: Console) -> int:
    from bitgolf.report.site.site import find_runs, write_site

    runs = write_site(find_runs(paths), arguments.out, progress=arguments.progress)
    index = arguments.out / "index.html"
    if arguments.json:
        print_json(out, {"site": str(index), "runs": [run.label for run in runs]})
        return 0
    for run in runs:
        if run.no_page:
            print_line(out, f"{run.label} has no page yet: {run.no_page}")
    print_line(out, f"site of {len(runs)} runs: {index}")
    return 0


REPORT = Command(
    "report",
    "write the page of a run, report.html, or with --out a site of several runs",
    _add_arguments,
    _report,
    settings=("report.samples", "report.sample_tokens", "report.surprisal_tokens"),
    examples=(
        ("report runs/mine", "writes runs/mine/report.html"),
        ("report runs --out site", "a page of every run in the folder, and one that compares them"),
    ),
)
