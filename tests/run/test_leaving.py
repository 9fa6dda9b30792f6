"""How a rank of torchrun ends: with its status and its whole output, and without a teardown if all went well."""

import os
import subprocess
import sys

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
