"""What the sealed process asks of the kernel: every call and mount, with functions in place of the kernel's."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitgolf.audit.sandbox import isolation, kernel, landlock, namespaces, process_limits, system_calls
from bitgolf.audit.sandbox.namespaces import View

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="calls of Linux")
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, RECURSIVE = 1, 2, 4, 8, 32, 4096, 16384  # mount(2)
PRIVATE = 1 << 18


class Calls(list[tuple[Any, ...]]):
    """Records calls of functions by name, and gives an answer."""

    def of(self, name: str, answer: Any = 0) -> Any:
        return lambda *arguments: self.append((name, *arguments)) or answer


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [("die_with_parent", (1, 9)), ("adopt_orphans", (36, 1)), ("no_new_privileges", (38, 1))],
)
def test_wishes_of_a_process_have_the_numbers_of_prctl(
    function: str, arguments: tuple[int, int], calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "libc", lambda: SimpleNamespace(prctl=calls.of("prctl")))
    getattr(kernel, function)()
    assert calls == [("prctl", *arguments, 0, 0, 0)]
    monkeypatch.setattr(kernel, "libc", lambda: SimpleNamespace(prctl=calls.of("prctl", -1)))
    with pytest.raises(OSError, match="prctl: "):
        getattr(kernel, function)()


def test_a_process_gives_up_all_that_it_may(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Capabilities 0 to 40 are dropped until the kernel knows no further one; then all sets are empty (capset(2))."""

    def prctl(option: int, value: int, *rest: int) -> int:
        calls.append(("prctl", option, value, *rest))
        return -1 if option == 24 and value == 41 else 0

    def capset(header: Any, sets: Any) -> int:
        calls.append(("capset", *header._obj, *sets._obj))
        return 0

    monkeypatch.setattr(kernel, "libc", lambda: SimpleNamespace(prctl=prctl, capset=capset))
    for name in ("setgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(os, name, calls.of(name))
    namespaces._give_up_privileges(True)
    bounding = [("prctl", 24, number, 0, 0, 0) for number in range(42)]
    nobody = [("setgroups", []), ("setresgid", *[65534] * 3), ("setresuid", *[65534] * 3), ("prctl", 4, 1, 0, 0, 0)]
    none = [*bounding, ("capset", 0x20080522, *[0] * 7), ("prctl", 38, 1, 0, 0, 0), ("prctl", 1, 9, 0, 0, 0)]
    assert calls == [*bounding, *nobody, *none]
    calls.clear()
    namespaces._give_up_privileges(False)
    assert calls == [*bounding, *none]


def test_mounts_are_read_only_with_kernels_of_all_ages(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 5.12 each mount is mounted again; it keeps nosuid, nodev, noexec and its rules of access times."""

    def mount(source: bytes, target: bytes, kind: bytes, flags: Any, data: bytes) -> int:
        calls.append((source, target, kind, flags.value, data))
        return 0

    answer = 0
    monkeypatch.setattr(kernel, "libc", lambda: SimpleNamespace(syscall=lambda *_: answer, mount=mount))
    monkeypatch.setattr(kernel, "_mounts_below", lambda target: [target / "below"])
    monkeypatch.setattr(os, "statvfs", lambda place: SimpleNamespace(f_flag=1 | 2 | 4 | 8 | 1024 | 2048 | 4096))
    kernel.bind_read_only(Path("/from"), Path("/to"))
    assert calls == [(b"/from", b"/to", b"", BIND | RECURSIVE, b"")]
    calls.clear()
    answer = -1
    kernel.read_only(Path("/to"))
    flags = REMOUNT | BIND | RDONLY | NOSUID | NODEV | NOEXEC | 1024 | 2048 | 1 << 21  # noatime, nodiratime, relatime
    assert calls == [(b"none", target, b"", flags, b"") for target in (b"/to", b"/to/below")]
    monkeypatch.setattr(os, "statvfs", lambda place: SimpleNamespace(f_flag=1))
    calls.clear()
    kernel.read_only(Path("/to"))
    assert {call[3] for call in calls} == {REMOUNT | BIND | RDONLY}


def test_the_root_of_a_process_is_changed_and_the_old_one_forgotten(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = SimpleNamespace(pivot_root=calls.of("pivot_root"), umount2=calls.of("umount2"))
    monkeypatch.setattr(kernel, "libc", lambda: answers)
    monkeypatch.setattr(os, "chdir", calls.of("chdir"))
    kernel.change_root(Path("/new"))
    detach = 2
    assert calls == [("chdir", Path("/new")), ("pivot_root", b".", b"."), ("umount2", b".", detach), ("chdir", "/")]


@pytest.fixture
def view(tmp_path: Path) -> View:
    """Two folders, one in the other, a link and a file to see; secrets in what is seen and beside it."""
    (tmp_path / "lib" / "inner").mkdir(parents=True)
    (tmp_path / "secrets").mkdir()
    for name in ("lib/secret", "lib/text", "secrets/other", "model"):
        (tmp_path / name).write_text("text")
    (tmp_path / "lib" / "hidden").mkdir()
    (tmp_path / "link").symlink_to("lib")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "given").write_text("content")
    visible = tuple(tmp_path / name for name in ("lib", "lib/inner", "link", "model"))
    hidden = tuple(tmp_path / name for name in ("lib/secret", "lib/hidden", "lib/gone", "secrets/other"))
    return View(visible, tmp_path / "work", hidden)


def test_the_root_shows_what_may_be_seen_and_nothing_else(
    view: View, calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, inside = view.writable / "root", view.writable / "root" / tmp_path.relative_to("/")

    def mount(source: str, target: Path, kind: str, flags: int = 0, data: str = "") -> None:
        assert target.exists(), "a mount needs a place"
        calls.append((source, target, kind, flags, data))

    def bind_read_only(source: Path, target: Path) -> None:
        assert source.is_dir() == target.is_dir()
        calls.append(("read-only", source, target))
        if source == tmp_path / "lib":  # as the mount would show it
            (target / "hidden").mkdir()
            (target / "secret").touch()

    monkeypatch.setattr(kernel, "mount", mount)
    monkeypatch.setattr(kernel, "bind_read_only", bind_read_only)
    monkeypatch.setattr(kernel, "change_root", calls.of("change root"))
    monkeypatch.setattr(namespaces, "devices", lambda: [Path("/dev/null")])
    monkeypatch.setattr(os, "chdir", calls.of("chdir"))
    namespaces._build_root(view)
    safe = NOSUID | NODEV
    assert calls == [
        ("none", Path("/"), "", RECURSIVE | PRIVATE, ""),
        ("tmpfs", root, "tmpfs", safe, "mode=755,size=16m"),
        ("tmpfs", root / "tmp", "tmpfs", safe, "size=256m,mode=1777"),
        ("proc", root / "proc", "proc", safe | NOEXEC | RDONLY, ""),
        ("tmpfs", root / "dev" / "shm", "tmpfs", safe, "size=1g,mode=1777"),
        ("read-only", tmp_path / "lib", inside / "lib"),
        ("read-only", tmp_path / "model", inside / "model"),
        ("/dev/null", root / "dev" / "null", "", BIND | RECURSIVE, ""),
        ("/dev/null", inside / "lib" / "secret", "", BIND, ""),
        ("tmpfs", inside / "lib" / "hidden", "tmpfs", RDONLY | safe, "size=4k"),
        ("tmpfs", inside / "work", "tmpfs", safe, f"size={(1 << 30) + 7},mode=700"),
        ("none", root, "", REMOUNT | BIND | RDONLY | safe, ""),
        ("change root", root),
        ("chdir", view.writable),
    ]
    assert (inside / "link").readlink() == Path("lib")
    assert (inside / "work" / "given").read_text() == "content" and (inside / "work" / "tmp").is_dir()
    assert not (inside / "secrets").exists()


def test_a_container_that_forbids_a_new_proc_shows_its_own_read_only(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mount(source: str, target: Path, kind: str, flags: int = 0, data: str = "") -> None:
        if kind == "proc":
            raise PermissionError
        calls.append((source, target, kind, flags, data))

    monkeypatch.setattr(kernel, "mount", mount)
    monkeypatch.setattr(kernel, "read_only", calls.of("read-only"))
    namespaces._mount_proc(Path("/new/proc"))
    target = Path("/new/proc")
    assert calls == [("/proc", target, "", BIND | RECURSIVE, ""), ("read-only", target)]


@pytest.mark.parametrize("user", ["root", "root of a container", "somebody"])
def test_who_enters_which_namespaces(user: str, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounts, host name, IPC, processes and network; a user namespace too, but for root of the system."""
    own = 0x20000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000  # CLONE_NEW* of sched.h

    def unshare(flags: int) -> None:
        calls.append(("unshare", flags))
        if user == "root of a container" and flags == own:
            raise PermissionError

    monkeypatch.setattr(kernel, "unshare", unshare)
    for name in ("become_nobody", "die_with_parent"):
        monkeypatch.setattr(kernel, name, calls.of(name))
    monkeypatch.setattr(os, "geteuid", lambda: 7 if user == "somebody" else 0)
    monkeypatch.setattr(os, "getuid", lambda: 7)
    monkeypatch.setattr(os, "getgid", lambda: 8)
    monkeypatch.setattr(Path, "write_text", lambda path, text: calls.append((str(path), text)))
    assert namespaces._new_namespaces() is (user == "root")
    begin = [("unshare", own)] if user != "somebody" else []
    nobody = [("become_nobody",), ("die_with_parent",)] if user == "root of a container" else []
    maps = [("/proc/self/setgroups", "deny"), ("/proc/self/uid_map", "7 7 1"), ("/proc/self/gid_map", "8 8 1")]
    assert calls == begin + ([] if user == "root" else [*nobody, ("unshare", own | 0x10000000), *maps])


@pytest.mark.parametrize("granted", ["namespaces", "landlock", ""])
def test_the_strongest_means_is_taken_and_probed(
    granted: str, view: View, calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise kernel.Unavailable("not here")

    monkeypatch.setattr(namespaces, "enter", calls.of("namespaces") if granted == "namespaces" else refuse)
    monkeypatch.setattr(landlock, "enter", calls.of("landlock") if granted == "landlock" else refuse)
    monkeypatch.setattr(kernel, "drop_capabilities", calls.of("drop"))
    monkeypatch.setattr(system_calls, "refuse_network", calls.of("no sockets") if granted else refuse)
    monkeypatch.setattr(process_limits, "apply", calls.of("limits"))
    monkeypatch.setattr(namespaces, "devices", lambda: [Path("/dev/null")])
    monkeypatch.setattr(isolation, "_open_families", lambda: [] if granted else [1, 16])
    monkeypatch.setattr(isolation, "_can_reach_network", lambda: False)
    monkeypatch.setattr(isolation, "_mount_points", lambda: ["/mounted"])
    monkeypatch.setattr(isolation, "_can_open", lambda path: path.endswith("open"))
    monkeypatch.setattr(
        isolation, "_can_write", lambda path, own: own == view.writable and path != "/proc/sysrq-trigger"
    )
    made = isolation.enter(view, ["/a/open", "/a/closed"], {"processes": 5})
    system = (Path("/proc"), Path("/sys"))
    entered = {
        "namespaces": [("namespaces", view)],
        "landlock": [("landlock", (*view.visible, *system), (view.writable, Path("/dev/null"))), ("drop",)],
        "": [],
    }[granted]
    assert calls == [*entered, *([("no sockets",)] if granted else []), ("limits", {"processes": 5})]
    refused = ["namespaces: not here", "Landlock: not here", "refusing sockets: not here"]
    assert made.refused == {"namespaces": [], "landlock": refused[:1], "": refused}[granted]
    assert (made.files, made.network, made.user) == (granted, bool(granted), os.geteuid())
    assert made.limits == {"processes": 5} and made.reachable == ["/a/open"]
    targets = ["/mounted", *map(str, view.visible), "/a/open", "/a/closed"]
    assert made.writable[-len(targets) :] == targets and "/proc/sysrq-trigger" not in made.writable
    assert len(made.writable) == made.probed["write"] - 1
    assert (made.probed["read"], made.probed["families"]) == (2, 46)
    assert made.probed["written_to"][-1] == "/mounted" and made.probed["open_families"] == ([] if granted else [1, 16])
    assert made._libraries == view.visible and "_libraries" not in made.to_json()
    monkeypatch.setattr(isolation, "_can_reach_network", lambda: True)
    assert not isolation.enter(view, [], {}).network


@pytest.mark.parametrize("closes", [True, False])
def test_the_closing_is_tried_by_opening_files(closes: bool, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_files() -> None:
        calls.append(("files",))
        if not closes:
            raise kernel.Unavailable("not here")

    monkeypatch.setattr(system_calls, "open_files", lambda: ["/open"])
    monkeypatch.setattr(system_calls, "refuse_network", calls.of("network"))
    monkeypatch.setattr(system_calls, "refuse_files", refuse_files)
    monkeypatch.setattr(isolation, "_can_open", lambda path: ("files",) not in calls or not closes)
    monkeypatch.setattr(isolation.sys, "addaudithook", calls.of("hook"))
    made = isolation.Isolation()
    made.close_files()
    assert calls == [("network",), ("files",), ("hook", made._note)]
    assert (made.still_open, made.closed) == (["/open"], closes)
    assert made.refused == ([] if closes else ["closing the file system: not here"])
    monkeypatch.setattr(isolation, "_can_open", lambda path: False)
    made.close_files()
    assert not made.closed, "without a file that could be opened before, nothing is known"
