"""Runs a sweep with Optuna, and tells what it found.

Optuna proposes the values of each trial (TPE, arXiv 1907.10902), stores all trials in a database, and stops trials that
are behind the median. The database is a SQLite file in the folder of the sweep, or any that SQLAlchemy reaches: several
hosts with one database share one sweep. A sweep that was stopped goes on with the same command.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitgolf.errors import ConfigError, RunError
from bitgolf.run import atomic
from bitgolf.run.directory import RunDirectory
from bitgolf.run.lock import locked_directory
from bitgolf.run.progress import Progress, silent
from bitgolf.sweep.study import SweepStudy
from bitgolf.sweep.trial import Start, curve, held_out_loss, start_process, train_trial

if TYPE_CHECKING:
    import optuna

_logger = logging.getLogger(__name__)

_FULL_TRIALS = 4  # that the median needs before a trial can be stopped
_FIRST_PERCENT = 20  # of a run that no trial is stopped before


def open_study(study: SweepStudy, folder: Path, storage: str = "") -> optuna.Study:
    """The stored trials of the sweep in `folder`; `storage` is the URL of a database, "" for a file in the folder.

    Raises ConfigError if Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("bitgolf sweep needs Optuna: pip install 'bitgolf[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=storage or f"sqlite:///{(folder / 'trials.db').resolve()}",
        study_name=folder.name,
        sampler=optuna.samplers.TPESampler(seed=study.base.seed, n_startup_trials=min(10, study.trials)),
        pruner=optuna.pruners.MedianPruner(_FULL_TRIALS, _FIRST_PERCENT),
        direction="minimize",
        load_if_exists=True,
    )


def run_sweep(
    study: SweepStudy,
    data: Path,  # text that `bitgolf prepare` wrote
    folder: Path,  # gets a run directory per trial, results.json and README.md
    storage: str = "",
    progress: Progress = silent,
    start: Start = start_process,
) -> dict[str, Any]:
    """Make the trials that are missing, and return what the sweep found (see `results`).

    Raises RunError if the trials cannot be stored, or if another process sweeps in `folder`: its trial would count as
    interrupted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked_directory(folder, "sweep"), _database_named(storage, folder):
        trials = open_study(study, folder, storage)
        _retry_interrupted(trials, folder)
        while (ended := sum(trial.state.is_finished() for trial in trials.get_trials(deepcopy=False))) < study.trials:
            progress("sweep", ended, study.trials)
            _make_trial(trials, study, data, folder, start)
            write_results(study, trials, folder)
        progress("sweep", study.trials, study.trials)
        return write_results(study, trials, folder)


@contextmanager
def _database_named(storage: str, folder: Path) -> Iterator[None]:
    """Errors of the database, such as a full disk, become a RunError. A URL may hold a password, so it is not shown."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("sqlalchemy", "optuna"):
            raise
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        place = "the database of --storage" if storage else folder / "trials.db"
        reason = str(cause).partition("\n")[0]
        raise RunError(f"the trials cannot be stored in {place}: {reason}; the same command continues") from error


def _make_trial(trials: optuna.Study, study: SweepStudy, data: Path, folder: Path, start: Start) -> None:
    import optuna

    trial = trials.ask()
    values = {key: _suggest(trial, key, tried) for key, tried in study.search.items()}
    run = RunDirectory.create(trial_folder(folder, trial.number), study.config(values), resume=True)
    if not (run / "data").exists():
        (run / "data").symlink_to(data.resolve())
    reported = -1
    try:
        for losses in train_trial(run, start):
            for percent in sorted(at for at in losses if at > reported):
                trial.report(losses[percent], percent)
                reported = percent
            if trial.should_prune():
                trials.tell(trial, state=optuna.trial.TrialState.PRUNED)
                return
        trials.tell(trial, held_out_loss(run.path))
    except RunError as error:
        _logger.warning("%s", error)
        trials.tell(trial, state=optuna.trial.TrialState.FAIL)


def _suggest(trial: optuna.Trial, key: str, tried: dict[str, Any]) -> Any:
    if "choices" in tried:  # as text, because a choice may be a list
        return json.loads(trial.suggest_categorical(key, [json.dumps(choice) for choice in tried["choices"]]))
    low, high, log = tried["low"], tried["high"], bool(tried.get("log", False))
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(key, low, high, log=log)
    return trial.suggest_float(key, low, high, log=log)


def _retry_interrupted(trials: optuna.Study, folder: Path) -> None:
    """Trials that this folder began and did not end count as failed, and their values are tried again."""
    import optuna

    for trial in trials.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        if trial_folder(folder, trial.number).exists():
            trials.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            if trial.params:
                trials.enqueue_trial(trial.params)


def trial_folder(folder: Path, number: int) -> Path:
    return folder / f"trial-{number:04d}"


def write_results(study: SweepStudy, trials: optuna.Study, folder: Path) -> dict[str, Any]:
    """Write results.json and README.md; returns the content of results.json."""
    record = results(study, trials, folder)
    atomic.write_json(folder / "results.json", record)
    atomic.write_text(folder / "README.md", page(record))
    return record


def results(study: SweepStudy, trials: optuna.Study, folder: Path) -> dict[str, Any]:
    """Question, best trial, all trials with values, state and learning curve, and how much each setting matters."""
    import optuna

    rows: list[dict[str, Any]] = []
    for trial in trials.get_trials(deepcopy=False):
        values = {key: json.loads(v) if isinstance(v, str) else v for key, v in trial.params.items()}
        path = trial_folder(folder, trial.number)
        rows.append(
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "held_out_nats": trial.value,
                "settings": values,
                "curve": curve(RunDirectory.open(path))
                if (path / "config.toml").exists()
                else trial.intermediate_values,
            }
        )
    complete = [row for row in rows if row["state"] == "complete"]
    importance: dict[str, float] = {}
    if len(rows) >= study.trials and len(complete) > 2 * len(study.search):  # it takes seconds, so once
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importance = dict(optuna.importance.get_param_importances(trials))
    return {
        "question": study.question,
        "base": study.base.name,
        "seed": study.base.seed,
        "measure": "nats per token on held-out training text",
        "best": min(complete, key=lambda row: row["held_out_nats"], default=None),
        "importance": importance,
        "trials": rows,
    }


def page(results: dict[str, Any]) -> str:
    """README.md of a sweep: its trials, best first."""
    keys = sorted({key for row in results["trials"] for key in row["settings"]})
    ended = [row for row in results["trials"] if row["held_out_nats"] is not None]
    others = [row for row in results["trials"] if row["held_out_nats"] is None]
    lines = [
        f"# {results['question'].strip().splitlines()[0]}",
        "",
        f"Made by `bitgolf sweep` on top of `{results['base']}`, seed {results['seed']}. The measure is the loss on "
        "held-out training text in nats per token. No trial reads validation text.",
        "",
        f"| trial | state | held-out loss | {' | '.join(keys)} |",
        "|---:|---|---:|" + "---:|" * len(keys),
    ]
    for row in sorted(ended, key=lambda row: row["held_out_nats"]) + others:
        loss = "" if row["held_out_nats"] is None else f"{row['held_out_nats']:.5f}"
        cells = [json.dumps(row["settings"].get(key, "")) for key in keys]
        lines.append(f"| {row['number']} | {row['state']} | {loss} | {' | '.join(cells)} |")
    if results["importance"]:
        shares = ", ".join(f"`{key}` {share:.2f}" for key, share in results["importance"].items())
        lines += ["", f"Share of the variance that each setting explains (fANOVA): {shares}."]
    return "\n".join(lines) + "\n"
