"""Read a hundred thousand damaged artifacts: no crash, no hang, no wrong kind of error, no memory beyond bounds.

    python benchmarks/compress/fuzz.py [--cases 100000] [--compressor range] [--into DIR]

Half of the cases have all checksums and sizes repaired, so that the damage reaches the decoders. Cases run in child
processes, 2,000 each, with little memory to spare: a decoder that aborts, or asks for what the file does not declare,
takes only its child down and is reported with the number of the case. Writes fuzz.json beside a line of summary.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import platform
import queue
import random
import resource
import sys
import time
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from surgery import mutations, rich_contents

from bitgolf.artifact.container import encode_artifact, read_artifact
from bitgolf.errors import ArtifactError

CASES_A_CHILD = 2000
SPARE_BYTES = 256 << 20  # beyond what the child holds before its first case
MAX_BYTES = 1 << 24  # that an artifact may declare
SLOW_SECONDS = 1.0


def read_all(first: int, artifact: bytes, results: multiprocessing.Queue[tuple[str, object]]) -> None:
    """Read the cases from number `first` on and report each outcome."""
    read_artifact(artifact)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + SPARE_BYTES, held + SPARE_BYTES))
    counts: collections.Counter[str] = collections.Counter()
    slowest, faults = 0.0, []
    for case, data in enumerate(islice(mutations(artifact, random.Random(first)), CASES_A_CHILD), first):
        results.put(("began", case))
        begin = time.process_time()  # a neighbor on the machine is no hang
        try:
            read_artifact(data, max_bytes=MAX_BYTES)
            outcome = "read"
        except ArtifactError as error:
            outcome = "refused: " + str(error).split(" ")[0].rstrip(":")
        except BaseException as error:
            outcome = "FAULT"
            faults.append(f"case {case}: {type(error).__name__}: {error}")
        seconds = time.process_time() - begin
        if seconds > SLOW_SECONDS:
            faults.append(f"case {case}: took {seconds:.1f} CPU seconds")
        slowest = max(slowest, seconds)
        counts[outcome] += 1
    results.put(("done", (counts, slowest, faults)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--compressor", default="range")
    parser.add_argument("--into", type=Path, help="folder for fuzz.json")
    arguments = parser.parse_args()
    artifact = encode_artifact(**rich_contents(), compressor=arguments.compressor)[0]
    context = multiprocessing.get_context("spawn")
    counts: collections.Counter[str] = collections.Counter()
    slowest, faults, begin = 0.0, [], time.perf_counter()
    for first in range(0, arguments.cases, CASES_A_CHILD):
        results = context.Queue()
        child = context.Process(target=read_all, args=(first, artifact, results))
        child.start()
        last, done = first, False
        while not done:
            try:
                kind, value = results.get(timeout=60)
            except queue.Empty:
                faults.append(
                    f"case {last}: the process {'died' if not child.is_alive() else 'hangs'} ({child.exitcode})"
                )
                child.kill()
                break
            if kind == "began":
                last = value
            else:
                done = True
                counts += value[0]
                slowest = max(slowest, value[1])
                faults += value[2]
        child.join()
    summary = {
        "cases": counts.total(),
        "compressor": arguments.compressor,
        "artifact_bytes": len(artifact),
        "outcomes": dict(counts.most_common()),
        "slowest_cpu_seconds": round(slowest, 3),
        "seconds": round(time.perf_counter() - begin, 1),
        "spare_bytes": SPARE_BYTES,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "faults": faults,
    }
    print(json.dumps(summary, indent=2))
    if arguments.into:
        arguments.into.mkdir(parents=True, exist_ok=True)
        (arguments.into / "fuzz.json").write_text(json.dumps(summary, indent=2) + "\n")
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    main()
