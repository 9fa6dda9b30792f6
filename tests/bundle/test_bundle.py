"""The packed file trains, packs and scores as the package does, where no bitgolf can be imported."""

import ast
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import documents, done, file_digest, read_json, weights_digest, write_jsonl

from bitgolf.bundle.importer import install
from bitgolf.bundle.readable_source import readable_source
from bitgolf.bundle.single_file import (
    MOST_CODE_BYTES,
    code_bytes,
    installed_root,
    make_bundle,
    minified,
    pack_texts,
    settings_json,
    shifted_literal,
    without_checks,
    without_texts,
)
from bitgolf.config import Config, load_config, preset_names, resolve

BLOCKER = """
import atexit, os, sys
if "RANK" in os.environ:
    atexit.register(print, "torn down")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "bitgolf":
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Block())
"""
TRUNCATED = "the artifact is truncated: the header declares"
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
    """A folder that holds the train_gpt.py and the `source/` of the tiny run's submission, and nothing else."""
    root = tmp_path_factory.mktemp("alone")
    bundle = make_bundle(load_config(str(tiny_run / "config.toml")))
    (root / "train_gpt.py").write_bytes(bundle.data)
    for name, text in readable_source(bundle).items():
        (root / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "source" / name).write_text(text, encoding="utf-8")
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
    reduced = ["--train.max_steps", "3", "--train.measure.calibration_tokens", "1024", "--score.stride", "64"]
    jobs = [
        [file, [*data, "--out", str(score), "--seed", "7", "--stage", "score"]],
        [file, [*data, "--out", str(pack), "--seed", "7", "--stage", "pack"]],
        [file, [*data, "--out", str(small), "--seed", "9", *reduced]],
        [file, [*data, "--out", str(small), "--seed", "9", *reduced]],
        [file, [*data, "--out", str(small), "--seed", "10", "--stage", "score"]],
        [file, [*data, "--out", str(tmp_path / "no"), "--train.max_stpes", "3"]],
        [file, [*data, "--out", str(tmp_path / "no"), "loose"]],
        [file, [*data, "--out", str(tmp_path / "no"), "--stage", "pack"]],
        [file, [*data, "--out", str(damaged(tiny_run, tmp_path)), "--seed", "7", "--stage", "score"]],
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    outcome = blocked(Path(__file__).parents[1] / "support" / "bundle_driver.py", tmp_path / "jobs.json", cwd=alone)
    assert outcome.returncode == 0, outcome.stderr
    ends = read_json(tmp_path / "jobs.out")
    assert ends[:3] == ["", "", ""]
    assert scored(score) == pytest.approx(scored(tiny_run), abs=1e-6)
    assert np.array_equal(np.load(score / "nll.npy"), np.load(tiny_run / "nll.npy"))
    assert file_digest(pack / "model.bitgolf") == file_digest(tiny_run / "model.bitgolf")
    assert read_json(small / "score.json")["methods"]["sliding"]["bpb"] > 1
    assert "is trained already; choose another --out" in ends[3]
    assert "belongs to another configuration" in ends[4]
    assert "ConfigError" in ends[5] and "max_stpes" in ends[5]
    assert "unexpected argument 'loose'" in ends[6]
    # An error names module and line, shows the line, and spares the reader the payload.
    assert 'train_gpt.py/bitgolf/artifact/container.py", line ' in ends[8] and "raise ArtifactError" in ends[8]
    assert "ArtifactError" in ends[8] and len(ends[8]) < 6_000
    assert "RunError" in ends[7] and not (tmp_path / "no" / "model.bitgolf").exists()


def test_two_ranks_share_the_work(blocked: Run, alone: Path, tiny_run: Path, tmp_path: Path) -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train_gpt.py")
    words = ("--data", tiny_run / "data", "--out", tmp_path / "two", "--seed", 7, "--train.max_steps", 3)
    outcome = blocked(*launch, *words, "--train.micro_batch_tokens", 512, "--score.methods", "chunked", cwd=alone)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.count("chunked val_loss:") == 1
    assert "torn down" not in outcome.stdout  # PyTorch's teardown may abort (see `leave`)
    score = read_json(tmp_path / "two" / "score.json")
    assert (score["world_size"], score["val_tokens"]) == (2, read_json(tiny_run / "score.json")["val_tokens"])


def test_a_large_model_is_coded_in_processes_that_import_from_the_file(
    blocked: Run, tiny_run: Path, tmp_path: Path
) -> None:
    """With limits so low that the tiny model on two cores is large."""
    shutil.copytree(installed_root() / "bitgolf", tmp_path / "bitgolf", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "bitgolf" / "artifact" / "processes.py"
    text = file.read_text()
    for old, new in (("1 << 23", "1"), ("cores < 3", "False"), ("values = list(values)", "print('divided'); \\g<0>")):
        text, count = re.subn(re.escape(old), new, text)
        assert count == 1
    file.write_text(text)
    config = variant(tiny_run, {"pack.compressor": "range"})
    ours, theirs = tmp_path / "package", tmp_path / "bundle"
    for run in (ours, theirs):
        trained_copy(tiny_run, run, config, tiny_run / "data")
    done("pack", ours)
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "train_gpt.py").write_bytes(make_bundle(config, tmp_path).data)
    words = ("--data", tiny_run / "data", "--out", theirs, "--seed", 7, "--stage", "pack")
    outcome = blocked("train_gpt.py", *words, cwd=tmp_path / "file")
    assert outcome.returncode == 0, outcome.stderr
    assert "divided" in outcome.stdout and "failed" not in outcome.stdout
    assert file_digest(theirs / "model.bitgolf") == file_digest(ours / "model.bitgolf")


def test_the_readable_source_is_the_same_program(alone: Path, tiny_run: Path, tmp_path: Path) -> None:
    words = ("--data", tiny_run / "data", "--out", damaged(tiny_run, tmp_path), "--seed", 7, "--stage", "score")
    outcome = from_source(alone, *words)
    assert outcome.returncode == 1
    assert str(alone / "source" / "bitgolf" / "artifact" / "container.py") in outcome.stderr
    assert TRUNCATED in outcome.stderr


def test_the_readable_source_packs_under_the_size_of_the_file_that_ships(
    alone: Path, tiny_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "calibration").symlink_to(tiny_run / "calibration")
    (run / "weights.safetensors").symlink_to(tiny_run / "weights.safetensors")
    words = ("--data", tiny_run / "data", "--out", run, "--seed", 7, "--stage", "pack")
    outcome = from_source(alone, *words)
    assert outcome.returncode == 0, outcome.stderr
    assert read_json(run / "pack.json")["code_bytes"] == (alone / "train_gpt.py").stat().st_size
    assert file_digest(run / "model.bitgolf") == file_digest(tiny_run / "model.bitgolf")


def from_source(root: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run `source/train_gpt.py` below `root`."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "train_gpt.py", *map(str, words)]
    return subprocess.run(arguments, cwd=root / "source", env=environment, text=True, capture_output=True, check=False)


def damaged(run: Path, root: Path) -> Path:
    """A run directory with a truncated artifact and nothing else."""
    (root / "damaged").mkdir()
    (root / "damaged" / "model.bitgolf").write_bytes((run / "model.bitgolf").read_bytes()[:-100])
    return root / "damaged"


def test_the_file_is_made_from_the_source_beside_it(alone: Path, tiny_run: Path) -> None:
    config = load_config(str(tiny_run / "config.toml"))
    again = make_bundle(config, root=alone / "source")
    assert again.data == (alone / "train_gpt.py").read_bytes()
    assert f"SETTINGS = {settings_json(config)!r}" in (alone / "source" / "train_gpt.py").read_text()


def test_the_readable_source_has_whole_packages_and_a_table_of_its_modules(tiny_run: Path) -> None:
    bundle = make_bundle(load_config(str(tiny_run / "config.toml")))
    files = readable_source(bundle)
    names = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in files
        if name.startswith("bitgolf/")
    }
    for name in names:
        assert f"{'/'.join(name.split('.')[:-1])}/__init__.py" in files or name == "bitgolf"
    for text in (text for name, text in files.items() if name.startswith("bitgolf/")):
        for line in re.findall(r"^ *from (bitgolf[\w.]*) import", text, re.M):
            assert line in names, line
    rows = re.findall(r"^\| `(\S+)` \| (.*) \|$", files["MODULES.md"], re.M)
    assert rows == [
        (name, f"{len(bundle.modules[name]):,}" if name in bundle.modules else "not in it") for name in sorted(names)
    ]
    assert ("bitgolf.bundle.single_file", "not in it") in rows and set(bundle.modules) < names


FULL = {"ttt.method": "full", "ttt.weights.chunk_tokens": 4096, "ttt.weights.epochs": 1}
LORA = {"ttt.method": "lora", "ttt.lora.documents": 16, "ttt.lora.chunk_tokens": 32, "score.methods": ["chunked"]}


def variant(run: Path, changes: dict[str, object]) -> Config:
    """The configuration of a run with changes."""
    return load_config(
        str(run / "config.toml"), {k: v if isinstance(v, str) else json.dumps(v) for k, v in changes.items()}
    )


def trained_copy(run: Path, copy: Path, config: Config, data: Path) -> None:
    """Make `copy` a run of `config` with the products of training of `run`."""
    copy.mkdir(parents=True)
    (copy / "config.toml").write_text(config.to_toml())
    (copy / "data").symlink_to(data)
    for name in ("calibration", "weights.safetensors"):
        (copy / name).symlink_to(run / name)


VARIANTS: dict[str, dict[str, object]] = {
    "full": FULL | {"pack.method": "rtn", "pack.compressor": "range", "pack.prune": 0.02},
    "lora": LORA | {"pack.method": "lossless", "pack.compressor": "zlib"},
}


@pytest.mark.slow
def test_variants_pack_and_score_as_the_package_does(blocked: Run, tiny_run: Path, tmp_path: Path) -> None:
    """Settings that choose other code than the tiny run does."""
    data, jobs = tmp_path / "data", []
    few = write_jsonl(tmp_path / "few.jsonl", documents()[:80])
    same = ("--model.vocab_size", "384", "--data.tokenizer", tiny_run / "data" / "tokenizer.model")
    done("prepare", f"jsonl:{few}", "--out", data, *same, "--data.val_bytes", "3000")
    for name, changes in VARIANTS.items():
        config = variant(tiny_run, changes)
        ours, theirs = tmp_path / name / "package", tmp_path / name / "bundle"
        for run in (ours, theirs):
            trained_copy(tiny_run, run, config, data)
        done("pack", ours)
        done("score", ours)
        (tmp_path / name / "train_gpt.py").write_bytes(make_bundle(config).data)
        for stage in ("pack", "score"):
            words = ["--data", str(data), "--out", str(theirs), "--seed", "7", "--stage", stage]
            jobs.append([str(tmp_path / name / "train_gpt.py"), words])
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    outcome = blocked(Path(__file__).parents[1] / "support" / "bundle_driver.py", tmp_path / "jobs.json")
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
    for needed in ("train.stage", "train.muon", "quantize.gptq", "evaluate.tape", "model.gpt", "submit.train_gpt"):
        assert f"bitgolf.{needed}" in modules
    for idle in ("cli", "data.fineweb", "data.sources", "bundle", "bundle.single_file", "bundle.trace"):
        assert f"bitgolf.{idle}" not in modules
    idle_folders = ("audit", "codec", "commands", "presets", "referee", "report")
    assert not [name for name in modules if name.startswith(tuple(f"bitgolf.{folder}" for folder in idle_folders))]
    names = {name: set(re.findall(r"\w+", source)) for name, source in modules.items()}
    for name, source in modules.items():
        compile(source, name, "exec")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("rich", "python_minifier")
                for alias in node.names if node.module in modules else ():
                    assert alias.name in names[node.module] or f"{node.module}.{alias.name}" in modules, (name, alias)


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_packs_into_a_file_of_at_most_80_000_bytes(preset: str) -> None:
    config = load_config(preset)
    data = make_bundle(config).data
    assert len(data) <= MOST_CODE_BYTES == 80_000
    compile(data, "train_gpt.py", "exec")
    assert b"\r" not in data and b"\0" not in data and data.count(b"\n") < 10
    assert resolve(json.loads(settings_json(config)), {"seed": str(config.seed)}).digest() == config.digest()


def test_the_seed_makes_no_difference_and_settings_do() -> None:
    config = load_config("seed-693")
    other = config.model_copy(update={"seed": 99})
    assert make_bundle(config).data == make_bundle(other).data
    named = config.model_copy(update={"description": "another"})
    assert make_bundle(config).data != make_bundle(named).data
    assert make_bundle(config).modules == make_bundle(named).modules


def test_code_bytes_are_those_of_train_gpt(tiny_run: Path) -> None:
    config = load_config(str(tiny_run / "config.toml"))
    assert code_bytes(config) == len(make_bundle(config).data)
    assert read_json(tiny_run / "pack.json")["code_bytes"] == code_bytes(config)


def test_the_file_has_no_descriptions_limits_and_checks_of_settings_and_few_messages() -> None:
    source = """
    class Section(Base):
        rows: int = Field(3, ge=1, le=5, gt=0, lt=9, description='rows', alias='lines')
        mode: str = other(3, ge=1)
        @model_validator(mode='after')
        def _fit(self):
            raise ValueError('no')
        @field_validator('rows')
        def _rows(cls, value):
            raise KeyError('kept')
    class Empty(Base):
        @model_validator(mode='before')
        def _read(cls, values):
            return translate(values)
    def run():
        raise RunError(f'the message {run}') from error
    def shown():
        raise SystemExit('message')
    """
    kept = """
    class Section(Base):
        rows: int = Field(3, alias='lines')
        mode: str = other(3, ge=1)
        @field_validator('rows')
        def _rows(cls, value):
            raise KeyError('kept')
    class Empty(Base):
        pass
    def run():
        raise RunError from error
    def shown():
        raise SystemExit('message')
    """
    module, expected = (ast.parse(textwrap.dedent(text)) for text in (source, kept))
    module = without_checks(module)
    assert ast.unparse(without_texts(module)) == ast.unparse(expected)
    assert "RunError(f'the message {run}')" in ast.unparse(without_texts(module, messages=True))
    typed = """
    @dataclass(frozen=True)
    class A:
        a: int = 1
        b: ClassVar[int] = 2

    class B(NamedTuple):
        c: str

    class C:
        d: int
    """
    plain = ast.unparse(without_checks(ast.parse(textwrap.dedent(typed))))
    assert plain == textwrap.dedent(typed).strip().replace("a: int", "a: 0").replace("c: str", "c: 0")


def test_minified_modules_keep_what_others_read() -> None:
    source = '''
    """A docstring."""
    from __future__ import annotations
    from pydantic import BaseModel
    class Section(BaseModel):
        """Another."""
        num_layers: int = 3
    __version__ = "1"
    _OWN_NAME = 7
    def _own_function(section):
        return _OWN_NAME
    def describe(section: Section, *, long_keyword: str = "") -> str:
        a_long_local_name = section.num_layers + _own_function(section)
        return f"{a_long_local_name} {a_long_local_name} {long_keyword}"
    '''
    text = minified(textwrap.dedent(source))
    for kept in ("num_layers:int=3", "long_keyword", "def describe(", "__version__"):
        assert kept in text
    for dropped in ("docstring", "Another", "a_long_local_name", "section:", "_OWN_NAME", "_own_function"):
        assert dropped not in text
    followed = minified(textwrap.dedent(source), rename_functions=False)
    assert "_own_function" in followed and "_OWN_NAME" not in followed
    kernel = "import triton\ndef kernel(x_ptr, SIZE: tl.constexpr):\n    offset = SIZE + SIZE\n    return offset"
    assert "SIZE:tl.constexpr" in minified(kernel) and "offset" in minified(kernel)


@given(st.binary(max_size=300), st.sampled_from([b"", b"\0" + b"1", b"\\", b"'\"", bytes(range(256))]))
def test_any_bytes_survive_as_a_literal(data: bytes, special: bytes) -> None:
    literal = shifted_literal(data + special)
    source = b"#coding:latin1\nx=" + literal.encode("latin1") + b"\n"
    namespace: dict[str, str] = {}
    exec(compile(source, "<literal>", "exec"), namespace)
    n, *rest = namespace["x"].encode("latin1")
    blocks = [rest[start : start + n] for start in range(0, len(rest), n)]
    assert bytes((value - shift) % 256 for shift, *values in blocks for value in values) == data + special
    assert "\n" not in literal and "\0" not in literal and "\r" not in literal


def test_a_literal_of_random_bytes_is_hardly_longer_than_they_are() -> None:
    assert len(shifted_literal(np.random.default_rng(0).bytes(80_000))) < 80_500


def test_a_packed_text_runs_its_first_section() -> None:
    data = pack_texts(["\0".join(["result = PARTS[1:]", "é ▁ 'x'", "\n\n"])])
    namespace: dict[str, object] = {}
    exec(compile(data, "packed", "exec"), namespace)
    assert namespace["result"] == ["é ▁ 'x'", "\n\n"]


def test_the_importer_finds_its_modules_and_shows_their_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    names = ("packed_p", "packed_p.sub", "packed_p.sub.m")
    source = "NAME = __name__\ndef f():\n raise KeyError(1)\ndef g(x):return x.sin()+1"
    install("/some/train_gpt.py", [f"{name}\n{source}" for name in names])
    assert sys.excepthook is traceback.print_exception
    assert "packed_p" in sys.meta_path[0].sources, "it is asked before any folder"  # type: ignore[attr-defined]
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
