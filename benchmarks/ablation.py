"""What quantization-aware training, CROWN-Q, soft rounding and the replay burst are worth: branches of one training.

    python benchmarks/ablation.py TRUNK@STEP [--arms NAME;...] --out DIR [--gpus 0,1] [--into FOLDER]
    python benchmarks/ablation.py --table FOLDER

TRUNK is a run whose checkpoint at STEP (see `train.checkpoint.at`) was kept before its late phase began; every arm
trains on from there under the same clock, with the same data, and is packed and scored chunked. The arm with the
trunk's own settings is the trunk itself, if that is scored; what is scored in DIR already is not made again. `--into`
adds the figures to FOLDER/ablation-PRESET-seedN.json; `--table` prints the mean over seeds of each arm's difference
from the first one, with the standard deviation of the paired differences.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from jobs import Job, work_off

from bitgolf.config import load_config
from bitgolf.run.directory import RunDirectory

_OFF = {"qat.mode": "none", "qat.crown.weight": "0"}
ARMS: dict[str, dict[str, str]] = {
    "no late phase": _OFF,
    "straight-through": {"qat.mode": "ste", "qat.crown.weight": "0"},
    "straight-through, CROWN-Q": {"qat.mode": "ste", "qat.crown.weight": "0.01"},
    "CROWN-Q": _OFF | {"qat.crown.weight": "0.01"},
    "soft rounding": {"qat.mode": "soft_round", "qat.crown.weight": "0"},
    "no late phase, no replay": _OFF | {"train.replay.epochs": "0"},
}
_SCORED = {
    "score.methods": '["chunked"]', "score.compressors": "false", "score.last_reference": "true", "ttt.method": "none",
    "ttt.rescore_temperature": "0", "train.checkpoint.at": "[]",
}  # fmt: skip


def _is_scored_like_an_arm(run: RunDirectory) -> bool:
    """Whether the trunk has all the figures of an arm."""
    if not (run / "score.json").exists():
        return False
    score = json.loads((run / "score.json").read_text())
    return all("chunked" in (score.get(key) or {}) for key in ("methods", "float", "last"))


def measure(trunk: str, arms: list[str], out: Path, gpus: list[str], into: Path | None) -> None:
    """Make the arms and print their figures."""
    path, _, _ = trunk.partition("@")
    run = RunDirectory.open(path)
    out.mkdir(parents=True, exist_ok=True)
    jobs = {
        arm: Job(
            out / arm.replace(", ", "-").replace(" ", "-").lower(),
            str(run / "config.toml"),
            _SCORED | ARMS[arm],
            trunk,
            ("train", "pack", "score"),
        )
        for arm in arms
    }
    made = {arm: job.run for arm, job in jobs.items() if (job.run / "score.json").exists()}
    if _is_scored_like_an_arm(run):
        made |= {arm: run.path for arm in arms if load_config(str(run / "config.toml"), ARMS[arm]) == run.config}
    failed = work_off([job for arm, job in jobs.items() if arm not in made], gpus, run / "data")
    found = {}
    print(f"{'arm':<28} {'last':>8} {'average':>8} {'packed':>8} {'tax':>8} {'bytes':>11} {'steps':>6}")
    for arm, job in jobs.items():
        if job in failed:
            continue
        at = made.get(arm, job.run)
        score, pack = (json.loads((at / f"{name}.json").read_text()) for name in ("score", "pack"))
        end = json.loads((at / "train.jsonl").read_text().splitlines()[-1])
        found[arm] = {
            "last_bpb": score["last"]["chunked"]["bpb"],
            "average_bpb": score["float"]["chunked"]["bpb"],
            "packed_bpb": score["methods"]["chunked"]["bpb"],
            "tax_bpb": score["quantization_tax"],
            "total_bytes": pack["total_bytes"],
            "steps": end["step"],
            "val_bytes": score["val_bytes"],
            "device": score["device"],
        }
        row = found[arm]
        print(
            f"{arm:<28} {row['last_bpb']:8.5f} {row['average_bpb']:8.5f} {row['packed_bpb']:8.5f} "
            f"{row['tax_bpb']:8.5f} {row['total_bytes']:>11,} {row['steps']:>6,}"
        )
    if into:
        into.mkdir(parents=True, exist_ok=True)
        target = into / f"ablation-{run.config.name}-seed{run.config.seed}.json"
        before = json.loads(target.read_text())["arms"] if target.exists() else {}
        target.write_text(json.dumps({"trunk": run.config.name, "arms": before | found}, indent=2) + "\n")


def table(folder: Path) -> str:
    """Markdown: every arm against the first, paired by seed."""
    lines = [
        "| preset | arm | seeds | average | packed | packed, against the first arm |",
        "|---|---|---:|---:|---:|---:|",
    ]
    by_preset: dict[str, list[dict[str, dict[str, float]]]] = {}
    for path in sorted(folder.glob("ablation-*.json")):
        found = json.loads(path.read_text())
        by_preset.setdefault(found["trunk"], []).append(found["arms"])
    for preset, seeds in by_preset.items():
        for arm in ARMS:
            having = [arms for arms in seeds if arm in arms and next(iter(ARMS)) in arms]
            if not having:
                continue
            apart = [arms[arm]["packed_bpb"] - arms[next(iter(ARMS))]["packed_bpb"] for arms in having]
            spread = f" +- {statistics.stdev(apart):.5f}" if len(apart) > 1 else ""
            average, packed = (statistics.mean(a[arm][key] for a in having) for key in ("average_bpb", "packed_bpb"))
            lines.append(
                f"| {preset} | {arm} | {len(having)} | {average:.5f} | {packed:.5f} | "
                f"{statistics.mean(apart):+.5f}{spread} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trunk", nargs="?", help="RUN@STEP")
    parser.add_argument("--arms", default=";".join(ARMS), help="names, with ; between them")
    parser.add_argument("--out", type=Path, help="folder of the branches")
    parser.add_argument("--gpus", default="0", help="with , between them; an empty string for the CPU")
    parser.add_argument("--into", type=Path)
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
        return
    if not arguments.trunk or not arguments.out:
        parser.error("give TRUNK@STEP and --out, or --table")
    arms = arguments.arms.split(";")
    if unknown := set(arms) - set(ARMS):
        parser.error(f"no arms {', '.join(sorted(unknown))}; there are {'; '.join(ARMS)}")
    measure(arguments.trunk, arms, arguments.out, arguments.gpus.split(","), arguments.into)


if __name__ == "__main__":
    main()
