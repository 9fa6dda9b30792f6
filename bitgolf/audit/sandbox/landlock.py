"""Isolation for systems that grant no namespaces: Landlock, which any process may apply to itself.

Files outside the given folders cannot be opened, by the process or anything that it starts. TCP (from Linux 6.7) and
signals and abstract sockets to other processes (from 6.12) are refused too. Names of files can still be listed, and
nothing below a readable folder can be hidden. Source: the kernel's userspace-api/landlock documentation; system call
numbers are the same on all architectures.
"""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from bitgolf.audit.sandbox import kernel

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_READ = _EXECUTE | _READ_FILE | _READ_DIR
# Rights that exist from each version on: thirteen at first, then moving between folders, then truncating. The fifth
# version's right, device control, is left alone: a GPU needs it.
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14
_TCP_SINCE, _SCOPES_SINCE = 4, 6


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def abi_version() -> int:
    """Landlock's version in the running kernel. Raises Unavailable when it has none."""
    version = int(kernel.libc().syscall(_CREATE_RULESET, None, 0, _VERSION))
    if version < 1:
        raise kernel.Unavailable(f"Landlock: {os.strerror(ctypes.get_errno())}")
    return version


def enter(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """From now on open only what is in `readable` (to read) and `writable`. Raises Unavailable without Landlock."""
    version = abi_version()
    rights = _RIGHTS[min(version, max(_RIGHTS))]
    net = 0b11 if version >= _TCP_SINCE else 0
    scoped = 0b11 if version >= _SCOPES_SINCE else 0
    attributes = _Ruleset(rights, net, scoped)
    size = 24 if version >= _SCOPES_SINCE else 16 if version >= _TCP_SINCE else 8
    ruleset = kernel.check(
        kernel.libc().syscall(_CREATE_RULESET, ctypes.byref(attributes), size, 0), "landlock_create_ruleset"
    )
    try:
        for paths, allowed in ((readable, _READ), (writable, rights)):
            for path in paths:
                _allow(ruleset, path, allowed & rights)
        kernel.no_new_privileges()
        kernel.check(kernel.libc().syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    if not path.exists():
        return
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _PathBeneath(rights if path.is_dir() else rights & _OF_FILES, parent)
        kernel.check(
            kernel.libc().syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0),
            f"landlock_add_rule for {path}",
        )
    finally:
        os.close(parent)
