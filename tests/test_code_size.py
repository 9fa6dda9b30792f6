"""The bytes of code that an artifact is charged are those of the file that ships with it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_run import read_json

from bitgolf import code_size
from bitgolf.code_size import code_bytes
from bitgolf.config import load_config
from bitgolf.record.bundle import make_bundle


def test_code_bytes_are_those_of_train_gpt(tiny_run: Path) -> None:
    config = load_config(str(tiny_run / "config.toml"))
    assert code_bytes(config) == len(make_bundle(config).data)
    assert read_json(tiny_run / "pack.json")["code_bytes"] == code_bytes(config)
    assert code_bytes(config) == code_bytes(config.model_copy(update={"seed": 123_456}))


def test_inside_a_train_gpt_the_file_itself_is_weighed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "train_gpt.py"
    file.write_bytes(bytes(1_234))
    spec = SimpleNamespace(loader=SimpleNamespace(bundle_path=str(file)))
    monkeypatch.setattr(code_size, "__spec__", spec)
    assert code_bytes(load_config("demo")) == 1_234
