"""Seccomp filters: system calls that are refused from now on, in every thread.

`refuse_network` refuses sockets, keyrings, mounts and access to other processes. `refuse_files` closes the file system
before validation tokens are sent: no file can be opened, by whatever path, by Python or by native code, and no program
can be started. Descriptors that are open already (pipes, the GPU) go on working. A refused call fails with EACCES,
which Python reports as PermissionError. Source: seccomp(2); numbers from the kernel's tables for x86-64 and for arm64
(asm-generic).
"""

import ctypes
import errno
import os
import platform
import stat
from collections.abc import Iterable
from pathlib import Path

from bitgolf.audit.sandbox import kernel

# name: (x86-64, arm64); None where the architecture has no such call.
_NUMBERS: dict[str, tuple[int, int | None]] = {
    "open": (2, None),
    "creat": (85, None),
    "openat": (257, 56),
    "openat2": (437, 437),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "execve": (59, 221),
    "execveat": (322, 281),
    "io_uring_setup": (425, 425),
    "memfd_secret": (447, 447),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "shmget": (29, 194),
    "mq_open": (240, 180),
    "bpf": (321, 280),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "semget": (64, 190),
    "msgget": (68, 186),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "clone": (56, 220),
    "clone3": (435, 435),
    "prctl": (157, 167),
}
_NETWORK = (
    "socket", "socketpair", "connect", "bind", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd",
    "shmget", "semget", "msgget", "mq_open", "io_uring_setup", "bpf", "perf_event_open", "userfaultfd",
    "add_key", "request_key", "keyctl",  # the auditor's keyrings are inherited, and belong to no namespace
    "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fspick", "mount_setattr",
    "unshare", "setns",
)  # fmt: skip
_FILES = ("open", "creat", "openat", "openat2", "open_by_handle_at", "open_tree", "execve", "execveat", "memfd_secret")
_MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}  # column, AUDIT_ARCH, seccomp(2)
_SET_FILTER, _ALL_THREADS = 1, 1
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _UNKNOWN = 0x7FFF0000, 0x00050000 | errno.EACCES, 0x00050000 | errno.ENOSYS
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in what a filter reads
_NEW_NAMESPACES = 0x7E020000  # flags of clone
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_X32 = 0x40000000  # calls of the x32 interface of x86-64 kernels


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction))]


def refuse_network() -> None:
    """No sockets, shared memory, keyrings, mounts, namespaces or access to other processes, and no process that lives
    on when its parent ends.

    Raises Unavailable when the kernel has no such filters.
    """
    _refuse(_NETWORK)


def refuse_files() -> None:
    """No file is opened and no program started any more. Raises Unavailable when the kernel has no such filters."""
    _refuse(_FILES)


def _refuse(names: Iterable[str]) -> None:
    machine = platform.machine()
    if machine not in _MACHINES:
        raise kernel.Unavailable(f"no table of system calls for {machine}")
    column, architecture, seccomp = _MACHINES[machine]
    numbers = [number for name in names if (number := _NUMBERS[name][column]) is not None]
    clone, clone3, prctl = (_NUMBERS[name][column] or 0 for name in ("clone", "clone3", "prctl"))
    steps = _program(numbers, architecture, clone, clone3, prctl)
    program = _Program(len(steps), (_Instruction * len(steps))(*(_Instruction(*step) for step in steps)))
    try:
        kernel.no_new_privileges()
        failed = kernel.check(
            kernel.libc().syscall(seccomp, _SET_FILTER, _ALL_THREADS, ctypes.byref(program)), "seccomp"
        )
    except OSError as error:
        raise kernel.Unavailable(str(error)) from error
    if failed:
        raise kernel.Unavailable(f"seccomp: thread {failed} could not be brought under the filter")


def _program(
    numbers: list[int], architecture: int, clone: int, clone3: int, prctl: int
) -> list[tuple[int, int, int, int]]:
    """The filter as steps (code, jump if true, jump if false, value).

    It refuses `numbers` and foreign interfaces; new namespaces by `clone` (the C library takes it where `clone3`, whose
    flags a filter cannot read, is unknown); and `prctl` where it lets a process survive its parent.
    """
    tests = [(_AT_LEAST, _X32), *((_EQUAL, number) for number in numbers)]
    tail = [
        (_EQUAL, 0, 1, clone3), (_RETURN, 0, 0, _UNKNOWN),
        (_EQUAL, 0, 3, clone), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 7, 0, _NEW_NAMESPACES),
        (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, 4, prctl), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_EQUAL, 3, 0, _PR_SET_PDEATHSIG),
        (_EQUAL, 2, 0, _PR_SET_CHILD_SUBREAPER), (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]  # fmt: skip
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for index, (code, value) in enumerate(tests):
        steps.append((code, len(tests) - index - 1 + len(tail) - 1, 0, value))  # to the last step
    return [*steps, *tail]


def open_files() -> list[str]:
    """Regular files that this process has open for reading, by name; those that are deleted are left out."""
    import fcntl  # not on Windows

    files = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            about = os.fstat(int(entry.name))
            readable = fcntl.fcntl(int(entry.name), fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY
        except OSError:  # the descriptor of the listing itself
            continue
        if stat.S_ISREG(about.st_mode) and about.st_nlink and readable:
            files.append(str(entry.readlink()))
    return sorted(files)
