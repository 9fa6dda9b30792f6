"""The sealed process: what it may see, what it cannot reach, and its report where isolation is not granted."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sealed_programs
from sandbox_support import GRANTED, ROOT, needs_isolation

from bitgolf.audit import scratch
from bitgolf.audit.reproduction import judge_isolation
from bitgolf.audit.sandbox import client, isolation, kernel, landlock, namespaces, system_calls
from bitgolf.audit.sandbox.client import (
    SealedFailure,
    SealedProcess,
    SealedTimeout,
    libraries,
)
from bitgolf.audit.sandbox.process_limits import Limits
from bitgolf.errors import RuleViolation
from bitgolf.evaluate import ScoreTape, evaluate

TOKENS = np.random.default_rng(0).integers(0, 300, size=101).astype(np.uint16)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A run directory with a file of tokens in it."""
    (tmp_path / "run").mkdir()
    TOKENS.tofile(tmp_path / "run" / "val_000000.bin")
    (tmp_path / "model.bitgolf").write_bytes(b"an artifact")
    return tmp_path / "run" / "val_000000.bin"


def start(
    secret: Path,
    program: Any = sealed_programs.Honest,
    isolated: bool = True,
    limits: Limits | None = None,
    first_token: Callable[[int], int] = lambda target: 0,
    **settings: Any,
) -> SealedProcess:
    return SealedProcess(
        secret.parents[1] / "model.bitgolf",
        {"secret": str(secret), **settings},
        [secret.parent],
        num_threads=1,
        isolated=isolated,
        evaluation=program,
        first_token=first_token,
        limits=limits,
    )


def read(first: int, last: int) -> np.ndarray:
    return TOKENS[first:last]


def scored(process: SealedProcess, stop: int = 60) -> np.ndarray:
    return process.score(read, 0, stop)


def small(**changes: float) -> Limits:
    return replace(Limits.of(1_000, num_threads=1, on_gpu=False), **changes)


CLONE_NEW = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)  # linux/sched.h
HONEST = sealed_programs.honest_losses(TOKENS, 0, 60)


@needs_isolation
def test_an_honest_evaluation_is_isolated_and_scores_the_same(secret: Path) -> None:
    with start(secret) as process:
        np.testing.assert_array_equal(scored(process), HONEST)
        check = judge_isolation(process.isolation, process.attempts(), 60, text_in_libraries=False)
    assert check.verdict == "PASS", check
    assert process.isolation["files"] == ("namespaces" if GRANTED["namespaces"] else "landlock")
    assert process.isolation["network"] and process.isolation["closed"]
    assert "60 targets scored in" in check.reason and check.evidence["reachable"] == []
    json.dumps(check.evidence, allow_nan=False)


def test_the_process_ends_well_and_runs_no_exit_handlers(secret: Path) -> None:
    """Exit handlers of libraries may need files, which can no longer be opened."""
    with start(secret, sealed_programs.HasAnExitHandler, isolated=False) as process:
        scored(process)
        process._requests.close()
        assert process._process.wait(timeout=60) == 0
        process._output.seek(0)
        assert b"scored" in (output := process._output.read()) and b"exit handler" not in output


@needs_isolation
def test_opening_the_text_in_mid_scoring_is_refused_and_named(secret: Path) -> None:
    with start(secret, sealed_programs.OpensTheText) as process:
        with pytest.raises(RuleViolation, match=r"PermissionError at .*sealed_programs.py"):
            scored(process)
        check = judge_isolation(process.isolation, process.attempts(), 60, text_in_libraries=False)
    assert check.verdict == "FAIL" and str(secret) in check.reason


@needs_isolation
def test_an_attempt_whose_error_is_swallowed_is_named_all_the_same(secret: Path) -> None:
    with start(secret, sealed_programs.SwallowsTheRefusal) as process:
        np.testing.assert_array_equal(scored(process), HONEST)
        assert process.attempts() == [str(secret)]


@needs_isolation
@pytest.mark.parametrize(
    "program",
    [sealed_programs.NativeCode, sealed_programs.OldThread, sealed_programs.Forks, sealed_programs.Escapes],
)
def test_what_python_does_not_see_the_kernel_refuses(secret: Path, program: Any) -> None:
    with start(secret, program, limits=small(processes=40)) as process:
        np.testing.assert_array_equal(scored(process), HONEST)


@pytest.mark.parametrize("means", ["namespaces", "landlock"])
def test_a_process_that_was_started_while_loading_cannot_open_files_later(
    means: str, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (GRANTED[means] and GRANTED["seccomp"]):
        pytest.skip(f"this system grants no {means}")
    if means == "landlock":
        refuse = (
            "k, n = s.kernel, s.namespaces; n.enter = lambda view: (_ for _ in ()).throw(k.Unavailable('not granted'))"
        )
        start_without = client._START.replace(
            "; main(", f"; import bitgolf.audit.sandbox.isolation as s; {refuse}; main("
        )
        monkeypatch.setattr(client, "_START", start_without)
    with start(secret, sealed_programs.Helper) as process:
        np.testing.assert_array_equal(scored(process), HONEST)
        assert process.isolation["files"] == means


def test_without_isolation_it_scores_and_does_not_pass(secret: Path) -> None:
    """For an evaluation that cannot run isolated: a fresh process with a clean environment."""
    with start(secret, sealed_programs.OpensTheText, isolated=False) as process:
        np.testing.assert_array_equal(scored(process), HONEST)
        check = judge_isolation(process.isolation, process.attempts(), 60, text_in_libraries=False)
    assert check.verdict == "NOT RUN" and "could have read any file" in check.reason


def test_the_environment_of_the_sealed_process_is_clean(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}

    def noted(*_: Any, **options: Any) -> None:
        environment.update(options["env"])
        raise OSError("noted")

    monkeypatch.setenv("ACCESS_KEY", "x")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(subprocess, "Popen", noted)
    with pytest.raises(OSError, match="noted"):
        start(secret, sealed_programs.OpensTheText)
    assert "ACCESS_KEY" not in environment and environment["OMP_NUM_THREADS"] == "3"
    assert (environment["USER"], environment["TORCHINDUCTOR_COMPILE_THREADS"]) == ("sealed", "1")
    assert environment["HOME"] == environment["TMPDIR"] == environment["TORCHINDUCTOR_CACHE_DIR"] != os.environ["HOME"]


@needs_isolation
def test_network_programs_other_processes_and_later_tokens_are_out_of_reach(secret: Path) -> None:
    with start(secret, sealed_programs.Calls) as process:
        np.testing.assert_array_equal(scored(process), HONEST)
        attempts = process.attempts()
    assert any("socket" in attempt for attempt in attempts) and any("exec" in attempt for attempt in attempts)


@needs_isolation
def test_a_file_kept_open_is_no_pass(secret: Path) -> None:
    with start(secret, sealed_programs.KeepsTheFileOpen) as process:
        scored(process)
        check = judge_isolation(process.isolation, process.attempts(), 60, text_in_libraries=False)
    assert check.verdict == "NOT RUN" and "os.py stayed open" in check.reason


@needs_isolation
def test_a_tape_on_this_side_hands_out_chunk_after_chunk(secret: Path) -> None:
    """Scorer and adapter in the process, the tape here: what is learned from a chunk reaches the next one."""
    sent: list[tuple[int, int]] = []

    def score(read, start, stop, tick=None):
        def watched(first: int, last: int) -> np.ndarray:
            sent.append((first, last))
            return read(first, last)

        return process.score(watched, start, stop, tick)

    tape = ScoreTape(TOKENS[:61])
    with start(secret, first_token=lambda t: t + 1 if t else 0, adapts=True) as process:
        nll = evaluate(tape, SimpleNamespace(score=score), process, chunk_targets=25)
    lessons = [sealed_programs.lesson(TOKENS[first : first + 26]) for first in (0, 25)]
    expected = HONEST + np.repeat([0, lessons[0], sum(lessons)], [25, 25, 10]).astype(np.float32)
    np.testing.assert_array_equal(nll, expected)
    assert sent == [(0, 26), (26, 51), (51, 61)], "each token crosses once, when it is its turn"
    assert tape.state == 2


@needs_isolation
@pytest.mark.parametrize(
    ("program", "limits", "error", "words"),
    [
        (sealed_programs.TooFew, {}, RuleViolation, "gave 59 losses"),
        (sealed_programs.TooMuch, {}, SealedFailure, "."),
        (sealed_programs.Dies, {}, SealedFailure, "ended early"),
        (sealed_programs.DoesNotLoad, {}, SealedFailure, "cannot be evaluated in the sealed process: ArithmeticError"),
        (sealed_programs.ReadsWhileLoading, {}, RuleViolation, r"Error at .*: .*val_000000"),
        (sealed_programs.Hoards, {"address_space_bytes": 2 << 30}, SealedFailure, "MemoryError"),
        (sealed_programs.HoardsInMany, {"address_space_bytes": 1 << 29}, SealedTimeout, "more than 1.0 GiB in all"),
        (sealed_programs.Hangs, {"wall_seconds": 4.0}, SealedTimeout, "longer than 4 s"),
        (sealed_programs.AnswersHalf, {"wall_seconds": 4.0}, SealedTimeout, "longer than 4 s"),
        (sealed_programs.Spins, {"cpu_seconds": 2}, SealedFailure, "ended early"),
    ],
)
def test_what_comes_back_wrong_is_named(
    secret: Path, program: Any, limits: dict[str, float], error: type[Exception], words: str
) -> None:
    with start(secret, program, limits=small(**limits)) as process, pytest.raises(error, match=words):
        scored(process)


@needs_isolation
def test_nothing_is_left_behind(secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with start(secret) as process:
        scored(process)
        assert len(list((tmp_path / "temporary").iterdir())) == 1
    assert list((tmp_path / "temporary").iterdir()) == []
    assert process._process.poll() is not None


@needs_isolation
def test_nothing_outside_can_be_changed_and_the_evidence_says_what_was_tried(secret: Path) -> None:
    with start(secret, sealed_programs.Writes) as process:
        np.testing.assert_array_equal(scored(process), HONEST)
        isolation = process.isolation
    assert isolation["writable"] == [] and isolation["probed"]["open_families"] == []
    assert "/proc/sys/kernel/core_pattern" in isolation["probed"]["written_to"]
    assert isolation["probed"]["write"] > 20 and isolation["probed"]["families"] > 40
    assert isolation["limits"]["processes"] > 0
    if isolation["files"] == "namespaces":
        assert isolation["user"] == (65534 if os.geteuid() == 0 else os.geteuid())


@needs_isolation
def test_files_and_output_are_limited(secret: Path) -> None:
    with start(secret, sealed_programs.Floods, limits=small(file_bytes=1 << 25)) as process:
        np.testing.assert_array_equal(scored(process), HONEST)
        assert os.fstat(process._output.fileno()).st_size <= 1 << 25


@pytest.mark.skipif(not GRANTED["namespaces"], reason="this system grants no namespaces")
def test_the_files_of_its_folder_are_limited_together(secret: Path) -> None:
    """Each file was limited, and the disk of the auditor took all of them."""
    with start(secret, sealed_programs.FillsTheDisk) as process:
        np.testing.assert_array_equal(scored(process), HONEST)


@needs_isolation
@pytest.mark.parametrize(
    ("evaluation", "work"),
    [
        ("Honest", "print('ready', flush=True); time.sleep(600)"),
        (
            "Survives",
            "threading.Timer(1, lambda: print('ready', flush=True)).start();"
            "p.score(lambda first, last: np.zeros(last - first, np.uint16), 0, 9)",
        ),
    ],
)
def test_no_process_and_no_folder_outlives_the_auditor(
    evaluation: str, work: str, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kill -9` of the auditor: every process that it started ends, the outermost one too."""
    program = (
        "import sys, threading, time; sys.path[:0] = {path!r}\n"
        "import sealed_programs, numpy as np\nfrom pathlib import Path\n"
        "from bitgolf.audit.sandbox.client import SealedProcess\n"
        "p = SealedProcess(Path({artifact!r}), {{'secret': {secret!r}}}, [], num_threads=1,"
        " evaluation=sealed_programs.{evaluation})\n"
        "p.close_off(); {work}\n"
    )
    text = program.format(
        path=[str(ROOT), str(ROOT / "tests" / "support")],
        evaluation=evaluation,
        work=work,
        artifact=str(secret.parents[1] / "model.bitgolf"),
        secret=str(secret),
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    auditor = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, env=environment)
    assert auditor.stdout is not None and auditor.stdout.readline() == "ready\n"
    family = descendants(auditor.pid)
    assert len(family) >= 1
    auditor.kill()
    auditor.wait()
    deadline = time.monotonic() + 60
    while any(map(alive, family)):
        assert time.monotonic() < deadline, "a process lives on"
        time.sleep(0.05)
    (left,) = tmp_path.glob("bitgolf-sealed-*")
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    for seconds, folders in ((30, {left}), (90, set())):  # young ones may belong to an audit that begins
        os.utime(left, (time.time() - seconds,) * 2)
        with scratch.scratch_folder("bitgolf-sealed-") as held, scratch.scratch_folder("bitgolf-sealed-") as other:
            os.utime(held, (0, 0))
            with scratch.scratch_folder("bitgolf-sealed-") as third:
                assert set(tmp_path.glob("bitgolf-sealed-*")) == {held, other, third} | folders
    assert not list(tmp_path.glob("bitgolf-sealed-*"))


def test_an_audit_that_is_ended_leaves_no_files(run_copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    command = [sys.executable, "-m", "bitgolf", "audit", str(run_copy)]
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    auditor = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.glob("bitgolf-sealed-*")) and auditor.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    auditor.terminate()
    assert auditor.wait(timeout=120) == 128 + signal.SIGTERM and not list(folder.iterdir())


def descendants(pid: int) -> list[int]:
    children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(each for child in children for each in descendants(child))]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_kernel_is_asked_for_the_rights_that_its_landlock_has() -> None:
    """LANDLOCK_ACCESS_FS_* of linux/landlock.h: 13 in version 1, REFER in version 2, TRUNCATE in version 3."""
    assert landlock._RIGHTS == {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF}


def test_an_old_kernel_keeps_the_flags_of_a_mount_that_becomes_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.12. Without its flags the kernel refuses the change. Flags of statvfs and mount: linux/mount.h."""
    flags = {os.ST_NOSUID: 2, os.ST_NODEV: 4, os.ST_NOEXEC: 8, os.ST_NOATIME: 1024, os.ST_NODIRATIME: 2048, 4096: 2**21}
    mounted: list[int] = []
    monkeypatch.setattr(kernel, "libc", lambda: SimpleNamespace(syscall=lambda *arguments: -1))
    monkeypatch.setattr(kernel, "mount", lambda *arguments: mounted.append(arguments[-1]))
    monkeypatch.setattr(kernel, "_mounts_below", lambda target: [])
    for shown, kept in (flags | {sum(flags): sum(flags.values()), os.ST_RDONLY: 0}).items():
        with monkeypatch.context() as patched:
            patched.setattr(os, "statvfs", lambda place, f_flag=shown: SimpleNamespace(f_flag=f_flag))
            kernel.read_only(Path("/proc"))
        assert mounted.pop() == 4096 | 32 | 1 | kept  # bind, remount, read-only


@pytest.mark.parametrize(("families", "route"), [([], False), ([], True), ([40], False), ([40], True)])
def test_what_the_process_can_still_reach_is_in_the_evidence(
    secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, families: list[int], route: bool
) -> None:
    """In this process, with no isolation at all."""
    for place in ("namespaces.enter", "system_calls.refuse_network", "process_limits.apply"):
        monkeypatch.setattr(f"bitgolf.audit.sandbox.isolation.{place}", lambda *arguments: None)
    monkeypatch.setattr(isolation, "_open_families", lambda: families)
    monkeypatch.setattr(isolation, "_can_reach_network", lambda: route)
    monkeypatch.setattr(isolation, "_mount_points", lambda: [str(secret.parent)])
    view = namespaces.View((tmp_path,), tmp_path / "own", ())
    secrets = [str(secret), str(tmp_path / "none"), "/dev/null"]
    evidence = isolation.enter(view, secrets, {"processes": 7})
    assert evidence.network == (not families and not route)
    assert evidence.reachable == [str(secret)]
    assert {str(secret), str(secret.parent), str(tmp_path)} <= set(evidence.writable)
    assert str(tmp_path / "none") not in evidence.writable and "/dev/null" not in evidence.writable
    assert (evidence.user, evidence.limits, evidence.refused) == (os.geteuid(), {"processes": 7}, [])
    probed = evidence.probed
    assert (probed["read"], probed["open_families"]) == (3, families) and str(secret.parent) in probed["written_to"]


# What the process reports of its isolation when the system does not grant a means of it.
_PROGRAM = """
import json, sys, tempfile
sys.path.insert(0, {root!r})
from pathlib import Path
from bitgolf.audit import scratch
from bitgolf.audit.reproduction import judge_isolation
from bitgolf.audit.sandbox import kernel, landlock, namespaces, system_calls, isolation
def refuse(*arguments): raise kernel.Unavailable("not granted")
for name in {refused!r}: setattr(dict(namespaces=namespaces, landlock=landlock, seccomp=system_calls)[name],
    "_refuse" if name == "seccomp" else "enter", refuse)
scratch = Path(tempfile.mkdtemp(dir={scratch!r}))
view = namespaces.View(tuple(Path(p) for p in {visible!r}), scratch, (Path({secret!r}),))
found = isolation.enter(view, [{secret!r}], {{}})
shown = [Path(p).read_text() for p in {shown!r}]
found.close_files()
readable = True
try: Path({secret!r}).read_bytes()
except OSError: readable = False
print(json.dumps(found.to_json() | dict(readable=readable, shown=shown)))
"""


def isolation_without(refused: list[str], secret: Path, tmp_path: Path, shown: tuple[Path, ...] = ()) -> dict[str, Any]:
    (tmp_path / "scratch").mkdir()
    files = [str(path) for path in shown]
    visible = [str(path) for path in (*libraries(), *(path.parent for path in shown))]
    scratch = str(tmp_path / "scratch")
    program = _PROGRAM.format(
        root=str(ROOT), refused=refused, visible=visible, scratch=scratch, secret=str(secret), shown=files
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    means: dict[str, Any] = json.loads(done.stdout)
    return means


@needs_isolation
def test_a_checkout_below_the_folder_of_temporary_files_is_shown(secret: Path) -> None:
    """An empty /tmp of the process's own hid it: then nothing could be scored in the isolated process."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        checkout = Path(name) / "checkout"
        checkout.mkdir()
        (checkout / "module.py").write_text("X = 1")
        isolation = isolation_without([], secret, Path(name), (checkout / "module.py",))
    assert isolation["shown"] == ["X = 1"] and isolation["refused"] == [] and not isolation["readable"]


@pytest.mark.skipif(not (GRANTED["landlock"] and GRANTED["seccomp"]), reason="this system grants no Landlock")
def test_without_namespaces_landlock_isolates_it(secret: Path, tmp_path: Path) -> None:
    means = isolation_without(["namespaces"], secret, tmp_path)
    assert means["files"] == "landlock" and means["network"] and means["closed"] and not means["readable"]
    assert means["reachable"] == [] and means["refused"] == ["namespaces: not granted"]
    check = judge_isolation(means, means["attempts"][:0], 9, text_in_libraries=True)
    assert check.verdict == "PASS" and "in Landlock" in check.reason and "own library" in check.reason


@pytest.mark.skipif(not GRANTED["seccomp"], reason="this system grants no filters of system calls")
def test_without_isolation_of_files_the_check_is_not_run(secret: Path, tmp_path: Path) -> None:
    means = isolation_without(["namespaces", "landlock"], secret, tmp_path)
    assert means["files"] == "" and means["reachable"] == [str(secret)] and means["closed"]
    check = judge_isolation(means, [], 9, text_in_libraries=False)
    assert check.verdict == "NOT RUN"
    for words in ("could have read any file", "was readable while it loaded", "namespaces: not granted", "Landlock"):
        assert words in check.reason


def test_without_any_means_python_notes_what_is_opened_and_nothing_passes(secret: Path, tmp_path: Path) -> None:
    means = isolation_without(["namespaces", "landlock", "seccomp"], secret, tmp_path)
    assert not means["closed"] and not means["network"] and means["readable"]
    assert means["attempts"] == [str(secret)]
    assert judge_isolation(means, [], 9, text_in_libraries=False).verdict == "NOT RUN"
    assert judge_isolation(means, means["attempts"], 9, text_in_libraries=False).verdict == "FAIL"


def test_other_systems_have_no_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.libc.cache_clear()
    monkeypatch.setattr("sys.platform", "darwin")
    try:
        for means in (landlock.abi_version, lambda: system_calls._refuse([])):
            with pytest.raises(kernel.Unavailable):
                means()
    finally:
        kernel.libc.cache_clear()
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(kernel.Unavailable, match="no table of system calls for riscv64"):
        system_calls.refuse_files()


def test_the_filter_refuses_what_it_lists_and_nothing_else() -> None:
    """Its program, interpreted by a slow machine of our own, on every number of every interface."""
    numbers = [2, 59, 257, 437]
    steps = system_calls._program(numbers, 0xC000003E, clone=56, clone3=435, prctl=157)

    def allowed(number: int, architecture: int, argument_0: int = 0) -> bool:
        position, value = 0, 0
        while True:
            code, yes, no, argument = steps[position]
            position += 1
            if code == 0x20:
                value = {0: number, 4: architecture, 16: argument_0}[argument]
            elif code == 0x06:
                return argument == 0x7FFF0000
            else:
                jumps = {0x15: value == argument, 0x35: value >= argument, 0x45: bool(value & argument)}
                position += yes if jumps[code] else no

    for number in range(500):
        assert allowed(number, 0xC000003E) == (number not in (*numbers, 435))
        assert not allowed(number, 0x40000003), "the 32-bit interface"
        assert not allowed(number | 0x40000000, 0xC000003E), "the x32 interface"
    for flags, may in ((17, True), (0x3D0F00, True), *((flag | 17, False) for flag in CLONE_NEW)):
        assert allowed(56, 0xC000003E, flags) == may
    for option in range(64):
        assert allowed(157, 0xC000003E, option) == (option not in (1, 36))


def test_libraries_show_the_package_and_not_the_checkout_around_it() -> None:
    shown = libraries()
    assert ROOT / "bitgolf" in shown or any((ROOT / "bitgolf").is_relative_to(path) for path in shown)
    assert ROOT not in shown
    assert any(Path(os.__file__).is_relative_to(path) for path in shown)
    assert any(Path(np.__file__).is_relative_to(path) for path in shown)
