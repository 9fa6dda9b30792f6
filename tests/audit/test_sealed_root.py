"""What a sealed process mounts and which limits it sets, noted by functions in place of the kernel's."""

import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

from bitgolf.audit.sandbox import kernel, namespaces, process_limits
from bitgolf.audit.sandbox.namespaces import View, _build_root, _outermost

READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18


@pytest.mark.parametrize("may_mount_proc", [True, False])
def test_the_root_shows_what_it_should_and_no_more(
    may_mount_proc: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("lib/below", "lib/secret", "other/secret", "work"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("lib/hidden.bin", "device", "one.py"):
        (tmp_path / file).touch()
    (tmp_path / "work" / "model").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("lib")
    calls: list[tuple[Any, ...]] = []

    def mount(*arguments: Any) -> None:
        calls.append(arguments)
        if arguments[0] == "proc" and not may_mount_proc:
            raise PermissionError

    def bind_read_only(path: Path, target: Path) -> None:
        calls.append(("bind", path, target))
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)

    monkeypatch.setattr(kernel, "mount", mount)
    monkeypatch.setattr(kernel, "bind_read_only", bind_read_only)
    monkeypatch.setattr(kernel, "read_only", lambda target: calls.append(("read only", target)))
    monkeypatch.setattr(kernel, "change_root", lambda root: calls.append(("root", root)))
    monkeypatch.setattr(namespaces, "devices", lambda: [tmp_path / "device"])
    monkeypatch.chdir(tmp_path)
    visible = tuple(tmp_path / name for name in ("one.py", "link", "lib/below", "lib"))
    hidden = tuple(tmp_path / name for name in ("lib/secret", "other/secret", "lib/hidden.bin", "lib/none"))
    _build_root(View(visible, tmp_path / "work", hidden))
    root = tmp_path / "work" / "root"
    inner = root / tmp_path.relative_to("/")
    proc: list[tuple[Any, ...]] = [("proc", root / "proc", "proc", NO_SUID | NO_DEVICES | NO_EXEC | READ_ONLY)]
    if not may_mount_proc:
        proc += [("/proc", root / "proc", "", BIND | RECURSIVE), ("read only", root / "proc")]
    assert calls == [
        ("none", Path("/"), "", RECURSIVE | PRIVATE),
        ("tmpfs", root, "tmpfs", NO_SUID | NO_DEVICES, "mode=755,size=16m"),
        ("tmpfs", root / "tmp", "tmpfs", NO_SUID | NO_DEVICES, "size=256m,mode=1777"),
        *proc,
        ("tmpfs", root / "dev/shm", "tmpfs", NO_SUID | NO_DEVICES, "size=1g,mode=1777"),
        ("bind", tmp_path / "lib", inner / "lib"),
        ("bind", tmp_path / "one.py", inner / "one.py"),
        (str(tmp_path / "device"), inner / "device", "", BIND | RECURSIVE),
        ("tmpfs", inner / "lib/secret", "tmpfs", READ_ONLY | NO_SUID | NO_DEVICES, "size=4k"),
        ("/dev/null", inner / "lib/hidden.bin", "", BIND),
        ("tmpfs", inner / "work", "tmpfs", NO_SUID | NO_DEVICES, f"size={(1 << 30) + 5},mode=700"),
        ("none", root, "", REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEVICES),
        ("root", root),
    ]
    assert (inner / "link").readlink() == Path("lib") and (inner / "work" / "model").read_bytes() == b"12345"
    assert (inner / "work" / "tmp").is_dir() and not (inner / "other").exists() and Path.cwd() == tmp_path / "work"


def test_folders_below_others_are_left_out() -> None:
    paths = [Path(text) for text in ("/usr/lib", "/usr", "/usr2/a", "/usr/lib/b", "/", "/etc/x", "/etc/x")]
    assert _outermost(paths) == [Path("/etc/x"), Path("/usr"), Path("/usr2/a")]
    assert _outermost([]) == []


def test_limits_are_set_for_good_and_never_above_those_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (5, {resource.RLIMIT_CPU: 70}.get(kind, -1)))
    monkeypatch.setattr(resource, "setrlimit", made.__setitem__)
    limits = {"processes": 9, "address_space_bytes": None, "file_bytes": 512.0, "cpu_seconds": 100, "wall_seconds": 3}
    process_limits.apply(limits)
    assert made == {
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NPROC: (9, 9),
        resource.RLIMIT_FSIZE: (512, 512),
        resource.RLIMIT_CPU: (70, 70),
    }
