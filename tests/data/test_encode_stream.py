"""Worker processes: the same tokens in the same order, a quiet end at Ctrl-C, and no survivors of the main process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_run import environment

from bitgolf.data import encode_stream
from bitgolf.data.encode_stream import encode_batches, make_batches
from bitgolf.data.split import number_documents
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import DataError

_ENDLESS = """
import itertools, multiprocessing, sys
from bitgolf.data.encode_stream import Batch, encode_batches
from bitgolf.data.split import SourceDocument
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.run.workers import end_in_order

if __name__ == "__main__":
    end_in_order()
    batches = (Batch("train", [SourceDocument("some words", i, 0, 10)]) for i in itertools.count())
    try:
        for number, _ in enumerate(encode_batches(batches, Tokenizer.load(sys.argv[1]), workers=2)):
            if number == 0:
                print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    except KeyboardInterrupt:
        sys.exit(130)
"""

_ENDLESS_CODER = """
import multiprocessing, os, time
from bitgolf.artifact.processes import coder_processes
from bitgolf.run.workers import end_in_order

if __name__ == "__main__":
    end_in_order()
    os.sched_getaffinity = lambda process: {0, 1, 2}
    try:
        with coder_processes(1 << 23) as apply:
            apply(len, [[]] * 3)
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            time.sleep(600)
    except KeyboardInterrupt:
        raise SystemExit(130)
"""


def _ignore_nothing() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # a background job of a shell, and `nohup`, ignore these
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def endless(
    lossless: Tokenizer, folder: Path, program: str = _ENDLESS
) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process that encodes without end, and its workers."""
    (folder / "t.model").write_bytes(lossless.model_bytes)
    (folder / "endless.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, str(folder / "endless.py"), str(folder / "t.model")], env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=_ignore_nothing,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process, [int(pid) for pid in process.stdout.readline().split()]
    finally:
        process.kill()
        process.communicate()


def ended(pid: int) -> bool:
    """Whether a process has ended (or is only waiting for its parent to collect it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while not all(map(ended, pids)):
        assert time.monotonic() < deadline, "workers outlive the main process"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(("program", "count"), [(_ENDLESS, 2), (_ENDLESS_CODER, 3)])
def test_a_signal_of_the_terminal_prints_no_traceback_of_workers(
    lossless: Tokenizer, tmp_path: Path, program: str, count: int, number: signal.Signals
) -> None:
    with endless(lossless, tmp_path, program) as (process, workers):
        assert len(workers) == count
        os.killpg(process.pid, number)  # as the terminal does
        assert process.communicate(timeout=120) == ("", "")
        assert process.returncode == 128 + number
        wait_for_end(workers)


@pytest.mark.parametrize(
    ("program", "number"),
    [(_ENDLESS, signal.SIGTERM), (_ENDLESS, signal.SIGKILL), (_ENDLESS_CODER, signal.SIGKILL)],
)
def test_workers_end_with_the_main_process(
    lossless: Tokenizer, tmp_path: Path, program: str, number: signal.Signals
) -> None:
    with endless(lossless, tmp_path, program) as (process, workers):
        process.send_signal(number)
        process.wait(120)
        wait_for_end(workers)


def test_batches_keep_the_order_within_a_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_stream, "BATCH_BYTES", 10)
    labeled = [("val" if i % 3 == 0 else "train", d) for i, d in enumerate(number_documents(["abcd"] * 20))]
    batches = list(make_batches(labeled))
    for split in ("train", "val"):
        indices = [d.index for batch in batches if batch.split == split for d in batch.documents]
        assert indices == [d.index for side, d in labeled if side == split]
    assert all(sum(d.size for d in batch.documents) <= 12 for batch in batches)
    assert [len(batch.documents) for batch in batches if batch.split == "train"] == [3, 3, 3, 3, 1]


def test_workers_keep_the_accounting_of_the_tokenizer(challenge: Tokenizer, documents: list[str]) -> None:
    batches = [encode_stream.Batch("train", [document]) for document in number_documents(documents[:4])]
    for batch, encoded in encode_batches(iter(batches), challenge, workers=2):
        assert encoded.tokens.tolist() == challenge.encode_proven([d.text for d in batch.documents]).tokens.tolist()


def test_workers_encode_in_order_and_name_the_bad_document(
    lossless: Tokenizer, documents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered = list(number_documents(documents[:12]))
    batches = [encode_stream.Batch("train", numbered[i : i + 2]) for i in range(0, 12, 2)]
    real, contexts = encode_stream.ProcessPoolExecutor, []

    def pool(count: int, *, mp_context: Any, **rest: Any) -> Any:
        contexts.append((count, mp_context.get_start_method()))
        return real(count, mp_context=mp_context, **rest)

    with monkeypatch.context() as patched:
        patched.setattr(encode_stream, "ProcessPoolExecutor", pool)
        results = list(encode_batches(iter(batches), lossless, workers=2))
    assert contexts == [(2, "spawn")], "a fork copies the threads of PyTorch"
    assert [batch for batch, _ in results] == batches
    for batch, encoded in results:
        assert encoded.tokens.tolist() == lossless.encode_proven([d.text for d in batch.documents]).tokens.tolist()
    bad = encode_stream.Batch("train", [encode_stream.SourceDocument("a\ud800", 99, 0, 1)])
    with pytest.raises(DataError, match="lone surrogate"):
        list(encode_batches(iter([*batches, bad]), lossless, workers=2))
