"""A submission says what its runs say, in the challenge's schema; whatever does not belong together is refused."""

import json
import os
import re
import shutil
import statistics
import tomllib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from seed_clones import change, clone
from tiny_run import done, events, read_json, refused, tree_digest

from bitgolf.bundle.single_file import make_bundle
from bitgolf.config import Config, load_config
from bitgolf.errors import BudgetError, ConfigError, ForeignError, RunError
from bitgolf.run.directory import RunDirectory
from bitgolf.run.seal import sealed
from bitgolf.submit import requirements, seed_runs, submission_readme
from bitgolf.submit.lineage import COMPONENTS, lineage
from bitgolf.submit.requirements import required_modules
from bitgolf.submit.seed_runs import read_seed_runs
from bitgolf.submit.submission import Labels, describe
from bitgolf.submit.submission_json import compliance, submission_json
from bitgolf.submit.submit import contents, submit, write_folder

LABELS = Labels("A. Author", "author", date=datetime(2026, 3, 17, 12, tzinfo=UTC))


@pytest.fixture(scope="module")
def seeds(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs that may be submitted together; not to be changed."""
    root = tmp_path_factory.mktemp("seeds")
    clones = [clone(tiny_run, root / str(seed), seed, shift) for seed, shift in ((42, 0.002), (1337, -0.001))]
    return [tiny_run, *clones]


@pytest.fixture(scope="module")
def folder(seeds: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their submission; not to be changed."""
    return submit(seeds, tmp_path_factory.mktemp("records"), labels=LABELS)


@pytest.fixture
def copies(seeds: list[Path], tmp_path: Path) -> list[Path]:
    """The runs again, to be damaged."""
    return [Path(shutil.copytree(run, tmp_path / f"run{i}")) for i, run in enumerate(seeds)]


@pytest.fixture(scope="module")
def described(folder: Path) -> dict[str, Any]:
    """submission.json."""
    metadata: dict[str, Any] = read_json(folder / "submission.json")
    return metadata


# --------------------------------------------------------------------------------------------- what is written


def test_the_folder_holds_what_a_reviewer_expects(folder: Path) -> None:
    assert folder.name == "2026-03-17_tiny"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "train_gpt.py", "source", "submission.json", "README.md", "requirements.txt",
        "train_seed7.log", "train_seed42.log", "train_seed1337.log",
    }  # fmt: skip
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_the_json_has_the_schema_in_use(described: dict[str, Any]) -> None:
    texts = (
        "author",
        "github_id",
        "name",
        "blurb",
        "date",
        "track",
        "hardware",
        "pytorch_version",
        "technique_summary",
    )
    numbers = ("val_loss", "val_bpb", "val_loss_std", "val_bpb_std", "artifact_bytes_mean", "step_avg_ms_mean")
    whole = ("bytes_total", "bytes_code", "artifact_bytes_max", "bytes_model_max")
    for key in texts:
        assert isinstance(described[key], str) and described[key], key
    for key in numbers:
        assert isinstance(described[key], float), key
    for key in whole:
        assert isinstance(described[key], int) and described[key] > 0, key
    assert described["date"] == "2026-03-17T12:00:00Z"
    assert described["track"] == "non_record_16mb"
    assert described["seeds"] == [7, 42, 1337]
    assert set(described["seed_results"]) == {"7", "42", "1337"}
    assert "forced" not in described
    assert all(value is True for value in described["compliance"].values())


def test_means_and_deviations_are_those_of_the_runs(described: dict[str, Any], seeds: list[Path]) -> None:
    scores = [read_json(run / "score.json") for run in seeds]
    for key, name in (("val_bpb", "bpb"), ("val_loss", "loss_nats")):
        values = [score["methods"][score["headline"]][name] for score in scores]
        assert described[key] == pytest.approx(statistics.fmean(values), abs=5e-9)
        assert described[f"{key}_std"] == pytest.approx(statistics.stdev(values), abs=5e-9)
    assert described["val_loss"] > described["val_bpb"]  # nats of a token, not bits of a byte
    for seed, run in zip(("7", "42", "1337"), seeds, strict=True):
        result, score = described["seed_results"][seed], read_json(run / "score.json")
        assert result["val_bpb"] == round(score["headline_bpb"], 8)
        assert result["val_bpb"] / result["val_loss"] == pytest.approx(described["bpb_per_nat"], rel=1e-6)
        assert result["quantized_val_bpb"] == round(score["methods"]["chunked"]["bpb"], 8)
        assert result["pre_quant_val_bpb"] == round(score["float"]["chunked"]["bpb"], 8)
        assert result["target_tokens"] == score["val_tokens"] - 1


def test_bytes_are_those_of_the_files(described: dict[str, Any], folder: Path, seeds: list[Path]) -> None:
    code = (folder / "train_gpt.py").stat().st_size
    models = [(run / "model.bitgolf").stat().st_size for run in seeds]
    assert described["bytes_code"] == code
    assert described["bytes_total"] == described["artifact_bytes_max"] == code + max(models)
    assert [described["seed_results"][seed]["artifact_bytes"] for seed in ("7", "42", "1337")] == [
        code + model for model in models
    ]
    assert read_json(seeds[0] / "pack.json")["code_bytes"] == code  # what the run was charged is what ships


def test_figures_of_the_json_are_rounded_and_held_against_the_limits(seeds: list[Path]) -> None:
    runs = read_seed_runs(seeds, 3)
    code = describe(runs, [], LABELS).code_bytes
    changes = (
        {"model_bytes": 100, "end": {"step": 40, "steps_seconds": 1.0 / 3}, "audit": runs[0].audit},
        {"model_bytes": 101, "end": {"step": 41, "steps_seconds": 0.5}},
        {"model_bytes": 101, "end": {"step": 41, "steps_seconds": 0.5}},
    )
    runs = [replace(run, **change) for run, change in zip(runs, changes, strict=True)]
    values = json.loads(submission_json(describe(runs, [], LABELS)))
    assert values["artifact_bytes_mean"] == code + 100.7
    assert (values["train_steps_mean"], values["step_avg_ms_mean"]) == (40.7, 10.908)
    assert [values[key] for key in ("bytes_total", "artifact_bytes_max", "bytes_model_max")] == [
        code + 101,
        code + 101,
        101,
    ]
    assert values["seed_results"]["7"]["step_avg_ms"] == 8.333
    budget = runs[0].config.budget
    limits = {"train_seconds": budget.train_seconds, "eval_seconds": budget.eval_seconds}
    at_limit = replace(runs[1], model_bytes=budget.artifact_bytes - code, seconds=limits)
    over = {
        f"artifact_at_most_{budget.artifact_bytes}_bytes": replace(at_limit, model_bytes=at_limit.model_bytes + 1),
        f"training_at_most_{budget.train_seconds:g}_seconds": replace(
            at_limit, seconds=limits | {"train_seconds": 1e9}
        ),
        f"evaluation_at_most_{budget.eval_seconds:g}_seconds": replace(
            at_limit, seconds=limits | {"eval_seconds": 1e9}
        ),
        "code_size_unchanged_since_packing": replace(at_limit, pack=at_limit.pack | {"code_bytes": code - 1}),
        "audit_passed": replace(at_limit, audit={"passed": False, "complete": True}),
        "audit_complete": replace(at_limit, audit={"passed": True}),
    }
    for name, run in {"": at_limit, **over}.items():
        holds = compliance(describe([runs[0], run], [], LABELS))
        assert [key for key in holds if not holds[key]] == ([name] if name else [])
        assert len(holds) == 8
    alone = compliance(describe([runs[0], replace(at_limit, audit=None)], [], LABELS))
    assert {key for key in alone if not alone[key]} == {"audited", "audit_passed", "audit_complete"}


@pytest.mark.parametrize(
    ("changes", "machine", "track"),
    [
        ({}, (8, "NVIDIA H100 80GB"), "10min_16mb"),
        ({"budget.train_seconds": 601.0}, (8, "NVIDIA H100 80GB"), "non_record_16mb"),
        ({"budget.eval_seconds": 601.0}, (8, "NVIDIA H100 80GB"), "non_record_16mb"),
        ({"budget.artifact_bytes": 16_000_001}, (8, "NVIDIA H100 80GB"), "non_record_16mb"),
        ({}, (4, "NVIDIA H100 80GB"), "non_record_16mb"),
        ({}, (8, "NVIDIA H200"), "non_record_16mb"),
    ],
    ids=str,
)
def test_the_track_follows_from_budgets_and_hardware(
    seeds: list[Path], changes: dict[str, Any], machine: tuple[int, str], track: str
) -> None:
    (run,) = read_seed_runs(seeds[:1], 1)
    most = {"budget.train_seconds": 600.0, "budget.eval_seconds": 600.0, "budget.artifact_bytes": 16_000_000}
    directory = RunDirectory(run.path, run.config.updated(most | changes))
    start = run.start | {"world_size": machine[0], "device": machine[1]}
    run = replace(run, scored=replace(run.scored, run=directory), start=start)
    assert describe([run], [], Labels()).track == track
    assert describe([run], [], Labels(track="10min_16mb")).track == "10min_16mb"
    with pytest.raises(ConfigError, match="track 'x' is not one of 10min_16mb, non_record_16mb"):
        describe([run], [], Labels(track="x"))


def test_every_result_can_be_computed_again_from_the_logs(
    described: dict[str, Any], folder: Path, seeds: list[Path]
) -> None:
    losses, scores, averages = [], [], []
    for (seed, result), run in zip(described["seed_results"].items(), seeds, strict=True):
        text = (folder / f"train_seed{seed}.log").read_text()
        final = re.findall(r"^final \S+ val_loss:(\d+\.\d{8}) val_bpb:(\d+\.\d{8})$", text, re.M)
        assert [(f"{result['val_loss']:.8f}", f"{result['val_bpb']:.8f}")] == final
        losses.append(float(final[0][0]))
        scores.append(float(final[0][1]))
        assert int(re.findall(r"^Total submission size: (\d+) bytes$", text, re.M)[0]) == result["artifact_bytes"]
        assert int(re.findall(r"^Code size: (\d+) bytes$", text, re.M)[0]) == described["bytes_code"]
        steps, milliseconds = re.findall(r"^stopping: step:(\d+) train_time:(\d+)ms", text, re.M)[0]
        assert int(steps) == result["steps"]
        (end,) = events(run, "end")
        assert float(milliseconds) == pytest.approx(1000 * end["elapsed_seconds"], abs=0.6)
        averages.append(1000 * end["steps_seconds"] / end["step"])
        assert re.findall(r" step_avg:(.*)ms$", text, re.M) == [f"{averages[-1]:.2f}"]
        times = re.findall(r" eval_time:(\d+)ms tokens:(\d+) bytes:(\d+)$", text, re.M)
        score = read_json(run / "score.json")
        assert {tokens for _, tokens, _ in times} == {str(score["val_tokens"] - 1)}
        spent = re.findall(r"^eval_time_total:(\d+)ms$", text, re.M)
        for (logged, _, _), method in zip(times, score["methods"].values(), strict=True):
            assert float(logged) == pytest.approx(1000 * method["seconds"], abs=0.6)
        assert float(spent[0]) >= sum(float(time) for time, _, _ in times) - 1
    assert described["step_avg_ms_mean"] == pytest.approx(statistics.fmean(averages), abs=1e-3)
    assert described["val_loss"] == pytest.approx(statistics.fmean(losses), abs=1e-8)
    assert described["val_bpb_std"] == pytest.approx(statistics.stdev(scores), abs=1e-8)


def test_logs_are_copied_from_the_runs(folder: Path, seeds: list[Path]) -> None:
    for seed, run in zip((7, 42, 1337), seeds, strict=True):
        text = (folder / f"train_seed{seed}.log").read_text()
        assert (run / "train.log").read_text() in text
        config = text.partition("==== config.toml\n")[2].partition("==== train.log")[0]
        assert tomllib.loads(config)["seed"] == seed


def _cells(line: str) -> int:
    return line.count("|") - line.count(r"\|")


def test_the_readme_repeats_the_numbers_of_the_json(described: dict[str, Any], folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for result in described["seed_results"].values():
        for key in ("val_bpb", "val_loss", "quantized_val_bpb", "pre_quant_val_bpb"):
            assert f"{result[key]:.8f}" in text
        assert f"{result['artifact_bytes']:,}" in text
    assert f"**{described['val_bpb']:.8f}**" in text and f"{described['val_bpb_std']:.8f}" in text
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) > 4 and all(len(set(map(_cells, lines))) == 1 for lines in tables)
    assert all(re.fullmatch(r"(\| ---:? )+\|", lines[1]) for lines in tables)
    for component in ("XSA", "BigramHash", "GPTQ"):
        assert f"| {component}" in text
    assert "CROWN-Q" not in text and "--force" not in text
    assert "python train_gpt.py --data DATA --out OUT/1337 --seed 1337" in text
    assert "| `train.max_steps` | `40` | `0` |" in text
    sentences = [line for line in text.splitlines() if line and line[0] not in "|#`-" and "train_gpt.py" not in line]
    description = load_config(str(Path(__file__).parents[1] / "support" / "tiny.toml")).description
    assert not [line for line in sentences if re.search(r"\d", line) and line != description]


def test_requirements_pin_what_the_program_imports(folder: Path, seeds: list[Path]) -> None:
    lines = (folder / "requirements.txt").read_text().splitlines()[1:]
    pins = dict(line.partition("  #")[0].split("==") for line in lines)
    start = json.loads((seeds[0] / "train.jsonl").read_text().splitlines()[0])
    assert pins["torch"] == start["torch"].partition("+")[0]
    assert {"numpy", "pydantic", "safetensors", "sentencepiece", "zstandard"} <= pins.keys()
    assert not {"rich", "matplotlib", "jinja2", "brotli", "bitgolf", "triton"} & pins.keys()


def test_a_compressor_that_the_run_uses_is_required(seeds: list[Path]) -> None:
    config = load_config(str(seeds[0] / "config.toml"), {"pack.compressor": "brotli"})
    assert "brotli" in required_modules(make_bundle(config), "brotli")
    assert "brotli" not in required_modules(describe(read_seed_runs(seeds, 1), [], LABELS).bundle, "zstd")


def test_one_seed_has_no_deviation(seeds: list[Path], tmp_path: Path) -> None:
    metadata = read_json(submit(seeds[:1], tmp_path, num_seeds=1, labels=LABELS) / "submission.json")
    assert "val_bpb_std" not in metadata and metadata["seeds"] == [7]


def test_torch_is_pinned_to_the_one_version_of_all_runs_with_their_builds() -> None:
    builds = [f"2.9.0+cu{number}" for number in (130, 128, 126, 129, 124, 121)]
    runs: list[Any] = [SimpleNamespace(start={"torch": build}) for build in [*builds, "2.9.0", builds[0]]]
    names = "2.9.0, 2.9.0+cu121, 2.9.0+cu124, 2.9.0+cu126, 2.9.0+cu128, 2.9.0+cu129, 2.9.0+cu130"
    assert requirements._torch(runs) == f"torch==2.9.0  # {names}"
    runs.append(SimpleNamespace(start={"torch": "2.10.0+cpu"}))
    with pytest.raises(RunError, match=r"several versions of PyTorch: 2\.10\.0, 2\.9\.0; submit runs of one version"):
        requirements._torch(runs)


def test_modules_are_found_in_every_form_of_import() -> None:
    sources = {
        "a": "import numpy.linalg, os\nfrom torch.nn import functional\nimport triton",
        "b": "def f():\n    import safetensors as s\n    importlib.import_module('zstandard')\n    from . import a",
        "c": "import brotli\nfrom bitgolf.errors import ConfigError",
    }
    bundle: Any = SimpleNamespace(modules=sources)
    always = {"numpy", "torch", "safetensors", "zstandard"}
    assert required_modules(bundle, "brotli") == always | {"brotli"}
    assert required_modules(bundle, "range") == required_modules(bundle, "zstd") == always


def test_a_packing_record_that_is_damaged_names_the_command_that_makes_it(
    seeds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object) -> str:
        raise ForeignError("trained_settings is no object")

    monkeypatch.setattr(seed_runs, "trained_digest", damaged)
    run = RunDirectory.open(seeds[0])
    with pytest.raises(RunError, match=r"pack.json: trained_settings is no object; run `bitgolf pack .*` again"):
        seed_runs._trained_digest(run, {})


@pytest.mark.parametrize(("ranks", "launch"), [(1, "python"), (8, "torchrun --standalone --nproc_per_node=8")])
def test_commands_start_as_many_processes_as_the_runs_had(ranks: int, launch: str, seeds: list[Path]) -> None:
    runs = [replace(run, start=run.start | {"world_size": ranks}) for run in read_seed_runs(seeds, 3)]
    text = submission_readme._commands(describe(runs, [], LABELS))
    for run in runs:
        assert f"\n{launch} train_gpt.py --data DATA --out OUT/{run.seed} --seed {run.seed}\n" in text


def test_lineage_names_what_is_on_and_nothing_else() -> None:
    plain = {name for name, _, _ in lineage(Config())}
    assert plain == {
        "U-Net skips, QK gain, tied embedding, softcap", "Muon", "GPTQ on training text", "Sliding window"
    }  # fmt: skip
    assert {name for name, _, _ in lineage(load_config("seed-693"))} - plain == {
        "BigramHash", "CROWN-Q", "Exponential moving average", "LN scale", "Leaky ReLU squared",
        "Orthogonal initialization", "Partial RoPE", "Quantization-aware training", "Replay burst",
        "Selective pruning to the cap", "Shared value embedding", "SmearGate v1", "Snapshot average (SWA)",
        "Value residual (VRL)", "XSA",
    }  # fmt: skip
    record = {name for name, _, _ in lineage(load_config("record"))}
    assert plain - record == {"GPTQ on training text", "Sliding window"}
    assert record - plain == {
        "Attention windows", "Canonical pairs of tokens", "Case transform", "Depth recurrence",
        "Document LoRA test-time training", "Document attention",
        "Exponential moving average", "LN scale", "Leaky ReLU squared", "MuonEq-R", "Orthogonal initialization",
        "Parallel lanes", "Partial RoPE", "Partial key offset", "Polar Express", "Skip gates", "SmearGate v2",
        "Sparse attention gate", "XSA",
    }  # fmt: skip
    for component in COMPONENTS:
        assert Config().flat().keys() >= set(component.settings.split())
        assert re.search(r"PR \d+|baseline|modded-nanogpt", component.source), component.source
        assert not re.search(r"PR \d+", component.name)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"train.muon.two_rails_from": 0.9}, {"Two-rail momentum"}),
        ({"train.muon.cautious_decay": True}, {"Cautious weight decay"}),
        ({"train.extra_targets.next_tokens": [1.0, 0.5]}, {"More targets on the same logits"}),
        ({"pack.grid.embed_clip_sigmas": 4.0}, {"Clip at k standard deviations"}),
        ({"pack.grid.clip_sigmas": 4.0}, {"Clip at k standard deviations"}),
        ({"model.value_embedding.layers": [2]}, {"Shared value embedding"}),
        (
            {"model.value_embedding.layers": [2], "model.value_embedding.gated": True},
            {"Shared value embedding", "Gated value tables"},
        ),
        ({"ttt.method": "last_blocks"}, {"Score-first test-time training"}),
    ],
)
def test_a_setting_adds_its_component(settings: dict[str, Any], names: set[str]) -> None:
    before, after = ({name for name, _, _ in lineage(config)} for config in (Config(), Config().updated(settings)))
    assert after - before == names


# ------------------------------------------------------------------------------------------------ what is refused

Damage = Callable[[list[Path]], list[Path]]


def drop(name: str) -> Damage:
    def damage(runs: list[Path]) -> list[Path]:
        (runs[1] / name).unlink()
        return runs

    return damage


def with_config(key: str, value: str) -> Damage:
    def damage(runs: list[Path]) -> list[Path]:
        config = load_config(str(runs[2] / "config.toml"), {key: value})
        (runs[2] / "config.toml").write_text(config.to_toml())
        return runs

    return damage


def same_seed(runs: list[Path]) -> list[Path]:
    return [runs[0], clone(runs[0], runs[0].with_name("twin"), 7), runs[2]]


def copied_artifact(runs: list[Path]) -> list[Path]:
    for name in ("model.bitgolf", "pack.json", "score.json", "audit.json"):
        shutil.copy2(runs[1] / name, runs[2] / name)
    return runs


def copied_log(runs: list[Path]) -> list[Path]:
    shutil.copy2(runs[1] / "train.jsonl", runs[2] / "train.jsonl")
    return runs


def rewritten(name: str, pattern: str, replacement: str) -> Damage:
    """The matches of a pattern in a text file of the second run, replaced."""

    def damage(runs: list[Path]) -> list[Path]:
        path = runs[1] / name
        path.write_text(re.sub(pattern, replacement, path.read_text(), flags=re.MULTILINE))
        return runs

    return damage


other_text = rewritten("data/manifest.json", r'("val": {[^}]*"sha256": )"\w+"', rf'\1"{"0" * 64}"')


def other_artifact(runs: list[Path]) -> list[Path]:
    with (runs[1] / "model.bitgolf").open("ab") as handle:
        handle.write(b"more")
    return runs


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_config("train.matrix_lr", "0.03"), r"differ in train\.matrix_lr"),
        (with_config("name", "other"), "differ in name"),
        (with_config("device", "auto"), "differ in device"),
        (same_seed, "both have seed 7"),
        (copied_artifact, "hold the same artifact: one of them is a copy"),
        (copied_log, r"the log of .*run2 is of another run: its seed is 42, that of config\.toml 1337"),
        (rewritten("train.jsonl", r'^.*"end".*\n', ""), "the training of .*run1 did not finish"),
        (rewritten("train.jsonl", r'^.*"start".*\n', ""), r"train\.jsonl lacks its beginning or its end; train again"),
        (other_artifact, "pack.json is about another artifact than model.bitgolf"),
        (
            rewritten("data/manifest.json", r'("val": {[^}]*"sha256": )"\w+"', rf'\1"{"0" * 64}"'),
            "different validation documents",
        ),
        (rewritten("train.jsonl", r'("event": "end", )"step": \d+, ', r"\1"), "step is missing"),
        (rewritten("train.jsonl", r'"torch": "[^"]*"', '"torch": "2.0.0"'), r"several versions of PyTorch: 2\.0\.0"),
        (drop("weights.safetensors"), "run `bitgolf train"),
        (drop("score.json"), "run `bitgolf score"),
        (drop("model.bitgolf"), "run `bitgolf pack"),
        (lambda runs: runs[:2], "2 seeds given, 3 asked for"),
        (lambda runs: [*runs[:2], runs[0]], "is given twice"),
        (drop("audit.json"), "seed 42 was not audited. Run `bitgolf audit RUN`"),
    ],
)
def test_runs_that_may_not_be_submitted(copies: list[Path], tmp_path: Path, damage: Damage, message: str) -> None:
    runs = damage(copies)
    before = [tree_digest(run) for run in runs]
    with pytest.raises((RunError, ConfigError), match=message):
        submit(runs, tmp_path / "records", labels=LABELS)
    assert not (tmp_path / "records").exists() or not list((tmp_path / "records").iterdir())
    assert [tree_digest(run) for run in runs] == before


@pytest.mark.parametrize("special", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_log_that_is_no_regular_file_is_refused(
    copies: list[Path], tmp_path: Path, special: Callable[[Path], object]
) -> None:
    (copies[1] / "train.log").unlink()
    special(copies[1] / "train.log")
    with pytest.raises(RunError, match=r"run1/train\.log is damaged: it is a folder, device or pipe"):
        submit(copies, tmp_path / "records", labels=LABELS)


@pytest.mark.parametrize(
    ("verdict", "key", "message"),
    [
        ("FAIL", "passed", r"seed 42 failed its audit \(eval-clock\)"),
        ("NOT RUN", "complete", r"seed 42 was not audited in full \(eval-clock not run\)"),
    ],
)
def test_an_audit_that_did_not_pass_takes_force(
    copies: list[Path], tmp_path: Path, verdict: str, key: str, message: str
) -> None:
    checks = read_json(copies[1] / "audit.json")["checks"]
    next(check for check in checks if check["name"] == "eval-clock")["verdict"] = verdict
    change(copies[1] / "audit.json", checks=checks, **{key: False})
    with pytest.raises(RunError, match=message):
        submit(copies, tmp_path / "records", labels=LABELS)
    folder = submit(copies, tmp_path / "records", labels=LABELS, force=True)
    described, readme = read_json(folder / "submission.json"), (folder / "README.md").read_text()
    assert re.search(message, described["forced"][0])
    assert re.search(r"> \*\*Written with `--force`\.\*\* " + message, readme)
    assert not all(described["compliance"].values()) and "**no**" in readme


def test_a_run_without_an_audit_is_named_in_the_folder_and_on_the_terminal(copies: list[Path], tmp_path: Path) -> None:
    (copies[1] / "audit.json").unlink()
    words = ("--author", "A", "--github-id", "a", "--force", "--out", tmp_path / "records")
    text = done("submit", *copies, *words).stdout
    assert "written with --force: seed 42 was not audited" in text
    (readme,) = (tmp_path / "records").rglob("README.md")
    rows = [line.strip("| ").split(" | ") for line in readme.read_text().splitlines() if line.startswith("| 42 |")]
    assert ["42", "\N{EN DASH}", "\N{EN DASH}", "\N{EN DASH}", "not audited"] in [
        [cell.strip() for cell in row] for row in rows
    ]


def test_a_package_that_is_not_installed_cannot_be_pinned(seeds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("bitgolf.submit.requirements.version", missing)
    with pytest.raises(RunError, match=r"needs the package \w+, which is not installed here"):
        submit(seeds, seeds[0].parent / "nowhere", labels=LABELS)


def test_an_audit_older_than_what_it_judged_takes_force(copies: list[Path], tmp_path: Path) -> None:
    score = read_json(copies[1] / "score.json")
    rescored = sealed(score | {"evaluation_seconds": 1.0}, read_json(copies[1] / "pack.json")["seal"])
    (copies[1] / "score.json").write_text(json.dumps(rescored))
    with pytest.raises(RunError, match="seed 42 has changed since its audit"):
        submit(copies, tmp_path / "records", labels=LABELS)


def test_force_does_not_mend_what_does_not_belong_together(copies: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="both have seed 7"):
        submit(same_seed(copies), tmp_path / "records", labels=LABELS, force=True)


def test_code_that_no_longer_fits_is_refused(copies: list[Path], tmp_path: Path) -> None:
    runs = [
        clone(run, tmp_path / f"small{seed}", seed, budget__artifact_bytes="90000")
        for run, seed in zip(copies, (7, 42, 1337), strict=True)
    ]
    with pytest.raises(BudgetError, match=r"seed 7 does not fit: 79,\d+ bytes of model"):
        submit(runs, tmp_path / "records", labels=LABELS)


# ---------------------------------------------------------------------------------------------- how it is written


def test_the_same_runs_give_the_same_folder(seeds: list[Path], folder: Path, tmp_path: Path) -> None:
    again = submit(list(reversed(seeds)), tmp_path, labels=LABELS)
    assert tree_digest(again) == tree_digest(folder)
    stamp = (again / "README.md").stat().st_mtime_ns
    assert submit(seeds, tmp_path, labels=LABELS) == again  # nothing to do
    assert (again / "README.md").stat().st_mtime_ns == stamp


def test_a_folder_of_other_content_is_not_touched(seeds: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "2026-03-17_tiny"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="exists with other content"):
        submit(seeds, tmp_path, labels=LABELS)
    assert [path.name for path in target.iterdir()] == ["mine.txt"]
    shutil.rmtree(target)
    target.write_text("a file")
    with pytest.raises(RunError, match="exists with other content"):
        submit(seeds, tmp_path, labels=LABELS)
    assert target.read_text() == "a file"


def test_a_folder_is_there_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def full(_: int) -> None:
        written.append("file")
        if len(written) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_folder(tmp_path / "records" / "entry", {"a": b"1", "b/c": b"2", "d": b"3"})
    assert list((tmp_path / "records").iterdir()) == []
    monkeypatch.undo()
    write_folder(tmp_path / "records" / "entry", {"a": b"1", "b/c": b"2"})
    assert (tmp_path / "records" / "entry" / "b" / "c").read_bytes() == b"2"


def test_labels(seeds: list[Path]) -> None:
    submission = describe(read_seed_runs(seeds, 1), [], LABELS)
    assert submission.folder_name == "2026-03-17_tiny"
    named = describe(submission.runs, [], Labels(name="XSA & more!", track="10min_16mb", date=LABELS.date))
    assert (named.folder_name, named.track) == ("2026-03-17_XSA_more", "10min_16mb")
    assert set(contents(submission)) >= {"train_gpt.py", "README.md", "source/train_gpt.py", "source/bitgolf/errors.py"}


def test_the_command_line(seeds: list[Path], tmp_path: Path) -> None:
    words = ["submit", *seeds, "--out", tmp_path, "--author", "A", "--github-id", "a", "--date", "2026-03-17"]
    outcome = done(*words, "--name", "entry")
    assert f"submission: {tmp_path / '2026-03-17_entry'}" in outcome.stdout
    assert "bits per byte over seeds 7, 42, 1337" in outcome.stdout.replace("\n", " ")
    answer = done(*words, "--json").json
    described = answer["submission"]
    assert f"{described['val_bpb']:.4f} +- {described['val_bpb_std']:.4f} bits per byte" in outcome.stdout
    assert f"{described['bytes_total']:,} bytes, {described['bytes_code']:,} of them code" in outcome.stdout
    assert answer["submission"]["val_bpb"] == read_json(Path(answer["folder"]) / "submission.json")["val_bpb"]
    assert "2 seeds given, 3 asked for" in refused("submit", *seeds[:2], "--out", tmp_path)
    assert "--seeds 0" in refused("submit", *seeds, "--out", tmp_path, "--seeds", "0")
    assert "'soon' is not a date" in refused("submit", *seeds, "--out", tmp_path, "--date", "soon")
    for date, words in (("1970-01-01", "before the challenge began"), ("2999-01-01", "in the future")):
        message = refused("submit", *seeds, "--out", tmp_path, "--date", date)
        assert words in message and "set the clock of this machine, or give another --date" in message
    assert RunDirectory.open(seeds[0]).config.seed == 7
