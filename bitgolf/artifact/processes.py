"""Processes that code the matrices of a large model side by side.

The entropy coder is NumPy and constriction called from Python. Threads wait for each other's interpreter lock: on 16
cores a file of 36 million weights took 19 s with one thread per stream. The processes import neither PyTorch nor CUDA.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from bitgolf.artifact.entropy_coder import Map, encode_matrices
from bitgolf.run.workers import end_with_parent, interrupts_blocked

log = logging.getLogger(__name__)

_LEAST_WEIGHTS = 1 << 23  # a smaller model is coded before the processes have started
_MOST_PROCESSES = 16


@contextmanager
def coder_processes(num_weights: int) -> Iterator[Map]:
    """`map`, or for a large model the same with the work divided among processes, until the context ends."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_weights < _LEAST_WEIGHTS or cores < 3:
        yield map
        return
    count = min(cores, _MOST_PROCESSES)
    with interrupts_blocked():
        pool = ProcessPoolExecutor(count, get_context("spawn"), end_with_parent)
    with pool:
        with interrupts_blocked():
            for _ in range(count):
                pool.submit(encode_matrices, [])  # starts a process, which imports the coder now

        def apply(work: Callable[[Any], Any], values: Iterable[Any]) -> Iterable[Any]:
            values = list(values)
            try:
                return list(pool.map(work, values))
            except BrokenProcessPool as error:
                log.warning("the processes of the entropy coder failed (%s); it goes on in this process", error)
                return map(work, values)

        yield apply
