"""How processes end: ranks of torchrun with their status and output, and any process that a signal ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TEARDOWN = """
import atexit, runpy, sys
atexit.register(print, "torn down")
sys.argv[1:] = {words}
runpy.run_module("bitgolf", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("ranks", "words", "status", "torn_down"),
    [("1", ["presets"], 0, True), ("2", ["presets"], 0, False), ("2", ["audit", "/no/such/run"], 2, True)],
)
def test_a_rank_that_is_done_skips_the_teardown(ranks: str, words: list[str], status: int, torn_down: bool) -> None:
    environment = os.environ | {"WORLD_SIZE": ranks, "RANK": "0"}
    command = [sys.executable, "-c", TEARDOWN.format(words=words)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == status, result.stderr
    assert "seed-693" in result.stdout or "error:" in result.stderr
    assert ("torn down" in result.stdout) == torn_down


WRITING = """
import argparse, os
from bitgolf import cli
from bitgolf.run import atomic
def work(arguments, out):
    with atomic.atomic_path("product") as temporary:
        os.kill(os.getpid(), {number})
        temporary.write_text("whole")
    return 0
cli.parse = lambda argv: argparse.Namespace(run_command=work)
raise SystemExit(cli.main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_with_one_line_and_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", WRITING.format(number=int(number))]
    for ignored in {False, number == signal.SIGHUP}:  # as `nohup` does
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
            preexec_fn=lambda ignored=ignored: signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL),
        )  # fmt: skip
        assert result.returncode == (0 if ignored else 128 + number), result.stderr
        assert [path.name for path in tmp_path.iterdir()] == (["product"] if ignored else [])
        assert result.stderr.count("\n") == (not ignored)
