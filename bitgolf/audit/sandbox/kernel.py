"""System calls that Python has no function for: a thin layer over the C library, Linux only.

Every function raises OSError with the kernel's reason. `Unavailable` means that this machine does not grant a means of
isolation. `isolation` decides what to use.
"""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 36, 38
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000  # one number on all architectures
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
NOBODY = 65534  # the user and group that own nothing
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
    """Make `source` (a file, or a folder with everything that is mounted in it) appear at `target`, read-only."""
    mount(str(source), target, "", MS_BIND | MS_REC)
    read_only(target)


def read_only(target: Path) -> None:
    """Make a mount and all mounts below it read-only."""
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, 0, 0, 0)
    path, size = os.fsencode(target), ctypes.sizeof(attributes)
    if libc().syscall(_MOUNT_SETATTR, _AT_FDCWD, path, _AT_RECURSIVE, ctypes.byref(attributes), size) == 0:
        return
    for place in (target, *_mounts_below(target)):  # before Linux 5.12
        flags = os.statvfs(place).f_flag
        kept = sum(flag for bit, flag in _KEPT_FLAGS.items() if flags & bit)
        mount("none", place, "", MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def _mounts_below(target: Path) -> list[Path]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    places = [Path(line.split()[4].encode().decode("unicode_escape")) for line in lines]
    return [place for place in places if place != target and place.is_relative_to(target)]


def change_root(root: Path) -> None:
    """Make the mount `root` the root of this process and forget the old one."""
    os.chdir(root)
    check(libc().pivot_root(b".", b"."), f"pivot_root to {root}")
    check(libc().umount2(b".", _MNT_DETACH), "umount of the old root")
    os.chdir("/")


def die_with_parent() -> None:
    """End this process when its parent ends."""
    check(libc().prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "prctl")


def adopt_orphans() -> None:
    """Be the parent of all that this process started, also of those whose own parent has ended."""
    check(libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def no_new_privileges() -> None:
    """Nothing that this process starts may gain privileges; Landlock and seccomp require this."""
    check(libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def become_nobody() -> None:
    """Be the user that owns nothing; only root can. Ends the wish to die with the parent: ask again."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    check(libc().prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")  # /proc/self stays readable


def drop_bounding_set() -> None:
    """Nothing that this process starts can have a capability."""
    capability = 0
    while libc().prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1


def drop_capabilities() -> None:
    """Give up every capability permanently."""
    drop_bounding_set()
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    check(libc().capset(ctypes.byref(header), ctypes.byref(nothing)), "capset")
    no_new_privileges()
