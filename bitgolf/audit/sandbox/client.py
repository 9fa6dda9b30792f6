"""The auditor's side of a sealed process: start it, then send it tokens when they are to be scored.

A `SealedProcess` is a `Scorer` and an `Adapter` whose work is done in the process. With `evaluate` the score tape stays
here: a chunk's tokens are sent when it is the chunk's turn, its losses are committed here, and only then is the process
told to learn and given more. It can therefore neither change a score nor have a token of a later chunk.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from bitgolf.audit.sandbox.evaluation import build
from bitgolf.audit.sandbox.process import SealedEvaluation
from bitgolf.audit.sandbox.process_limits import Limits, resident_bytes
from bitgolf.audit.scratch import scratch_folder
from bitgolf.errors import ForeignError, RuleViolation, RunError
from bitgolf.evaluate.tape import TokenReader
from bitgolf.foreign import as_object, parse_json

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from bitgolf.audit.sandbox.process import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)
_SYSTEM = tuple(map(Path, (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/sys", "/etc/ld.so.cache", "/etc/ld.so.conf",
    "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/localtime",
)))  # fmt: skip
# Variables that a process needs to find its libraries and devices, and to run as many threads as this one. Nothing else
# of the environment is passed on.
_KEPT_VARIABLES = (
    "PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT",
)  # fmt: skip
_MAX_ANSWER = 1 << 20  # bytes
_ALL_PROCESSES = 2  # memory of all processes, in terms of the address space of one
_LAST_WORDS = 1 << 16  # bytes of its output that are looked at
_PACKAGE = Path(__file__).resolve().parents[2]


Build = Callable[[dict[str, Any]], SealedEvaluation]
"""Makes what a sealed process evaluates from its settings (plain values)."""


class SealedFailure(RunError):
    """The sealed process ended, or could not load what it was to evaluate."""


class SealedTimeout(RunError):
    """The sealed process took longer than its limit, or more memory."""


class SealedProcess:
    """A process that holds an artifact and is isolated from everything else. Use as a context manager, or call `stop`.

    Starting takes seconds. `__init__` returns at once, so that the caller can do something else meanwhile; `close_off`
    waits until the artifact is loaded and the file system is closed.
    """

    def __init__(
        self,
        artifact: Path,  # copied into the folder that the process works in
        settings: dict[str, Any],  # of the evaluation, without the artifact's path
        secrets: Iterable[Path],  # files and folders that it must not see: run directory, data, corpus
        *,
        num_threads: int,  # of PyTorch in it
        # False leaves the isolation out, for an evaluation that cannot run with it: a fresh process in an empty folder,
        # with a clean environment
        isolated: bool = True,
        # builds what is evaluated from the settings; importable under its name in the process
        evaluation: Build = build,
        # the first token that is sent to score targets from a certain one on
        first_token: Callable[[int], int] = lambda target: 0,
        limits: Limits | None = None,  # None = the defaults for this artifact
    ) -> None:
        on_gpu = str(settings.get("device", "cpu")).startswith("cuda")
        self.limits = limits or Limits.of(artifact.stat().st_size, num_threads, on_gpu)
        self._overrun = ""  # the limit that the process was ended for
        self.isolation: dict[str, Any] = {}
        self.isolated, self.closed = isolated, False  # closed: the file system over there
        self.secrets: list[str] = []
        self.first_token = first_token
        self._stack, self._watched = contextlib.ExitStack(), threading.Event()
        try:
            self._start(artifact, settings, [path.absolute() for path in secrets], num_threads, evaluation)
        except BaseException:
            self._stack.close()
            raise

    def _start(
        self, artifact: Path, settings: dict[str, Any], secrets: list[Path], num_threads: int, evaluation: Build
    ) -> None:
        work = self._stack.enter_context(scratch_folder("bitgolf-sealed-"))
        (work / "tmp").mkdir()
        copy = work / "model.bitgolf"
        shutil.copyfile(artifact, copy)
        request_read, request_write = os.pipe()
        answer_read, answer_write = os.pipe()
        self._output = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, json.dumps(import_path()), str(request_read), str(answer_write)],
            cwd=work,
            env=_environment(work / "tmp"),
            pass_fds=(request_read, answer_write),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
        )
        self._stack.callback(self._watched.set)
        threading.Thread(target=self._watch, daemon=True).start()
        os.close(request_read)
        os.close(answer_write)
        self._requests = Connection(request_write, readable=False)
        self._answers = Connection(answer_read, writable=False)
        hidden = {alias for path in secrets for alias in (path, path.resolve())}
        self.secrets = sorted(map(str, _files(hidden)))
        self._send(
            {
                "isolated": self.isolated,
                "visible": sorted(map(str, libraries())),
                "writable": str(work),
                "hidden": sorted(map(str, hidden)),
                "secrets": self.secrets,
                "limits": asdict(self.limits),
            }
        )
        settings = settings | {"artifact": str(copy), "num_threads": num_threads}
        self._send({"do": "load", "settings": settings}, pickle.dumps(evaluation))
        self._waiting = 2  # answers to these requests

    def close_off(self) -> None:
        """Wait until the evaluation is loaded and warmed up, then close the file system; no token is sent before.

        Raises SealedFailure when it could not be loaded.
        """
        self._drain()
        if not self.closed:
            self._send({"do": "close"})
            self._receive()
            if self.isolated and self.isolation["files"] != "namespaces":
                self._kill(set(resident_bytes(self._process.pid)) - {self._process.pid})
            self.closed = True

    def score(self, read: TokenReader, start: int, stop: int, tick: Callable[[int], None] | None = None) -> np.ndarray:
        """Losses of targets start..stop-1, (stop - start,) float32, nats.

        Raises RuleViolation when the evaluation does what it may not do there, such as opening a file.
        """
        self.close_off()
        first = self.first_token(start)
        tokens = read(first, stop + 1).astype("<u2").tobytes()
        self._send({"do": "score", "start": start, "stop": stop, "origin": first, "tokens": len(tokens)}, tokens)
        _, block = self._receive(_MAX_ANSWER + 4 * (stop - start))
        losses = np.frombuffer(block[: len(block) // 4 * 4], dtype="<f4")
        if losses.shape != (stop - start,):
            raise RuleViolation(f"the sealed process gave {len(losses)} losses for targets {start}..{stop - 1}")
        return losses

    def distributions(self, read: TokenReader, start: int, stop: int) -> np.ndarray:
        """Not offered: losses alone come back from a sealed process."""
        raise TypeError("a sealed process gives losses, no distributions")

    def update(self, revealed: TokenReader, start: int, stop: int) -> None:
        """Let the evaluation learn from targets start..stop-1, whose tokens it has."""
        revealed(start, stop + 1)  # enters the range into the event log of the tape
        self._send({"do": "update", "start": start, "stop": stop})
        self._receive()

    def attempts(self) -> list[str]:
        """What the evaluation tried to open after the file system was closed."""
        self._drain()
        self._send({"do": "end"})
        answer, _ = self._receive()
        return list(answer["attempts"])

    def stop(self) -> None:
        """End the process and all that it started, and remove its folder."""
        with self._stack:
            family = set(resident_bytes(self._process.pid))
            with contextlib.suppress(OSError):
                self._requests.close()
                self._answers.close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # still loading
                self._process.wait(timeout=1)
            self._kill({*family, *resident_bytes(self._process.pid)})
            self._process.wait()

    def __enter__(self) -> SealedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _drain(self) -> None:
        while self._waiting:
            self._waiting -= 1
            self._receive()

    def _send(self, request: dict[str, Any], block: bytes = b"") -> None:
        try:
            self._requests.send_bytes(json.dumps(request).encode())
            if block:
                self._requests.send_bytes(block)
        except OSError as error:
            raise self._failure() from error

    def _receive(self, block_bytes: int = 0) -> tuple[dict[str, Any], bytes]:
        """An answer, and its block of at most `block_bytes`."""
        try:
            answer = as_object(parse_json(self._answers.recv_bytes(_MAX_ANSWER)), "the answer")
            block = self._answers.recv_bytes(block_bytes) if answer["block"] else b""
        except (EOFError, OSError) as error:
            raise self._failure() from error
        except (ForeignError, KeyError) as error:
            raise RuleViolation(f"the sealed process gave an answer of another form: {error}") from error
        if "error" in answer:
            text = f"{answer['error']} at {answer['where']}: {answer['message']}"
            if not self.closed and not any(path in text for path in self.secrets):
                raise SealedFailure(f"the artifact cannot be evaluated in the sealed process: {text}")
            raise RuleViolation(f"the evaluation failed in the sealed process with {text}")
        self.isolation = answer.get("isolation", self.isolation)
        return answer, block

    def _watch(self) -> None:
        """End the process, in a thread, when it takes too long, or all of its processes too much memory."""
        deadline, space = time.monotonic() + self.limits.wall_seconds, self.limits.address_space_bytes
        while not self._watched.wait(max(0.0, min(1.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                self._overrun = f"longer than {self.limits.wall_seconds:g} s"
            elif space is not None and sum(resident_bytes(self._process.pid).values()) > _ALL_PROCESSES * space:
                self._overrun = f"more than {_ALL_PROCESSES * space / 2**30:.1f} GiB in all of its processes"
            if self._overrun:
                self._kill()
                return

    def _kill(self, pids: Iterable[int] | None = None) -> None:
        """End the process and all that it started, or `pids` of these; without namespaces they would live on."""
        for pid in resident_bytes(self._process.pid) if pids is None else pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _failure(self) -> RunError:
        """Why the process does not answer."""
        if self._overrun:
            return SealedTimeout(f"the sealed process took {self._overrun}")
        return SealedFailure(self._last_words())

    def _last_words(self) -> str:
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, size - _LAST_WORDS))
        lines = self._output.read(_LAST_WORDS).decode("utf-8", errors="replace").strip().splitlines()
        return f"the sealed process ended early: {lines[-1] if lines else 'it said nothing'}"


def libraries() -> set[Path]:
    """Folders and files that a Python process like this one reads: system libraries, interpreter, site-packages, this
    package, and the folders of all other modules loaded so far."""
    roots = {Path(sys.prefix), Path(sys.base_prefix), *map(Path, sysconfig.get_paths().values())}
    roots |= {Path(folder) for folder in (*site.getsitepackages(), site.getusersitepackages())}
    entries = [Path(entry) for entry in sys.path if entry]
    files = [getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if name != "__main__"]
    for folder in {Path(file).parent for file in files if file}:
        homes = [entry for entry in entries if folder.is_relative_to(entry)]
        if homes:
            home = max(homes, key=lambda entry: len(entry.parts))
            # The folder of a checkout may hold runs and data beside the package.
            roots.add(_PACKAGE if home == _PACKAGE.parent else home)
    return {alias for path in (*roots, *_SYSTEM) if path.exists() for alias in (path.absolute(), path.resolve())} | {
        path for path in _SYSTEM if path.is_symlink()
    }


def import_path() -> list[str]:
    """Where this process looks for modules, as absolute paths."""
    return [str(Path(entry).absolute()) for entry in sys.path if entry]


def _environment(temporary: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | {
        "HOME": str(temporary),
        "TMPDIR": str(temporary),
        "USER": "sealed",
        "TORCHINDUCTOR_CACHE_DIR": str(temporary),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # compile in the process itself: none can be started later
        "TRITON_CACHE_DIR": str(temporary / "triton"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _files(paths: Iterable[Path]) -> set[Path]:
    """Files at or directly below `paths`, a few of each: the process tries to open them, to prove that it cannot."""
    files = set()
    for path in paths:
        inside = sorted(entry for entry in path.iterdir() if entry.is_file())[:40] if path.is_dir() else [path]
        files |= {file for file in inside if file.exists()}
    return files
