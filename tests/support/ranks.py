"""Ranks as forked processes. They start in milliseconds; the start by torchrun takes about six seconds of CPU time.

One server process per session has loaded PyTorch and this package, and forks the ranks. (PyTorch computes no gradients
in a process that was forked from one that did, as the process of the tests has.) test_world_size.py tests torchrun.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import patch

import torch
from tiny_gpt import free_port

from bitgolf.bundle import single_file
from bitgolf.cli import main

_TIMEOUT_SECONDS = 200
_LOADED = [
    "bitgolf.audit.run", "bitgolf.commands.run", "bitgolf.commands.train", "bitgolf.evaluate.score",
    "bitgolf.plan.check", "bitgolf.quantize.pack", "bitgolf.report.report", "bitgolf.train.attended", "torch._dynamo",
]  # fmt: skip
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def forked(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Start function(*arguments) in a new process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LOADED)
    with patch.dict(os.environ, _ONE_THREAD | {"PYTHONPATH": str(single_file.installed_root())}):
        forkserver.ensure_running()
    process = context.Process(target=_with_one_thread, args=(function, *arguments))
    process.start()
    return process


def _with_one_thread(function: Callable[..., Any], *arguments: Any) -> None:
    Thread(target=_end_with_the_tests, daemon=True).start()
    torch.set_num_threads(1)
    sys.exit(function(*arguments))


def _end_with_the_tests() -> None:
    tests = multiprocessing.parent_process()
    assert tests is not None
    tests.join()
    os._exit(1)


def start_command(*words: str | Path) -> BaseProcess:
    """Start `bitgolf WORDS` in a new process."""
    return forked(_with_code, _code(), command, *words)


def fork(ranks: int, function: Callable[..., Any], *arguments: Any) -> list[int | None]:
    """Call function(rank, *arguments) in `ranks` processes. Returns their exit statuses."""
    processes = [forked(function, rank, *arguments) for rank in range(ranks)]
    for process in processes:
        process.join(_TIMEOUT_SECONDS)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def run_ranks(
    folder: Path, function: Callable[..., Any], *arguments: Any, ranks: int = 2
) -> tuple[list[int | None], str, str]:
    """Call function(*arguments) on each of `ranks` ranks, which find one another as those of torchrun do.

    Returns the exit statuses, and the output of all ranks, which goes through files in `folder`.
    """
    folder.mkdir()
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    statuses = fork(ranks, _on_rank, world, folder, _code(), function, *arguments)
    out, err = ("".join((folder / f"{rank}.{name}").read_text() for rank in range(ranks)) for name in ("out", "err"))
    return statuses, out, err


def _on_rank(
    rank: int, world: dict[str, str], folder: Path, code: Any, function: Callable[..., Any], *arguments: Any
) -> Any:
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        os.dup2(os.open(folder / f"{rank}.{name}", os.O_CREAT | os.O_WRONLY), stream.fileno())
    os.environ |= world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    return _with_code(code, function, *arguments)


def _code() -> Any:
    """The sections of the single-file program, which take seconds to make."""
    return single_file._program(single_file.installed_root())


def _with_code(code: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    single_file._program = lambda root: code
    return function(*arguments)


def command(*words: str | Path) -> int:
    """`bitgolf WORDS`."""
    return main([str(word) for word in words])
