"""Files that the user names: special files stay what they are, links are followed, `-` is standard input and output."""

import io
import json
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_run import done, read_json, refused

from bitgolf.commands.files import (
    STANDARD,
    check_output,
    is_standard_output,
    read_input,
    save_standard_input,
    write_output,
)
from bitgolf.errors import ConfigError

DATA = b"\x93text \t\x1b[31m\xff\n" * 30_000  # more than a pipe holds


@contextmanager
def reader_of(fifo: Path) -> Iterator[list[bytes]]:
    """Reads the FIFO in a thread; the list holds its content after the block."""
    os.mkfifo(fifo)
    content: list[bytes] = []
    thread = threading.Thread(target=lambda: content.append(fifo.read_bytes()), daemon=True)
    thread.start()
    yield content
    thread.join(20)


@pytest.fixture
def standard(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], io.BytesIO]:
    """Replaces both standard streams, as an ASCII terminal has them; returns what is written."""

    def replace(data: bytes = b"") -> io.BytesIO:
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "ascii"))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
        return written

    return replace


def test_a_pipe_and_a_device_are_written_to(tmp_path: Path) -> None:
    with reader_of(tmp_path / "fifo") as content:
        write_output(tmp_path / "fifo", DATA)
    assert content == [DATA] and stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    (tmp_path / "null").symlink_to("/dev/null")
    for path in (Path("/dev/null"), tmp_path / "null"):
        write_output(path, DATA)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode) and (tmp_path / "null").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "null"]


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no names of open files")
def test_a_pipe_that_has_no_other_name_is_written_to() -> None:
    """As in `-o /dev/fd/3` or `-o >(program)`: what the link leads to is no path."""
    read, write = os.pipe()
    write_output(Path(f"/dev/fd/{write}"), DATA[:1000])
    os.close(write)
    with os.fdopen(read, "rb") as file:
        assert file.read() == DATA[:1000]


def test_another_name_of_standard_output_is_standard_output(
    standard: Callable[[bytes], io.BytesIO], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`-o /dev/stdout`: the figures go to standard error, as with `-`."""
    (tmp_path / "stdout").touch()
    other = os.open(tmp_path / "stdout", os.O_WRONLY)
    monkeypatch.setattr(os, "fstat", lambda descriptor, fstat=os.fstat: fstat(other if descriptor == 1 else descriptor))
    written = standard(b"")
    (tmp_path / "link").symlink_to("stdout")
    write_output(tmp_path / "link", DATA)
    os.close(other)
    assert written.getvalue() == DATA and (tmp_path / "stdout").read_bytes() == b""
    assert is_standard_output(STANDARD) and not is_standard_output(tmp_path / "none")


@pytest.mark.parametrize("exists", [True, False])
def test_links_are_followed(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "target"
    if exists:
        target.write_bytes(b"earlier")
    (tmp_path / "second").symlink_to("folder/target")
    (tmp_path / "first").symlink_to("second")
    write_output(tmp_path / "first", DATA)
    assert target.read_bytes() == DATA and (tmp_path / "first").is_symlink() and (tmp_path / "second").is_symlink()


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError):
        write_output(tmp_path / "a", DATA)
    assert (tmp_path / "a").is_symlink() and (tmp_path / "b").is_symlink()


def test_standard_streams(standard: Callable[[bytes], io.BytesIO]) -> None:
    written = standard(DATA)
    write_output(STANDARD, read_input(STANDARD, len(DATA)))
    assert written.getvalue() == DATA
    check_output(STANDARD, "-o", [STANDARD])


def test_pipes_are_read_and_everything_is_bounded(tmp_path: Path, standard: Callable[[bytes], io.BytesIO]) -> None:
    os.mkfifo(tmp_path / "fifo")
    threading.Thread(target=lambda: (tmp_path / "fifo").write_bytes(DATA), daemon=True).start()
    assert read_input(tmp_path / "fifo", len(DATA)) == DATA
    standard(DATA)
    for path in (STANDARD, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="more than the 1,000 bytes"):
            read_input(path, 1_000)
    for path, reason in ((tmp_path, "is a directory"), (tmp_path / "none", "does not exist")):
        with pytest.raises(ConfigError, match=reason):
            read_input(path, 1)


def test_outputs_that_would_destroy_an_input_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    (tmp_path / "link").symlink_to("source")
    for path in (source, tmp_path / "link"):
        with pytest.raises(ConfigError, match="would overwrite what is read"):
            check_output(path, "-o", [source])
    with pytest.raises(ConfigError, match="is a directory"):
        check_output(tmp_path, "-o")
    check_output(Path("/dev/null"), "-o", [Path("/dev/null")])
    (tmp_path / "other").write_bytes(DATA)
    with pytest.raises(ConfigError, match="would overwrite what is read"):
        check_output(source, "-o", [STANDARD, tmp_path / "none", tmp_path / "other", source])
    check_output(source, "-o", [STANDARD, tmp_path / "none", tmp_path / "other"])


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(DATA)
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ConfigError, match=r"file is not a folder; choose another file"):
        check_output(tmp_path / "file" / "below" / "name", "-o")
    with pytest.raises(ConfigError, match="leads to itself"):
        check_output(tmp_path / "circle", "-o")
    check_output(tmp_path / "new" / "folder" / "name", "-o")
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.bitgolf").write_bytes(DATA)
    with pytest.raises(ConfigError, match="would overwrite what is read"):
        check_output(run / "model.bitgolf", "-o", [run])
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ConfigError, match="does not allow it"):
        check_output(tmp_path / "name", "-o")
    check_output(Path("/dev/null"), "-o")


def test_text_goes_through_pipes_and_comes_back(
    tiny_run: Path, tmp_path: Path, standard: Callable[[bytes], io.BytesIO], capsys: pytest.CaptureFixture[str]
) -> None:
    from bitgolf.cli import main

    model, text = ["--model", str(tiny_run / "model.bitgolf")], b"The quiet river\t\xff\n"
    coded = standard(text)
    assert main(["compress", "-", "-o", "-", *model, "--json"]) == 0
    assert json.loads(capsys.readouterr().err)["coded_bytes"] == len(coded.getvalue())
    decoded = standard(coded.getvalue())
    assert main(["decompress", "-", "-o", "-", *model]) == 0
    assert decoded.getvalue() == text and "coded_bytes" not in capsys.readouterr().err
    with reader_of(tmp_path / "fifo") as content:
        (tmp_path / "text").write_bytes(text)
        (tmp_path / "coded").write_bytes(coded.getvalue())
        done("decompress", tmp_path / "coded", "-o", tmp_path / "fifo", *model)
    assert content == [text]


def test_a_verdict_goes_to_special_files_too(run_copy: Path, tmp_path: Path) -> None:
    words = ("audit", run_copy, "--quick", "--out")
    (tmp_path / "link").symlink_to("verdict.json")
    done(*words, tmp_path / "link")
    assert read_json(tmp_path / "verdict.json")["checks"] and (tmp_path / "link").is_symlink()
    assert "is a directory" in refused(*words, tmp_path)


def test_generated_text_is_written_untouched(
    tiny_run: Path, standard: Callable[[bytes], io.BytesIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitgolf.cli import main
    from bitgolf.language_model import LanguageModel

    text = "tab\t bell\a escape\x1b[31m \r\n [b]markup[/b] \N{SNOWMAN} " + "wide " * 60
    monkeypatch.setattr(LanguageModel, "generate", lambda *_, each, **__: each(text) or text)
    written = standard(b"")
    assert main(["sample", str(tiny_run / "model.bitgolf"), "--prompt", "é\t"]) == 0
    assert written.getvalue() == f"é\t{text}\n".encode()


def test_standard_input_is_kept_for_a_run_that_is_resumed(
    tmp_path: Path, standard: Callable[[bytes], io.BytesIO]
) -> None:
    kept = tmp_path / "run.stdin.txt"
    for text, keep, content in ((b"one", True, b"one"), (b"two", True, b"one"), (b"three", False, b"three")):
        standard(text)
        assert save_standard_input(tmp_path / "run", keep) == f"file:{kept}" and kept.read_bytes() == content
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize(("module", "command", "extra"), [
    ("onnxscript", ("export", "{run}", "--to", "onnx", "x.onnx"), "onnx"),
    ("starlette", ("serve", "{run}"), "serve"),
    ("optuna", ("sweep", "{study}", "--data", "{run}/data", "--out", "x"), "sweep"),
])  # fmt: skip
def test_what_is_not_installed_is_named_with_its_extra(
    module: str, command: tuple[str, ...], extra: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study.toml"
    settings = '[settings]\ntrain.held_out_tokens = 1024\ntrain.average.choose = "held_out"'
    search = '[search]\n"train.matrix_lr" = {low = 0.1, high = 1.0}'
    study.write_text(f'question = "Q"\nbase = "demo"\n{settings}\n{search}\n')
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == module or name == "bitgolf.serve.app"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    text = refused(*(word.format(run=tiny_run, study=study) for word in command))
    assert f"pip install 'bitgolf[{extra}]'" in str(text)
