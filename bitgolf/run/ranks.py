"""One process a device: who am I, how many are we, and the few collectives the stages need.

`torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK; this is the only module that reads them. NCCL on GPUs, gloo on
CPUs. With one process every collective is the identity, so the stages have a single code path.
"""

from __future__ import annotations

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

_TIMEOUT = timedelta(hours=2)  # the other ranks wait while rank 0 prepares a large corpus


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one rank that prints and writes."""
        return self.rank == 0

    def mean_(self, tensors: list[Tensor]) -> None:
        """Average every tensor over the ranks, in place, in one collective a dtype."""
        if self.size == 1:
            return
        for dtype in dict.fromkeys(t.dtype for t in tensors):  # in one order on every rank
            group = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in group])
            dist.all_reduce(flat)
            flat.div_(self.size)
            for tensor, piece in zip(group, flat.split([t.numel() for t in group]), strict=True):
                tensor.copy_(piece.view_as(tensor))

    def gather_slices(self, mine: Tensor) -> Tensor:
        """Concatenate each rank's (n, ...) slice along the first axis, in rank order."""
        if self.size == 1:
            return mine
        slices = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(slices, mine.contiguous())
        return torch.cat(slices)

    def from_main(self, value: float) -> float:
        """The value that rank 0 holds."""
        if self.size == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(box, src=0)
        return float(box.item())

    def synchronize(self) -> None:
        """Wait until this rank's device has done all work queued so far, so that a clock tells the truth."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()


def choose_device(requested: str, local_rank: int = 0) -> torch.device:
    """`auto` is the CUDA device of this local rank when there is one, else the CPU.

    Raises ConfigError when CUDA is asked for and absent, or has fewer devices than local ranks.
    """
    if requested == "cpu" or (requested == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device = 'cuda' but PyTorch finds no CUDA device; use --device cpu or auto")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {local_rank} has no GPU: {torch.cuda.device_count()} found; start torchrun "
            f"with --nproc_per_node={torch.cuda.device_count()} or fewer"
        )
    return torch.device("cuda", local_rank)


def device_name(device: torch.device) -> str:
    """What the hardware calls itself: the GPU's name, or the CPU's model."""
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
    """Join the processes that torchrun started (or be alone) for the length of the block."""
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
