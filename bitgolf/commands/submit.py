"""`bitgolf submit`: make the challenge's folder from finished runs, one per seed."""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.output import print_json, print_line
from bitgolf.errors import ConfigError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories, one per seed")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of submissions")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="refuse fewer seeds than this (3)")
    parser.add_argument("--force", action="store_true", help="write it without a passed audit; the folder then says so")
    parser.add_argument("--name", default="", help="name of the submission; default: that of the configuration")
    parser.add_argument("--author", default="", help="who submits")
    parser.add_argument("--github-id", default="", help="account of the author")
    parser.add_argument("--track", default="", help="10min_16mb | non_record_16mb; default: by hardware and budgets")
    parser.add_argument("--date", default="", metavar="YYYY-MM-DD", help="date of the submission; default: today")


def _submit(arguments: Arguments, out: Console) -> int:
    from bitgolf.submit.submission import Labels
    from bitgolf.submit.submit import submit

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
        print_json(out, {"folder": str(folder), "submission": described})
        return 0
    spread = f" +- {described['val_bpb_std']:.4f}" if "val_bpb_std" in described else ""
    print_line(
        out,
        f"{described['val_bpb']:.4f}{spread} bits per byte over seeds {', '.join(map(str, described['seeds']))}; "
        f"{described['bytes_total']:,} bytes, {described['bytes_code']:,} of them code",
    )
    for doubt in described.get("forced", []):
        print_line(out, f"written with --force: {doubt}", "yellow")
    print_line(out, f"submission: {folder}")
    return 0


def _date(text: str) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError as error:
        raise ConfigError(f"--date {text!r} is not a date; write it as 2026-03-17") from error


SUBMIT = Command(
    "submit",
    "make the challenge's folder from finished runs, one per seed",
    _add_arguments,
    _submit,
    examples=(
        ("submit runs/s1 runs/s2 runs/s3 --out submissions --author NAME --github-id ID", "three seeds, all audited"),
        ("submit runs/s1 --out submissions --seeds 1 --force", "one seed; the folder says what is missing"),
    ),
)
