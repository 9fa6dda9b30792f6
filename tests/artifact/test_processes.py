"""Coding in several processes gives the bytes of one, and goes on in one when they fail."""

import os
from typing import Any

import pytest

from bitgolf.artifact import processes
from bitgolf.artifact.container import encode_artifact
from bitgolf.artifact.processes import coder_processes


def own_id(parent: int) -> int:
    """Ends every process but the parent."""
    if os.getpid() != parent:
        os._exit(1)
    return parent


@pytest.fixture
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_LEAST_WEIGHTS", 100)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)


def test_processes_write_the_same_file_and_may_fail(
    three_cores: None, rich_contents: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    alone = encode_artifact(**rich_contents, compressor="range")
    with coder_processes(100) as apply:
        assert apply is not map
        assert encode_artifact(**rich_contents, compressor="range", apply=apply) == alone
        parent = os.getpid()
        assert list(apply(own_id, [parent] * 2)) == [parent] * 2
        assert "it goes on in this process" in caplog.text
        assert encode_artifact(**rich_contents, compressor="range", apply=apply) == alone


def test_small_models_are_coded_in_one_process(three_cores: None) -> None:
    with coder_processes(99) as apply:
        assert apply is map
