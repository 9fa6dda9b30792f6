"""The main function of a submission's train_gpt.py: train, pack and score a prepared corpus with built-in settings.

    python train_gpt.py --data DIR --out DIR [--stage train|pack|score|all] [--section.key value ...]
    torchrun --nproc_per_node=8 train_gpt.py ...

--out becomes a run directory. A stage uses the products of earlier stages that it finds there, also if another machine
made them. The float weights and general-purpose compressors are not scored, because they are not part of a
submission's evaluation.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from bitgolf.config.overrides import parse_overrides, with_overrides
from bitgolf.evaluate.score import score
from bitgolf.quantize.pack import pack
from bitgolf.run import atomic
from bitgolf.run.directory import RunDirectory
from bitgolf.run.ranks import world
from bitgolf.run.workers import leave
from bitgolf.train.stage import train
from bitgolf.train.unattended import Unattended

_PROGRESS_SECONDS = 10.0


def main(
    settings: str,  # JSON of those that differ from the defaults
    arguments: Sequence[str],  # the command line
    code_bytes: int,  # of the train_gpt.py that ships
) -> NoReturn:
    """Run the stages that the command line asks for, and end this process."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--stage", choices=("all", "train", "pack", "score"), default="all")
    options, rest = parser.parse_known_args(arguments)
    config = with_overrides(json.loads(settings), parse_overrides(rest))
    with world(config.device) as peers:
        level = logging.INFO if peers.is_main else logging.ERROR
        logging.basicConfig(stream=sys.stdout, level=level, format="%(message)s")
        run = RunDirectory(options.out, config)
        if peers.is_main:
            _begin(run, options.data, options.stage)
        peers.barrier()
        if options.stage in ("all", "train"):
            train(run, peers, Unattended(), _Progress())
        if options.stage in ("all", "pack") and peers.is_main:
            pack(run, peers.device, code_bytes, progress=_Progress())
        peers.barrier()
        if options.stage in ("all", "score"):
            off = {"float_reference": False, "last_reference": False, "compressors": False}
            plain = config.score.model_copy(update=off)
            score(RunDirectory(options.out, config.model_copy(update={"score": plain})), peers, progress=_Progress())
        if peers.is_main:
            _report(run)
    leave(0)


def _begin(run: RunDirectory, data: Path, stage: str) -> None:
    """Make the run directory, or check that it belongs to this configuration and is not trained twice."""
    stored = run / "config.toml"
    if stored.exists() and stored.read_text(encoding="utf-8") != run.config.to_toml():
        raise SystemExit(f"train_gpt.py: {run.path} belongs to another configuration; choose another --out")
    if stage in ("all", "train") and (run / "weights.safetensors").exists():
        raise SystemExit(f"train_gpt.py: {run.path} is trained already; choose another --out, or --stage pack or score")
    run.path.mkdir(parents=True, exist_ok=True)
    atomic.write_text(stored, run.config.to_toml())
    link = run / "data"
    if not link.exists():
        link.symlink_to(data.resolve())
    elif not link.samefile(data):
        raise SystemExit(f"train_gpt.py: {link} is not {data}; choose another --out")


class _Progress:
    """Progress as log lines, at most one per ten seconds."""

    def __init__(self) -> None:
        self.logged_at = time.monotonic()

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        if time.monotonic() - self.logged_at >= _PROGRESS_SECONDS:
            self.logged_at = time.monotonic()
            logging.info("%s %.0f of %.0f %s", stage, done, total, note)


def _report(run: RunDirectory) -> None:
    """Log the results so far in the words of the challenge's logs."""
    if (run / "pack.json").exists():
        packed = json.loads((run / "pack.json").read_text())
        logging.info("Code size: %d bytes", packed["code_bytes"])
        logging.info("Total submission size: %d bytes", packed["total_bytes"])
    if (run / "score.json").exists():
        scored = json.loads((run / "score.json").read_text())
        for name, result in scored["methods"].items():
            logging.info("%s val_loss:%.8f val_bpb:%.8f", name, result["loss_nats"], result["bpb"])
        logging.info("final %s eval_time:%.1fs", scored["headline"], scored["evaluation_seconds"])
