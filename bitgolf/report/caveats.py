"""What makes the score of a run less than it seems: too little text, too few steps, a loss that rose, a bad model.

The command line prints these sentences under its table, and the report shows them at its top.
"""

import math
from collections.abc import Iterator
from typing import Any

from bitgolf.report.products import Products

LEAST_VAL_BYTES = 50_000
LEAST_VAL_DOCUMENTS = 10
LEAST_STEPS = 200
MANY_PASSES = 4  # over the training text; beyond, more passes help little (Muennighoff et al., arXiv 2305.16264)
_RISE = 1.1  # a last loss of so many times the lowest one has risen, if it is also
_RISE_NATS = 0.1  # so many nats above it


def caveats(products: Products) -> list[str]:
    """Sentences about the run of `products`; empty for a run without such doubts."""
    score = products.score or {}
    return [*_little_text(score), *_training(products), *_worse_than_a_compressor(score, _passes(products))]


def _little_text(score: dict[str, Any]) -> Iterator[str]:
    num_bytes, num_documents = score.get("val_bytes", LEAST_VAL_BYTES), score.get("val_documents", LEAST_VAL_DOCUMENTS)
    if num_bytes < LEAST_VAL_BYTES or num_documents < LEAST_VAL_DOCUMENTS:
        plural = "" if num_documents == 1 else "s"
        yield (
            f"The score is measured on only {num_bytes:,} bytes in {num_documents:,} document{plural}, so other text "
            "may score very differently. Give more text, or raise data.val_fraction."
        )


def _training(products: Products) -> Iterator[str]:
    end, losses = products.last_event("end"), [e["loss"] for e in products.events if e["event"] == "step"]
    if end and end.get("step", LEAST_STEPS) < LEAST_STEPS:
        yield f"Training made only {end['step']:,} steps. Raise budget.train_seconds, or make the model smaller."
    held_out = [event["loss"] for event in products.events if event["event"] == "held_out"]
    if _has_risen(held_out) and not _has_risen(losses):
        yield (
            f"The model learns its text by heart: the loss on held-out training text rose from {min(held_out):.2f} to "
            f"{held_out[-1]:.2f} nats per token while the loss in training fell. Give more text, or train for a "
            "shorter time (budget.train_seconds)."
        )
    if _has_risen(losses) or (len(losses) > 1 and losses[-1] > math.log(products.config.model.vocab_size)):
        yield (
            f"The training loss diverged: it ends at {losses[-1]:.2f} nats per token, after {min(losses):.2f} at its "
            "lowest. Lower the learning rates (train.matrix_lr, train.embed_lr), or set train.grad_clip."
        )


def _has_risen(losses: list[float]) -> bool:
    """Whether the last loss is well above the lowest one."""
    return bool(losses) and losses[-1] > max(_RISE * min(losses), min(losses) + _RISE_NATS)


def _passes(products: Products) -> float:
    """How many times training read its text."""
    start, end = products.last_event("start"), products.last_event("end")
    return float(end.get("tokens", 0)) / max(1, start.get("train_tokens_available", math.inf))


def _worse_than_a_compressor(score: dict[str, Any], passes: float) -> Iterator[str]:
    xz = score.get("compressors", {}).get("xz-9")
    if xz is not None and score["headline_bpb"] > xz:
        many = f"Training read its text {passes:.0f} times: give more text."
        yield (
            f"The model is worse than xz -9 on the same text: {score['headline_bpb']:.3f} bits per byte against "
            f"{xz:.3f}. {many if passes > MANY_PASSES else 'Train longer.'}"
        )
