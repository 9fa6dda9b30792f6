"""How a sealed evaluation is isolated, and tests from the inside of whether the isolation works.

`enter` applies the strongest means that the system grants: namespaces, else Landlock and no sockets, else none.
`Isolation.close_files` then closes the file system permanently. After each, the process attempts what must not work:
to open the run's files, to reach a network, to open a library. Files that Python code tries to open after the closing
are recorded by name, even when the code suppresses the error.
"""

import os
import socket
import stat
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bitgolf.audit.sandbox import kernel, landlock, namespaces, process_limits, system_calls

_FILES_OF_THE_SYSTEM = (Path("/dev"), Path("/proc"), Path("/sys"))
_NOTED = ("open", "socket.__new__", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "ctypes.dlopen")
_MOST_NOTES = 20
_FAMILIES = 46  # AF_MAX of Linux
# Files by which a process could act outside its isolation.
_CONTROLS = (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger",
    "/proc/sys/vm/drop_caches", "/sys/kernel/uevent_helper", "/sys/power/state", "/sys/fs/cgroup/release_agent",
    "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/release_agent", "/sys/fs/cgroup/pids/release_agent",
    "/sys/fs/cgroup/systemd/release_agent", "/sys/fs/cgroup/unified/cgroup.procs", "/etc/passwd", os.__file__,
)  # fmt: skip


@dataclass
class Isolation:
    """What isolates this process, as plain values for the audit's evidence."""

    files: str = ""  # what keeps other files out of reach: "namespaces", "landlock" or "" (nothing)
    network: bool = False  # whether there is none to be reached: no route, and no family of sockets
    closed: bool = False  # whether the kernel refuses to open any file any more
    user: int = -1  # id of the user that it runs as
    reachable: list[str] = field(default_factory=list)  # files that must not be readable, and are
    writable: list[str] = field(default_factory=list)  # files and folders that must not be writable, and are
    # the files that it tried to read and to write, and the families of sockets that it tried
    probed: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)  # the limits that it runs under
    still_open: list[str] = field(default_factory=list)  # regular files whose descriptors were open at the closing
    # means of isolation that the system does not grant, with the reason
    refused: list[str] = field(default_factory=list)
    # what Python code tried to open or start after the closing, libraries and devices left out
    attempts: list[str] = field(default_factory=list)
    _libraries: tuple[Path, ...] = ()

    def close_files(self) -> None:
        """Refuse to open files from now on, in all threads, and see that it works."""
        self.still_open = system_calls.open_files() if sys.platform.startswith("linux") else []
        libraries = [path for path in (os.__file__, sys.executable) if _can_open(path)]
        try:
            system_calls.refuse_network()
            system_calls.refuse_files()
        except kernel.Unavailable as reason:
            self.refused.append(f"closing the file system: {reason}")
        self.closed = bool(libraries) and not any(map(_can_open, libraries))
        sys.addaudithook(self._note)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if not name.startswith("_")}

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Audit hook: note what is opened or started after the closing."""
        if event not in _NOTED or len(self.attempts) >= _MOST_NOTES:
            return
        note = f"{event} {arguments[0]!r}"[:200]
        if event == "open":
            if not isinstance(arguments[0], str | bytes | os.PathLike):
                return
            path = Path(os.fsdecode(arguments[0]))
            folders = (*self._libraries, *_FILES_OF_THE_SYSTEM)
            if path.is_absolute() and any(path.is_relative_to(folder) for folder in folders):
                return
            note = str(path)
        if note not in self.attempts:
            self.attempts.append(note)


def enter(view: namespaces.View, secrets: list[str], limits: dict[str, Any]) -> Isolation:
    """Apply the strongest isolation that there is, and test it: `secrets` are files that must not be readable.

    The caller may continue in another process (see `namespaces`).
    """
    isolation = Isolation(_libraries=view.visible)
    try:
        namespaces.enter(view)
        isolation.files = "namespaces"
    except kernel.Unavailable as reason:
        isolation.refused.append(f"namespaces: {reason}")
        try:
            landlock.enter((*view.visible, Path("/proc"), Path("/sys")), (view.writable, *namespaces.devices()))
            kernel.drop_capabilities()
            isolation.files = "landlock"
        except (kernel.Unavailable, OSError) as error:
            isolation.refused.append(f"Landlock: {error}")
    try:  # also in a network namespace: some families, such as AF_VSOCK, belong to none
        system_calls.refuse_network()
    except kernel.Unavailable as reason:
        isolation.refused.append(f"refusing sockets: {reason}")
    process_limits.apply(limits)
    families = _open_families()
    targets = [*_CONTROLS, *_mount_points(), *map(str, view.visible), *secrets]
    isolation.user, isolation.limits = os.geteuid(), limits
    isolation.network = not families and not _can_reach_network()
    isolation.reachable = [path for path in secrets if _can_open(path)]
    isolation.writable = [path for path in targets if _can_write(path, view.writable)]
    isolation.probed = {
        "read": len(secrets),
        "write": len(targets),
        "written_to": [*_CONTROLS, *_mount_points()][:40],
        "families": _FAMILIES,
        "open_families": families,
    }
    return isolation


def _mount_points() -> list[str]:
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []
    return sorted({line.split()[4] for line in lines})


def _can_write(path: str, own: Path) -> bool:
    """Whether a file can be opened for writing, or a file be made in a folder, outside the folder of the process."""
    place = Path(path)
    if place == own or own in place.parents or place.is_relative_to("/dev") or path == "/tmp":
        return False
    try:
        if place.is_dir():
            probe = place / f".bitgolf-probe-{os.getpid()}"
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            probe.unlink()
        else:
            os.close(os.open(place, os.O_WRONLY))
    except OSError:
        return False
    return True


def _open_families() -> list[int]:
    """Families of sockets that the kernel still gives out."""
    families = []
    for family in range(1, _FAMILIES):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            try:
                socket.socket(family, kind).close()
            except OSError:
                continue
            families.append(family)
            break
    return families


def _can_open(path: str) -> bool:
    """Whether there is a file to read at `path`; what covers a hidden one is a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    os.close(descriptor)
    return regular


def _can_reach_network() -> bool:
    """Whether there is a route to another machine: asks for one, sends nothing (the address is for documentation)."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
    except OSError:
        return False
    return True
