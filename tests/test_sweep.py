"""`bitgolf sweep`: proposals, pruning, continuation and refusals with a training that only writes its log; one real."""

import json
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_run import PRESET, done

from bitgolf.config import load_config
from bitgolf.errors import ConfigError, RunError
from bitgolf.run.directory import RunDirectory
from bitgolf.sweep.study import read_sweep
from bitgolf.sweep.sweep import open_study, page, run_sweep
from bitgolf.sweep.trial import held_out_loss, start_process, train_trial

pytest.importorskip("optuna")

STUDY = f"""
question = "Which rate"
base = "{PRESET}"
trials = 8
[settings]
train.held_out_tokens = 1024
train.average.choose = "held_out"
train.max_steps = 4
train.log_every = 1
train.measure.calibration_tokens = 1024
budget.train_seconds = 60
[search]
"train.matrix_lr" = {{low = 0.01, high = 0.1, log = true}}
"train.muon.momentum" = {{choices = [0.9, 0.95]}}
"""


def write(folder: Path, text: str = STUDY) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


class Invented:
    """A training whose loss is the distance of its rate from 0.05; it writes one line of its log per poll."""

    stopped = 0
    fails_at = 0.0  # rates above fail

    def __init__(self, run: Path) -> None:
        self.log, self.lines = run / "train.jsonl", []
        self.loss = abs(RunDirectory.open(run).config.train.matrix_lr - 0.05)
        self.status = None

    def poll(self) -> int | None:
        step = len(self.lines) + 1
        if self.status is None and step <= 4:
            self.lines.append({"event": "step", "step": step, "loss": self.loss + 4 - step, "elapsed_seconds": step})
        elif self.status is None:
            self.status = int(self.loss < self.fails_at)
            self.lines.append({"event": "choice", "losses": {"ema": self.loss, "last": self.loss + 1}})
        self.log.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        return self.status

    def terminate(self) -> None:
        type(self).stopped += 1
        self.status = -15

    def wait(self) -> int:
        return -15


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitgolf.sweep.trial.time.sleep", lambda _: None)
    monkeypatch.setattr(Invented, "stopped", 0)


def test_the_best_trial_is_found_and_bad_ones_are_stopped(tmp_path: Path) -> None:
    study = read_sweep(write(tmp_path))
    results = run_sweep(study, tmp_path, tmp_path / "new" / "out", start=Invented)
    states = [trial["state"] for trial in results["trials"]]
    assert len(states) == 8 and set(states[:4]) == {"complete"} and states.count("pruned") == Invented.stopped > 0
    best = results["best"]
    distance = abs(best["settings"]["train.matrix_lr"] - 0.05)
    assert best["held_out_nats"] == pytest.approx(distance, abs=1e-9)
    assert distance == min(abs(t["settings"]["train.matrix_lr"] - 0.05) for t in results["trials"])
    assert best["curve"] == pytest.approx({percent: distance + 4 - percent / 25 for percent in (25, 50, 75, 100)})
    config = RunDirectory.open(tmp_path / "new" / "out" / f"trial-{best['number']:04d}").config
    assert config.train.muon.momentum == best["settings"]["train.muon.momentum"]
    assert "No trial reads validation text" in (tmp_path / "new" / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "new" / "out" / "results.json").read_text())["best"]["number"] == best["number"]


def test_a_training_that_runs_is_looked_at_every_half_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("bitgolf.sweep.trial.time.sleep", waited.append)
    run_sweep(
        read_sweep(write(tmp_path, STUDY.replace("trials = 8", "trials = 1"))),
        tmp_path,
        tmp_path / "out",
        start=Invented,
    )
    assert waited == 4 * [0.5]  # once per step of the only training


def test_a_sweep_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    study, made = read_sweep(write(tmp_path, STUDY.replace("trials = 8", "trials = 3"))), []

    class Interrupted(Invented):
        def poll(self) -> int | None:
            if len(made) == 2:
                raise KeyboardInterrupt
            return super().poll()

    def start(run: Path) -> Invented:
        made.append(run.name)
        return Interrupted(run)

    with pytest.raises(KeyboardInterrupt):
        run_sweep(study, tmp_path, tmp_path / "out", start=start)
    made.append("the interruption")
    results = run_sweep(study, tmp_path, tmp_path / "out", start=start)
    states = [trial["state"] for trial in results["trials"]]
    assert states == ["complete", "fail", "complete"]
    assert results["trials"][2]["settings"] == results["trials"][1]["settings"], "its values are tried again"
    assert run_sweep(study, tmp_path, tmp_path / "out", start=None) == results  # nothing is left to do


def test_a_trial_that_was_ended_before_its_configuration_was_written_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_sweep(write(tmp_path, STUDY.replace("trials = 8", "trials = 2")))

    def interrupted(path: Path, *_: object, **options: object) -> None:
        path.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunDirectory, "create", interrupted)
        run_sweep(study, tmp_path, tmp_path / "out", start=Invented)
    trials = run_sweep(study, tmp_path, tmp_path / "out", start=Invented)["trials"]
    assert [trial["state"] for trial in trials] == ["fail", "complete"]


def test_a_database_that_fails_is_one_line_of_error_without_its_url(tmp_path: Path) -> None:
    study = read_sweep(write(tmp_path))
    with pytest.raises(RunError, match=r"stored in the database of --storage: unable to open database file; the same"):
        run_sweep(study, tmp_path, tmp_path / "out", f"sqlite:///{tmp_path}/none/x.db", start=Invented)
    (tmp_path / "out" / "trials.db").write_bytes(b"not a database, but as long as the header of one" * 9)
    with pytest.raises(RunError, match=r"out/trials\.db: file is not a database"):
        run_sweep(study, tmp_path, tmp_path / "out", start=Invented)


def test_a_second_sweep_in_one_folder_is_refused(tmp_path: Path) -> None:
    """It would count the trial of the first as interrupted."""
    refusals: list[str] = []

    def start(run: Path) -> Invented:
        with ThreadPoolExecutor(1) as other:  # a lock belongs to a thread
            refusals.append(str(other.submit(run_sweep, study, tmp_path, tmp_path / "out").exception()))
        return Invented(run)

    study = read_sweep(write(tmp_path))
    results = run_sweep(study, tmp_path, tmp_path / "out", start=start)
    assert all("is in use by process" in words and "stage sweep" in words for words in refusals) and refusals
    assert not [trial for trial in results["trials"] if trial["state"] == "fail"]


def test_a_training_that_fails_is_a_trial_without_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Invented, "fails_at", 9.0)
    results = run_sweep(read_sweep(write(tmp_path)), tmp_path, tmp_path / "out", start=Invented)
    assert results["best"] is None and {trial["state"] for trial in results["trials"]} == {"fail"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('"train.matrix_lr"', '"seed"'), "'seed' cannot be searched"),
        (('"train.matrix_lr"', '"score.stride"'), "'score.stride' cannot be searched"),
        (('"train.matrix_lr"', '"train.held_out_tokens"'), "cannot be searched"),
        (('"train.matrix_lr"', '"train.matrix_rl"'), "did you mean 'train.matrix_lr'"),
        (("low = 0.01, ", ""), "must have low and high"),
        (("low = 0.01", "low = -1"), "must have low and high"),
        (("low = 0.01, high = 0.1, log = true", "low = -1, high = 0.1"), "greater than 0"),
        (("low = 0.01", "low = 0.2"), "the lower one first"),
        (("low = 0.01", 'low = "0.01"'), "must have low and high"),
        (("log = true", 'log = "yes"'), "must have low and high"),
        (("log = true", "step = 1"), "must have low and high"),
        (("log = true", "choices = [0.1]"), "must have low and high"),
        (("{low = 0.01, high = 0.1, log = true}", "3"), "must have low and high"),
        (("[0.9, 0.95]", "[]"), "a list"),
        (("[0.9, 0.95]", "0.9"), "a list"),
        (("[0.9, 0.95]", "[0.9], log = true"), "a list"),
        (('"train.matrix_lr" = {low = 0.01, high = 0.1', '"train.muon.steps" = {low = 1.5, high = 4'), "valid integer"),
        (('"train.matrix_lr" = {low = 0.01, high = 0.1', '"train.muon.steps" = {low = 1, high = 4.0'), "whole numbers"),
        (("[settings]", "settings = 3\n[more]"), "settings is a number, it must be an object"),
        (("[settings]", "[settings"), "study.toml: it is not TOML"),
        (("trials = 8", "trials = true"), "at least 1"),
        (("train.log_every", "train.log_evry"), r"study\.toml: unknown key 'train\.log_evry'"),
        (("[search]\n", "[other]\n"), "study.toml: unknown key 'other'"),
        (('choose = "held_out"', 'choose = "fixed"'), 'set train.average.choose = "held_out"'),
        (("trials = 8", "trials = 0"), "at least 1"),
        (("question", "quest"), "unknown key 'quest'"),
    ],
)
def test_studies_that_could_cheat_or_have_mistakes_are_refused(tmp_path: Path, change, words: str) -> None:
    assert change[0] in STUDY
    with pytest.raises(ConfigError, match=words):
        read_sweep(write(tmp_path, STUDY.replace(*change)))


def test_a_sweep_has_twenty_trials_of_the_demo_unless_it_says_otherwise(tmp_path: Path) -> None:
    left_out = [line for line in STUDY.splitlines() if line.partition(" ")[0] not in ("question", "base", "trials")]
    study = read_sweep(write(tmp_path, "\n".join(left_out)))
    assert (study.question, study.trials, study.base.name) == ("study", 20, "demo")
    assert read_sweep(write(tmp_path, STUDY.replace("Which rate", " "))).question == "study"
    assert study.config({"train.muon.momentum": 0.9}) == study.base.updated({"train.muon.momentum": 0.9})
    assert read_sweep(write(tmp_path, STUDY.replace("trials = 8", "trials = 1"))).trials == 1


def test_whole_numbers_and_their_ends_may_be_searched(tmp_path: Path) -> None:
    search = '"train.muon.steps" = {low = 3, high = 5}\n"train.warmdown" = {low = 0.5, high = 0.5}\n'
    study = read_sweep(write(tmp_path, STUDY.replace("trials = 8", "trials = 3") + search))
    tried = [trial["settings"] for trial in run_sweep(study, tmp_path, tmp_path / "out", start=Invented)["trials"]]
    assert {values["train.muon.steps"] for values in tried} <= {3, 4, 5} and len(tried) == 3
    assert {values["train.warmdown"] for values in tried} == {0.5}


def test_what_a_trial_prints_is_kept_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line of error is part of the message of its failure."""
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "$@"\necho first >&2\necho "error: no space" >&2\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setattr("bitgolf.sweep.trial.sys.executable", str(program))
    run = RunDirectory.create(tmp_path / "trial", read_sweep(write(tmp_path)).base)
    with pytest.raises(RunError, match=r"the training failed with status 3 error: no space$"):
        list(train_trial(run, start_process, seconds=0.01))
    printed = run.path.with_suffix(".txt").read_text().splitlines()
    assert printed[-3:] == [f" train {run.path} --anyway", "first", "error: no space"]


def test_the_page_of_a_sweep_has_the_best_trial_first() -> None:
    def row(number: int, state: str, loss: float | None, **settings: object) -> dict[str, object]:
        return {"number": number, "state": state, "held_out_nats": loss, "settings": settings}

    record = {
        "question": " Which rate\nis best ", "base": "demo", "seed": 3, "importance": {"b": 0.875, "a": 0.125},
        "trials": [row(0, "complete", 2.5, b=1, a="x"), row(1, "pruned", None, b=2),
                   row(2, "complete", 1.25, a=[1], b=3)],
    }  # fmt: skip
    lines = page(record).splitlines()
    assert lines[0] == "# Which rate" and "`demo`, seed 3" in lines[2]
    assert lines[4:] == [
        "| trial | state | held-out loss | a | b |",
        "|---:|---|---:|---:|---:|",
        "| 2 | complete | 1.25000 | [1] | 3 |",
        '| 0 | complete | 2.50000 | "x" | 1 |',
        '| 1 | pruned |  | "" | 2 |',
        "",
        "Share of the variance that each setting explains (fANOVA): `b` 0.88, `a` 0.12.",
    ]
    assert page(record | {"importance": {}}).splitlines() == lines[:-2]


def test_a_training_without_a_held_out_loss_is_an_error(tmp_path: Path) -> None:
    log = tmp_path / "train.jsonl"
    log.write_text('{"event": "step"}\n{"event": "choice", "losses": {"last": 2.5, "ema": 2.25}}\n')
    assert held_out_loss(tmp_path) == 2.25
    log.write_text('{"event": "step"}\n{"event": "end"}\n')
    with pytest.raises(RunError, match="without a loss on held-out text"):
        held_out_loss(tmp_path)


@pytest.mark.parametrize("best", [None, {"held_out_nats": 1.25, "settings": {"train.matrix_lr": 0.02, "seed": 1}}])
def test_the_command_shows_the_best_trial(tmp_path: Path, best: object, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def swept(study: object, *places: object) -> dict[str, object]:
        given.extend(places[:3])
        return {"best": best, "trials": [1, 2, 3]}

    monkeypatch.setattr("bitgolf.sweep.sweep.run_sweep", swept)
    words = ("--data", tmp_path, "--out", tmp_path / "out", "--storage", "sqlite://")
    lines = done("sweep", write(tmp_path), *words).stdout.splitlines()
    assert given == [tmp_path, tmp_path / "out", "sqlite://"]
    assert lines == (
        [
            "best of 3 trials: 1.25000 nats per token with --train.matrix_lr 0.02 --seed 1",
            f"table: {tmp_path / 'out' / 'README.md'}",
        ]
        if best
        else ["no trial was completed"]
    )


def test_a_real_trial_trains_by_the_command_line(tiny_run: Path, tmp_path: Path) -> None:
    study = write(tmp_path, STUDY.replace("trials = 8", "trials = 1"))
    results = done("sweep", study, "--data", tiny_run / "data", "--out", tmp_path / "out", "--json").json
    assert results["best"]["held_out_nats"] > 0 and list(results["best"]["curve"]) == ["25", "50", "75", "100"]
    assert tomllib.loads((tmp_path / "out" / "trial-0000" / "config.toml").read_text())["name"]


def test_a_training_that_is_left_is_ended(tmp_path: Path) -> None:
    done: list[str] = []

    class Endless:
        def poll(self) -> int | None:
            return -15 if "waited" in done else None

        def terminate(self) -> None:
            done.append("terminated")

        def wait(self) -> None:
            done.append("waited")

    run = RunDirectory(tmp_path / "trial", load_config("demo"))
    curves = train_trial(run, lambda folder: Endless(), seconds=0)  # type: ignore[arg-type,return-value]
    assert next(curves) == {} and done == []
    curves.close()  # type: ignore[attr-defined]
    assert done == ["terminated", "waited"]


def test_trials_are_stored_in_the_folder_or_in_a_database(tmp_path: Path) -> None:
    study = read_sweep(write(tmp_path))
    folder = tmp_path / "out"
    folder.mkdir()
    assert open_study(study, folder).study_name == "out" and (folder / "trials.db").exists()
    (folder / "trials.db").unlink()
    assert open_study(study, folder, f"sqlite:///{tmp_path}/shared.db").trials == []
    assert (tmp_path / "shared.db").exists() and not (folder / "trials.db").exists()
