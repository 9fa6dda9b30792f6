"""The strongest isolation: namespaces of the process's own, in which only the files that it may see exist.

There is a mount namespace, whose root has the libraries (with everything mounted in them, all read-only), a few devices
and one writable folder, which is in memory and limited in size; a network namespace without a network; and PID, IPC and
host name namespaces. Files below a visible folder that must not be seen are covered by an empty folder. A user without
privileges gets them in a user namespace. Root makes them without one and then becomes the user `nobody`, because a
file's owner may change it whatever the capabilities. All capabilities are given up before a library is loaded.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bitgolf.audit.sandbox import kernel

# CLONE_NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET
_NAMESPACES = 0x20000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000
_USER_NAMESPACE = 0x10000000
_DEVICES = ("null", "zero", "full", "random", "urandom")
_WORK_BYTES = 1 << 30  # that the process may write into its folder


@dataclass(frozen=True)
class View:
    """What a sealed process is shown: `visible` folders and files to read, one `writable` folder to work in, and what
    must be `hidden` even where it lies below a visible folder. Absolute paths."""

    visible: tuple[Path, ...]
    writable: Path
    hidden: tuple[Path, ...]


def enter(view: View) -> None:
    """Continue in a new, isolated process; the calling one waits for it and ends with its exit status.

    Must be called while the process has one thread. Raises Unavailable, in the calling process, when the kernel
    refuses any part of it; nothing has changed then.
    """
    kernel.libc()
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        with os.fdopen(read) as reader:
            refused = reader.read()
        if refused:
            os.waitpid(child, 0)
            raise kernel.Unavailable(refused)
        _end_like(child)
    os.close(read)
    try:
        kernel.die_with_parent()
        root = _new_namespaces()
        first = os.fork()  # the first process of the new PID namespace
        if first:
            os.close(write)
            _give_up_privileges(root)
            _end_like(first)
        kernel.die_with_parent()
        _build_root(view)
        if root:
            _give_to_nobody(view.writable)
        _give_up_privileges(root)
    except OSError as error:
        os.write(write, str(error).encode())
        os._exit(1)
    os.close(write)


def _end_like(child: int) -> None:
    """Wait for a process and end with its exit status."""
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _give_up_privileges(root: bool) -> None:
    kernel.drop_bounding_set()
    if root:
        kernel.become_nobody()
    kernel.drop_capabilities()
    kernel.die_with_parent()


def _give_to_nobody(folder: Path) -> None:
    for path in (folder, *folder.iterdir()):
        os.chown(path, kernel.NOBODY, kernel.NOBODY)


def _new_namespaces() -> bool:
    """Enter the namespaces. Returns whether this process is still root of the system and has to become another user."""
    if os.geteuid() == 0:
        try:
            kernel.unshare(_NAMESPACES)
            return True
        except PermissionError:  # root of a container without the right to mount
            kernel.become_nobody()
            kernel.die_with_parent()
    user, group = os.getuid(), os.getgid()
    kernel.unshare(_NAMESPACES | _USER_NAMESPACE)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path("/proc/self", name).write_text(text)
    return False


def _build_root(view: View) -> None:
    """Mount a root that shows `view`, and make it the root of this process."""
    root = view.writable / "root"
    root.mkdir()
    kernel.mount("none", Path("/"), "", kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=16m")
    for folder in ("proc", "dev/shm", "tmp"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    kernel.mount("tmpfs", root / "tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=256m,mode=1777")
    _mount_proc(root / "proc")
    kernel.mount("tmpfs", root / "dev" / "shm", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1g,mode=1777")
    for path in _outermost(view.visible):  # a checkout or an environment may lie in /tmp
        _show(path, root)
    for path in devices():
        _bind(path, root)
    for path in view.hidden:
        if any(path.is_relative_to(outer) for outer in view.visible):
            _cover(root / path.relative_to("/"))
    _copy_in_memory(view.writable, root)
    read_only = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY
    kernel.mount("none", root, "", read_only | kernel.MS_NOSUID | kernel.MS_NODEV)
    kernel.change_root(root)
    os.chdir(view.writable)


def devices() -> list[Path]:
    """Devices that a process needs: sources of nothing and of randomness, and GPUs."""
    return [Path("/dev", name) for name in _DEVICES] + sorted(Path("/dev").glob("nvidia*"))


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Those that are not below another one."""
    outermost: list[Path] = []
    for path in sorted(set(paths)):
        if path != Path("/") and not any(path.is_relative_to(outer) for outer in outermost):
            outermost.append(path)
    return outermost


def _show(path: Path, root: Path) -> None:
    """Make `path` appear below `root`, read-only; a symbolic link (/lib -> usr/lib) stays one."""
    target = root / path.relative_to("/")
    if path.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.readlink())
    else:
        kernel.bind_read_only(path, _mount_point(path, target))


def _bind(path: Path, root: Path) -> None:
    """Make `path` appear below `root` as it is."""
    target = _mount_point(path, root / path.relative_to("/"))
    kernel.mount(str(path), target, "", kernel.MS_BIND | kernel.MS_REC)


def _copy_in_memory(folder: Path, root: Path) -> None:
    """Make a copy of `folder` appear below `root`, in memory: what is written there ends with the process."""
    target = _mount_point(folder, root / folder.relative_to("/"))
    files = [path for path in folder.iterdir() if path.is_file()]
    size = _WORK_BYTES + sum(path.stat().st_size for path in files)
    kernel.mount("tmpfs", target, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, f"size={size},mode=700")
    for path in files:
        shutil.copyfile(path, target / path.name)
    (target / "tmp").mkdir()


def _mount_point(path: Path, target: Path) -> Path:
    if path.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    return target


def _cover(target: Path) -> None:
    """Hide what is at `target`, if anything is."""
    if target.is_dir():
        kernel.mount("tmpfs", target, "tmpfs", kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV, "size=4k")
    elif target.exists():
        kernel.mount("/dev/null", target, "", kernel.MS_BIND)


def _mount_proc(target: Path) -> None:
    """The processes of this PID namespace, read-only.

    Where a container forbids a new /proc, the existing one is shown. The files of other processes stay closed, for they
    belong to another user namespace.
    """
    try:
        flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC | kernel.MS_RDONLY
        kernel.mount("proc", target, "proc", flags)
    except PermissionError:
        kernel.mount("/proc", target, "", kernel.MS_BIND | kernel.MS_REC)
        kernel.read_only(target)
