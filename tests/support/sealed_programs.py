"""Evaluations for sealed processes: an honest one, and ones that try to get at what they may not see.

They run inside the sealed process, where this file is shown as a library; they are built from `settings` as the
headline evaluation is. Losses are those of a fixed function of the tokens, so a test knows what an honest one gives.
"""

import atexit
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np


def honest_losses(tokens: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Loss of target t from tokens t and t+1 of a block that begins at token 0."""
    return (1 + (tokens[start:stop].astype(int) + tokens[start + 1 : stop + 1].astype(int)) % 7).astype(np.float32)


def lesson(tokens: np.ndarray) -> float:
    """What a revealed chunk adds to every later loss."""
    return 0.5 * len(tokens) + int(tokens.astype(int).sum()) % 7


class Honest:
    """Scores tokens that it was given; learns a constant of the revealed ones, and cannot read past them."""

    adapter: Any = None

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.learned = settings, 0.0
        self.scorer = self
        if settings.get("adapts"):
            self.adapter = self
        self.load()

    def load(self) -> None:
        """What a cheat does while files can be opened."""

    def attempt(self, read: Any, start: int, stop: int) -> float | None:
        """What a cheat does before it scores. A success that it returns shows in the losses."""

    def warm_up(self) -> None:
        """Nothing is loaded late."""

    def score(self, read: Any, start: int, stop: int, tick: Any = None) -> np.ndarray:
        tokens = read(start, stop + 1)
        success = self.attempt(read, start, stop) or 0
        return honest_losses(tokens, 0, stop - start) + np.float32(self.learned + 100 * success)

    def update(self, revealed: Any, start: int, stop: int) -> None:
        self.learned += lesson(revealed(start, stop + 1))
        with contextlib.suppress(PermissionError):
            self.learned = len(revealed(start, stop + 2)) * 100


class HasAnExitHandler(Honest):
    """Prints when it scores, and would print at the exit."""

    def attempt(self, read: Any, start: int, stop: int) -> None:
        atexit.register(print, "exit handler", flush=True)
        print("scored", flush=True)


class OpensTheText(Honest):
    """Opens the validation file in mid-scoring."""

    def attempt(self, read: Any, start: int, stop: int) -> None:
        np.fromfile(self.settings["secret"], dtype="<u2")


class SwallowsTheRefusal(Honest):
    """Tries to, and goes on as if nothing had happened."""

    def attempt(self, read: Any, start: int, stop: int) -> None:
        with contextlib.suppress(OSError):
            Path(self.settings["secret"]).read_bytes()


class NativeCode(Honest):
    """Opens the file by the C library, where Python's own hooks see nothing."""

    def attempt(self, read: Any, start: int, stop: int) -> float:
        descriptor = LIBC.open(self.settings["secret"].encode(), os.O_RDONLY)
        return float(descriptor >= 0)


class OldThread(Honest):
    """A thread that was there before the file system was closed opens the file."""

    def load(self) -> None:
        self.now, self.done, self.got = threading.Event(), threading.Event(), False
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        self.now.wait()
        self.got = LIBC.open(self.settings["secret"].encode(), os.O_RDONLY) >= 0
        self.done.set()

    def attempt(self, read: Any, start: int, stop: int) -> float:
        self.now.set()
        self.done.wait()
        return float(self.got)


class KeepsTheFileOpen(Honest):
    """Opens a library's file while files can be opened, and keeps the descriptor."""

    def load(self) -> None:
        self.kept = Path(os.__file__).open("rb")  # noqa: SIM115 - kept open on purpose


class DoesNotLoad(Honest):
    """Fails when it is loaded."""

    def load(self) -> None:
        raise ArithmeticError("no evaluation")


class ReadsWhileLoading(Honest):
    """Reads the text when it is loaded, before the file system is closed."""

    def load(self) -> None:
        Path(self.settings["secret"]).read_bytes()


class Calls(Honest):
    """Tries the network, a program, the parent's memory, tokens of later chunks."""

    def attempt(self, read: Any, start: int, stop: int) -> float:
        escapes = 0
        for attempt in (
            lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
            lambda: socket.socket(socket.AF_UNIX),
            lambda: subprocess.run([sys.executable, "-c", "pass"], check=True),
            lambda: os.execv(sys.executable, [sys.executable, "-c", "pass"]),
            lambda: Path("/proc/1/environ").read_bytes(),
            lambda: read(start, stop + 2),
        ):
            with contextlib.suppress(OSError):
                attempt()
                escapes += 1
        return escapes


class Writes(Honest):
    """Tries, while it loads, to change the system outside: by every control file, mount and library."""

    def load(self) -> None:
        controls = [*Path("/sys/fs/cgroup").rglob("release_agent"), *Path("/sys/fs/cgroup").rglob("cgroup.procs")]
        controls += [Path("/proc/sys/kernel/core_pattern"), Path("/proc/sysrq-trigger"), Path(os.__file__)]
        controls += [Path("/sys/kernel/uevent_helper"), Path("/etc/passwd"), Path(self.settings["secret"])]
        self.written = [str(path) for path in controls if self._opens(path)]
        for number in range(1, 46):
            with contextlib.suppress(OSError):
                socket.socket(number, socket.SOCK_STREAM).close()
                self.written.append(f"family {number}")
        with contextlib.suppress(OSError):
            socket.socketpair()[0].close()
            self.written.append("socketpair")

    def _opens(self, path: Path) -> bool:
        try:
            os.close(os.open(path, os.O_WRONLY))
        except OSError:
            return False
        return True

    def attempt(self, read: Any, start: int, stop: int) -> float:
        return len(self.written)


class Forks(Honest):
    """Starts as many processes as it can while it loads, and says how many there were."""

    def load(self) -> None:
        children = []
        try:
            for _ in range(5_000):
                child = os.fork()
                if child == 0:
                    time.sleep(30)
                    os._exit(0)
                children.append(child)
        except OSError:
            pass
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        assert len(children) < 5_000, "nothing stopped it"


class Hoards(Honest):
    """Asks for more memory than there may be."""

    def load(self) -> None:
        np.ones(6 << 27)  # 6 GiB


class HoardsInMany(Honest):
    """Starts processes that each hold less memory than one may."""

    def load(self) -> None:
        for _ in range(8):
            if os.fork() == 0:
                held = np.ones(200 << 17)  # 200 MiB
                time.sleep(60)
                os._exit(int(held[0]))
        time.sleep(60)


class AnswersHalf(Honest):
    """Writes the beginning of an answer, and nothing more."""

    def attempt(self, read: Any, start: int, stop: int) -> None:
        for descriptor in range(3, 20):
            with contextlib.suppress(OSError):
                os.write(descriptor, b"\0\0\0\x7f{")
        time.sleep(3600)


class FillsTheDisk(Honest):
    """Writes many files of the largest size into the folder that it works in."""

    def load(self) -> None:
        self.written = 0
        with contextlib.suppress(OSError):
            for number in range(40):
                with Path(f"file-{number}").open("wb") as file:
                    for _ in range(32):
                        self.written += file.write(bytes(1 << 20))
        for number in range(40):
            Path(f"file-{number}").unlink(missing_ok=True)

    def attempt(self, read: Any, start: int, stop: int) -> float:
        return float(self.written >= 40 << 25)


class Helper(Honest):
    """Starts a process while it loads, which opens a file when the scoring begins."""

    def load(self) -> None:
        request, self.request = os.pipe()
        self.answer, answer = os.pipe()
        if os.fork() == 0:
            os.close(self.request)
            os.read(request, 1)
            os.write(answer, Path(os.__file__).read_bytes()[:1])
            os._exit(0)
        os.close(request)
        os.close(answer)

    def attempt(self, read: Any, start: int, stop: int) -> float:
        with contextlib.suppress(BrokenPipeError):
            os.write(self.request, b"x")
        return len(os.read(self.answer, 1))


class Survives(Honest):
    """Wishes to live on when its parent ends, and scores for ever."""

    def load(self) -> None:
        LIBC.prctl(1, 0, 0, 0, 0)

    def attempt(self, read: Any, start: int, stop: int) -> None:
        time.sleep(600)


class Escapes(Honest):
    """Tries, while it loads, calls by which a process reaches beyond its namespaces or outlives its parent."""

    def load(self) -> None:
        attempts = (
            (LIBC.umount2, b"/tmp", 2), (LIBC.chroot, b"/usr"), (LIBC.msgget, 77, 0o1600), (LIBC.semget, 77, 1, 0o1600),
            (LIBC.prctl, 1, 0, 0, 0, 0), (LIBC.prctl, 36, 0, 0, 0, 0),
            *((LIBC.syscall, *call) for call in KEYRINGS_AND_MOUNTS),
        )  # fmt: skip
        self.done = [arguments for call, *arguments in attempts if call(*arguments) >= 0]

    def attempt(self, read: Any, start: int, stop: int) -> float:
        return len(self.done)


class Floods(Honest):
    """Writes without end, to its output and to a file."""

    def load(self) -> None:
        with contextlib.suppress(OSError), Path(os.environ["HOME"], "big").open("wb") as file:
            while True:
                file.write(bytes(1 << 24))
        with contextlib.suppress(OSError):
            while True:
                os.write(1, bytes(1 << 24))


class Hangs(Honest):
    """Never answers."""

    def attempt(self, read: Any, start: int, stop: int) -> None:
        time.sleep(3600)


class Spins(Honest):
    """Computes for ever."""

    def attempt(self, read: Any, start: int, stop: int) -> None:
        while True:
            pass


class TooMuch(Honest):
    """Returns far more than there are targets."""

    def score(self, read: Any, start: int, stop: int, tick: Any = None) -> np.ndarray:
        return np.zeros(50_000_000, dtype=np.float32)


class TooFew(Honest):
    """Returns one loss less than there are targets."""

    def score(self, read: Any, start: int, stop: int, tick: Any = None) -> np.ndarray:
        return super().score(read, start, stop)[1:]


class Dies(Honest):
    """Ends the process."""

    def attempt(self, read: Any, start: int, stop: int) -> None:
        os._exit(3)


LIBC = ctypes.CDLL(None)
KEYRINGS_AND_MOUNTS: tuple[tuple[Any, ...], ...] = (
    (430, b"tmpfs", 0), (428, -100, b"/usr", 1), (433, -100, b"/", 0),  # fsopen, open_tree, fspick: on all machines
    (56 if os.uname().machine == "x86_64" else 220, 0x10000000 | 17, 0, 0, 0, 0),  # clone with a user namespace
    (435, (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17), 88),  # clone3
    *(((248, b"user", b"a name", b"text", 4, -3), (298, bytes(128), 0, -1, -1, 0)) if os.uname().machine == "x86_64"
      else ((217, b"user", b"a name", b"text", 4, -3),)),  # add_key to the session's keyring, perf_event_open
)  # fmt: skip
