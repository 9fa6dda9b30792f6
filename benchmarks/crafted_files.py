"""Measure CPU time and peak memory of reading crafted files: small inputs that declare, or unpack to, very much.

    python benchmarks/crafted_files.py [KIND ...] [--into benchmarks/results/crafted-files]

A KIND is a module of benchmarks/crafted/ with a function `cases()` that returns `Case` objects, such as artifact.
Without KIND all of them run. Every case is read in a child process of its own, after the modules have been imported and
one small sound input has been read, so only the case itself is measured. The bounds are those of docs/architecture.md:

    CPU     5 s per started MB of input
    memory  1 GB per started MB of input, and three times the finished result where `Case.finished_bytes` says its size

Prints a line per case, writes crafted-files.json and README.md with --into, and ends with status 1 if a case is over a
bound or raises anything but an error of bitgolf. To add a kind, add a module. To add a case, add it to `cases()`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import platform
import resource
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crafted.case import Case

from bitgolf.errors import BitgolfError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

CPU_SECONDS = 5.0  # per started MB of input
MEMORY_BYTES = 1 << 30  # per started MB of input
FINISHED_TIMES = 3  # memory in terms of the finished result
SMALL_BYTES = 64 << 20  # memory that any case may take, for modules that are imported late and for buffers
KILL_SECONDS = 120.0  # wall clock after which a case is stopped
LIMIT_BYTES = 6 << 30  # address space beyond the child's own, so that no case exhausts the machine


@dataclass(frozen=True)
class Measured:
    """How reading one case went."""

    kind: str
    name: str
    input_bytes: int
    outcome: str  # "read", "refused: message" or "FAULT: exception"
    cpu_seconds: float
    peak_bytes: int  # beyond what the process held before
    finished_bytes: int

    @property
    def faults(self) -> list[str]:
        """The bounds that the case exceeds."""
        megabytes = 1 + self.input_bytes // 1_000_000
        faults = [self.outcome] if self.outcome.startswith("FAULT") else []
        if self.cpu_seconds > CPU_SECONDS * megabytes:
            faults.append(f"{self.cpu_seconds:.1f} s of CPU")
        if self.peak_bytes > MEMORY_BYTES * megabytes:
            faults.append(f"{self.peak_bytes / 1e6:,.0f} MB")
        if self.finished_bytes and self.peak_bytes > max(SMALL_BYTES, FINISHED_TIMES * self.finished_bytes):
            faults.append(
                f"{self.peak_bytes / self.finished_bytes:.1f} times the finished {self.finished_bytes:,} bytes"
            )
        return faults


def held_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def read_in_child(kind: str, number: int, path: Path, pipe: Any) -> None:
    """Read case `number` of `kind` at `path` and send outcome, CPU seconds and peak memory."""
    case = load(kind)[number]
    warm_up = getattr(importlib.import_module(f"crafted.{kind}"), "warm_up", None)
    if warm_up is not None:
        warm_up()
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (space + LIMIT_BYTES, space + LIMIT_BYTES))
    before, peak, done = held_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, held_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begin = time.process_time()
    try:
        result = case.read(path)
        outcome = "read"
        del result
    except BitgolfError as error:
        outcome = f"refused: {error}"
    except BaseException as error:
        outcome = f"FAULT: {type(error).__name__}: {error}"
    seconds = time.process_time() - begin
    done.set()
    watcher.join()
    pipe.send((outcome, seconds, max(0, peak - before)))


def load(kind: str) -> list[Case]:
    """The cases of a kind."""
    cases: list[Case] = importlib.import_module(f"crafted.{kind}").cases()
    return cases


def measure(kind: str, number: int, case: Case, folder: Path) -> Measured:
    """Write the case, read it in a child process and measure that."""
    path = folder / "input"
    case.write(path)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "bitgolf.artifact.open"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=read_in_child, args=(kind, number, path, sender))
    child.start()
    sender.close()
    outcome, seconds, peak = "FAULT: no answer", float("inf"), 0
    try:
        if receiver.poll(KILL_SECONDS):
            outcome, seconds, peak = receiver.recv()
        else:
            outcome = f"FAULT: stopped after {KILL_SECONDS:.0f} s"
    except EOFError:
        outcome = "FAULT: the process died"
    child.kill()
    child.join()
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Measured(kind, case.name, size, outcome.replace(str(path), "input"), seconds, peak, case.finished_bytes)


def table(results: list[Measured]) -> str:
    """The results as a Markdown table."""
    lines = ["| kind | input | bytes | outcome | CPU s | peak MB |", "|---|---|---:|---|---:|---:|"]
    for r in results:
        outcome = r.outcome if len(r.outcome) <= 90 else r.outcome[:87] + "..."
        lines.append(
            f"| {r.kind} | {r.name} | {r.input_bytes:,} | {outcome.replace('|', ' ')} | {r.cpu_seconds:.2f} | "
            f"{r.peak_bytes / 1e6:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the cases of the kinds on the command line; the exit status says whether all are within bounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = sorted(
        p.stem for p in (Path(__file__).parent / "crafted").glob("*.py") if p.stem not in ("__init__", "case")
    )
    parser.add_argument("kinds", nargs="*", choices=[*kinds, []], metavar="KIND", help=", ".join(kinds))
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in arguments.kinds or kinds:
            for number, case in enumerate(load(kind)):
                result = measure(kind, number, case, Path(folder))
                results.append(result)
                mark = "  <-- " + "; ".join(result.faults) if result.faults else ""
                print(
                    f"{kind:<12} {case.name:<58} {result.input_bytes:>9,} B {result.cpu_seconds:6.2f} s "
                    f"{result.peak_bytes / 1e6:6.0f} MB  {result.outcome[:70]}{mark}",
                    flush=True,
                )
    over = [r for r in results if r.faults]
    print(f"{len(results)} crafted inputs, {len(over)} over a bound or faulty")
    if arguments.into:
        arguments.into.mkdir(parents=True, exist_ok=True)
        machine = f"{platform.machine()}, Python {platform.python_version()}"
        record = {"machine": machine, "cases": [asdict(r) | {"faults": r.faults} for r in results]}
        (arguments.into / "crafted-files.json").write_text(json.dumps(record, indent=1) + "\n")
        text = (
            "# Crafted files\n\n"
            "Made by `benchmarks/crafted_files.py`: CPU time and peak memory of reading small inputs\n"
            f"that declare, or unpack to, very much. {len(results)} inputs, {len(over)} over a bound. {machine}.\n"
        )
        (arguments.into / "README.md").write_text(f"{text}\n{table(results)}\n")
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())
