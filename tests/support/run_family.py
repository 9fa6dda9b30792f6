"""Scored runs made of plain files over really prepared text: systems with a known gap, any number of seeds.

The losses of a run are those of a made-up language model: bits by document (hard and easy ones), noise by token, a
shift by system and a smaller one by seed. What compare and the site read is there and consistent; no model is.
"""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from synthetic_run import audit_json, pack_json, training_events

from bitgolf.config import load_config
from bitgolf.data.prepare import open_data, prepare
from bitgolf.data.prepared import PreparedData
from bitgolf.evaluate.bits import bits_per_byte
from bitgolf.evaluate.tape import tokens_sha256
from bitgolf.run.directory import RunDirectory

TINY = Path(__file__).with_name("tiny.toml")
WORDS = "the of and a river lantern garden miller window letter bridge déjà 日本 x=1 (yes) winter harbor".split()  # noqa: SIM905
VOCAB = 320


def texts(count: int = 40, seed: int = 5) -> list[str]:
    """`count` documents of 20 to 900 words."""
    rng = random.Random(seed)
    return [f"{index}: " + " ".join(rng.choices(WORDS, k=int(20 * 45 ** rng.random()))) for index in range(count)]


def write_corpus(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


@dataclass
class Family:
    """Makes data directories and runs below `root`."""

    root: Path

    def data(self, name: str, documents: list[str], *, tokenizer: str = "lossless", vocab_size: int = VOCAB) -> Path:
        """Prepared data that validates on `documents`, in their order."""
        train = write_corpus(self.root / f"{name}-train.jsonl", texts(60, seed=11))
        val = write_corpus(self.root / f"{name}-val.jsonl", documents)
        overrides = {
            "data.source": f"jsonl:{train}",
            "data.val_source": f"jsonl:{val}",
            "data.tokenizer": tokenizer,
            "model.vocab_size": str(vocab_size),
        }
        config = load_config(str(TINY), overrides)
        prepare(config.data, vocab_size, self.root / name)
        return self.root / name

    def shards(self, name: str, source: Path, vocab_size: int = VOCAB) -> Path:
        """The shards of a data directory taken over, so that only their tokens are known."""
        config = load_config(str(TINY), {"data.source": f"shards:{source}", "model.vocab_size": str(vocab_size)})
        prepare(config.data, vocab_size, self.root / name)
        return self.root / name

    def run(
        self, name: str, data: Path, *, seed: int = 1, shift: float = 0.0, losses: np.ndarray | None = None, **keys: Any
    ) -> Path:
        """A finished run. `shift`: nats per byte that the system is worse by; `keys` as `train__max_steps=5`."""
        prepared = open_data(data)
        values = {"seed": str(seed), "model.vocab_size": str(prepared.tokenizer.vocab_size)}
        values |= {key.replace("__", "."): str(value) for key, value in keys.items()}
        run = RunDirectory.create(self.root / name, load_config(str(TINY), values))
        (run / "data").symlink_to(data)
        nll = made_up_losses(prepared, seed, shift) if losses is None else losses
        write_scores(run, prepared, nll)
        packed = pack_json(run.config)
        (run / "pack.json").write_text(json.dumps(packed | {"cap_bytes": run.config.budget.artifact_bytes}))
        (run / "audit.json").write_text(json.dumps(audit_json()))
        events = training_events(200 + 10 * seed)
        (run / "train.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        (run / "report.html").write_text(f"<!DOCTYPE html><title>{seed}</title>report of seed {seed}")
        budget = run.budget()
        budget.charge("train_seconds", "train", "optimizer steps", 70.0 + seed)
        budget.charge("artifact_bytes", "pack", "model", packed["model_bytes"])
        budget.charge("artifact_bytes", "pack", "code", packed["code_bytes"])
        budget.charge("eval_seconds", "score", "sliding", 15.0 + seed)
        return run.path


def made_up_losses(data: PreparedData, seed: int, shift: float) -> np.ndarray:
    """(N-1,) float32 nats: hard and easy documents, the same for all runs, and noise that the seed decides."""
    tokens = data.val.read(0, data.val.num_tokens)
    costs = data.tokenizer.byte_costs(tokens)
    document = np.cumsum(tokens[:-1] == data.tokenizer.bos_id)
    hardness = np.random.default_rng(0).uniform(0.6, 1.2, document.max() + 1)[document]
    rng = np.random.default_rng(1000 + seed)
    per_byte = hardness * rng.gamma(20, 1 / 20, len(costs)) + shift + 0.002 * rng.standard_normal()
    return np.maximum(per_byte * costs, 0.01).astype(np.float32)


def write_scores(run: RunDirectory, data: PreparedData, nll: np.ndarray) -> None:
    """score.json, nll.npy and tape.json that belong together: sliding is the headline, chunked a little worse."""
    tokens = data.val.read(0, data.val.num_tokens)
    costs = data.tokenizer.byte_costs(tokens)
    np.save(run / "nll.npy", nll)
    sliding = bits_per_byte(nll, costs).to_json()
    chunked = bits_per_byte(nll + np.float32(0.01), costs).to_json()
    raw = bits_per_byte(nll + np.float32(0.005), costs).to_json()
    score = {
        "methods": {"chunked": chunked | {"seconds": 3.0}, "sliding": sliding | {"seconds": 15.0}},
        "headline": "sliding",
        "headline_bpb": sliding["bpb"],
        "diagnostic": {},
        "float": {"chunked": raw},
        "accounting": data.manifest["accounting"],
        "val_bytes": sliding["bytes"],
        "val_tokens": len(tokens),
        "val_documents": 1,
        "evaluation_seconds": 18.0,
        "model_sha256": "ab" * 32,
        "device": "cpu",
        "world_size": 1,
        "compressors": {},
    }
    (run / "score.json").write_text(json.dumps(score))
    (run / "tape.json").write_text(json.dumps({"tokens_sha256": tokens_sha256([tokens]), "events": []}))


def documents_by_hand(data: PreparedData, nll: np.ndarray) -> tuple[list[float], list[int]]:
    """Bits and bytes of each document, target by target; no document may be empty."""
    tokens = data.val.read(0, data.val.num_tokens)
    bits: list[float] = []
    sizes: list[int] = []
    for target in range(len(tokens) - 1):
        if target == 0 or tokens[target] == data.tokenizer.bos_id:
            bits.append(0.0)
            sizes.append(0)
        bits[-1] += float(nll[target]) / math.log(2)
        sizes[-1] += len(data.tokenizer.token_text_bytes(int(tokens[target + 1])))
    return bits, sizes
