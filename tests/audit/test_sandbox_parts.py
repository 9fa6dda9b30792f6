"""Parts of the sealed process by themselves, in this process and with functions in place of the kernel's."""

import errno
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sandbox_support import GRANTED, ROOT

from bitgolf.audit.sandbox import client, isolation, kernel, landlock, namespaces, process_limits, system_calls
from bitgolf.audit.sandbox.client import SealedProcess
from bitgolf.audit.sandbox.process import Server
from bitgolf.audit.sandbox.process_limits import Limits
from bitgolf.errors import RuleViolation

GIB = 1 << 30


def test_mounts_below_a_folder_are_those_of_the_kernels_list(monkeypatch: pytest.MonkeyPatch) -> None:
    places = ("/", "/a", r"/a/b\040c", "/a/b/d", "/ab")
    lines = [f"36 35 98:0 / {place} rw,noatime - ext3 /dev/root rw" for place in places]
    monkeypatch.setattr(Path, "read_text", lambda path: "\n".join(lines))
    assert kernel._mounts_below(Path("/a")) == [Path("/a/b c"), Path("/a/b/d")]


def test_read_only_mounts_have_no_devices_and_no_programs_of_other_users(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(kernel, "libc", lambda: SimpleNamespace(syscall=lambda *call: calls.append(call) or 0))
    kernel.read_only(Path("/proc"))
    ((number, folder, path, flags, attributes, size),) = calls
    assert (number, folder, path, flags, size) == (442, -100, b"/proc", 0x8000, 32)  # mount_setattr(2)
    assert list(attributes._obj) == [1 | 2 | 4, 0, 0, 0]


@pytest.mark.parametrize(("version", "rights", "net", "scoped", "size"), [
    (1, 0x1FFF, 0, 0, 8), (2, 0x3FFF, 0, 0, 8), (3, 0x7FFF, 0, 0, 8), (4, 0x7FFF, 3, 0, 16), (5, 0x7FFF, 3, 0, 16),
    (6, 0x7FFF, 3, 3, 24), (9, 0x7FFF, 3, 3, 24),
])  # fmt: skip
def test_landlock_is_asked_for_what_its_version_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, rights: int, net: int, scoped: int, size: int
) -> None:
    """Versions of landlock(7): network from 4 on, scopes from 6 on. Read: execute, read file, read folder."""
    rules: list[int] = []
    asked: list[tuple[int, ...]] = []
    order: list[str] = []

    def syscall(number: int, *arguments: Any) -> int:
        if number == 444:
            values = arguments[0]._obj
            asked.append((values.files, values.net, values.scoped, arguments[1]))
            return os.dup(1)
        if number == 445:
            rules.append(arguments[2]._obj.allowed)
        if number == 446:
            order.append("restrict")
        return 0

    (tmp_path / "file").touch()
    monkeypatch.setattr(landlock, "abi_version", lambda: version)
    monkeypatch.setattr(kernel, "libc", lambda: SimpleNamespace(syscall=syscall))
    monkeypatch.setattr(kernel, "no_new_privileges", lambda: order.append("no new privileges"))
    file, none = tmp_path / "file", tmp_path / "none"
    before = sorted(Path("/dev/fd").iterdir())
    landlock.enter([tmp_path, file, none], [tmp_path, file])
    assert sorted(Path("/dev/fd").iterdir()) == before
    assert asked == [(rights, net, scoped, size)] and order == ["no new privileges", "restrict"]
    assert rules == [13, 5, rights, rights & (1 << 14 | 7)]  # files have no rights of folders


def test_a_thread_that_stays_outside_the_filter_is_no_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "no_new_privileges", lambda: None)
    monkeypatch.setattr(kernel, "libc", lambda: SimpleNamespace(syscall=lambda *call: 77))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(kernel.Unavailable, match="thread 77 could not"):
        system_calls.refuse_files()


# System calls of x86-64 that a sealed process has no use for, from the kernel's table (syscall_64.tbl).
_REFUSED = (
    2, 85, 257, 437, 304, 428, 59, 322, 425, 447, 41, 53, 42, 49, 101, 310, 311, 438, 29, 240, 321, 165, 166, 155, 161,
    429, 430, 433, 442, 272, 308, 64, 68, 248, 249, 250, 298, 323,
)  # fmt: skip
_CALLS = """
import ctypes, json, sys
sys.path.insert(0, {root!r})
from bitgolf.audit.sandbox import system_calls
libc = ctypes.CDLL(None, use_errno=True)
def error(number): return ctypes.get_errno() if libc.syscall(number, 0, 0, 0, 0, 0, 0) < 0 else 0
system_calls.refuse_network()
first = [error(number) for number in {numbers}]
system_calls.refuse_files()
print(json.dumps([first, [error(number) for number in {numbers}], error(39), error(435)]))
"""


@pytest.mark.skipif(not GRANTED["seccomp"] or platform.machine() != "x86_64", reason="the numbers are of x86-64")
def test_the_kernel_refuses_each_call_that_is_listed() -> None:
    program = _CALLS.format(root=str(ROOT), numbers=_REFUSED)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, closed, own_id, clone3 = json.loads(done.stdout)
    files = {2, 85, 257, 437, 304, 59, 322, 447}
    assert [number for number, error in zip(_REFUSED, first, strict=True) if error != errno.EACCES] == [
        number for number in _REFUSED if number in files
    ]
    assert closed == [errno.EACCES] * len(_REFUSED)
    assert own_id == 0 and clone3 == errno.ENOSYS, "getpid goes on, the C library takes clone"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux lists its open files in /proc")
def test_open_files_are_those_that_can_be_read(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("read", "both", "write", "gone")]
    for path in paths:
        path.touch()
    before = set(system_calls.open_files())
    with (
        paths[0].open("rb"), paths[1].open("r+b"), paths[2].open("wb"), paths[3].open("rb"),
        subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE),
    ):  # fmt: skip
        paths[3].unlink()
        assert sorted(set(system_calls.open_files()) - before) == sorted(map(str, paths[:2]))


@pytest.mark.parametrize(("program", "code"), [("", 0), ("import sys; sys.exit(3)", 3), ("import os; os.abort()", 134)])
def test_the_outer_process_ends_like_the_inner(program: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """128 and the number of the signal, as shells have it."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    namespaces._end_like(subprocess.Popen([sys.executable, "-c", program]).pid)
    assert codes == [code]


def test_limits_of_the_sealed_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    made = Limits.of(1000, 3, on_gpu=False)
    assert made == Limits(128 + 28, 8 * 2**30 + 64_000 + 3 * 160 * 2**20, 256 * 2**20, 3600 * 3 + 60, 3600.0)
    assert Limits.of(1000, 9, on_gpu=True) == Limits(128 + 36, None, 256 * 2**20, 3600 * 9 + 60, 3600.0)
    limits = Limits.of(1000, 0, on_gpu=True, wall_seconds=5.5, memory_gib=1.5, processes=4, file_mib=0.5)
    assert limits == Limits(4, 3 * 2**29, 2**19, 65, 5.5)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert Limits.of(0, 0, on_gpu=False).processes == 132
    if Path("/proc/self/stat").exists():
        assert process_limits.resident_bytes(os.getpid())[os.getpid()] > 1 << 20


def test_attempts_are_noted_once_and_a_few_of_them(tmp_path: Path) -> None:
    noted = isolation.Isolation(_libraries=(tmp_path,))
    for path in (tmp_path / "library.py", "/dev/null", "/proc/self/maps", 5):
        noted._note("open", (path, "r", 0))
    noted._note("import", ("json",))
    assert noted.attempts == []
    noted._libraries = (Path("relative"),)
    for _ in range(2):
        noted._note("open", (b"relative/name", "r", 0))
        noted._note("os.system", ("x" * 500,))
    assert noted.attempts == ["relative/name", f"os.system '{'x' * 189}"]
    for number in range(30):
        noted._note("open", (f"/other/{number}", "r", 0))
    assert len(noted.attempts) == 20 and noted.attempts[-1] == "/other/17"


def test_probes_of_writing_leave_nothing_and_spare_the_folder_of_the_process(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "below").mkdir(parents=True)
    (tmp_path / "file").write_text("text")
    assert not isolation._can_write(str(own), own) and not isolation._can_write(str(own / "below"), own)
    assert isolation._can_write(str(tmp_path), own) and isolation._can_write(str(tmp_path / "file"), own)
    assert not isolation._can_write("/tmp", own) and not isolation._can_write("/dev/null", own)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["below", "file", "own"]
    assert (tmp_path / "file").read_text() == "text"


def test_the_reader_gives_what_has_arrived_up_to_its_limit() -> None:
    server: Any = Server(None, None)  # type: ignore[arg-type]
    server.origin, server.tokens = 10, np.arange(10, 20)
    assert server._reader(15)(11, 15).tolist() == [11, 12, 13, 14]
    assert server._reader(99)(10, 20).tolist() == list(range(10, 20)) and server._reader(99)(12, 12).size == 0
    for limit, start, stop in ((15, 11, 16), (99, 9, 12), (99, 11, 21), (99, 13, 12)):
        with pytest.raises(PermissionError, match=f"tokens {start}..{stop - 1} are not in the sealed process"):
            server._reader(limit)(start, stop)


def test_files_that_must_not_be_readable_are_a_few_of_each_folder_that_exist(tmp_path: Path) -> None:
    (tmp_path / "many" / "0-folder").mkdir(parents=True)
    for number in range(50):
        (tmp_path / "many" / f"{number:02}").touch()
    (tmp_path / "one").touch()
    files = client._files([tmp_path / "many", tmp_path / "one", tmp_path / "none"])
    assert files == {tmp_path / "one", *(tmp_path / "many" / f"{number:02}" for number in range(40))}


def test_secrets_are_hidden_under_each_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "text").touch()
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "model").touch()
    with SealedProcess(tmp_path / "model", {}, [tmp_path / "link"], num_threads=1, isolated=False) as process:
        assert process.secrets == [str(tmp_path / name / "text") for name in ("data", "link")]


def test_the_last_line_of_long_output_is_the_reason() -> None:
    with tempfile.TemporaryFile() as output:
        words = lambda: SealedProcess._last_words(SimpleNamespace(_output=output))  # type: ignore[arg-type] # noqa: E731
        assert words() == "the sealed process ended early: it said nothing"
        output.write(b"short\n \n")
        assert words() == "the sealed process ended early: short"
        output.write(b"x" * 70_000 + b"\nthe \xff reason\n")
        assert words() == "the sealed process ended early: the \ufffd reason"


@pytest.mark.parametrize(("resident", "ended"), [(199, False), (200, False), (201, True)])
def test_all_processes_together_have_twice_the_memory_of_one(
    monkeypatch: pytest.MonkeyPatch, resident: int, ended: bool
) -> None:
    monkeypatch.setattr(client, "resident_bytes", lambda pid: {1: 100, 2: resident - 100})
    kills: list[str] = []
    waits = iter([False, True])
    process: Any = SimpleNamespace(
        limits=Limits(9, 100, 9, 9, 10**6),
        _watched=SimpleNamespace(wait=lambda seconds: next(waits)),
        _process=SimpleNamespace(pid=1),
        _overrun="",
        _kill=lambda: kills.append("all"),
    )
    SealedProcess._watch(process)
    assert bool(process._overrun) == ended == bool(kills)


def test_the_innermost_folder_of_modules_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout on the path may hold runs beside the environment in it."""
    inner = tmp_path / "environment" / "packages"
    (inner / "thing").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path), str(inner)])
    monkeypatch.setitem(sys.modules, "thing", SimpleNamespace(__file__=str(inner / "thing" / "__init__.py")))  # type: ignore[arg-type]
    shown = client.libraries()
    assert inner in shown and tmp_path not in shown


@pytest.mark.parametrize(("closed", "message", "kind"), [
    (False, "no memory", client.SealedFailure), (False, "cannot open /run/text", RuleViolation),
    (True, "no memory", RuleViolation), (True, "cannot open /run/text", RuleViolation),
])  # fmt: skip
def test_errors_are_the_artifacts_until_the_closing_unless_they_name_a_secret(
    closed: bool, message: str, kind: type[Exception]
) -> None:
    answer = json.dumps({"error": "OSError", "where": "a.py:1", "message": message, "block": 0}).encode()
    process: Any = SimpleNamespace(
        closed=closed, secrets=["/run/text"], _answers=SimpleNamespace(recv_bytes=lambda most: answer)
    )
    with pytest.raises(kind, match=f"OSError at a.py:1: {message}"):
        SealedProcess._receive(process)


@pytest.mark.parametrize("size", [0, 5, 7, 12])
def test_losses_of_another_number_are_no_losses(size: int) -> None:
    process: Any = SimpleNamespace(
        close_off=lambda: None,
        first_token=lambda target: 0,
        _send=lambda *request: None,
        _receive=lambda most: ({}, bytes(size)),
    )
    with pytest.raises(RuleViolation, match=f"gave {size // 4} losses for targets 0..1"):
        SealedProcess.score(process, lambda first, last: np.zeros(last - first, np.uint16), 0, 2)
