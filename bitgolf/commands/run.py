"""`bitgolf run`: all stages, one after the other, on one run directory. `--resume` makes what is missing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.files import save_standard_input
from bitgolf.commands.output import print_json, print_line
from bitgolf.commands.pack import pack_run
from bitgolf.commands.score import print_caveats
from bitgolf.commands.tables import audit_table, score_table
from bitgolf.config import Config, load_config
from bitgolf.errors import BitgolfError, ConfigError, RunError
from bitgolf.run.directory import RunDirectory

if TYPE_CHECKING:
    from bitgolf.audit.verdict import Verdict
    from bitgolf.run.ranks import World


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", help="name of a preset (see `bitgolf presets`), or path of a .toml file")
    parser.add_argument("--out", required=True, type=Path, help="run directory")
    parser.add_argument("--resume", action="store_true", help="continue a run of the same configuration")
    parser.add_argument("--branch", metavar="RUN[@STEP]", default="", help="start from a checkpoint of another run")
    parser.add_argument("--anyway", action="store_true", help="start although this machine is too small or too slow")


def _run(arguments: Arguments, out: Console) -> int:
    from bitgolf.report.caveats import caveats
    from bitgolf.report.products import Products, require_product
    from bitgolf.report.report import report
    from bitgolf.run.ranks import is_main_process, world

    overrides = arguments.overrides
    if overrides.get("data.source") == "-" and is_main_process():
        overrides = overrides | {"data.source": save_standard_input(arguments.out, keep=arguments.resume)}
    config = load_config(arguments.preset, overrides)
    with world(config.device) as peers, ExitStack() as hold:
        _on_main(peers, lambda: _begin(arguments, config, peers, hold))
        run = RunDirectory.open(arguments.out)
        _train_pack_score(arguments, run, peers)
        if not peers.is_main:
            return 0
        verdict = _audit(run, arguments.progress)
        page = report(run, device=peers.device.type, progress=arguments.progress)
    pack, score = require_product(run, "pack"), require_product(run, "score")
    if arguments.json:
        summary = {"run": str(run.path), "preset": config.name, "pack": pack, "score": score}
        more = {"audit_passed": verdict.passed, "report": str(page), "caveats": caveats(Products.read(run))}
        print_json(out, summary | more)
    else:
        out.print(score_table(config.name, score, pack))
        print_caveats(out, run)
        out.print(audit_table(verdict.to_json()))
        print_line(out, f"report: {page}")
    return int(not verdict.passed)


def _begin(arguments: Arguments, config: Config, peers: World, hold: ExitStack) -> None:
    """Refuse at once what would fail at the end, make the run directory, and prepare its data.

    `hold` keeps the lock of the run directory.
    """
    from bitgolf.artifact.compressors import missing_package
    from bitgolf.data.prepare import prepare
    from bitgolf.plan.check import require_fit, settled
    from bitgolf.train.branch import find_trunk

    if (package := missing_package(config.pack.compressor)) is not None:
        raise ConfigError(f"pack.compressor = {config.pack.compressor!r} needs {package}, which is not installed")
    if arguments.branch:
        find_trunk(arguments.branch, config, arguments.out)
    stored = arguments.out / "config.toml"
    is_begun = arguments.resume and stored.is_file()
    config = settled(config, peers, RunDirectory.open(arguments.out).config if is_begun else None)
    if not is_begun:
        require_fit(config, peers, anyway=arguments.anyway)
    run = RunDirectory.create(arguments.out, config, resume=arguments.resume, hold=hold)
    if not (arguments.resume and (run / "data").exists()):
        prepare(config.data, config.model.vocab_size, run / "data", arguments.progress)


def _train_pack_score(arguments: Arguments, run: RunDirectory, peers: World) -> None:
    """Run these stages, or with `--resume` those whose product is missing and all that follow them."""
    from bitgolf.evaluate.score import score
    from bitgolf.plan.memory import memory_of
    from bitgolf.train.attended import train_attended
    from bitgolf.train.stage import is_finished

    outdated = not arguments.resume

    def must_run(is_made: bool) -> bool:
        """Rank 0 decides for all ranks, because another rank may look when the file is there already."""
        nonlocal outdated
        outdated = bool(peers.from_main(float(outdated or not is_made)))
        return outdated

    if must_run(is_finished(run)):
        with memory_of("train.micro_batch_tokens", run.config.train.micro_batch_tokens):
            train_attended(run, peers, resume=arguments.resume, branch=arguments.branch, progress=arguments.progress)
    if must_run((run / "pack.json").exists()):
        _on_main(peers, lambda: pack_run(run, peers.device, arguments.progress))
    if must_run((run / "score.json").exists()):
        with memory_of("score.batch_tokens", run.config.score.batch_tokens):
            score(run, peers, progress=arguments.progress)


def _audit(run: RunDirectory, progress: Any) -> Verdict:
    from bitgolf.audit.run import audit_run

    return audit_run(run, progress=progress)


def _on_main(peers: World, work: Callable[[], None]) -> None:
    """Do `work` on rank 0 while the other ranks wait. If it fails there, all ranks raise."""
    failure: Exception | None = None
    if peers.is_main:
        try:
            work()
        except (BitgolfError, OSError) as error:
            failure = error
    if peers.from_main(float(failure is not None)):
        raise failure or RunError("rank 0 failed; see its error message")


RUN = Command(
    "run",
    "make a model: prepare, train, pack, score, audit and report",
    _add_arguments,
    _run,
    True,
    settings=(
        "data.source",
        "data.val_fraction",
        "budget.artifact_bytes",
        "budget.train_seconds",
        "model.vocab_size",
        "model.num_layers",
        "model.model_dim",
        "train.seq_len",
        "train.batch_tokens",
        "train.matrix_lr",
        "score.methods",
        "seed",
    ),
    examples=(
        ("run demo --out runs/demo", "a small model of Python's documentation, under four minutes on two CPU cores"),
        ("run demo --out runs/mine --data.source dir:notes --budget.train_seconds 120", "a model of your own files"),
        ("run demo --out runs/mine --data.source dir:notes --budget.train_seconds 120 --resume", "continue that run"),
    ),
)
