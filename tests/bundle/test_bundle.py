"""The packed file trains, packs and scores as the package does, where no bitgolf can be imported."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seed_clones import clone
from tiny_run import done, file_digest, read_json, weights_digest

from bitgolf.config import Config, load_config, preset_names
from bitgolf.record.bundle import (
    PackageSources,
    installed_root,
    latin1_literal,
    make_bundle,
    module_files,
    pack_text,
    settings_of,
)
from bitgolf.record.importer import install
from bitgolf.record.submission import Labels, submit
from bitgolf.record.variants import PARTS, absent_code, fixed_keys, known_settings

BLOCKER = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "bitgolf":
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Block())
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs Python, one thread, where `import bitgolf` fails from the start, in a folder of choice."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(BLOCKER)
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment = kept | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, *map(str, arguments)]
        return subprocess.run(words, env=environment, cwd=cwd or site, text=True, capture_output=True, check=False)

    return run


@pytest.fixture(scope="module")
def alone(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the train_gpt.py of the tiny run's submission and nothing else."""
    root = tmp_path_factory.mktemp("alone")
    twin = clone(tiny_run, root / "twin", 8)
    folder = submit([tiny_run, twin], root / "records", num_seeds=2, labels=Labels(name="tiny"))
    shutil.copy2(folder / "train_gpt.py", root / "train_gpt.py")
    shutil.copytree(folder / "source", root / "readable")
    shutil.rmtree(folder)
    shutil.rmtree(twin)
    return root


def scored(run: Path) -> dict[str, float]:
    """Bits per byte by method."""
    return {name: result["bpb"] for name, result in read_json(run / "score.json")["methods"].items()}


# ------------------------------------------------------------------------------------- the file, run from outside


def test_bitgolf_is_really_blocked(blocked: Run) -> None:
    outcome = blocked("-c", "import bitgolf")
    assert outcome.returncode == 1 and "ModuleNotFoundError: bitgolf is blocked" in outcome.stderr


def test_training_again_gives_the_same_artifact_and_score(
    blocked: Run, alone: Path, tiny_run: Path, tmp_path: Path
) -> None:
    outcome = blocked("train_gpt.py", "--data", tiny_run / "data", "--out", tmp_path / "again", "--seed", 7, cwd=alone)
    assert outcome.returncode == 0, outcome.stderr
    again = tmp_path / "again"
    assert weights_digest(again) == weights_digest(tiny_run)
    assert file_digest(again / "model.bitgolf") == file_digest(tiny_run / "model.bitgolf")
    assert scored(again) == pytest.approx(scored(tiny_run), abs=1e-6)
    packed = read_json(again / "pack.json")
    assert packed["code_bytes"] == (alone / "train_gpt.py").stat().st_size
    assert f"Total submission size: {packed['total_bytes']} bytes" in outcome.stdout
    assert f"val_bpb:{scored(tiny_run)['sliding']:.8f}" in outcome.stdout
    assert "[step] step:40" in outcome.stdout and outcome.stderr == ""


def test_single_stages_reduced_runs_and_refusals(blocked: Run, alone: Path, tiny_run: Path, tmp_path: Path) -> None:
    """One process, several runs of the file."""
    file, data = str(alone / "train_gpt.py"), ["--data", str(tiny_run / "data")]
    score, pack, small = tmp_path / "score", tmp_path / "pack", tmp_path / "small"
    score.mkdir()
    shutil.copy2(tiny_run / "model.bitgolf", score)
    pack.mkdir()
    shutil.copy2(tiny_run / "weights.safetensors", pack)
    shutil.copytree(tiny_run / "calibration", pack / "calibration")
    reduced = ["--train.max_steps", "3", "--train.calibration_tokens", "1024", "--score.stride", "64"]
    jobs = [
        [file, [*data, "--out", str(score), "--seed", "7", "--stage", "score"]],
        [file, [*data, "--out", str(pack), "--seed", "7", "--stage", "pack"]],
        [file, [*data, "--out", str(small), "--seed", "9", *reduced]],
        [file, [*data, "--out", str(small), "--seed", "9", *reduced]],
        [file, [*data, "--out", str(small), "--seed", "10", "--stage", "score"]],
        [file, [*data, "--out", str(tmp_path / "no"), "--ttt.method", "lora"]],
        [file, [*data, "--out", str(tmp_path / "no"), "--train.max_stpes", "3"]],
        [file, [*data, "--out", str(tmp_path / "no"), "loose"]],
        [file, [*data, "--out", str(tmp_path / "no"), "--stage", "pack"]],
        [file, [*data, "--out", str(damaged(tiny_run, tmp_path)), "--seed", "7", "--stage", "score"]],
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    outcome = blocked(Path(__file__).with_name("bundle_driver.py"), tmp_path / "jobs.json", cwd=alone)
    assert outcome.returncode == 0, outcome.stderr
    ends = read_json(tmp_path / "jobs.out")
    assert ends[:3] == ["", "", ""]
    assert scored(score) == pytest.approx(scored(tiny_run), abs=1e-6)
    assert np.array_equal(np.load(score / "nll.npy"), np.load(tiny_run / "nll.npy"))
    assert file_digest(pack / "model.bitgolf") == file_digest(tiny_run / "model.bitgolf")
    assert read_json(small / "score.json")["methods"]["sliding"]["bpb"] > 1
    assert "is trained already; choose another --out" in ends[3]
    assert "belongs to another configuration" in ends[4]
    assert "it was made for ttt.method = 'none' and has no code for 'lora'" in ends[5]
    assert "ConfigError" in ends[6]
    assert "expected pairs of --section.key value, got loose" in ends[7]
    # An error names module and line, shows the line, and spares the reader the payload.
    assert 'train_gpt.py/bitgolf/compress/container.py", line ' in ends[9] and "raise ArtifactError" in ends[9]
    assert ends[9].rstrip().endswith("ArtifactError") and len(ends[9]) < 6_000
    assert "RunError" in ends[8] and not (tmp_path / "no" / "model.bitgolf").exists()


def test_the_readable_source_is_the_same_program_with_all_its_words(
    alone: Path, tiny_run: Path, tmp_path: Path
) -> None:
    words = ("--data", tiny_run / "data", "--out", damaged(tiny_run, tmp_path), "--seed", 7, "--stage", "score")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    outcome = subprocess.run(
        [sys.executable, "train_gpt.py", *map(str, words)],
        cwd=alone / "readable",
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert outcome.returncode == 1
    assert str(alone / "readable" / "bitgolf" / "compress" / "container.py") in outcome.stderr
    assert "the artifact is truncated: the header declares" in outcome.stderr


def damaged(run: Path, root: Path) -> Path:
    """A run directory with a truncated artifact and nothing else."""
    (root / "damaged").mkdir()
    (root / "damaged" / "model.bitgolf").write_bytes((run / "model.bitgolf").read_bytes()[:-100])
    return root / "damaged"


def test_the_file_is_made_from_the_source_beside_it(alone: Path, tiny_run: Path) -> None:
    config = load_config(str(tiny_run / "config.toml"))
    again = make_bundle(config, root=alone / "readable")
    assert again.data == (alone / "train_gpt.py").read_bytes()
    assert json.loads((alone / "readable" / "settings.json").read_text()) == json.loads(settings_of(config))


FULL = {"ttt.method": "full", "ttt.chunk_tokens": 4096, "ttt.epochs": 1, "ttt.temperature_lr": 0.1}
LORA = {"ttt.method": "lora", "ttt.lora_documents": 16, "ttt.lora_chunk_tokens": 32, "score.methods": ["chunked"]}


def variant(run: Path, changes: dict[str, object]) -> Config:
    """The configuration of a run with changes."""
    return load_config(
        str(run / "config.toml"), {k: v if isinstance(v, str) else json.dumps(v) for k, v in changes.items()}
    )


VARIANTS: dict[str, dict[str, object]] = {
    "full": FULL | {"pack.method": "rtn", "pack.compressor": "range", "pack.prune": 0.02},
    "lora": LORA | {"pack.method": "lossless", "pack.compressor": "zlib"},
}


@pytest.mark.slow
def test_variants_pack_and_score_as_the_package_does(
    blocked: Run, tiny_run: Path, tmp_path: Path, one_thread: None
) -> None:
    """Each setting that chooses other code, packed with that code alone."""
    jobs = []
    for name, changes in VARIANTS.items():
        config = variant(tiny_run, changes)
        ours, theirs = tmp_path / name / "package", tmp_path / name / "bundle"
        for run in (ours, theirs):
            run.mkdir(parents=True)
            (run / "config.toml").write_text(config.to_toml())
            (run / "data").symlink_to(tiny_run / "data")
            (run / "calibration").symlink_to(tiny_run / "calibration")
            (run / "weights.safetensors").symlink_to(tiny_run / "weights.safetensors")
        done("pack", ours)
        done("score", ours)
        (tmp_path / name / "train_gpt.py").write_bytes(make_bundle(config).data)
        for stage in ("pack", "score"):
            words = ["--data", str(tiny_run / "data"), "--out", str(theirs), "--seed", "7", "--stage", stage]
            jobs.append([str(tmp_path / name / "train_gpt.py"), words])
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    outcome = blocked(Path(__file__).with_name("bundle_driver.py"), tmp_path / "jobs.json")
    assert outcome.returncode == 0, outcome.stderr
    assert read_json(tmp_path / "jobs.out") == [""] * len(jobs)
    for name in VARIANTS:
        ours, theirs = tmp_path / name / "package", tmp_path / name / "bundle"
        assert file_digest(ours / "model.bitgolf") == file_digest(theirs / "model.bitgolf"), name
        assert scored(ours) == pytest.approx(scored(theirs), abs=1e-6), name
        assert read_json(ours / "score.json")["headline"] == read_json(theirs / "score.json")["headline"]


# ---------------------------------------------------------------------------------------------- what is in it


def test_the_file_holds_what_three_stages_need_and_nothing_else() -> None:
    modules = make_bundle(load_config("seed-693")).modules
    for needed in ("train.stage", "train.muon", "compress.gptq", "evaluate.tape", "model.gpt", "record.train_gpt"):
        assert f"bitgolf.{needed}" in modules
    for idle in ("cli", "console", "tables", "doctor", "data.fineweb", "data.sources", "train.branch", "evaluate.lora",
                 "evaluate.ttt", "compress.coder", "record.report", "record.bundle", "record.minify"):  # fmt: skip
        assert f"bitgolf.{idle}" not in modules
    assert not [name for name in modules if name.startswith(("bitgolf.audit", "bitgolf.codec", "bitgolf.presets"))]
    for name, source in modules.items():
        compile(source, name, "exec")
        assert "rich" not in {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}


def test_code_at_most_40_000_bytes() -> None:
    assert len(make_bundle(load_config("seed-693")).data) <= 40_000


@pytest.mark.parametrize("preset", ["seed-585", "seed-693"])
def test_a_preset_packs_into_a_file_that_python_reads(preset: str) -> None:
    config = load_config(preset)
    data = make_bundle(config).data
    compile(data, "train_gpt.py", "exec")
    assert b"\r" not in data and b"\0" not in data and data.count(b"\n") < 10
    embedded = json.loads(settings_of(config))
    from bitgolf.config import resolve

    assert resolve(embedded["config"], {"seed": str(config.seed)}).digest() == config.digest()


def test_the_seed_makes_no_difference_and_settings_do() -> None:
    config = load_config("seed-693")
    other = config.model_copy(update={"seed": 99})
    assert make_bundle(config).data == make_bundle(other).data
    named = config.model_copy(update={"description": "another"})
    assert make_bundle(config).data != make_bundle(named).data
    assert make_bundle(config).modules == make_bundle(named).modules


@given(st.binary(max_size=300), st.sampled_from([b"", b"\0" + b"1", b"\\", b"'\"", bytes(range(256))]))
def test_any_bytes_survive_as_a_latin1_literal(data: bytes, special: bytes) -> None:
    literal = latin1_literal(data + special)
    source = b"#coding:latin1\nx=" + literal.encode("latin1") + b"\n"
    namespace: dict[str, str] = {}
    exec(compile(source, "<literal>", "exec"), namespace)
    assert namespace["x"].encode("latin1") == data + special
    assert "\n" not in literal and "\0" not in literal


def test_a_packed_text_runs_its_first_section() -> None:
    data, codec = pack_text("\0".join(["result = PARTS[1:]", "é ▁ 'x'", "\n\n"]))
    namespace: dict[str, object] = {}
    exec(compile(data, "packed", "exec"), namespace)
    assert namespace["result"] == ["é ▁ 'x'", "\n\n"] and codec in ("bz2", "lzma")


def test_the_importer_finds_its_modules_and_shows_their_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    names = ("packed_p", "packed_p.sub", "packed_p.sub.m")
    source = "NAME = __name__\ndef f():\n raise KeyError(1)\ndef g(x):return x.sin()+1"
    install("/some/train_gpt.py", [f"{name}\n{source}" for name in names])
    assert sys.excepthook is traceback.print_exception
    try:
        module = importlib.import_module("packed_p.sub.m")
        assert module.NAME == "packed_p.sub.m" and module.__file__ == "/some/train_gpt.py/packed_p/sub/m.py"
        assert sys.modules["packed_p"].__file__ == "/some/train_gpt.py/packed_p/__init__.py"
        assert inspect.getsource(module.f) == "def f():\n raise KeyError(1)\n"
        x = torch.ones(2)  # Dynamo skips what it takes for internal files
        assert torch.equal(torch.compile(module.g, backend="eager", fullgraph=True)(x), x.sin() + 1)
        with pytest.raises(ModuleNotFoundError, match=r"packed_p\.other"):
            importlib.import_module("packed_p.other")
        with pytest.raises(KeyError) as caught:
            module.f()
        shown = "".join(traceback.format_exception(caught.value))
        assert 'File "/some/train_gpt.py/packed_p/sub/m.py", line 3, in f' in shown and "raise KeyError(1)" in shown
    finally:
        for name in names:
            sys.modules.pop(name, None)


# ----------------------------------------------------------------------------------------------- variants


def test_variants_speak_of_code_and_settings_that_exist() -> None:
    files = module_files(installed_root())
    for part in PARTS:
        for code in part.code:
            module, _, name = code.partition(":")
            assert module in files, code
            if name:
                tree = ast.parse(files[module].read_text(encoding="utf-8"))
                owner, _, method = name.partition(".")
                found = [statement for statement in tree.body if getattr(statement, "name", "") == owner]
                assert found, code
                if method:
                    assert isinstance(found[0], ast.ClassDef)
                    assert method in {getattr(part, "name", "") for part in found[0].body}, code
    for config in (Config(), *map(load_config, preset_names())):
        known, fixed = known_settings(config), fixed_keys(config)
        assert set(fixed) <= set(known)
        assert known["pack.method"] == config.pack.method
        assert all(key.partition(".")[0] in type(config).model_fields for key in fixed)


def test_absent_code_follows_the_settings() -> None:
    plain, lora = Config(), load_config("seed-693", {"ttt.method": "lora"})
    assert "bitgolf.evaluate.documents" in absent_code(plain)
    assert "bitgolf.evaluate.documents" not in absent_code(lora)
    assert "bitgolf.evaluate.ttt" in absent_code(lora)
    assert "train.ema_decay" in fixed_keys(plain)
    assert "train.ema_decay" not in fixed_keys(load_config("demo", {"train.ema_decay": "0.9"}))
    assert make_bundle(lora).modules.keys() > {"bitgolf.evaluate.lora"}


def test_no_shipped_code_changes_a_setting_that_was_decided() -> None:
    """A changed copy of a section would make what `specialize` took for granted wrong."""
    switches = {key.partition(".")[2] for config in map(load_config, preset_names()) for key in known_settings(config)}
    files = module_files(installed_root())
    for name in make_bundle(load_config("seed-585")).modules:
        if name == "bitgolf.record.train_gpt":  # overrules two settings, and `known_settings` says so
            continue
        for node in ast.walk(ast.parse(files[name].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "model_copy":
                changed = {
                    k.value
                    for d in ast.walk(node)
                    if isinstance(d, ast.Dict)
                    for k in d.keys
                    if isinstance(k, ast.Constant)
                }
                assert not changed & switches, name


def test_sources_are_parsed_when_asked_for() -> None:
    package = PackageSources(installed_root(), {})
    assert "bitgolf.train.stage" in package and "bitgolf.nothing" not in package
    assert len(package) == len(module_files(installed_root()))
    assert isinstance(package["bitgolf.errors"], ast.Module)
