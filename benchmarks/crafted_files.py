"""Measure CPU time and peak memory of reading crafted files: small inputs that declare, or unpack to, very much.

    python benchmarks/crafted_files.py [KIND ...] [--seconds 280] [--into benchmarks/results/crafted-files]

A KIND is a module of benchmarks/crafted/ with a function `cases()` that returns `Case` objects, such as artifact.
Without KIND all of them run. Every case is read in a child process of its own, which is forked after the modules have
been imported and one small sound input has been read, so only the case itself is measured. The bounds are those of
docs/architecture.md:

    CPU     5 s per started MB of input
    memory  1 GB per started MB of input, and three times the finished result where `Case.finished_bytes` says its size

Prints a line per case, adds the figures to crafted-files.json and README.md with --into, and ends with status 1 if a
case is over a bound or raises anything but an error of bitgolf. Cases that crafted-files.json has are not read again.
To add a kind, add a module. To add a case, add it to `cases()`.
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

import torch
from crafted.case import Case

from bitgolf.errors import BitgolfError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

CPU_SECONDS = 5.0  # per started MB of input
MEMORY_BYTES = 1 << 30  # per started MB of input
FINISHED_TIMES = 3  # memory in terms of the finished result
SMALL_BYTES = 64 << 20  # memory that any case may take, for modules that are imported late and for buffers
KILL_SECONDS = 120.0  # wall clock after which a case is stopped
SHOWN = 12  # inputs of each kind in README.md
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


def read_in_child(case: Case, path: Path, pipe: Any) -> None:
    """Read the case at `path` and send outcome, CPU seconds and peak memory."""
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
    """The cases of a kind, in a process that is ready to read them."""
    module = importlib.import_module(f"crafted.{kind}")
    cases: list[Case] = module.cases()
    getattr(module, "warm_up", lambda: None)()
    return cases


def measure(kind: str, case: Case, folder: Path) -> Measured:
    """Write the case, read it in a child process and measure that."""
    path = folder / "input"
    case.write(path)
    regular = path.is_file()
    files = [path] if regular else [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    size = sum(file.stat().st_size for file in files)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=read_in_child, args=(case, path, sender))
    child.start()
    sender.close()
    outcome, seconds, peak = "FAULT: no answer", KILL_SECONDS, 0
    try:
        if receiver.poll(KILL_SECONDS):
            outcome, seconds, peak = receiver.recv()
        else:
            outcome = f"FAULT: stopped after {KILL_SECONDS:.0f} s"
    except EOFError:
        outcome = "FAULT: the process died"
    child.kill()
    child.join()
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
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


def write_figures(folder: Path, figures: dict[str, Any]) -> None:
    """Write crafted-files.json and README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "crafted-files.json").write_text(json.dumps(figures, separators=(",", ":")) + "\n")
    lines = ["| kind | inputs | read | refused | over a bound or faulty | slowest, CPU s | largest, MB |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    shown: list[Measured] = []
    for kind, cases in sorted(figures["kinds"].items()):
        results = [Measured(kind, name, *values) for name, values in cases.items()]
        read = sum(r.outcome == "read" for r in results)
        faults = sum(bool(r.faults) for r in results)
        slowest, largest = max(r.cpu_seconds for r in results), max(r.peak_bytes for r in results)
        lines.append(
            f"| {kind} | {len(results):,} | {read:,} | {len(results) - read - faults:,} | {faults} | {slowest:.2f} | "
            f"{largest / 1e6:.0f} |"
        )
        costly = sorted(results, key=lambda r: max(r.cpu_seconds / CPU_SECONDS, r.peak_bytes / MEMORY_BYTES))
        shown += [r for r in reversed(costly) if r.faults or r in costly[-SHOWN:]]
    (folder / "README.md").write_text(
        "# Crafted files\n\n"
        "Made by `benchmarks/crafted_files.py`: CPU time and peak memory of reading small inputs that declare, or\n"
        f"unpack to, very much, and of inputs with every field damaged. {figures['machine']}.\n\n"
        + "\n".join(lines)
        + f"\n\n## The {SHOWN} most costly inputs of each kind\n\n{table(shown)}\n"
    )


def main() -> int:
    """Run the cases of the kinds on the command line; the exit status says whether all are within bounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = sorted(
        p.stem for p in (Path(__file__).parent / "crafted").glob("*.py") if p.stem not in ("__init__", "case")
    )
    parser.add_argument("kinds", nargs="*", choices=[*kinds, []], metavar="KIND", help=", ".join(kinds))
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no case later than this")
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads of PyTorch cannot be forked
    begin, over, count = time.monotonic(), 0, 0
    figures: dict[str, Any] = {"kinds": {}}
    if arguments.into and (arguments.into / "crafted-files.json").exists():
        figures = json.loads((arguments.into / "crafted-files.json").read_text())
    figures["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
    with tempfile.TemporaryDirectory() as folder:
        for kind in arguments.kinds or kinds:
            done = figures["kinds"].setdefault(kind, {})
            for case in load(kind):
                if case.name in done or time.monotonic() - begin > arguments.seconds:
                    continue
                result = measure(kind, case, Path(folder))
                values = asdict(result)
                done[case.name] = [result.input_bytes, result.outcome[:120], round(result.cpu_seconds, 3)]
                done[case.name] += [values["peak_bytes"], values["finished_bytes"]]
                count, over = count + 1, over + bool(result.faults)
                mark = "  <-- " + "; ".join(result.faults) if result.faults else ""
                print(
                    f"{kind:<12} {case.name:<58} {result.input_bytes:>9,} B {result.cpu_seconds:6.2f} s "
                    f"{result.peak_bytes / 1e6:6.0f} MB  {result.outcome[:70]}{mark}",
                    flush=True,
                )
            if not done:
                del figures["kinds"][kind]
            if arguments.into and figures["kinds"]:
                write_figures(arguments.into, figures)
    print(f"{count} crafted inputs, {over} over a bound or faulty")
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())
