"""Each reason to doubt a score is said once, and none without a reason."""

from pathlib import Path
from typing import Any

import pytest

from bitgolf.config import load_config
from bitgolf.report.caveats import caveats
from bitgolf.report.products import Products
from bitgolf.run.budget import Budget


def run(
    val_bytes: int = 60_000, val_documents: int = 20, steps: int = 300, losses: tuple[float, ...] = (6.0, 3.0, 2.5),
    bpb: float = 1.5, compressors: dict[str, float] | None = None, passes: float = 1.0,
    held_out: tuple[float, ...] = (),
) -> Products:  # fmt: skip
    events: list[dict[str, Any]] = [{"event": "start", "train_tokens_available": 1_000}]
    events += [{"event": "step", "loss": loss} for loss in losses]
    events += [{"event": "held_out", "loss": loss} for loss in held_out]
    events.append({"event": "end", "step": steps, "tokens": 1_000 * passes})
    score = {
        "val_bytes": val_bytes, "val_documents": val_documents, "headline_bpb": bpb,
        "compressors": {"xz-9": 2.0} if compressors is None else compressors,
    }  # fmt: skip
    return Products(Path("run"), load_config("demo"), Budget({}), events, None, score, None)


def test_a_sound_run_has_none() -> None:
    assert caveats(run()) == []
    assert caveats(run(compressors={}, bpb=9.0)) == []
    assert caveats(run(losses=(3.0, 0.05, 0.07), held_out=(3.0, 2.9, 2.95))) == []
    assert caveats(run(val_bytes=50_000, val_documents=10, steps=200, bpb=2.0)) == []
    assert caveats(run(losses=(4.0, 2.0, 2.2), held_out=(0.5, 0.25, 0.35))) == []  # a tenth, and 0.1 nats
    assert caveats(Products(Path("run"), load_config("demo"), Budget({}), [], None, None, None)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"val_bytes": 49_999}, "only 49,999 bytes in 20 documents"),
        ({"val_documents": 9}, "in 9 documents,"),
        ({"losses": (4.0, 2.0, 2.21)}, "diverged"),
        ({"held_out": (0.5, 0.25, 0.36)}, "by heart"),
        ({"val_documents": 1}, "only 60,000 bytes in 1 document,"),
        ({"steps": 199}, "only 199 steps"),
        ({"losses": (6.0, 3.0, 3.5)}, "diverged: it ends at 3.50 nats per token, after 3.00"),
        ({"losses": (7.2, 7.1, 7.05)}, "diverged"),  # no better than ln 1024 = 6.93
        ({"held_out": (7.0, 6.0, 6.7)}, "by heart: the loss on held-out training text rose from 6.00 to 6.70"),
        ({"losses": (6.0, 3.0, 3.5), "held_out": (5.0, 6.0)}, "diverged"),
        ({"bpb": 12.9}, "worse than xz -9 on the same text: 12.900 bits per byte against 2.000. Train longer."),
        ({"bpb": 5.7, "passes": 4.0}, "against 2.000. Train longer."),
        ({"bpb": 5.7, "passes": 4.6}, "against 2.000. Training read its text 5 times: give more text."),
    ],
)
def test_each_reason_is_said_once(changes: dict[str, Any], words: str) -> None:
    (text,) = caveats(run(**changes))
    assert words in text
