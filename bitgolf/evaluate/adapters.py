"""The adapted evaluation of a configuration: scorer, adapters and temperature, put together in one place.

`score` runs it after the plain methods, and its result is the headline; the audit builds the same from the same
configuration for its flip tests and its reproduction. What is adapted is adapted for the length of one pass:
`preserved` gives the weights back as they were. Nothing is warmed up: compiling happens on the evaluation clock,
in the pass that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bitgolf.config import Config
from bitgolf.distributed import World
from bitgolf.evaluate.documents import DocumentScorer, evaluate_documents
from bitgolf.evaluate.scorers import make_scorer
from bitgolf.evaluate.tape import Adapter, Scorer, ScoreTape, TokenReader, evaluate
from bitgolf.evaluate.temperature import OnlineTemperature, Tempered
from bitgolf.evaluate.ttt import ChunkTTT
from bitgolf.progress import Progress, silent

NOT_ADMISSIBLE = "not admissible: scores tokens that the weights were trained on"


class InTurn:
    """Several adapters as one: each learns from the chunk in the order given."""

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters = tuple(adapters)

    def update(self, revealed: TokenReader, start: int, stop: int) -> None:
        """Learn from targets start..stop-1."""
        for adapter in self.adapters:
            adapter.update(revealed, start, stop)


@dataclass(frozen=True)
class AdaptedEvaluation:
    """An adapted pass before its first target. `chunk_targets` is that of `evaluate`; 0 when nothing learns
    between chunks. `temperature` tells the temperature of the chunk being scored."""

    scorer: Scorer
    adapter: Adapter | None
    chunk_targets: int
    temperature: Callable[[], float]

    def run(self, tape: ScoreTape, progress: Progress = silent) -> np.ndarray:
        """Score a fresh tape; returns the losses of all targets, (num_targets,) float32, nats."""
        if isinstance(self.scorer, DocumentScorer):
            return evaluate_documents(tape, self.scorer, progress)
        return evaluate(tape, self.scorer, self.adapter, progress, self.chunk_targets)


def adapted_name(config: Config) -> str:
    """Name of the adapted pass in score.json, such as "sliding+ttt"; empty when the configuration has none."""
    if not config.ttt.enabled:
        return ""
    parts: list[str] = ["documents", "lora"] if config.ttt.method == "lora" else [config.score.methods[-1]]
    if config.ttt.method in ("full", "last_blocks"):
        parts.append("ttt")
    if config.ttt.temperature != 1 or config.ttt.temperature_lr:
        parts.append("temperature")
    return "+".join(parts)


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
    """The adapted pass that `config.ttt` describes, from scratch."""
    ttt, window = config.ttt, config.window
    batch_tokens = batch_tokens or config.score.batch_tokens
    if ttt.method == "lora":
        documents = DocumentScorer(model, ttt, window=window, bos_id=bos_id, seed=config.seed, world=world)  # type: ignore[arg-type]
        return AdaptedEvaluation(documents, None, 0, lambda: ttt.temperature)
    tempered = Tempered(forward, ttt.temperature)
    scorer = make_scorer(
        config.score.methods[-1],
        tempered,
        window=window,
        stride=config.score.stride,
        batch_tokens=batch_tokens,
        device=world.device,
        rank=world.rank,
        world_size=world.size,
    )
    adapters: list[Adapter] = []
    if ttt.temperature_lr:  # before the weights learn from the chunk, or it would be fitted to what they have learned
        adapters.append(
            OnlineTemperature(tempered, ttt.temperature_lr, window=window, batch_tokens=batch_tokens, world=world)
        )
    if ttt.method != "none":
        adapters.append(
            ChunkTTT(
                model, forward, ttt, window=window, num_targets=num_targets, batch_tokens=batch_tokens, world=world
            )
        )
    return AdaptedEvaluation(
        scorer,
        InTurn(adapters) if adapters else None,
        ttt.chunk_tokens if adapters else 0,
        lambda: tempered.temperature,
    )


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
