"""Run one study and tabulate it: arms that differ in a few settings, each made with several seeds.

    python benchmarks/experiment.py run STUDY.toml --data FOLDER --out DIR [--gpus 0,1] [--base BASE]
    python benchmarks/experiment.py table DIR [--into FOLDER]

STUDY is a TOML file; benchmarks/studies/ holds examples. Its keys:

    question    what the study asks, shown above the table
    base        preset name, .toml file, or finished run as RUN or RUN@STEP; `{seed}` in it stands for the seed
    seeds       list of seeds; every arm is made once per seed
    stages      stages of every arm, for example ["train", "pack", "score"]
    [settings]  settings of every run
    [trunk]     present: one training per seed is made first, with these settings too, and all arms start from it
    [arms.NAME] settings of one arm; `like` names an earlier arm whose settings it adds to, and `prediction` is a text
                for the table, written before the run. The first arm is the one that the others are compared with.

Where an arm starts follows from its first stage. With a trunk or a finished run, `train` branches from its checkpoint
(the newest one, or STEP), `pack` packs its weights again, and `score` scores its artifact again. Without them every arm
trains anew. All stages of one run use one GPU; runs are made side by side, one per GPU. `--gpus ''` uses the CPU.

FOLDER is text that `bitgolf prepare` wrote. DIR gets one run directory per arm and seed, NAME-seedN, with its output
in NAME-seedN.txt. The same command again continues: finished stages are kept, training resumes from its last
checkpoint. `table` writes results.json and README.md. Two arms are compared by document with `bitgolf compare`.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shutil
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitgolf.config import Config, load_config, resolve
from bitgolf.config.section import flatten, with_values
from bitgolf.errors import BitgolfError, ConfigError
from bitgolf.run.directory import RunDirectory
from bitgolf.train.metrics import read_events
from bitgolf.train.stage import is_finished

PRODUCTS = {"pack": "pack.json", "score": "score.json", "audit": "audit.json", "report": "report.html"}
STAGES = ("train", *PRODUCTS)
TRAINED = ("calibration", "weights.safetensors", "weights-last.safetensors", "train.jsonl", "train.log")
PACKED = ("model.bitgolf", "pack.json")
KEYS = ("question", "base", "seeds", "stages", "settings", "trunk", "arms")

RunStage = Callable[[list[str], Path, str], int]
"""(words after `bitgolf`, file for the output, value of CUDA_VISIBLE_DEVICES) -> exit status."""


@dataclass(frozen=True)
class Study:
    """A study as its file describes it. All settings are dotted keys; `trunk` is None when there is none."""

    question: str
    base: str
    seeds: tuple[int, ...]
    stages: tuple[str, ...]
    settings: dict[str, Any]
    trunk: dict[str, Any] | None
    arms: dict[str, dict[str, Any]]
    predictions: dict[str, str]


@dataclass(frozen=True)
class Job:
    """One run to make.

    Attributes:
        path: its run directory.
        stages: in order.
        origin: run directory that it starts from, or None.
        step: checkpoint of the origin to branch from, or "" for the newest.
    """

    path: Path
    config: Config
    stages: tuple[str, ...]
    origin: Path | None = None
    step: str = ""


def read_study(path: Path) -> Study:
    """Read a study. Raises ConfigError that names the key when something is missing or unknown."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    if unknown := values.keys() - set(KEYS):
        raise ConfigError(f"{path}: unknown key {sorted(unknown)[0]!r}; a study has {', '.join(KEYS)}")
    for key in ("base", "seeds", "stages", "arms"):
        if not values.get(key):
            raise ConfigError(f"{path}: {key!r} is missing or empty")
    first, last = (STAGES.index(values["stages"][i]) if values["stages"][i] in STAGES else -1 for i in (0, -1))
    if first < 0 or tuple(values["stages"]) != STAGES[first : last + 1]:
        raise ConfigError(f"{path}: stages {values['stages']} are no part of {', '.join(STAGES)} without a gap")
    arms: dict[str, dict[str, Any]] = {}
    predictions: dict[str, str] = {}
    for name, changes in values["arms"].items():
        predictions[name] = str(changes.pop("prediction", ""))
        like = changes.pop("like", "")
        if like and like not in arms:
            raise ConfigError(f"{path}: arm {name!r} is like {like!r}, which is no arm before it")
        arms[name] = arms.get(like, {}) | flatten(changes)
    folders = ["trunk", *map(folder_name, arms)]
    if len(set(folders)) < len(folders):
        raise ConfigError(f"{path}: two arms would share one folder among {', '.join(folders)}; rename one")
    return Study(
        question=values.get("question", path.stem),
        base=values["base"],
        seeds=tuple(values["seeds"]),
        stages=tuple(values["stages"]),
        settings=flatten(values.get("settings", {})),
        trunk=flatten(values["trunk"]) if "trunk" in values else None,
        arms=arms,
        predictions=predictions,
    )


def folder_name(arm: str) -> str:
    """The name of an arm as a part of a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", arm.lower()).strip("-")


def base_of(study: Study, seed: int) -> tuple[Config, Path | None, str]:
    """Configuration, finished run (None for a preset) and checkpoint step ("" for the newest) that a seed starts from.

    Raises ConfigError or RunError when there is no such preset or run, or the run has another seed.
    """
    text = study.base.format(seed=seed)
    path, _, step = text.partition("@")
    if not (Path(path) / "config.toml").is_file():
        return load_config(text), None, ""
    run = RunDirectory.open(path)
    if run.config.seed != seed:
        raise ConfigError(f"{path} has seed {run.config.seed}, the study asks for {seed}; use {{seed}} in `base`")
    return run.config, run.path, step


def plan(study: Study, out: Path) -> tuple[list[Job], list[Job]]:
    """The trunks and the arms to make. Every configuration is checked here, before anything is run."""
    trunks: list[Job] = []
    arms: list[Job] = []
    first = STAGES.index(study.stages[0])
    common = study.settings | (study.trunk or {})
    for seed in study.seeds:
        base, origin, step = base_of(study, seed)
        if study.trunk is not None:
            if origin is not None:
                raise ConfigError("a study has a [trunk] or a finished run as its base, not both")
            origin = out / f"trunk-seed{seed}"
            trunks.append(Job(origin, changed(base, seed, common), STAGES[: max(first, 1)]))
        elif origin is None and first > 0:
            raise ConfigError(f"stage {study.stages[0]!r} needs a finished run as `base`, or a [trunk] to make it")
        for arm, changes in study.arms.items():
            config = changed(base, seed, common | changes)
            arms.append(Job(out / f"{folder_name(arm)}-seed{seed}", config, study.stages, origin, step))
    return trunks, arms


def changed(base: Config, seed: int, changes: Mapping[str, Any]) -> Config:
    """`base` with a seed and dotted settings. Raises ConfigError with the nearest valid key."""
    return resolve(with_values(base.model_dump(mode="json"), {"seed": seed, **changes}), {}, origin="study")


def run_as_process(words: list[str], log: Path, gpu: str) -> int:
    """`bitgolf WORDS` in a process of its own that sees one GPU."""
    with log.open("a") as handle:
        command = [sys.executable, "-m", "bitgolf", *words]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
        return subprocess.run(command, stdout=handle, stderr=subprocess.STDOUT, env=environment).returncode


def make(job: Job, data: Path, gpu: str, run_stage: RunStage) -> bool:
    """Make the stages of a run that are not finished; False when one failed."""
    run = RunDirectory.create(job.path, job.config, resume=True)
    link(data, run / "data")
    if job.origin is not None and job.stages[0] != "train":
        for name in (*TRAINED, *(PACKED if job.stages[0] == "score" else ())):
            if (job.origin / name).exists():
                link(job.origin / name, run / name)
        if not (run / "budget.json").exists() and (job.origin / "budget.json").exists():
            shutil.copyfile(job.origin / "budget.json", run / "budget.json")
    outdated = False  # once a stage runs, the products of all later ones are
    for stage in job.stages:
        finished = is_finished(run) if stage == "train" else (run / PRODUCTS[stage]).exists()
        if finished and not outdated:
            continue
        outdated = True
        say(job, gpu, stage)
        words = [stage, str(job.path)]
        if stage == "train":
            words.append("--resume")
            if job.origin is not None:
                words += ["--branch", f"{job.origin}@{job.step}" if job.step else str(job.origin)]
        log = job.path.parent / f"{job.path.name}.txt"
        if run_stage(words, log, gpu):
            reason = log.read_text().splitlines()[-1:] if log.exists() else []
            say(job, gpu, " ".join([f"{stage} failed, see {log}:", *reason]))
            return False
    return True


def link(source: Path, target: Path) -> None:
    """A symbolic link from `target` to `source`, unless `target` is there."""
    if not target.exists():
        target.symlink_to(source.resolve())


def say(job: Job, gpu: str, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} [{gpu or 'cpu'}] {job.path.name}: {text}", flush=True)


def make_all(jobs: Sequence[Job], data: Path, gpus: Sequence[str], run_stage: RunStage) -> list[Job]:
    """Make all jobs, as many at a time as there are GPUs. Returns those that failed; the others go on."""
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for gpu in gpus:
        free.put(gpu)

    def work(job: Job) -> bool:
        gpu = free.get()
        try:
            return make(job, data, gpu, run_stage)
        except (BitgolfError, OSError) as error:
            say(job, gpu, str(error))
            return False
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(len(gpus)) as pool:
        return [job for job, done in zip(jobs, pool.map(work, jobs), strict=True) if not done]


def run_study(
    path: Path, data: Path, out: Path, gpus: Sequence[str], base: str = "", run_stage: RunStage = run_as_process
) -> list[Job]:
    """Make every run of the study at `path`; the ones that failed. `base` replaces that of the study."""
    study = read_study(path)
    if base:
        study = replace(study, base=base)
    trunks, arms = plan(study, out)
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, out / "study.toml")
    with (out / "commits.txt").open("a") as handle:
        handle.write(commit() + "\n")
    failed = make_all(trunks, data, gpus, run_stage)
    ready = [job for job in arms if job.origin not in {trunk.path for trunk in failed}]
    return failed + make_all(ready, data, gpus, run_stage)


def commit() -> str:
    """The commit of this checkout, with "-dirty" when files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude", "*"]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def figures(run: Path) -> dict[str, Any]:
    """What one run measured. Keys of stages that were not made are left out."""
    values: dict[str, Any] = {}
    events = {event["event"]: event for event in read_events(run / "train.jsonl")}
    if "end" in events:
        values |= {key: events["end"][key] for key in ("tokens_per_second", "average")}
        values |= {"steps": events["end"]["step"], "device": events["start"]["device"]}
    if "choice" in events:
        values["held_out_nats"] = min(events["choice"]["losses"].values())
    if (run / "pack.json").exists():
        pack = json.loads((run / "pack.json").read_text())
        values |= {key: pack[key] for key in ("total_bytes", "model_bytes", "bits_per_weight")}
        values["pack_seconds"] = pack["seconds"]
    if (run / "score.json").exists():
        score = json.loads((run / "score.json").read_text())
        values |= {key: score[key] for key in ("headline", "headline_bpb", "val_bytes", "accounting", "device")}
        values["methods_bpb"] = {name: result["bpb"] for name, result in score["methods"].items()}
        values["packed_bpb"] = next(iter(values["methods_bpb"].values()))
        values["score_seconds"] = score["evaluation_seconds"]
        if score["float"]:
            values["float_bpb"] = next(iter(score["float"].values()))["bpb"]
        if score["last"]:
            values["last_bpb"] = next(iter(score["last"].values()))["bpb"]
        if score["quantization_tax"] is not None:
            values["tax_bpb"] = score["quantization_tax"]
    return values


COLUMNS = (
    ("steps", "steps", ",.0f"),
    ("held-out, nats per token", "held_out_nats", ".5f"),
    ("last weights", "last_bpb", ".5f"),
    ("float", "float_bpb", ".5f"),
    ("packed", "packed_bpb", ".5f"),
    ("tax", "tax_bpb", ".5f"),
    ("score", "headline_bpb", ".5f"),
    ("bytes", "total_bytes", ",.0f"),
    ("bits per weight", "bits_per_weight", ".3f"),
    ("pack, s", "pack_seconds", ".1f"),
    ("score, s", "score_seconds", ".1f"),
)
"""Heading, key of `figures` and format of each column of the table."""


def differences(runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, dict[int, float]]:
    """By arm and seed: score minus that of the first arm with the same seed. Without scores: held-out losses."""
    first = next(iter(runs.values()))
    key = "headline_bpb" if any("headline_bpb" in row for row in first.values()) else "held_out_nats"
    return {
        arm: {
            seed: row[key] - first[seed][key]
            for seed, row in by_seed.items()
            if key in row and key in first.get(seed, {})
        }
        for arm, by_seed in runs.items()
    }


def collect(out: Path) -> dict[str, Any]:
    """What the study in `out` measured, arm by arm and seed by seed: the content of results.json."""
    study = read_study(out / "study.toml")
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    missing: list[str] = []
    for arm in study.arms:
        runs[arm] = {}
        for seed in study.seeds:
            path = out / f"{folder_name(arm)}-seed{seed}"
            if is_made(path, study.stages[-1]):
                runs[arm][seed] = figures(path)
            else:
                missing.append(path.name)
    against_first = differences(runs)
    rows = [row for by_seed in runs.values() for row in by_seed.values()]
    return {
        "question": study.question,
        "base": study.base,
        "stages": study.stages,
        "commits": list(dict.fromkeys((out / "commits.txt").read_text().split())),
        "devices": sorted({row["device"] for row in rows if "device" in row}),
        "val_bytes": sorted({row["val_bytes"] for row in rows if "val_bytes" in row}),
        "settings": study.settings | (study.trunk or {}),
        "not_finished": missing,
        "arms": {
            arm: {
                "settings": study.arms[arm],
                "prediction": study.predictions[arm],
                "runs": by_seed,
                "against_first": against_first[arm],
            }
            for arm, by_seed in runs.items()
        },
    }


def table(results: Mapping[str, Any]) -> str:
    """README.md of a study: a row per arm, and the settings of each."""
    arms = results["arms"]
    rows = [row for arm in arms.values() for row in arm["runs"].values()]
    columns = [column for column in COLUMNS if any(column[1] in row for row in rows)]
    lines = [
        f"# {results['question'].strip().splitlines()[0]}",
        "",
        f"Made by `python benchmarks/experiment.py table` at commit {', '.join(results['commits'])}. "
        f"Base: `{results['base']}`. Device: {', '.join(results['devices']) or 'not recorded'}. "
        f"Validation text: {', '.join(f'{size:,} bytes' for size in results['val_bytes']) or 'not scored'}.",
        "",
        "Each figure is the mean over seeds. Scores are bits per byte. *float* and *packed* use the first method of "
        "`score.methods`, and *tax* is their difference. *score* is the run's own score. The last column is the mean "
        "difference from the first arm with the same seed, +- its standard deviation over seeds.",
        "",
        f"| arm | seeds | {' | '.join(title for title, _, _ in columns)} | against the first |",
        "|---|---:|" + "---:|" * (len(columns) + 1),
    ]
    for name, arm in arms.items():
        by_seed = arm["runs"].values()
        cells = [mean_cell([row[key] for row in by_seed if key in row], style) for _, key, style in columns]
        difference = mean_cell(list(arm["against_first"].values()), "+.5f", spread=True)
        lines.append(f"| {name} | {len(by_seed)} | {' | '.join(cells)} | {difference} |")
    lines += ["", "Settings that differ from the base:", ""]
    every = {"all arms": results["settings"]} if results["settings"] else {}
    for name, changes in (every | {name: arm["settings"] for name, arm in arms.items()}).items():
        lines.append(f"- {name}: {', '.join(f'`{k} = {json.dumps(v)}`' for k, v in changes.items()) or 'none'}")
    if predicted := {name: arm["prediction"] for name, arm in arms.items() if arm.get("prediction")}:
        lines += ["", "Predictions:", "", *(f"- {name}: {text}" for name, text in predicted.items())]
    if results["not_finished"]:
        lines += ["", f"Not finished: {', '.join(results['not_finished'])}."]
    return "\n".join(lines) + "\n"


def is_made(path: Path, last_stage: str) -> bool:
    """Whether the run at `path` has the product of its last stage."""
    if last_stage == "train":
        return (path / "config.toml").exists() and is_finished(RunDirectory.open(path))
    return (path / PRODUCTS[last_stage]).exists()


def mean_cell(values: Sequence[float], style: str, spread: bool = False) -> str:
    """Mean of `values` for a table; with `spread` also their standard deviation."""
    if not values:
        return ""
    deviation = f" +- {statistics.stdev(values):.5f}" if spread and len(values) > 1 else ""
    return format(statistics.mean(values), style) + deviation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("run", help="make the runs of a study")
    sub.add_argument("study", type=Path)
    sub.add_argument("--data", type=Path, required=True, help="folder that `bitgolf prepare` wrote")
    sub.add_argument("--out", type=Path, required=True, help="folder of the runs")
    sub.add_argument("--gpus", default="0", help="numbers with commas between them; '' for the CPU")
    sub.add_argument("--base", default="", help="preset, .toml file or finished run instead of the study's")
    sub = commands.add_parser("table", help="write results.json and README.md")
    sub.add_argument("out", type=Path, metavar="DIR")
    sub.add_argument("--into", type=Path, help="folder for the two files; DIR without it")
    arguments = parser.parse_args()
    try:
        if arguments.command == "run":
            gpus = arguments.gpus.split(",")
            failed = run_study(arguments.study, arguments.data, arguments.out, gpus, arguments.base)
            if failed:
                parser.exit(1, f"{len(failed)} runs failed: {', '.join(job.path.name for job in failed)}\n")
        else:
            into = arguments.into or arguments.out
            results = collect(arguments.out)
            into.mkdir(parents=True, exist_ok=True)
            (into / "results.json").write_text(json.dumps(results, indent=2) + "\n")
            (into / "README.md").write_text(table(results))
            print(into / "README.md")
    except (BitgolfError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
