"""System calls that Python has no function for: a thin layer over the C library, Linux only.

Every function raises OSError with the kernel's reason. `Unavailable` means that this machine does not grant a means of
isolation. `isolation` decides what to use.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522
_SIGKILL = 9
# Flags of statvfs that a remount in a user namespace must repeat, and their mount flags (noatime, nodiratime and
# relatime differ between the two).
_KEPT_FLAGS = {2: MS_NOSUID, 4: MS_NODEV, 8: MS_NOEXEC, 1024: 1024, 2048: 2048, 4096: 1 << 21}


class Unavailable(Exception):
    """A means of isolation that this system does not offer, and why."""


@cache
def libc() -> ctypes.CDLL:
    """The C library of this process. Raises Unavailable on systems other than Linux."""
    if not sys.platform.startswith("linux"):
        raise Unavailable(f"{sys.platform} has none of Linux's means of isolation")
    return ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    """`result` of a C call, or OSError when it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Move this process (its children, for a PID namespace) into new namespaces."""
    check(libc().unshare(flags), "unshare")


def mount(source: str, target: Path, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    result = libc().mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode())
    check(result, f"mount of {source} on {target}")


def bind_read_only(source: Path, target: Path) -> None:
    """Make `source` (a folder with all that is mounted in it, or a file) appear at `target`, read-only at its top."""
    mount(str(source), target, "", MS_BIND | MS_REC)
    found = os.statvfs(target).f_flag
    kept = sum(flag for bit, flag in _KEPT_FLAGS.items() if found & bit)
    mount("none", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def change_root(root: Path) -> None:
    """Make the mount `root` the root of this process and forget the old one."""
    os.chdir(root)
    check(libc().pivot_root(b".", b"."), f"pivot_root to {root}")
    check(libc().umount2(b".", _MNT_DETACH), "umount of the old root")
    os.chdir("/")


def die_with_parent() -> None:
    """End this process when its parent ends."""
    check(libc().prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "prctl")


def no_new_privileges() -> None:
    """Nothing that this process starts may gain privileges; Landlock and seccomp require this."""
    check(libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def drop_capabilities() -> None:
    """Give up every capability permanently."""
    capability = 0
    while libc().prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    check(libc().capset(ctypes.byref(header), ctypes.byref(nothing)), "capset")
    no_new_privileges()
