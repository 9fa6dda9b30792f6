"""`bitgolf submit` on the command line: its arguments, and what it prints.

The work is done in `bitgolf.submit.submission`; `cli` registers what is here.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from bitgolf.errors import ConfigError

TEXT = "make the challenge's folder from one finished run a seed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bitgolf submit`."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories, one a seed")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of submissions")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="refuse fewer seeds than this (3)")
    parser.add_argument("--force", action="store_true", help="write it without a passed audit, and say so in it")
    parser.add_argument("--name", default="", help="name of the submission; default: that of the configuration")
    parser.add_argument("--author", default="", help="who submits")
    parser.add_argument("--github-id", default="", help="account of the author")
    parser.add_argument("--track", default="", help="10min_16mb | non_record_16mb; default: by hardware and budgets")
    parser.add_argument("--date", default="", metavar="YYYY-MM-DD", help="date of the submission; default: today")


def submit_command(arguments: argparse.Namespace, out: Console) -> int:
    """`bitgolf submit`: write the folder, say where it is and what it weighs."""
    from bitgolf.submit.submission import Labels, submit

    labels = Labels(arguments.author, arguments.github_id, arguments.name, arguments.track, _date(arguments.date))
    folder = submit(
        arguments.runs,
        arguments.out,
        num_seeds=arguments.seeds,
        force=arguments.force,
        labels=labels,
        progress=arguments.progress,
    )
    described = json.loads((folder / "submission.json").read_text(encoding="utf-8"))
    if arguments.json:
        if not out.quiet:
            sys.stdout.write(json.dumps({"folder": str(folder), "submission": described}, indent=2) + "\n")
        return 0
    spread = f" +- {described['val_bpb_std']:.4f}" if "val_bpb_std" in described else ""
    out.print(
        f"{described['val_bpb']:.4f}{spread} bits per byte over seeds {', '.join(map(str, described['seeds']))}; "
        f"{described['bytes_total']:,} bytes, {described['bytes_code']:,} of them code",
        highlight=False,
    )
    for doubt in described.get("forced", []):
        out.print(f"written with --force: {doubt}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    out.print(f"submission: {folder}", soft_wrap=True, highlight=False, markup=False)
    return 0


def _date(text: str) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError as error:
        raise ConfigError(f"--date {text!r} is no date; write it as 2026-03-17") from error
