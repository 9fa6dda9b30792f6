"""What each step of packing is worth on the weights of a run: bits per byte lost at equal bytes.

    python benchmarks/compress/pipeline.py RUN [--arms 'NAME;...'] [--cap BYTES] [--val-bytes 8000000] [--into FOLDER]
    python benchmarks/compress/pipeline.py --table FOLDER      # README.md of the results in FOLDER

RUN is a run directory with float weights, calibration statistics with curvature (and Fisher statistics), and prepared
data. The published pipeline of the run's preset comes first (see `published.py`), then the preset's own fixed grids,
then packing to the byte with one more step at a time. All are scored chunked on the same validation text by the same
scorer; the tax is packed minus float. Bytes are model + code.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import published
import torch

from bitgolf.bundle.single_file import code_bytes
from bitgolf.config import Config, load_config
from bitgolf.data.prepare import open_data
from bitgolf.errors import BitgolfError
from bitgolf.language_model import load
from bitgolf.model.weights import read_tensors
from bitgolf.quantize.pack import pack
from bitgolf.run.directory import RunDirectory
from bitgolf.run.ranks import device_name

_FIXED = {"pack.method": "gptq", "pack.grid.attention_bits": "0", "pack.grid.mlp_bits": "0", "pack.compressor": "zstd"}
_RATE = {
    "pack.method": "rate", "pack.prune": "0", "pack.fit.prune": "false", "pack.passthrough": "[]",
    "qat.mode": "none", "qat.crown.weight": "0", "pack.rate.trellis": "0", "pack.rate.column_steps": "false",
    "pack.compressor": "zstd", "pack.rate.hessian": "plain",
}  # fmt: skip
_COLUMNS = _RATE | {"pack.compressor": "range", "pack.rate.column_steps": "true"}
ARMS: dict[str, dict[str, str]] = {
    "preset": {},
    "preset, range coder": {"pack.compressor": "range"},
    "fixed grids of 4 bits": _FIXED | {"pack.grid.matrix_bits": "4", "pack.grid.embed_bits": "6"},
    "steps by curvature": _RATE,
    "+ range coder": _RATE | {"pack.compressor": "range"},
    "+ column steps": _COLUMNS,
    "+ trellis of 8": _COLUMNS | {"pack.rate.trellis": "8"},
    "+ Fisher": _COLUMNS | {"pack.rate.trellis": "8", "pack.rate.hessian": "fisher"},
}
"""Overrides of each arm. An arm whose name begins with + adds to the arms before it."""


class Text:
    """The first documents of the validation text, up to a number of bytes."""

    def __init__(self, run: RunDirectory, num_bytes: int) -> None:
        data = open_data(run.require("data"))
        tokens = data.val.read(0, data.val.num_tokens)
        costs = data.tokenizer.byte_costs(tokens)
        ends = [int(i) for i in (tokens[1:] == data.tokenizer.bos_id).nonzero()[0]] + [len(costs)]
        stop = next((end for end in ends if costs[:end].sum() >= num_bytes), ends[-1])
        self.tokens, self.costs = tokens[: stop + 1], costs[:stop]

    def bpb(self, config: Config, weights: dict[str, torch.Tensor], device: torch.device) -> float:
        """Chunked score of `weights`."""
        return published.chunked(config, weights, self.tokens, self.costs, device).bpb


def one_arm(run: RunDirectory, settings: dict[str, str], cap: int | None, device: torch.device) -> dict[str, Any]:
    """Pack with `settings`; what pack.json says, and the restored weights."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for entry in run.path.iterdir():
            if entry.name in ("data", "calibration", "weights.safetensors"):
                (copy / entry.name).symlink_to(entry.resolve())
        config = load_config(str(run / "config.toml"), settings)
        (copy / "config.toml").write_text(config.to_toml())
        begin = time.perf_counter()
        pack(RunDirectory.open(copy), device, code_bytes(config), artifact_bytes=cap)
        seconds = time.perf_counter() - begin
        packed = json.loads((copy / "pack.json").read_text())
        begin = time.perf_counter()
        model = load(copy / "model.bitgolf", torch.device("cpu"), "auto").model
        weights = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        allocation = packed.get("allocation") or {}
        return {
            "weights": weights,
            "total_bytes": packed["total_bytes"],
            "model_bytes": packed["model_bytes"],
            "bits_per_weight": packed["bits_per_weight"],
            "pack_seconds": seconds,
            "load_seconds": time.perf_counter() - begin,
            "passes": len(allocation.get("passes", ())),
            "predicted_nats": allocation.get("predicted_nats"),
        }


def table(folder: Path) -> str:
    """Markdown of every result in `folder`."""
    lines = [
        "# Packing pipelines on trained weights",
        "",
        "Made by `benchmarks/compress/pipeline.py --table`. Tax: packed minus float, chunked, bits per byte.",
    ]
    order = {arm: place for place, arm in enumerate(("published", *ARMS))}
    for path in sorted(folder.glob("pipeline-*.json")):
        found = json.loads(path.read_text())
        lines += [
            "",
            f"## {found['run']}, seed {found['seed']}, cap of {found['cap_bytes']:,} bytes",
            "",
            f"{found['val_bytes']:,} bytes of `val`, {found['hardware']}, torch {found['torch']}; float "
            f"{found['float_chunked_bpb']:.5f}.",
            "",
            "| | bytes | bits a weight | packed | tax | predicted | of the published tax | pack s |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        first = found["arms"].get("published", {}).get("tax_bpb")
        # Arms that an earlier version had come last.
        for arm in sorted(found["arms"], key=lambda name: order.get(name, len(order))):
            row = found["arms"][arm]
            predicted = "" if row["predicted_tax_bpb"] is None else f"{row['predicted_tax_bpb']:.5f}"
            share = "" if first is None else f"{row['tax_bpb'] / first:.2f}"
            lines.append(
                f"| {arm} | {row['total_bytes']:,} | {row['bits_per_weight']:.3f} | {row['bpb']:.5f} | "
                f"{row['tax_bpb']:.5f} | {predicted} | {share} | {row['pack_seconds']:.0f} |"
            )
    return "\n".join([*lines, *at_published_tax(folder)]) + "\n"


def at_published_tax(folder: Path) -> list[str]:
    """Markdown: how many parameters the cap holds when packing loses what the published pipeline loses.

    Between two caps the logarithm of the tax of "+ Fisher" is taken to be linear in the bits a weight (theory: a
    factor of 4 a bit); parameters are those of the run, times the bits of the packed file over the bits needed.
    """
    by_run: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("pipeline-*.json")):
        found = json.loads(path.read_text())
        by_run.setdefault((found["run"], found["seed"], found["val_bytes"]), []).append(found)
    lines = []
    for (run, seed, _), files in by_run.items():
        published = next((file["arms"]["published"] for file in files if "published" in file["arms"]), None)
        ours = [file["arms"]["+ Fisher"] for file in files if "+ Fisher" in file["arms"]]
        ours.sort(key=lambda arm: arm["total_bytes"])
        if published is None or len(ours) < 2:
            continue
        rough, fine = ours[0], ours[-1]
        slope = math.log(rough["tax_bpb"] / fine["tax_bpb"]) / (fine["bits_per_weight"] - rough["bits_per_weight"])
        bits = fine["bits_per_weight"] - math.log(published["tax_bpb"] / fine["tax_bpb"]) / slope
        lines.append(
            f"| {run}, seed {seed} | {published['tax_bpb']:.5f} | {published['bits_per_weight']:.2f} | {bits:.2f} | "
            f"{math.exp(slope):.2f} | {fine['bits_per_weight'] / bits - 1:+.0%} |"
        )
    head = [
        "",
        "## At the published tax",
        "",
        "Bits a weight at which the whole pipeline loses what the published one loses, between the caps above, and how",
        "many more parameters a file as large as the largest of these holds then.",
        "",
        "| run | tax | published bits | bits needed | tax a bit, factor | parameters that fit |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    return [*head, *lines] if lines else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--table", type=Path, metavar="FOLDER")
    parser.add_argument("--arms", default=";".join(["published", *ARMS]), help="names, with ; between them")
    parser.add_argument("--cap", type=int, help="bytes of model and code; the run's own by default")
    parser.add_argument("--val-bytes", type=int, default=8_000_000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    if arguments.table:
        (arguments.table / "README.md").write_text(table(arguments.table))
        return
    if arguments.run is None:
        parser.error("give RUN or --table FOLDER")
    run, name = RunDirectory.open(arguments.run), arguments.device
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    arms = arguments.arms.split(";")
    if unknown := set(arms) - {"published", *ARMS}:
        parser.error(f"no arms {'; '.join(sorted(unknown))}; there are published; {'; '.join(ARMS)}")
    text = Text(run, arguments.val_bytes)
    float_weights = read_tensors(run.require("weights.safetensors"), run.path)
    base = text.bpb(run.config, float_weights, device)
    result: dict[str, Any] = {
        "run": run.config.name,
        "seed": run.config.seed,
        "hardware": device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "cap_bytes": arguments.cap or run.config.budget.artifact_bytes,
        "val_bytes": int(text.costs.sum()),
        "float_chunked_bpb": base,
        "arms": {},
    }
    nats_to_bpb = len(text.costs) / float(text.costs.sum()) / 0.6931471805599453
    print(f"{'arm':<22} {'bytes':>11} {'bits/w':>7} {'bpb':>8} {'tax':>8} {'predicted':>9} {'pack s':>7} {'load s':>7}")
    print(f"{'float':<22} {'':>11} {'':>7} {base:8.5f}", flush=True)
    for arm in arms:
        try:
            if arm == "published" and run.config.name not in published.PIPELINE_OF:
                print(f"{arm:<22} preset {run.config.name} has none")
                continue
            if arm == "published":
                found = published.quantized(run, published.PIPELINE_OF[run.config.name], device)
            else:
                found = one_arm(run, ARMS[arm], arguments.cap, device)
        except BitgolfError as error:
            print(f"{arm:<22} {error}", flush=True)
            continue
        found["bpb"] = text.bpb(run.config, found.pop("weights"), device)
        found["tax_bpb"] = found["bpb"] - base
        predicted = found.get("predicted_nats")
        found["predicted_tax_bpb"] = None if predicted is None else predicted * nats_to_bpb
        result["arms"][arm] = found
        told = "" if predicted is None else f"{predicted * nats_to_bpb:9.5f}"
        print(
            f"{arm:<22} {found['total_bytes']:>11,} {found['bits_per_weight']:7.3f} {found['bpb']:8.5f} "
            f"{found['tax_bpb']:8.5f} {told:>9} {found['pack_seconds']:7.1f} {found['load_seconds']:7.1f}",
            flush=True,
        )
        if arguments.into:
            arguments.into.mkdir(parents=True, exist_ok=True)
            capped = f"-{arguments.cap}" if arguments.cap else ""
            target = arguments.into / f"pipeline-{run.config.name}-seed{run.config.seed}{capped}.json"
            target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
