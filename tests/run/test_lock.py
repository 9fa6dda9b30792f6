"""One process at a time writes to a run directory, and the refusal names that process."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tiny_run import done, environment, refused, tree_digest

from bitgolf.config import DataConfig, load_config
from bitgolf.data.prepare import prepare
from bitgolf.errors import RunError
from bitgolf.run.directory import RunDirectory, writes_run
from bitgolf.run.lock import LOCK_FILES, locked_directory

_HOLD = """
import sys
from pathlib import Path
from bitgolf.run.lock import locked_directory
with locked_directory(Path(sys.argv[1]), sys.argv[2], sys.argv[3]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_process(directory: Path, stage: str = "train", prefix: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `directory`."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(directory), stage, prefix],
        env=environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_refusal_names_process_host_stage_and_time(tmp_path: Path) -> None:
    with other_process(tmp_path) as process:
        with pytest.raises(RunError) as caught, locked_directory(tmp_path, "score"):
            pass
        words = str(caught.value)
        assert f"{tmp_path} is in use by process {process.pid} on {platform.node()} (stage train, since 20" in words
        assert {path.name for path in tmp_path.iterdir()} == LOCK_FILES


def test_a_lock_writes_through_no_link(tmp_path: Path) -> None:
    """A run directory of somebody else may hold links in place of the files of the lock."""
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("mine")
    run.mkdir()
    (run / ".lock-owner.json").symlink_to(victim)
    with locked_directory(run, "audit"):
        pass
    (run / ".lock").symlink_to(victim)
    with pytest.raises(RunError, match="is a link to another file"), locked_directory(run, "audit"):
        pass
    assert victim.read_text() == "mine"


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    with other_process(tmp_path) as process:
        process.kill()
        process.wait()
        assert {path.name for path in tmp_path.iterdir()} == LOCK_FILES
        with locked_directory(tmp_path, "score"):
            assert f'"pid": {os.getpid()}' in (tmp_path / ".lock-owner.json").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_without_a_process_refuses_nobody(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".lock-owner.json").write_text('{"pid": 1}')
    with locked_directory(tmp_path, "score"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[" * 9999, '{"pid": "\\u001b[2J"}', None])
def test_a_damaged_owner_file_gives_a_plain_refusal(tmp_path: Path, content: str | None) -> None:
    owner = tmp_path / ".lock-owner.json"
    with other_process(tmp_path):
        owner.unlink()
        if content is not None:
            owner.write_text(content)
        with pytest.raises(RunError, match="is in use by") as caught, locked_directory(tmp_path, "score"):
            pass
        assert str(caught.value).isprintable()


def test_the_process_that_has_the_lock_can_take_it_again(tmp_path: Path) -> None:
    with locked_directory(tmp_path, "run"):
        with locked_directory(tmp_path, "train"):
            pass
        assert '"stage": "run"' in (tmp_path / ".lock-owner.json").read_text()
    with pytest.raises(ZeroDivisionError), locked_directory(tmp_path, "run"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_only_rank_0_takes_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @writes_run
    def stage(run: RunDirectory, value: int) -> tuple[int, bool]:
        return value, (run / ".lock").exists()

    run = RunDirectory.create(tmp_path / "run", load_config("demo"))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert stage(run, value=3) == (3, rank == "0")
    with other_process(run.path):
        assert stage(run, 4) == (4, True)
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(RunError, match="in use"):
            stage(run, 3)


def test_every_stage_that_writes_is_refused(run_copy: Path) -> None:
    commands = [[stage, run_copy] for stage in ("pack", "score", "audit", "report")]
    commands += [["train", run_copy, "--overwrite"], ["run", run_copy / "config.toml", "--out", run_copy, "--resume"]]
    with other_process(run_copy):
        before = tree_digest(run_copy)
        for words in commands:
            assert "is in use by process" in refused(*words)
        assert tree_digest(run_copy) == before
    done("report", run_copy)


def test_a_new_run_keeps_its_lock_from_the_first_file_on(tmp_path: Path) -> None:
    with ExitStack() as hold:
        RunDirectory.create(tmp_path / "run", load_config("demo"), hold=hold)
        assert (tmp_path / "run" / ".lock").exists()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.toml"]
    with other_process(tmp_path / "run", "run"), pytest.raises(RunError, match="in use"):
        RunDirectory.create(tmp_path / "run", load_config("demo", {"seed": "5"}))
    assert RunDirectory.open(tmp_path / "run").config == load_config("demo")


def test_two_processes_do_not_prepare_one_directory(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words and more words. " * 50)
    config = DataConfig(source=f"dir:{tmp_path}", val_fraction=0.5)
    with other_process(tmp_path, "prepare", ".out"):
        with pytest.raises(RunError, match=r"out is in use by process \d+ on .* \(stage prepare"):
            prepare(config, 300, tmp_path / "out")
        assert not (tmp_path / "out").exists()
