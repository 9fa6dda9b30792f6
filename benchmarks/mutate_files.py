"""Read many mutated files of every format: each ends in an error of bitgolf, or is read; none crashes or takes long.

    python benchmarks/mutate_files.py [KIND ...] [--count 100000] [--into benchmarks/results/mutated-files]

A KIND is artifact, codec, tokenizer, shard, config, preset, submission or run. A mutation changes, cuts or inserts a
few bytes of a sound file, or puts another value in place of one of its JSON fields; half of the mutated artifacts and
some of the coded texts have their checksums repaired. Of a submission folder or a run directory, one file is mutated.

Child processes read 500 files each, in 512 MB beyond what they hold at first. A fault is any exception but a
BitgolfError, more than 5 s of CPU, and a child that dies. With --into, figures are added to mutated.json, and README.md
has them as a table.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import multiprocessing
import platform
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import fuzz
from crafted import codec as crafted_codec
from crafted import damage, run_directory
from surgery import mutations, rich_contents
from synthetic_submission import Folder
from tiny_run import documents

from bitgolf.artifact.container import encode_artifact, read_artifact
from bitgolf.codec import compress_bytes
from bitgolf.config import load_config
from bitgolf.data.prepare import check_disjoint, open_data
from bitgolf.data.shards import TokenShards, write_shard
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.data.train_tokenizer import train_tokenizer
from bitgolf.errors import BitgolfError
from bitgolf.measure.statistics import read_curvature, read_fisher, read_hessians
from bitgolf.model.weights import read_tensors
from bitgolf.referee.run import audit_submission
from bitgolf.report import charts
from bitgolf.report.comparison.document_losses import document_losses
from bitgolf.report.comparison.scored_runs import read_run
from bitgolf.report.products import Products
from bitgolf.report.report import Texts, render
from bitgolf.run.directory import RunDirectory
from bitgolf.train.checkpoint import CheckpointStore

CASES_PER_CHILD = 500
SPARE_BYTES = 512 << 20
CPU_SECONDS = 5.0
WAIT_SECONDS = 60

Cases = Iterator[Callable[[], object]]  # each reads one mutated file


def artifact(rng: random.Random, folder: Path) -> Cases:
    """Artifacts of every compressor."""
    for compressor in ("range", "zstd", "lzma", "zlib"):
        encoded = encode_artifact(**rich_contents(), compressor=compressor)[0]
        for data, _ in zip(mutations(encoded, rng), range(CASES_PER_CHILD // 4), strict=False):
            yield lambda data=data: read_artifact(data, max_bytes=fuzz.MAX_BYTES) is not None  # type: ignore[misc]


def codec(rng: random.Random, folder: Path) -> Cases:
    """Short coded texts of a tiny model. Another text than the coded one is a fault too."""
    model, text = crafted_codec.model(), documents()[60][:80].encode()
    coded = compress_bytes(text, model, streams=2)
    while True:
        data = fuzz.damaged(coded.data, coded.text, rng)[1]
        yield lambda data=data: fuzz.outcome(data, model, text) == "the exact text"  # type: ignore[misc]


def tokenizer(rng: random.Random, folder: Path) -> Cases:
    """SentencePiece models. Those that load encode a text."""
    sound = [train_tokenizer(documents()[:60], 360, lossless=lossless).model_bytes for lossless in (True, False)]

    def read(data: bytes, lossless: bool) -> None:
        loaded = Tokenizer.load(data, lossless)
        loaded.byte_costs(loaded.encode_proven(["The quiet miller, d\u00e9j\u00e0 vu!\n"]).tokens)

    while True:
        yield functools.partial(read, fuzz.scrambled(rng.choice(sound), rng), rng.random() < 0.5)


def shard(rng: random.Random, folder: Path) -> Cases:
    """Token shards of 100 tokens."""
    path = folder / "a_train_000000.bin"
    write_shard(path, torch.arange(100).numpy())
    sound = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        shards = TokenShards([path])
        shards.read(0, shards.num_tokens)
        shards.validate(100)

    while True:
        head = fuzz.scrambled(sound[:12], rng) + sound[12:]  # the part that is read of the first 1,024 bytes
        yield functools.partial(read, head if rng.random() < 0.5 else fuzz.scrambled(sound, rng))


def config(rng: random.Random, folder: Path) -> Cases:
    """The config.toml of a run, with changed bytes or values."""
    yield from settings(rng, folder, [(run_directory.sound() / "config.toml").read_text()])


def preset(rng: random.Random, folder: Path) -> Cases:
    """All presets that ship."""
    presets = sorted((Path(__file__).parents[1] / "bitgolf" / "presets").glob("*.toml"))
    yield from settings(rng, folder, [path.read_text() for path in presets])


def settings(rng: random.Random, folder: Path, texts: list[str]) -> Cases:
    """TOML texts with changed bytes, or another value of a setting."""
    path = folder / "config.toml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        load_config(str(path))

    while True:
        text = rng.choice(texts)
        if rng.random() < 0.5:
            yield functools.partial(read, fuzz.scrambled(text.encode(), rng))
            continue
        values = list(re.finditer(r"(?m)^\w+ = (.*)$", text))
        start, stop = rng.choice(values).span(1)
        other = rng.choice(damage.SETTINGS) if rng.random() < 0.7 else rng.choice(values)[1]
        yield functools.partial(read, (text[:start] + other + text[stop:]).encode())


def submission(rng: random.Random, folder: Path) -> Cases:
    """Folders as of the public records, one file of each mutated."""
    folder = folder / "entry"
    Folder().write(folder)
    sound = {path: path.read_bytes() for path in folder.iterdir()}

    def read(path: Path, data: bytes) -> None:
        path.write_bytes(data)
        try:
            audit_submission(folder).to_json()
        finally:
            path.write_bytes(sound[path])

    while True:
        path = rng.choice(list(sound))
        yield functools.partial(read, path, mutated(path, sound[path], rng))


def run(rng: random.Random, folder: Path) -> Cases:
    """Run directories, one file of each mutated; all that pages, comparisons and `pack` read of it."""
    root = folder / "run"
    shutil.copytree(run_directory.sound(), root)
    sound = {name: (root / name).read_bytes() for name in run_directory.files()}
    records = [name for name in sound if name.endswith((".json", ".jsonl"))]

    def read(name: str, data: bytes) -> None:
        (root / name).write_bytes(data)
        try:
            for names, reader in RUN_READERS:
                if re.fullmatch(names, name):
                    reader(root)
        finally:
            (root / name).write_bytes(sound[name])

    while True:
        name = rng.choice(records if rng.random() < 0.7 else list(sound))
        yield functools.partial(read, name, mutated(root / name, sound[name], rng))


def render_page(root: Path) -> None:
    """The page of a run without texts. Every 20th time its charts are made SVG, which takes most of the time."""
    render_page.calls += 1  # type: ignore[attr-defined]
    charts.as_svg = as_svg if render_page.calls % 20 == 1 else lambda figure, *names: ""  # type: ignore[attr-defined]
    render(Products.read(RunDirectory.open(root)), Texts())


as_svg = charts.as_svg
render_page.calls = 0  # type: ignore[attr-defined]


def compare_documents(root: Path) -> None:
    """The losses of a run by document."""
    document_losses(read_run(root, "a"))


def load_checkpoint(root: Path) -> None:
    """The newest checkpoint of a run."""
    CheckpointStore(root / "checkpoint").load_latest(RunDirectory.open(root).config.digest())


RUN_READERS: tuple[tuple[str, Callable[[Path], object]], ...] = (
    (r"[a-z]*\.json|config.toml|train.jsonl", render_page),
    (r"(score|tape|data/manifest)\.json|config.toml|train.jsonl|nll.*|data/.*", compare_documents),
    (r"data/.*", lambda root: open_data(root / "data", verify=True)),
    (r"data/.*_documents.bin", lambda root: check_disjoint(root / "data")),
    (r"model.bitgolf", lambda root: read_artifact(root / "model.bitgolf")),
    (r"weights.*", lambda root: read_tensors(root / "weights.safetensors", root)),
    (r"calibration/hessians.*", lambda root: read_hessians(root / "calibration", root)),
    (r"calibration/fisher.*", lambda root: read_fisher(root / "calibration", root)),
    (r"calibration/curvature.*", lambda root: read_curvature(root / "calibration", root)),
    (r"checkpoint/.*", load_checkpoint),
)


def mutated(path: Path, data: bytes, rng: random.Random) -> bytes:
    """The content of a file with changed bytes, or, of a JSON file, with another value of a field."""
    if path.suffix not in (".json", ".jsonl") or rng.random() < 0.3:
        return fuzz.scrambled(data, rng)
    lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
    number = rng.randrange(len(lines))
    document = json.loads(lines[number])
    place = rng.choice(list(damage.fields(document)))
    lines[number] = damage.replaced(document, place, rng.choice(damage.JSON_VALUES))
    return "\n".join(lines).encode()


KINDS = {make.__name__: make for make in (artifact, codec, tokenizer, shard, config, preset, submission, run)}


def read_some(kind: str, seed: int, pipe: Any) -> None:
    """Read the mutated files of `seed` in a child process; sends the number of each case, then the outcomes."""
    torch.set_num_threads(1)
    counts: collections.Counter[str] = collections.Counter()
    slowest, faults = 0.0, list[str]()
    with tempfile.TemporaryDirectory() as name:
        cases = KINDS[kind](random.Random(seed), Path(name))
        for case, read in zip(range(CASES_PER_CHILD), cases, strict=False):
            if not case:
                held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (held + SPARE_BYTES, held + SPARE_BYTES))
            pipe.send(case)
            signal.alarm(WAIT_SECONDS)  # kills a case that waits for ever
            begin = time.process_time()
            try:
                was_read = read() in (None, True)
                counts["read" if was_read else "refused"] += 1
            except BitgolfError:
                counts["refused"] += 1
            except BaseException as error:
                counts["fault"] += 1
                faults.append(f"seed {seed}, case {case}: {type(error).__name__}: {error}"[:300])
            seconds = time.process_time() - begin
            if seconds > CPU_SECONDS:
                faults.append(f"seed {seed}, case {case}: {seconds:.1f} s of CPU")
            slowest = max(slowest, seconds)
        signal.alarm(0)
    pipe.send((dict(counts), slowest, faults))


def read_many(kind: str, count: int, seed: int, seconds: float) -> dict[str, Any]:
    """Read about `count` mutated files of a kind, no longer than `seconds`."""
    context = multiprocessing.get_context("fork")
    if kind in ("config", "run"):
        for _, reader in RUN_READERS:  # the run is made and all imported once, before the processes part
            reader(run_directory.sound())
    totals: collections.Counter[str] = collections.Counter()
    slowest, faults, begin = 0.0, list[str](), time.perf_counter()
    while totals.total() < count and time.perf_counter() - begin < seconds:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=read_some, args=(kind, seed, sender))
        child.start()
        sender.close()
        last: Any = "none"
        try:
            while isinstance(last := receiver.recv(), int):
                continue
            totals.update(last[0])
            slowest, faults = max(slowest, last[1]), faults + last[2]
        except EOFError:
            child.join()
            faults.append(f"seed {seed}: the process ended with {child.exitcode} after case {last}")
            totals["fault"] += 1
        child.join()
        seed += 1
    return {"cases": totals.total(), **totals, "slowest_cpu_seconds": round(slowest, 3), "faults": faults, "next": seed}


def add(path: Path, kind: str, result: dict[str, Any]) -> None:
    """Add the figures of a kind to those in the file, if its earlier seeds are others."""
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    figures = json.loads(path.read_text()) if path.exists() else {"machine": machine, "kinds": {}}
    before = figures["kinds"].get(kind, {})
    for key in ("cases", "read", "refused", "fault"):
        result[key] = result.get(key, 0) + before.get(key, 0)
    result["faults"] = before.get("faults", []) + result["faults"]
    result["slowest_cpu_seconds"] = max(result["slowest_cpu_seconds"], before.get("slowest_cpu_seconds", 0.0))
    figures["kinds"][kind] = result
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")
    rows = [
        f"| {name} | {r['cases']:,} | {r['read']:,} | {r['refused']:,} | {len(r['faults'])} | "
        f"{r['slowest_cpu_seconds']:.2f} |"
        for name, r in sorted(figures["kinds"].items())
    ]
    (path.parent / "README.md").write_text(
        "# Mutated files\n\n"
        "Made by `benchmarks/mutate_files.py`: mutated copies of sound files of every format. A fault is an exception\n"
        f"that is no error of bitgolf, more than {CPU_SECONDS:g} s of CPU, or a process that dies. A process has "
        f"{SPARE_BYTES >> 20} MB\nfor {CASES_PER_CHILD} files. {figures['machine']}.\n\n"
        "| kind | files | read | refused | faults | slowest, CPU s |\n|---|---:|---:|---:|---:|---:|\n"
        + "\n".join(rows)
        + "\n"
    )


def main() -> int:
    """Read mutated files of the kinds on the command line; status 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=1e9, help="of each kind, at most")
    parser.add_argument("--into", type=Path, help="folder of mutated.json; its next seeds are read")
    arguments = parser.parse_args()
    failed = False
    for kind in arguments.kinds or KINDS:
        path, seed = None, 0
        if arguments.into:
            path = arguments.into / "mutated.json"
            seed = json.loads(path.read_text())["kinds"].get(kind, {}).get("next", 0) if path.exists() else 0
        result = read_many(kind, arguments.count, seed, arguments.seconds)
        print(f"{kind:<10} {json.dumps(result)[:2000]}", flush=True)
        failed |= bool(result["faults"])
        if path:
            add(path, kind, result)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
