"""What coder and decoder must share for equal arithmetic, and the settings that make arithmetic reproducible.

Floating-point sums depend on the kernels, which depend on the release of PyTorch, the processor and the number of
threads. Coder and decoder run the same operations on the same shapes. With the same fingerprint, the same number of
threads and deterministic kernels they get the same bits. The number of threads is not part of the fingerprint, because
the decoder uses the number that the file names.

Earlier files are decoded with their own arithmetic. Files of format version 1 took the steps of small models in PyTorch
on a CPU. Files coded on CUDA before the fingerprint had "steps" attended to a whole window in every step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bitgolf.errors import ConfigError
from bitgolf.model.build import compute_dtype
from bitgolf.model.small_step import blas_name, one_blas_thread
from bitgolf.run.ranks import device_name
from bitgolf.version import __version__


def fingerprint(device: torch.device) -> dict[str, str]:
    """The versions and hardware that arithmetic on `device` depends on, as far as they can be determined."""
    platform = {
        "bitgolf": __version__,
        "torch": torch.__version__,
        "device": device_name(device),
        "dtype": str(compute_dtype(device)).removeprefix("torch."),
    }
    if device.type == "cuda":
        platform["cudnn"] = str(torch.backends.cudnn.version())
        platform["steps"] = "2"  # recorded steps of `model.cached_steps`
    else:
        platform["blas"] = blas_name()
        platform["simd"] = torch.backends.cpu.get_cpu_capability()
    return platform


def describe(platform: dict[str, str]) -> str:
    """A fingerprint in one line, such as "bitgolf 0.1.0, torch 2.13.0+cpu, device ..."."""
    return ", ".join(f"{key} {value}" for key, value in platform.items())


@contextmanager
def exact_arithmetic(device: torch.device, threads: int) -> Iterator[None]:
    """Inside the block PyTorch uses `threads` threads, full float32 products, and on CUDA only deterministic kernels.
    NumPy multiplies with one thread.

    Raises ConfigError when an operation has no deterministic kernel, when cuBLAS has no workspace setting that makes it
    deterministic, and when the device's memory is too small.
    """
    before_threads, before_precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # a module with a property
    before_fill = memory.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # one kernel per tensor, for memory that is never read
    try:
        with one_blas_thread():
            yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{device} has too little memory for this number of streams: code with fewer (--streams), or decode on a "
            "device with as much memory as the coder's"
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
