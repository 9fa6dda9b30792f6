"""The runs behind a submission: finished runs, one per seed, and the checks that they belong together.

`read_seed_runs` refuses runs that no flag can make right: a run that is not finished or contradicts itself,
configurations that differ in more than the seed, a seed twice, too few seeds, copied artifacts or logs. `doubts_about`
lists audits that are missing, stale or not passed. `--force` writes a submission in spite of these doubts and marks it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from bitgolf.config import Config
from bitgolf.errors import ConfigError, ForeignError, RunError
from bitgolf.quantize.repack import trained_digest
from bitgolf.report.comparison.scored_runs import ScoredRun, config_differences, read_runs, require_one_set
from bitgolf.report.products import Products
from bitgolf.run.directory import RunDirectory
from bitgolf.train.stage import is_finished


@dataclass(frozen=True)
class SeedRun:
    """A finished run."""

    scored: ScoredRun  # its headline score, configuration and data
    # start, end: first and last event of its train.jsonl
    start: dict[str, Any]
    end: dict[str, Any]
    # pack, audit: contents of pack.json and audit.json (None: not audited)
    pack: dict[str, Any]
    audit: dict[str, Any] | None
    # model_bytes, model_sha256: of the artifact on disk
    model_bytes: int
    model_sha256: str
    seconds: dict[str, float]  # charged to training and evaluation, by budget
    outdated: dict[str, str]  # see `Products.outdated`

    @property
    def seed(self) -> int:
        return self.scored.seed

    @property
    def config(self) -> Config:
        return self.scored.run.config

    @property
    def path(self) -> Path:
        return self.scored.run.path

    @property
    def trained_on(self) -> str:
        """Devices that trained it, such as "8x NVIDIA H100"."""
        return f"{self.start['world_size']}x {self.start['device']}"

    @property
    def scored_on(self) -> str:
        return f"{self.scored.score['world_size']}x {self.scored.score['device']}"

    @property
    def float_result(self) -> dict[str, Any] | None:
        """Score of the float weights; None if they were not scored."""
        return next(iter(self.scored.score["float"].values()), None)


def read_seed_runs(paths: Sequence[Path], num_seeds: int) -> list[SeedRun]:
    """The runs of a submission, by seed.

    Raises:
        ConfigError: a run given twice, or `num_seeds` below 1.
        RunError, DataError: the runs cannot be submitted together (see the top of this file).
    """
    if num_seeds < 1:
        raise ConfigError(f"--seeds {num_seeds}: a submission needs at least 1")
    for path in paths:
        _require_finished(path)
    scored = read_runs(paths)
    _require_one_configuration(scored)
    require_one_set(scored)
    runs = sorted((_read(run) for run in scored), key=lambda run: run.seed)
    for one, two in combinations(runs, 2):
        if one.seed == two.seed:
            raise RunError(f"{one.path} and {two.path} both have seed {one.seed}; a submission has one run per seed")
    if len(runs) < num_seeds:
        raise RunError(
            f"{len(runs)} seed{'' if len(runs) == 1 else 's'} given, {num_seeds} asked for: run the configuration "
            "with other values of --seed, or ask for fewer with --seeds"
        )
    for one, two in combinations(runs, 2):
        if one.model_sha256 == two.model_sha256:
            raise RunError(f"{one.path} and {two.path} hold the same artifact: one of them is a copy, not another seed")
    return runs


def doubts_about(run: SeedRun) -> list[str]:
    """Reasons not to submit a run: an audit that is missing, stale or not passed."""
    if run.audit is None:
        return [f"seed {run.seed} was not audited"]
    doubts = []
    failed = [check["name"] for check in run.audit["checks"] if check["verdict"] == "FAIL"]
    not_run = [check["name"] for check in run.audit["checks"] if check["verdict"] == "NOT RUN"]
    if failed or not run.audit["passed"]:
        doubts.append(f"seed {run.seed} failed its audit ({', '.join(failed) or 'no check named'})")
    if not_run or not run.audit.get("complete"):
        doubts.append(f"seed {run.seed} was not audited in full ({', '.join(not_run) or 'no check named'} not run)")
    if run.outdated:
        doubts.append(f"seed {run.seed} has changed since its audit")
    return doubts


def _require_finished(path: Path) -> None:
    run = RunDirectory.open(path)
    for product in ("train.jsonl", "weights.safetensors", "model.bitgolf", "pack.json", "score.json"):
        run.require(product)
    if not is_finished(run):
        raise RunError(f"the training of {path} did not finish; continue it with `bitgolf train {path} --resume`")


def _require_one_configuration(runs: Sequence[ScoredRun]) -> None:
    """Raise RunError unless the runs differ by seed only. Here names and descriptions must be equal too."""
    first = runs[0]
    for other in runs[1:]:
        keys = [key for key in config_differences([first.run.config, other.run.config]) if key != "seed"]
        if keys:
            raise RunError(
                f"{first.label} and {other.label} are not two seeds of one configuration: they differ in "
                f"{', '.join(keys)}; submit runs that differ by seed only"
            )


def _trained_digest(run: RunDirectory, pack: dict[str, Any]) -> str:
    try:
        return trained_digest(run.config, pack)
    except ForeignError as error:
        raise RunError(f"{run / 'pack.json'}: {error}; run `bitgolf pack {run.path}` again") from error


def _read(scored: ScoredRun) -> SeedRun:
    products = Products.read(scored.run)
    path = scored.run.path
    assert products.pack is not None
    artifact = (path / "model.bitgolf").read_bytes()
    digest = hashlib.sha256(artifact).hexdigest()
    start = next((event for event in products.events if event["event"] in ("start", "branch")), None)
    if start is None or not products.last_event("end"):
        raise RunError(
            f"{path / 'train.jsonl'} lacks its beginning or its end; train again with `bitgolf train {path}`"
        )
    run = SeedRun(
        scored,
        start,
        products.last_event("end"),
        products.pack,
        products.audit,
        len(artifact),
        digest,
        {kind: products.budget.spent(kind) for kind in ("train_seconds", "eval_seconds")},
        products.outdated(),
    )
    again = f"run `bitgolf pack {path}`, `bitgolf score {path}` and `bitgolf audit {path}` again"
    for name, stated in (("pack.json", products.pack), ("score.json", scored.score)):
        if stated.get("model_sha256") != digest:
            raise RunError(f"{path / name} is about another artifact than model.bitgolf; {again}")
    for key, logged, configured in (
        ("seed", start.get("seed"), scored.seed),
        ("configuration", start.get("config_sha256"), _trained_digest(scored.run, products.pack)),
    ):
        if logged != configured:
            raise RunError(
                f"the log of {path} is of another run: its {key} is {logged}, that of config.toml {configured}; "
                "submit the files of one run, with the version of bitgolf that ran it"
            )
    return run
