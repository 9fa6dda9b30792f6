"""The ranks: one process per device, and the collective operations that the stages need.

`torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK, and only this module reads them. The backend is NCCL on GPUs and gloo
on CPUs. With one process every collective operation returns its input, so the stages need no second code path.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from bitgolf.errors import ConfigError

_TIMEOUT = timedelta(hours=2)  # rank 0 prepares a large corpus while the other ranks wait


@dataclass(frozen=True)
class World:
    """This process and the number of all processes."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on rank 0, the only rank that prints and writes."""
        return self.rank == 0

    def mean_(self, tensors: list[Tensor]) -> None:
        """Average every tensor over the ranks, in place, with one all-reduce per dtype."""
        if self.size == 1:
            return
        for dtype in dict.fromkeys(t.dtype for t in tensors):  # the same order on every rank
            group = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in group])
            dist.all_reduce(flat)
            flat.div_(self.size)
            for tensor, piece in zip(group, flat.split([t.numel() for t in group]), strict=True):
                tensor.copy_(piece.view_as(tensor))

    def from_main(self, value: float) -> float:
        if self.size == 1:
            return value
        box = torch.tensor([value], dtype=sums_dtype(self.device), device=self.device)
        dist.broadcast(box, src=0)
        return float(box.item())

    def synchronize(self) -> None:
        """Wait until this rank's device has finished all queued work. Call it before reading a clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def is_main_process() -> bool:
    """Whether this process is rank 0, the only one that prints and writes. True without torchrun."""
    return os.environ.get("RANK", "0") == "0"


def choose_device(requested: str, local_rank: int = 0) -> torch.device:
    """The device of this local rank. `auto` is its CUDA device, or the CPU if there is no CUDA device.

    Raises ConfigError if CUDA is requested and there is no device, or if there are fewer devices than local ranks.
    """
    if requested == "cpu" or (requested == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if requested == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigError("device is 'mps', but PyTorch finds no Apple GPU; use --device cpu or auto")
        return torch.device("mps")
    if not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but PyTorch finds no CUDA device; use --device cpu or auto")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {local_rank} has no GPU: {torch.cuda.device_count()} found; start torchrun "
            f"with --nproc_per_node={torch.cuda.device_count()} or fewer"
        )
    return torch.device("cuda", local_rank)


def has_bf16(device: torch.device) -> bool:
    """Whether the device is a GPU with bf16 of its own: NVIDIA from Ampere on, and AMD's that PyTorch supports.

    GPUs of other machines, which `bitgolf plan` predicts for, count as such.
    """
    if device.type != "cuda":
        return False
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def sums_dtype(device: torch.device) -> torch.dtype:
    """fp64, or fp32 on Apple GPUs, which have no fp64."""
    return torch.float32 if device.type == "mps" else torch.float64


def device_name(device: torch.device) -> str:
    """The name of the hardware: the GPU's name, or the CPU's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def world(requested_device: str) -> Iterator[World]:
    """Join the process group that torchrun started, for the length of the block. Without torchrun: one process."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = choose_device(requested_device, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    started_here = size > 1 and not dist.is_initialized()
    if started_here:
        if device.type == "cuda":
            dist.init_process_group("nccl", device_id=device, timeout=_TIMEOUT)
        else:
            dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield World(rank, size, device)
    finally:
        if started_here:
            dist.destroy_process_group()
