"""Scored runs for statistics: one score per run, the text that was scored, and which runs form a set of seeds.

A set of seeds consists of runs of one configuration, trained and scored on the same data, one run per seed. Only the
keys `seed`, `name` and `description` may differ. Other runs are refused by name, because a mean over mixed
configurations has no meaning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitgolf.config import Config
from bitgolf.data.prepared import read_manifest
from bitgolf.errors import ConfigError, DataError, RunError
from bitgolf.report.comparison.t_tests import Sample
from bitgolf.report.products import read_training, require_product
from bitgolf.run.directory import RunDirectory

LABEL_KEYS = ("seed", "name", "description")  # may differ within a set of seeds
FLOAT_PREFIX = "float-"  # begins the names of scores of the weights before packing


@dataclass(frozen=True)
class TextIdentity:
    """The texts that a run was trained and scored on, by its manifest. Equal values mean equal data."""

    # val_hashes, train_hashes: SHA-256 over the document hashes of each split, in their order.
    val_hashes: str
    train_hashes: str
    hashes_of: str  # what was hashed: "utf-8 text", or "uint16 tokens" for existing shards
    tokenizer_sha256: str  # of the tokenizer model
    accounting: str  # "original" (bytes of the untouched text) or "challenge" (bytes of the normalized text)
    # documents, bytes: of the validation split; `bytes` are those counted for its tokens.
    documents: int
    bytes: int

    @classmethod
    def read(cls, data: Path) -> TextIdentity:
        """From the manifest of a data directory. Raises DataError when it is missing or damaged."""
        manifest = read_manifest(data)
        try:
            hashes, val = manifest["document_hashes"], manifest["splits"]["val"]
            return cls(
                str(hashes["val"]["sha256"]),
                str(hashes["train"]["sha256"]),
                str(hashes["val"]["of"]),
                str(manifest["tokenizer"]["sha256"]),
                str(manifest["accounting"]),
                int(val["documents"]),
                int(val["counted_bytes"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"the manifest of {data} is damaged: {type(error).__name__} {error}; prepare the data again"
            ) from error

    def same_val_text(self, other: TextIdentity) -> bool | None:
        """Whether both validated on the same documents in the same order; None if hashes cannot decide it.

        Hashes of text always decide it, hashes of tokens only for one tokenizer.
        """
        if self.hashes_of != other.hashes_of:
            return None
        if self.hashes_of != "utf-8 text" and self.tokenizer_sha256 != other.tokenizer_sha256:
            return None
        return self.val_hashes == other.val_hashes


@dataclass(frozen=True)
class ScoredRun:
    """A run with one of its scores."""

    run: RunDirectory
    label: str  # name of the run in tables, unique among those read together
    method: str  # as score.json calls it, or "float-METHOD" for the weights before packing
    # bpb, loss_nats, bpb_per_nat: the score in bits per byte and nats per token, and their ratio.
    bpb: float
    loss_nats: float
    bpb_per_nat: float
    score: dict[str, Any]  # all of score.json
    text: TextIdentity

    @property
    def seed(self) -> int:
        return int(self.run.config.seed)

    @property
    def is_headline(self) -> bool:
        """Whether the score is the headline. Only the headline's losses are in nll.npy."""
        return bool(self.method == self.score["headline"])

    @property
    def trained_tokens(self) -> int | None:
        """Number of tokens it was trained on; None if its log has no end."""
        ends = [event["tokens"] for event in read_training(self.run) if event["event"] == "end"]
        return int(ends[-1]) if ends else None

    def shares_training_with(self, other: ScoredRun) -> bool:
        """Whether one is a branch of the other, or both are branches of a third run.

        The log of a branch begins with the log of its trunk.
        """
        logs = [read_training(run.run) for run in (self, other)]
        branched = any(event["event"] == "branch" for log in logs for event in log)
        return branched and logs[0][:1] == logs[1][:1]

    @property
    def hardware(self) -> str:
        """The devices that scored it, such as "2 × NVIDIA H200"."""
        device, size = self.score.get("device", "unknown device"), self.score.get("world_size", 1)
        return f"{size} × {device}" if size > 1 else str(device)


def read_runs(paths: Sequence[Path], method: str = "headline") -> list[ScoredRun]:
    """Open the runs `paths`, each given once, and take one score of each.

    `method`: "headline" (each run's own), a method of score.json, or "float-METHOD". Raises ConfigError for a directory
    given twice and for a method that a run was not scored with; RunError or DataError for what is not a run, not
    scored, or damaged.
    """
    labels = label_paths(paths)
    return [read_run(path, label, method) for path, label in zip(paths, labels, strict=True)]


def read_run(path: Path, label: str, method: str = "headline") -> ScoredRun:
    """One run of `read_runs`, with the label it is given."""
    run = RunDirectory.open(path)
    score = require_product(run, "score")
    named = methods_of(score)
    chosen = str(score["headline"]) if method == "headline" else method
    if chosen not in named:
        raise ConfigError(
            f"{path} was not scored by {chosen!r}; its methods: headline, {', '.join(named)}. Choose a --method that "
            "all runs have"
        )
    bpb, loss, ratio = (float(named[chosen][key]) for key in ("bpb", "loss_nats", "bpb_per_nat"))
    return ScoredRun(run, label, chosen, bpb, loss, ratio, score, TextIdentity.read(run.require("data")))


def label_paths(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ, with one number of parts for all.

    Raises ConfigError if a directory is given twice.
    """
    whole = [Path(os.path.realpath(path)) for path in paths]  # `resolve` raises RuntimeError for a loop of links
    for index, path in enumerate(whole):
        if path in whole[:index]:
            raise ConfigError(f"{paths[index]} is given twice")
    longest = max((len(path.parts) for path in whole), default=1)
    for length in range(1, longest + 1):
        labels = ["/".join(path.parts[-length:]) for path in whole]
        if len(set(labels)) == len(labels):
            break
    return labels


def methods_of(score: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All scores of a score.json that `--method` can name, float weights first."""
    return {FLOAT_PREFIX + name: value for name, value in score["float"].items()} | dict(score["methods"])


def group_runs(runs: Sequence[ScoredRun]) -> list[list[ScoredRun]]:
    """Runs of one configuration (but for seed and labels) on the same data, group by group in order of appearance."""
    groups: dict[tuple[str, TextIdentity], list[ScoredRun]] = {}
    for run in runs:
        groups.setdefault((_config_key(run.run.config), run.text), []).append(run)
    return list(groups.values())


def require_one_set(runs: Sequence[ScoredRun]) -> None:
    """Raise RunError unless the runs share configuration (but for seed and labels), method, data and accounting."""
    for other in runs[1:]:
        _require_same_set(runs[0], other)


def config_differences(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """Dotted keys on which the configurations are not all alike, with the value of each, in their order."""
    flat = [config.flat() for config in configs]
    return {key: [values[key] for values in flat] for key in flat[0] if any(v[key] != flat[0][key] for v in flat)}


def sample(name: str, runs: Sequence[ScoredRun]) -> Sample:
    """The scores of a set of seeds.

    Raises RunError for fewer than two runs, a seed twice, configurations that differ in more than seed, name and
    description, another method, other data, or another byte accounting.
    """
    require_one_set(runs)
    by_seed: dict[int, ScoredRun] = {}
    for run in runs:
        if run.seed in by_seed:
            raise RunError(
                f"{by_seed[run.seed].label} and {run.label} both have seed {run.seed}; a set of seeds has one run per "
                "seed"
            )
        by_seed[run.seed] = run
    return Sample.from_seeds(name, {seed: run.bpb for seed, run in by_seed.items()})


def require_same_accounting(a: ScoredRun, b: ScoredRun) -> None:
    """Raise RunError if the two count bytes in different ways."""
    if a.text.accounting != b.text.accounting:
        raise RunError(
            f"{a.label} counts bytes by {a.text.accounting!r} accounting, {b.label} by {b.text.accounting!r}: their "
            "bits per byte have different denominators; score both on data of one accounting"
        )


def _require_same_set(a: ScoredRun, b: ScoredRun) -> None:
    if _config_key(a.run.config) != _config_key(b.run.config):
        keys = [key for key in config_differences([a.run.config, b.run.config]) if key not in LABEL_KEYS]
        raise RunError(
            f"{a.label} and {b.label} are not two seeds of one configuration: they differ in {', '.join(keys)}; "
            "a mean over seeds needs equal configurations"
        )
    if a.method != b.method:
        raise RunError(f"{a.label} is scored by {a.method}, {b.label} by {b.method}; choose one with --method")
    require_same_accounting(a, b)
    if a.text.tokenizer_sha256 != b.text.tokenizer_sha256:
        raise RunError(f"{a.label} and {b.label} have different tokenizers; prepare the data once for all seeds")
    for split, one, other in (
        ("validation", a.text.val_hashes, b.text.val_hashes),
        ("training", a.text.train_hashes, b.text.train_hashes),
    ):
        if one != other:
            raise RunError(
                f"{a.label} and {b.label} have different {split} documents (manifest: {one[:12]}... and "
                f"{other[:12]}...); all runs of a set of seeds need the same data"
            )


def _config_key(config: Config) -> str:
    return json.dumps(config.model_dump(mode="json", exclude=set(LABEL_KEYS)), sort_keys=True)
