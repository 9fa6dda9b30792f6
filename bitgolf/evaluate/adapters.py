"""The adapted evaluation of a configuration: scorer and adapter, put together in one place.

`score` runs it after the plain methods, and its result is the headline; the audit builds the same from the same
configuration for its flip tests and its reproduction. What is adapted is adapted for the length of one pass:
`preserved` gives the weights back as they were. Nothing is warmed up: compiling happens on the evaluation clock,
in the pass that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bitgolf.config import Config
from bitgolf.evaluate.document_scorer import DocumentScorer, evaluate_documents
from bitgolf.evaluate.scorers import make_scorer
from bitgolf.evaluate.tape import Adapter, Scorer, ScoreTape, evaluate
from bitgolf.evaluate.ttt import ChunkTTT
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World

NOT_ADMISSIBLE = "not admissible: scores tokens that the weights were trained on"


@dataclass(frozen=True)
class AdaptedEvaluation:
    """An adapted pass before its first target. `chunk_targets` is that of `evaluate`; 0 when nothing learns
    between chunks."""

    scorer: Scorer
    adapter: Adapter | None
    chunk_targets: int

    def run(self, tape: ScoreTape, progress: Progress = silent) -> np.ndarray:
        """Score a fresh tape; returns the losses of all targets, (num_targets,) float32, nats."""
        if isinstance(self.scorer, DocumentScorer):
            return evaluate_documents(tape, self.scorer, progress)
        return evaluate(tape, self.scorer, self.adapter, progress, self.chunk_targets)


def adapted_name(config: Config) -> str:
    """Name of the adapted pass in score.json, such as "sliding+ttt"; empty when the configuration has none."""
    if not config.ttt.enabled:
        return ""
    return "documents+lora" if config.ttt.method == "lora" else f"{config.score.methods[-1]}+ttt"


def adapted_evaluation(
    config: Config,
    model: nn.Module,  # changed as the pass goes on, see `preserved`
    forward: Callable[[Tensor], Tensor],  # `model`, or it compiled: tokens (B, T) -> logits (B, T, V)
    *,
    num_targets: int,  # of the whole text, for the schedule
    bos_id: int,
    world: World,
    batch_tokens: int = 0,  # of one forward pass on one rank; 0 = score.batch_tokens
) -> AdaptedEvaluation:
    """The adapted pass that `config.ttt`, which has one, describes, from scratch."""
    ttt, window = config.ttt, config.window
    batch_tokens = batch_tokens or config.score.batch_tokens
    if ttt.method == "lora":
        documents = DocumentScorer(model, ttt, window=window, bos_id=bos_id, seed=config.seed, world=world)  # type: ignore[arg-type]
        return AdaptedEvaluation(documents, None, 0)
    scorer = make_scorer(
        config.score.methods[-1],
        forward,
        window=window,
        stride=config.score.stride,
        batch_tokens=batch_tokens,
        device=world.device,
        rank=world.rank,
        world_size=world.size,
    )
    adapter = ChunkTTT(
        model, forward, ttt, window=window, num_targets=num_targets, batch_tokens=batch_tokens, world=world
    )
    return AdaptedEvaluation(scorer, adapter, ttt.weights.chunk_tokens)


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Give the model its weights, and which of them have gradients, back at the end of the block."""
    before = {
        name: (parameter.detach().clone(), parameter.requires_grad) for name, parameter in model.named_parameters()
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                values, learns = before[name]
                parameter.copy_(values)
                parameter.requires_grad_(learns)
                parameter.grad = None
