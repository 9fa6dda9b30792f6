"""Check of other batches and ranks: the same losses pass, a model that depends on its batch fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_gpt import text
from toy_models import CausalModel

from bitgolf.audit import other_shapes
from bitgolf.audit.verdict import MissingEvidence
from bitgolf.data.shards import TokenShards
from bitgolf.evaluate import make_scorer
from bitgolf.run.directory import RunDirectory

TOKENS = text(110, seed=3)


def shapes_of(model: Any) -> Any:
    tokens = np.minimum(TOKENS, 12)
    scorer = make_scorer("sliding", CausalModel(), window=16, stride=4, batch_tokens=64, device="cpu")
    nll = scorer.score(lambda a, b: tokens[a:b], 0, len(tokens) - 1)
    return other_shapes.plain_shapes(
        model, tokens, nll, window=16, stride=4, device=torch.device("cpu"), same_kernels=True
    )


def test_other_batches_and_ranks_give_the_same_losses() -> None:
    found = shapes_of(CausalModel())
    assert found.verdict == "PASS" and found.evidence["ranks_with_work"] == 2, found


def test_a_model_that_looks_at_its_batch_is_caught() -> None:
    class Batchy(CausalModel):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return super().forward(tokens) * (1 + 0.01 * len(tokens))

    assert shapes_of(Batchy()).verdict == "FAIL"


def test_adapted_passes_are_the_same_on_two_ranks(tiny_run: Path) -> None:
    """In earnest: two processes that share gradients, against one; the chunk has an odd number of rows."""
    run = RunDirectory.open(tiny_run)
    changes = {"ttt.method": "full", "ttt.weights.lr": 0.02, "ttt.weights.chunk_tokens": 192}
    tokens = np.array(TokenShards([tiny_run / "data" / "val_000000.bin"]).read(0, 321))
    found = other_shapes.adapted_shapes(run / "model.bitgolf", run.config.updated(changes), tokens)
    assert found.verdict == "PASS", found
    assert found.evidence["targets"] == 320 and 0 < float(found.evidence["largest_nats"]) < 1e-4


def test_ranks_that_cannot_run_are_not_run(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_shapes, "_PROGRAM", "raise SystemExit('no gloo on this machine')")
    run = RunDirectory.open(tiny_run)
    with pytest.raises(MissingEvidence, match="did not work: no gloo on this machine"):
        other_shapes.adapted_shapes(run / "model.bitgolf", run.config, np.arange(40))
