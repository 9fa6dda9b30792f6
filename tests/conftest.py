"""One tiny complete run, made once per session by the command line and shared by many tests."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_run import done, settings, write_jsonl


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as one file of JSON lines. Tests must not change it."""
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "letters.jsonl")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A complete run: data, weights, artifact, scores, audit, report. Tests must not change it."""
    root = tmp_path_factory.mktemp("runs") / "tiny"
    done("run", *settings(corpus), "--out", root)
    return root


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run that a test may damage."""
    return Path(shutil.copytree(tiny_run, tmp_path / "copy"))


@pytest.fixture
def untrained(tiny_run: Path, tmp_path: Path, corpus: Path) -> Callable[..., Path]:
    """Makes untrained run directories with the data of the tiny run and another configuration."""
    from bitgolf.config import load_config
    from bitgolf.run.directory import RunDirectory

    def make(name: str = "untrained", **changes: object) -> Path:
        preset, *words = settings(corpus, **changes)
        keys = [word.removeprefix("--") for word in words[::2]]
        config = load_config(preset, dict(zip(keys, words[1::2], strict=True)))
        run = RunDirectory.create(tmp_path / name, config)
        shutil.copytree(tiny_run / "data", run / "data")
        return run.path

    return make


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """One torch thread. Tiny models are fastest with it, and their results bit-exact."""
    torch.set_num_threads(1)
