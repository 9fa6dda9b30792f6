"""How a rank of torchrun ends: with the status of its command, its output complete, and without Python's teardown."""

from __future__ import annotations

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


@pytest.mark.parametrize(("ranks", "torn_down"), [("1", True), ("2", False)])
def test_a_rank_skips_the_teardown_but_keeps_its_status(ranks: str, torn_down: bool) -> None:
    environment = os.environ | {"WORLD_SIZE": ranks, "RANK": "0"}
    command = [sys.executable, "-c", TEARDOWN.format(words=["audit", "/no/such/run"])]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (result.returncode, "error:" in result.stderr) == (2, True), result.stderr
    assert ("torn down" in result.stdout) == torn_down
