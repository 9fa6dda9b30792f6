"""How a sealed evaluation is isolated, and tests from the inside of whether the isolation works.

`enter` applies the strongest means that the system grants: namespaces, else Landlock and no sockets, else none.
`Isolation.close_files` then closes the file system permanently. After each, the process attempts what must not work:
to open the run's files, to reach a network, to open a library. Files that Python code tries to open after the closing
are recorded by name, even when the code suppresses the error.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bitgolf.audit.sandbox import kernel, landlock, namespaces, system_calls

_FILES_OF_THE_SYSTEM = (Path("/dev"), Path("/proc"), Path("/sys"))
_NOTED = ("open", "socket.__new__", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "ctypes.dlopen")
_MOST_NOTES = 20


@dataclass
class Isolation:
    """What isolates this process, as plain values for the audit's evidence.

    Attributes:
        files: what keeps other files out of reach: "namespaces", "landlock" or "" (nothing).
        network: whether there is none to be reached.
        closed: whether the kernel refuses to open any file any more.
        reachable: files that must not be readable, and are.
        still_open: regular files whose descriptors were open at the closing.
        refused: means of isolation that the system does not grant, with the reason.
        attempts: what Python code tried to open or start after the closing, libraries and devices left out.
    """

    files: str = ""
    network: bool = False
    closed: bool = False
    reachable: list[str] = field(default_factory=list)
    still_open: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    attempts: list[str] = field(default_factory=list)
    _libraries: tuple[Path, ...] = ()

    def close_files(self) -> None:
        """Refuse to open files from now on, in all threads, and see that it works."""
        self.still_open = system_calls.open_files() if sys.platform.startswith("linux") else []
        known = [path for path in (os.__file__, sys.executable) if _can_open(path)]
        try:
            system_calls.refuse_network()
            system_calls.refuse_files()
        except kernel.Unavailable as reason:
            self.refused.append(f"closing the file system: {reason}")
        self.closed = bool(known) and not any(map(_can_open, known))
        sys.addaudithook(self._note)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("_")}

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Audit hook: note what is opened or started after the closing."""
        if event not in _NOTED or len(self.attempts) >= _MOST_NOTES:
            return
        if event == "open":
            if not isinstance(arguments[0], str | bytes | os.PathLike):
                return
            path = Path(os.fsdecode(arguments[0]))
            known = (*self._libraries, *_FILES_OF_THE_SYSTEM)
            if path.is_absolute() and any(path.is_relative_to(folder) for folder in known):
                return
            note = str(path)
        else:
            note = f"{event} {arguments[0]!r}"[:200]
        if note not in self.attempts:
            self.attempts.append(note)


def enter(view: namespaces.View, secrets: list[str]) -> Isolation:
    """Apply the strongest isolation that there is and test it. The caller may continue in another process (see
    `namespaces`).

    Args:
        view: what the process is shown.
        secrets: files that it must not be able to read.
    """
    isolation = Isolation(_libraries=view.visible)
    try:
        namespaces.enter(view)
        isolation.files = "namespaces"
    except kernel.Unavailable as reason:
        isolation.refused.append(f"namespaces: {reason}")
        try:
            landlock.enter((*view.visible, Path("/proc"), Path("/sys")), (view.writable, *namespaces.devices()))
            isolation.files = "landlock"
        except (kernel.Unavailable, OSError) as error:
            isolation.refused.append(f"Landlock: {error}")
        try:  # a network namespace of its own has nothing in it; without one, sockets must go
            system_calls.refuse_network()
        except kernel.Unavailable as reason:
            isolation.refused.append(f"refusing sockets: {reason}")
    isolation.network = not _can_reach_network()
    isolation.reachable = [path for path in secrets if _can_open(path)]
    return isolation


def _can_open(path: str) -> bool:
    """Whether there is a file to read at `path`; what covers a hidden one is a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    found = stat.S_ISREG(os.fstat(descriptor).st_mode)
    os.close(descriptor)
    return found


def _can_reach_network() -> bool:
    """Whether there is a route to another machine: asks for one, sends nothing (the address is for documentation)."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
    except OSError:
        return False
    return True
