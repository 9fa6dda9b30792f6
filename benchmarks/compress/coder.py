"""The coder for weights beside general-purpose compressors: the same integers, their bytes and seconds.

    python benchmarks/compress/coder.py ARTIFACT... --into DIR [--commit HASH] [--name NAME...]
        [--cases stored rounded gaussians] [--without zpaq brotli]

Cases: the codes of each artifact as they are stored; the same weights rounded to 6 bits, clipped at 12.85 standard
deviations of each row as the published systems do; and rounded Gaussians whose rows and columns vary in scale. Every
compressor is given the codes group by group (all tensors of a role over the layers), one byte a code. lrzip is the
program of that name (`lrzip -z -T -L 9`). Seconds are those of one core's work. "ideal" is the sum of -log2 p of all
codes under the coder's models; what the coder writes beyond it describes those models. Writes coder.json and README.md
into DIR, case after case.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from bitgolf.artifact import entropy_coder as coder
from bitgolf.artifact import scale_model
from bitgolf.artifact.compressors import compress, decompress, missing_package
from bitgolf.artifact.container import read_stored
from bitgolf.artifact.entropy_coder import Matrix
from bitgolf.artifact.stored import StoredTensor, role
from bitgolf.grids.grid import Grid

CLIP_SIGMAS = 12.85
Group = list[np.ndarray]  # (R, C) integers each


@dataclass(frozen=True)
class Row:
    """One compressor on one case; sizes in bytes, None where it could not be run."""

    name: str
    num_bytes: int | None = None
    encode_seconds: float | None = None
    decode_seconds: float | None = None
    note: str = ""


def stored_codes(tensors: dict[str, StoredTensor]) -> dict[str, Group]:
    """Codes of an artifact by group."""
    groups: dict[str, Group] = {}
    for name, tensor in tensors.items():
        if tensor.scales is not None:
            groups.setdefault(tensor.group or role(name), []).append(tensor.values.numpy())
    return groups


def rounded_to_six_bits(tensors: dict[str, StoredTensor]) -> dict[str, Group]:
    """The weights of an artifact on an int6 grid with one clip in standard deviations for every row."""
    grid = Grid(6, clip_sigmas=CLIP_SIGMAS)
    groups: dict[str, Group] = {}
    for name, tensor in tensors.items():
        if tensor.scales is not None:
            weight = tensor.restore()
            scales = grid.scales(weight, CLIP_SIGMAS * weight.std(dim=1))
            groups.setdefault(tensor.group or role(name), []).append(grid.quantize(weight, scales).numpy())
    return groups


def gaussians(num_layers: int = 4) -> dict[str, Group]:
    """Six-bit codes of Gaussians in the shapes of a 512-wide model; the scales of rows vary by 30 %, columns 20 %."""
    generator = torch.Generator().manual_seed(0)
    groups: dict[str, Group] = {}
    for _ in range(num_layers):
        for name, rows, columns in (("query", 512, 512), ("up", 2048, 512), ("down", 512, 2048)):
            by_row = torch.exp(0.3 * torch.randn(rows, 1, generator=generator))
            by_column = torch.exp(0.2 * torch.randn(columns, generator=generator))
            weight = torch.randn(rows, columns, generator=generator) * by_row * by_column
            groups.setdefault(name, []).append((weight / 0.4145).round().clamp(-31, 31).to(torch.int8).numpy())
    return groups


def general_purpose(name: str, groups: dict[str, Group]) -> Row:
    """A compressor of `compressors`, group by group."""
    if missing_package(name):
        return Row(name, note=f"needs {missing_package(name)}")
    raws = [b"".join(planes(codes) for codes in group) for group in groups.values()]
    begin = time.process_time()
    packed = [compress(name, raw) for raw in raws]
    middle = time.process_time()
    for raw, data in zip(raws, packed, strict=True):
        if decompress(name, data, len(raw)) != raw:
            raise RuntimeError(f"{name} did not give the codes back")
    return Row(name, sum(map(len, packed)), middle - begin, time.process_time() - middle)


def zpaq(groups: dict[str, Group]) -> Row:
    """lrzip's zpaq back end, on files in memory-backed or temporary storage."""
    if shutil.which("lrzip") is None:
        return Row("lrzip-zpaq", note="lrzip is not installed")
    size, encode, decode = 0, 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, group in enumerate(groups.values()):
            plain, packed, back = (Path(folder) / f"{number}{end}" for end in ("", ".lrz", ".back"))
            plain.write_bytes(b"".join(planes(codes) for codes in group))
            begin = child_seconds()
            pack = [
                "lrzip",
                "-q",
                "-f",
                "-z",
                "-T",
                "-p",
                "1",
                "-L",
                "9",
                "-o",
                packed,
                plain,
            ]  # -T: even if it looks hopeless
            subprocess.run(pack, check=True, capture_output=True)
            middle = child_seconds()
            subprocess.run(["lrzip", "-q", "-f", "-d", "-o", back, packed], check=True, capture_output=True)
            decode += child_seconds() - middle
            encode += middle - begin
            size += packed.stat().st_size
            if back.read_bytes() != plain.read_bytes():
                raise RuntimeError("lrzip did not give the codes back")
    return Row("lrzip-zpaq", size, encode, decode)


def child_seconds() -> float:
    """CPU seconds of the programs that were run so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def planes(codes: np.ndarray) -> bytes:
    """The codes one after another; of two-byte codes all low bytes, then all high bytes."""
    flat = np.ascontiguousarray(codes).reshape(-1)
    return flat.view(np.uint8).reshape(-1, flat.itemsize).T.tobytes()


def ours(groups: dict[str, Group]) -> list[Row]:
    """The ideal code length, the coder and its prediction of its own size."""
    matrices = {name: [Matrix(codes) for codes in group] for name, group in groups.items()}
    ideal = sum(scale_model.fit(matrix.codes).bits for group in matrices.values() for matrix in group)
    begin = time.process_time()
    predicted = sum(coder.predict_bytes(group) for group in matrices.values())
    middle = time.process_time()
    packed = {name: coder.encode_matrices(group) for name, group in matrices.items()}
    encoded = time.process_time()
    for name, group in matrices.items():
        shapes = [(matrix.codes.shape[0], matrix.codes.shape[1]) for matrix in group]
        decoded = coder.decode_matrices(packed[name], shapes, [0] * len(group))
        if not all(np.array_equal(codes, matrix.codes) for (codes, _), matrix in zip(decoded, group, strict=True)):
            raise RuntimeError("the coder did not give the codes back")
    done = time.process_time()
    return [
        Row("ideal", math.ceil(ideal / 8)),
        Row("predicted", predicted, middle - begin),
        Row("range", sum(map(len, packed.values())), encoded - middle, done - encoded),
    ]


def table(case: str, num_codes: int, rows: Iterable[Row]) -> list[str]:
    """Markdown of one case."""
    rows = list(rows)
    best = next(row.num_bytes for row in rows if row.name == "range") or 1
    lines = [
        f"## {case}",
        "",
        "| coder | bytes | bits a code | against `range` | encode s | decode s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if row.num_bytes is None:
            lines.append(f"| {row.name} | {row.note} | | | | |")
            continue
        seconds = [f"{value:.2f}" if value is not None else "" for value in (row.encode_seconds, row.decode_seconds)]
        lines.append(
            f"| {row.name} | {row.num_bytes:,} | {8 * row.num_bytes / num_codes:.4f} | "
            f"{row.num_bytes / best - 1:+.2%} | {seconds[0]} | {seconds[1]} |"
        )
    return [*lines, ""]


def hardware() -> str:
    """Processor, cores and the versions that matter."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("constriction", "numpy", "zstandard")
    )
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", nargs="*", type=Path)
    parser.add_argument("--name", nargs="*", default=[], help="what to call each artifact; else its folder")
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--cases", nargs="*", default=["stored", "rounded", "gaussians"])
    parser.add_argument("--without", nargs="*", default=[], help="compressors to leave out: zstd lzma brotli zpaq")
    arguments = parser.parse_args()
    cases: dict[str, Callable[[], dict[str, Group]]] = {}
    for number, path in enumerate(arguments.artifacts):
        name = arguments.name[number] if number < len(arguments.name) else path.resolve().parent.name
        tensors = read_stored(path)
        if "stored" in arguments.cases:
            cases[name] = lambda tensors=tensors: stored_codes(tensors)
        if "rounded" in arguments.cases:
            cases[f"{name}, int6 at {CLIP_SIGMAS} sigma"] = lambda tensors=tensors: rounded_to_six_bits(tensors)
    if "gaussians" in arguments.cases:
        cases["Gaussians, 6 bits"] = gaussians
    lines = [
        "# The coder for weights and general-purpose compressors",
        "",
        f"Made by `benchmarks/compress/coder.py` at commit {arguments.commit} on {hardware()}.",
        "Seconds of work of one core.",
        "",
    ]
    results: list[dict[str, object]] = []
    arguments.into.mkdir(parents=True, exist_ok=True)
    for case, make in cases.items():
        groups = make()
        num_codes = sum(codes.size for group in groups.values() for codes in group)
        rows = ours(groups)
        for name in ("zstd", "lzma", "brotli"):
            if name not in arguments.without:
                rows.append(general_purpose(name, groups))
        if "zpaq" not in arguments.without:
            rows.append(zpaq(groups))
        lines += table(f"{case} ({num_codes:,} codes)", num_codes, rows)
        results.append({"case": case, "codes": num_codes, "rows": [asdict(row) for row in rows]})
        print("\n".join(table(case, num_codes, rows)), flush=True)
        (arguments.into / "README.md").write_text("\n".join(lines))
        report = {"commit": arguments.commit, "hardware": hardware(), "cases": results}
        (arguments.into / "coder.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
