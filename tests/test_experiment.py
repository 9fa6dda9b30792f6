"""Studies of benchmarks/experiment.py: two arms at tiny size, made, continued and tabulated; mistakes are named."""

import json
import statistics
import tomllib
from collections.abc import Iterator
from pathlib import Path

import experiment
import pytest
from tiny_run import PRESET, documents, done, events, write_jsonl

from bitgolf.bundle import single_file
from bitgolf.cli import main
from bitgolf.errors import ConfigError

STUDIES = sorted((Path(__file__).parents[1] / "benchmarks" / "studies").glob("*.toml"))
STUDY = f"""
question = "What a fast average is worth"
base = "{PRESET}"
seeds = [7]
stages = ["train", "pack", "score"]

[settings]
budget.train_seconds = 60
train.max_steps = 4
train.measure.calibration_tokens = 1024
score.methods = ["chunked"]
score.compressors = false

[trunk]
train.checkpoint.at = [0.5]

[arms."as it is"]

[arms."fast average"]
train.average.ema_decay = 0.2
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


@pytest.fixture(scope="module", autouse=True)
def quick_stages() -> Iterator[None]:
    """No single-file program is made to count its bytes: that takes seconds and is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(single_file, "code_bytes", lambda config: 75_000)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    corpus = write_jsonl(folder / "letters.jsonl", documents()[:120])
    done("prepare", f"jsonl:{corpus}", "--out", folder / "data", "--model.vocab_size", 384, "--data.val_fraction", 0.1)
    return folder / "data"


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study with two arms and two seeds."""
    out = tmp_path_factory.mktemp("runs")
    (out / "written.toml").write_text(STUDY)
    assert experiment.run_study(out / "written.toml", data, out / "study", [""], run_stage=in_this_process) == []
    return out / "study"


def test_arms_branch_from_one_trunk_and_are_compared_with_the_first(made: Path) -> None:
    results = experiment.collect(made)
    arms, page = results["arms"], experiment.table(results)
    assert list(arms) == ["as it is", "fast average"]
    assert arms["as it is"]["against_first"] == {7: 0.0}
    difference = headline(made / "fast-average-seed7") - headline(made / "as-it-is-seed7")
    assert difference != 0
    assert arms["fast average"]["against_first"] == {7: difference}
    for arm in ("as-it-is", "fast-average"):
        (branch,) = events(made / f"{arm}-seed7", "branch")
        assert branch["step"] == 2
    assert "| fast average | 1 | 4 |" in page
    assert "`train.average.ema_decay = 0.2`" in page
    assert "Not finished" not in page


def test_differences_are_paired_by_seed() -> None:
    runs = {
        "first": {1: {"headline_bpb": 1.5}, 2: {"headline_bpb": 1.7}},
        "second": {1: {"headline_bpb": 1.4}, 2: {"headline_bpb": 1.65}, 3: {"headline_bpb": 9.0}},
        "unfinished": {2: {}},
    }
    differences = experiment.differences(runs)
    assert differences["second"] == pytest.approx({1: -0.1, 2: -0.05})
    assert differences["unfinished"] == {}
    cell = experiment.mean_cell(list(differences["second"].values()), "+.5f", spread=True)
    assert cell == f"-0.07500 +- {statistics.stdev([-0.1, -0.05]):.5f}"


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


def test_every_seed_has_its_trunk(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY.replace("seeds = [7]", "seeds = [7, 8]"))
    trunks, arms = experiment.plan(experiment.read_study(tmp_path / "study.toml"), tmp_path)
    assert [(job.path.name, job.stages) for job in trunks] == [("trunk-seed7", ("train",)), ("trunk-seed8", ("train",))]
    assert [job.origin for job in arms] == [tmp_path / f"trunk-seed{seed}" for seed in (7, 7, 8, 8)]
    assert [job.config.seed for job in arms] == [7, 7, 8, 8]
    assert trunks[0].config.train.max_steps == 4, "settings of every run are those of the trunk too"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("average.ema_decay", "average.ema_dcay", "did you mean 'train.average.ema_decay'"),
        ("seeds = [7]", "seed = [7]", "unknown key 'seed'"),
        ('"train", "pack", "score"', '"train", "score"', "without a gap"),
        ("[trunk]", "", "needs a finished run"),
        ('arms."fast average"', 'arms."As it is"', "share one folder"),
        ("train.average.ema_decay = 0.2", 'like = "other"', "no arm before it"),
        ("[arms.", "arms = {}\n[other.", "unknown key 'other'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    study = STUDY.replace(old, new).replace('["train", "pack", "score"]', '["pack", "score"]')
    (tmp_path / "study.toml").write_text(study)
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
