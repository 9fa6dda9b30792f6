"""Limits of a sealed process: processes, memory, files, CPU time, wall clock.

The kernel enforces all but the wall clock and the memory of all processes together, which the auditor watches
(`client`). The defaults are several times what an honest evaluation needs; options of `bitgolf audit` change them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

WALL_SECONDS = 3600.0
_GIB = 1 << 30
_PER_THREAD_BYTES = 160 << 20  # a stack, and what malloc reserves for a thread


@dataclass(frozen=True)
class Limits:
    """None = no limit."""

    processes: int  # processes and threads together
    address_space_bytes: int | None  # None on a GPU, whose driver maps all memory of the device
    file_bytes: int  # the largest file that it may write
    cpu_seconds: int  # of all its threads
    wall_seconds: float  # from the start to the last answer

    @classmethod
    def of(
        cls,
        artifact_bytes: int,
        num_threads: int,
        on_gpu: bool,
        wall_seconds: float | None = None,
        memory_gib: float | None = None,
        processes: int | None = None,
        file_mib: float | None = None,
    ) -> Limits:
        """The limits for an artifact of this size. What is given replaces a default; `memory_gib` that of the address
        space."""
        wall_seconds = WALL_SECONDS if wall_seconds is None else wall_seconds
        space: int | None = 8 * _GIB + 64 * artifact_bytes + _PER_THREAD_BYTES * num_threads
        if memory_gib is not None:
            space = int(memory_gib * _GIB)
        elif on_gpu:
            space = None
        return cls(
            processes=processes or 128 + 4 * max(os.cpu_count() or 1, num_threads),
            address_space_bytes=space,
            file_bytes=int((256 if file_mib is None else file_mib) * (1 << 20)),
            cpu_seconds=int(wall_seconds * max(1, num_threads)) + 60,
            wall_seconds=wall_seconds,
        )


def apply(limits: Mapping[str, float | None]) -> None:
    """Limit this process and all that it starts. `limits` are the fields of `Limits`.

    Windows has no such limits, and no isolation, which the check then says.
    """
    try:
        import resource
    except ImportError:
        return
    kinds = {
        "processes": resource.RLIMIT_NPROC,
        "address_space_bytes": resource.RLIMIT_AS,
        "file_bytes": resource.RLIMIT_FSIZE,
        "cpu_seconds": resource.RLIMIT_CPU,
    }
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, kind in kinds.items():
        if (value := limits.get(name)) is not None:
            _, hard = resource.getrlimit(kind)
            most = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
            resource.setrlimit(kind, (most, most))


def resident_bytes(pid: int) -> dict[int, int]:
    """Memory of a process and of each that it started, by id, on Linux. What processes share counts for each."""
    children: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()  # from the third field on, see proc(5)
        except OSError:  # has ended
            continue
        children.setdefault(int(fields[1]), []).append(int(folder.name))
        sizes[int(folder.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return {member: sizes.get(member, 0) for member in family}
