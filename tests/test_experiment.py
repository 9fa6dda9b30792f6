"""Studies of benchmarks/experiment.py: two arms at tiny size, made, continued and tabulated; mistakes are named."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import experiment
import pytest
import torch
from tiny_run import PRESET, documents, done, write_jsonl

from bitgolf.cli import main
from bitgolf.errors import ConfigError

STUDIES = sorted((Path(__file__).parents[1] / "benchmarks" / "studies").glob("*.toml"))
STUDY = f"""
question = "What a warm-down of 0.8 is worth"
base = "{PRESET}"
seeds = [7, 8]
stages = ["train", "pack", "score"]

[settings]
budget.train_seconds = 60
train.max_steps = 3
train.measure.calibration_tokens = 1024
score.methods = ["chunked"]
score.compressors = false

[arms."as it is"]

[arms."long warm-down"]
train.warmdown = 0.8
"""
REPACK = """
question = "What five bits cost"
base = "{runs}/as-it-is-seed{{seed}}"
seeds = [7]
stages = ["pack", "score"]

[arms.six]

[arms.five]
pack.grid.matrix_bits = 5
"""


def in_this_process(words: list[str], log: Path, gpu: str) -> int:
    return main(words)


def headline(run: Path) -> float:
    return float(json.loads((run / "score.json").read_text())["headline_bpb"])


def no_stage(words: list[str], log: Path, gpu: str) -> int:
    raise AssertionError(f"{words} was made again")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    corpus = write_jsonl(folder / "letters.jsonl", documents()[:120])
    done("prepare", f"jsonl:{corpus}", "--out", folder / "data", "--model.vocab_size", 384, "--data.val_fraction", 0.1)
    return folder / "data"


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study with two arms and two seeds."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs")
    (out / "written.toml").write_text(STUDY)
    assert experiment.run_study(out / "written.toml", data, out / "study", [""], run_stage=in_this_process) == []
    return out / "study"


def test_arms_are_compared_with_the_first_by_seed(made: Path) -> None:
    results = experiment.collect(made)
    arms, page = results["arms"], experiment.table(results)
    assert list(arms) == ["as it is", "long warm-down"]
    assert set(arms["as it is"]["against_first"].values()) == {0.0}
    for seed in (7, 8):
        difference = headline(made / f"long-warm-down-seed{seed}") - headline(made / f"as-it-is-seed{seed}")
        assert difference != 0
        assert arms["long warm-down"]["against_first"][seed] == difference
        assert arms["long warm-down"]["runs"][seed]["steps"] == 3
    assert "| long warm-down | 2 | 3 |" in page
    assert "`train.warmdown = 0.8`" in page
    assert "Not finished" not in page


def test_what_is_finished_is_kept(made: Path, data: Path) -> None:
    study = made.parent / "written.toml"
    assert experiment.run_study(study, data, made, [""], run_stage=no_stage) == []


def test_a_finished_run_is_packed_again_without_training(made: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "repack.toml").write_text(REPACK.format(runs=made))
    stages: list[str] = []

    def recorded(words: list[str], log: Path, gpu: str) -> int:
        stages.append(words[0])
        return main(words)

    assert experiment.run_study(tmp_path / "repack.toml", data, tmp_path / "out", [""], run_stage=recorded) == []
    assert stages == ["pack", "score"] * 2
    arms = experiment.collect(tmp_path / "out")["arms"]
    six, five = arms["six"]["runs"][7], arms["five"]["runs"][7]
    assert six["headline_bpb"] == headline(made / "as-it-is-seed7")
    assert five["model_bytes"] < six["model_bytes"]
    assert five["float_bpb"] == six["float_bpb"]


def test_a_failed_run_does_not_stop_the_others(made: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "repack.toml").write_text(REPACK.format(runs=made))
    failed = experiment.run_study(
        tmp_path / "repack.toml", data, tmp_path / "out", [""],
        run_stage=lambda words, log, gpu: 1 if "six" in words[1] else main(words),
    )  # fmt: skip
    assert [job.path.name for job in failed] == ["six-seed7"]
    results = experiment.collect(tmp_path / "out")
    assert "Not finished: six-seed7." in experiment.table(results)
    assert results["arms"]["five"]["against_first"] == {}


def test_branches_begin_from_one_trunk(tmp_path: Path) -> None:
    study = STUDY.replace("[settings]", "[trunk]\ntrain.checkpoint.at = [0.5]\n\n[settings]")
    (tmp_path / "study.toml").write_text(study)
    trunks, arms = experiment.plan(experiment.read_study(tmp_path / "study.toml"), tmp_path)
    assert [(job.path.name, job.stages) for job in trunks] == [("trunk-seed7", ("train",)), ("trunk-seed8", ("train",))]
    assert [job.origin for job in arms[:2]] == [tmp_path / "trunk-seed7"] * 2
    assert trunks[0].config.train.checkpoint.at == arms[0].config.train.checkpoint.at == (0.5,)
    assert [job.config.seed for job in arms] == [7, 7, 8, 8]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train.warmdown", "train.warmdwn", "did you mean 'train.warmdown'"),
        ("seeds = [7, 8]", "seed = [7, 8]", "unknown key 'seed'"),
        ('"train", "pack", "score"', '"train", "score"', "without a gap"),
        ('"train", "pack", "score"', '"pack", "score"', "needs a finished run"),
        ('arms."long warm-down"', 'arms."As it is"', "share one folder"),
        ("train.warmdown = 0.8", 'like = "other"', "no arm before it"),
        ("[arms.", "arms = {}\n[other.", "unknown key 'other'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "study.toml").write_text(STUDY.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        experiment.plan(experiment.read_study(tmp_path / "study.toml"), tmp_path)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_settings_of_the_studies_fit(path: Path, tmp_path: Path) -> None:
    """Each arm gives a valid configuration. A finished run as the base is replaced by its preset."""
    text = path.read_text()
    base = tomllib.loads(text)["base"]
    if "/" in base:
        text = text.replace(base, "seed-693") + "\n[trunk]\n"
    (tmp_path / "study.toml").write_text(text)
    _, arms = experiment.plan(experiment.read_study(tmp_path / "study.toml"), tmp_path)
    assert len({job.config.digest() for job in arms}) == len(arms)
