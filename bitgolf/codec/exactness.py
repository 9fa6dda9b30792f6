"""What two sides must share for equal arithmetic, and how to ask for it.

Floating-point sums depend on the kernels: the release of PyTorch, the processor it chose them for, the number of
threads. Encoder and decoder run the same program on the same shapes; with the same fingerprint, threads and
deterministic kernels they get the same bits. Threads are no part of the fingerprint: the decoder takes as many as the
encoder had.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bitgolf.errors import ConfigError
from bitgolf.model.build import compute_dtype
from bitgolf.run.ranks import device_name
from bitgolf.version import __version__


def fingerprint(device: torch.device) -> dict[str, str]:
    """What arithmetic on `device` depends on, as far as it can be told."""
    found = {
        "bitgolf": __version__,
        "torch": torch.__version__,
        "device": device_name(device),
        "dtype": str(compute_dtype(device)).removeprefix("torch."),
    }
    if device.type == "cuda":
        found["cudnn"] = str(torch.backends.cudnn.version())
    else:
        found["simd"] = torch.backends.cpu.get_cpu_capability()
    return found


def describe(platform: dict[str, str]) -> str:
    """A fingerprint in one line, such as "bitgolf 0.1.0, torch 2.13.0+cpu, device ..."."""
    return ", ".join(f"{key} {value}" for key, value in platform.items())


@contextmanager
def exact_arithmetic(device: torch.device, threads: int) -> Iterator[None]:
    """Inside the block: this many threads, full float32 products, and only deterministic kernels on CUDA.

    Raises ConfigError when an operation has no deterministic kernel, when cuBLAS was not told to use its own, and when
    the device's memory is too small.
    """
    before_threads, before_precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # a module with a property
    before_fill = memory.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # a kernel a tensor, and nothing reads such memory
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{device} has too little memory for these streams side by side: code with fewer (--streams), decode where "
            "there is as much memory"
        ) from error
    except RuntimeError as error:
        if "determinis" not in str(error):
            raise
        raise ConfigError(f"exact coding on {device} is not possible: {error}") from error
    finally:
        torch.set_num_threads(before_threads)
        torch.set_float32_matmul_precision(before_precision)
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = before_fill
