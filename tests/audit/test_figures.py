"""Checks of reported figures: counts, the identity of loss and bits per byte, and figures that stand in two files."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_evidence import evidence, judged

from bitgolf.audit.figures import counts, identity, numbers_agree
from bitgolf.audit.verdict import Finding, MissingEvidence
from bitgolf.evaluate import bits_per_byte
from bitgolf.run.budget import Charge
from bitgolf.train.metrics import TrainLog

BOS = 1
TOKENS = np.array([BOS, 2, 3] * 20 + [BOS], dtype=np.uint16)  # 61 tokens, 21 documents
MANIFEST = {"tokens": 61, "documents": 21, "raw_bytes": 200}


def counted(manifest: dict[str, Any], score: dict[str, Any], headline: dict[str, Any]) -> Finding:
    data = SimpleNamespace(
        manifest={"accounting": "original", "splits": {"val": MANIFEST | manifest}},
        tokenizer=SimpleNamespace(bos_id=BOS),
    )
    methods = {"sliding": {"tokens": 60, "bytes": 200} | headline}
    claims = {"val_tokens": 61, "val_bytes": 200, "methods": methods, "headline": "sliding"} | score
    return counts(evidence(tokens=TOKENS, byte_total=200, data=data, score=claims))


@pytest.mark.parametrize(
    ("manifest", "score", "headline", "problem"),
    [
        ({}, {}, {}, ""),
        ({"raw_bytes": 201}, {}, {}, "manifest bytes: 201 claimed, 200 counted"),
        ({"documents": 22}, {}, {}, "manifest documents: 22 claimed, 21 counted"),
        ({"tokens": 60}, {}, {}, "manifest tokens"),
        ({}, {"val_bytes": 210}, {}, "score.json val_bytes: 210 claimed"),
        ({}, {"val_tokens": 60}, {}, "score.json val_tokens"),
        ({}, {"val_documents": 20}, {}, "score.json val_documents: 20 claimed, 21 counted"),
        ({}, {"accounting": "challenge"}, {}, "score.json has 'challenge' accounting"),
        ({}, {}, {"tokens": 56}, "scored tokens: 56 claimed, 60 counted"),
        ({}, {}, {"bytes": 208}, "scored bytes: 208 claimed"),
    ],
)
def test_counts(manifest: dict[str, Any], score: dict[str, Any], headline: dict[str, Any], problem: str) -> None:
    judged(counted(manifest, score, headline), problem)


def test_counts_need_the_bytes_of_the_documents() -> None:
    with pytest.raises(MissingEvidence, match="bytes of the validation documents"):
        counted({"raw_bytes": None}, {}, {})


NLL = np.random.default_rng(0).uniform(0.5, 4, 60).astype(np.float32)


def entry(nll: np.ndarray = NLL, **changes: float) -> dict[str, Any]:
    costs = np.full(len(nll), 3)
    costs[0] = 20
    return bits_per_byte(nll, costs).to_json() | changes


def identical(nll: np.ndarray = NLL, byte_total: int = 0, **methods: dict[str, Any]) -> Finding:
    score = {"methods": methods or {"chunked": entry(nll + 1), "sliding": entry()}, "headline": "sliding"}
    return identity(evidence(nll=nll, byte_total=byte_total or entry()["bytes"], score=score))


def test_identity() -> None:
    exact = entry()
    judged(identical(), "")
    judged(identical(sliding=entry(bpb=round(exact["bpb"], 8))), "")
    judged(identical(sliding=entry(bpb=exact["bpb"] * 0.999)), "sliding bpb is")
    judged(identical(sliding=entry(loss_nats=exact["loss_nats"] * 0.999)), "sliding loss_nats is")
    judged(identical(chunked=entry(NLL + 1, bpb=exact["bpb"]), sliding=exact), "chunked: bpb / loss")
    judged(identical(byte_total=exact["bytes"] + 3, sliding=exact), "sliding bpb is")
    judged(identical(sliding=entry(loss_nats=0.0)), "loss_nats is 0")
    judged(identical(sliding=entry(bpb_per_nat=0.1)), "sliding: bpb_per_nat is 0.1")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -3.0])
def test_identity_refuses_losses_that_are_not_losses(bad: float) -> None:
    nll = NLL.copy()
    nll[5] = bad
    finding = identical(nll, sliding=entry())
    assert finding.verdict == "FAIL" and "negative or not finite" in finding.reason
    json.dumps(finding.evidence, allow_nan=False)


def train_events() -> list[dict[str, Any]]:
    return [
        {"event": "start", "step": 0, "elapsed_seconds": 0.0},
        {"event": "step", "step": 10, "loss": 3.25, "elapsed_seconds": 1.5},
        {"event": "end", "step": 20, "elapsed_seconds": 3.0},
    ]


CHARGES = [
    Charge("train_seconds", "train", "steps", 2.5),
    Charge("train_seconds", "train", "calibration", 0.5),
    Charge("eval_seconds", "score", "chunked", 2.0),
    Charge("eval_seconds", "score", "sliding", 5.0),
]


def test_numbers_agree(tmp_path: Path) -> None:
    log = TrainLog(tmp_path, True)
    log.begin()
    for event in train_events():
        log.write(**event)
    printed = (tmp_path / "train.log").read_text()
    pack = {"model_bytes": 100, "header_bytes": 20, "stream_bytes": {"codes": 50, "tokenizer": 30}}
    methods = {"chunked": {"bpb": 1.2, "seconds": 2.0}, "sliding": {"bpb": 1.1, "seconds": 5.0}}
    score = {"methods": methods, "headline": "sliding", "headline_bpb": 1.1, "model_sha256": "ab"}
    score |= {"float": {"chunked": {"bpb": 1.15}}, "quantization_tax": 1.2 - 1.15}

    def reason(
        pack: dict[str, Any] = pack,
        score: dict[str, Any] = score,
        charges: list[Charge] = CHARGES,
        events: list[dict[str, Any]] | None = None,
        log_text: str = printed,
    ) -> str:
        path = tmp_path / "printed.log"
        path.write_text(log_text)
        finding = numbers_agree(
            evidence(
                pack=pack,
                score=score,
                budget=SimpleNamespace(charges=charges),
                events=train_events() if events is None else events,
                require=lambda name: path,
            )
        )
        return "" if finding.verdict == "PASS" else finding.reason

    assert reason() == ""
    assert "header and streams are 100 bytes, its model 101" in reason(pack=pack | {"model_bytes": 101})
    weights = pack | {"num_parameters": 200}
    assert reason(pack=weights | {"bits_per_weight": 4.0}) == ""
    assert "bits_per_weight is 1.0, its bytes and parameters give 4.0" in reason(
        pack=weights | {"bits_per_weight": 1.0}
    )
    assert "name different artifacts" in reason(pack=pack | {"model_sha256": "cd"})
    assert "headline_bpb is 1.0" in reason(score=score | {"headline_bpb": 1.0})
    assert "quantization_tax is 0.04" in reason(score=score | {"quantization_tax": 0.04})
    late = Charge("eval_seconds", "score", "sliding", 4.0)
    assert "4.000 s are charged for it" in reason(charges=[*CHARGES[:3], late])
    assert "training ended at 3.000 s in train.jsonl, 2.500 s are charged" in reason(charges=CHARGES[:1])
    assert "train.log has 3 lines, train.jsonl 2 events" in reason(events=train_events()[:-1])
    assert "loss:9.9, train.jsonl 3.25" in reason(log_text=printed.replace("loss:3.25", "loss:9.9"))
    assert "is not the event `start`" in reason(log_text=printed.replace("[start]", "[step]"))
    assert "line 1 of train.log is not the event `start`" in reason(log_text=f"words\n{printed.partition(chr(10))[2]}")
