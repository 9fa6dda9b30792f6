"""More seeds of a finished run without training: copies whose configuration, log, artifact and scores differ."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from tiny_run import read_json

from bitgolf.config import load_config
from bitgolf.run.seal import last_seal, sealed


def clone(run: Path, out: Path, seed: int, shift: float = 0.0, **overrides: str) -> Path:
    """A copy of `run` as if it had been run with `seed` (and `overrides`), scoring `shift` bits per byte worse."""
    shutil.copytree(run, out, copy_function=shutil.copy2)
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    config = load_config(str(run / "config.toml"), {"seed": str(seed), **keys})
    (out / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    events = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    for event in events:
        if event["event"] == "start":
            event |= {"seed": seed, "config_sha256": config.digest()}
    (out / "train.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    artifact = (run / "model.bitgolf").read_bytes() + f"seed {seed}".encode()
    (out / "model.bitgolf").write_bytes(artifact)
    digest = hashlib.sha256(artifact).hexdigest()
    pack, score = read_json(run / "pack.json"), read_json(run / "score.json")
    pack |= {"model_sha256": digest, "model_bytes": len(artifact), "total_bytes": len(artifact) + pack["code_bytes"]}
    score["model_sha256"] = digest
    for result in (*score["methods"].values(), *score["float"].values()):
        result["bpb"] += shift
        result["loss_nats"] = result["bpb"] / result["bpb_per_nat"]
    score["headline_bpb"] += shift
    pack = sealed(pack, last_seal(out / "train.jsonl"))
    score = sealed(score, pack["seal"])
    write(out / "pack.json", pack)
    write(out / "score.json", score)
    write(out / "audit.json", read_json(run / "audit.json") | {"score_seal": score["seal"]})
    return out


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def change(path: Path, **values: Any) -> None:
    """Change keys of a JSON file."""
    write(path, read_json(path) | values)
