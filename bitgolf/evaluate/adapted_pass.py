"""The adapted pass: a scorer and what learns from the scored tokens, as the section `[ttt]` describes them.

Stage `score` runs it after the plain methods, and its result is the headline. The audit and the codec build the same
pass from the same settings. A pass changes the weights only while it runs: `preserved` restores them. Nothing is warmed
up beforehand, so compiling is part of the measured evaluation time. The methods are in `chunk_training` (PR 461, 549,
576, 585) and `document_scorer` (PR 1530).

Legend: B rows, T window, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor, nn

from bitgolf.config import TTTConfig
from bitgolf.evaluate.chunk_training import ChunkTTT
from bitgolf.evaluate.document_scorer import DocumentScorer, evaluate_documents
from bitgolf.evaluate.split_model import CompiledModel
from bitgolf.evaluate.tape import Adapter, Scorer, ScoreTape, evaluate
from bitgolf.evaluate.window_scorer import Windows
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World


@dataclass(frozen=True)
class AdaptedPass:
    """A pass before its first target. `chunk_targets` is that of `evaluate`; 0 when nothing learns between chunks."""

    scorer: Scorer
    adapter: Adapter | None
    chunk_targets: int

    def run(self, tape: ScoreTape, progress: Progress = silent) -> np.ndarray:
        """Score a fresh tape; returns the losses of all targets, (num_targets,) float32, nats."""
        if isinstance(self.scorer, DocumentScorer):
            return evaluate_documents(tape, self.scorer, progress)
        return evaluate(tape, self.scorer, self.adapter, progress, self.chunk_targets)


def adapted_pass_name(ttt: TTTConfig, method: str) -> str:
    """Name of the adapted pass in score.json, such as "sliding+ttt"; empty when `ttt` describes none.

    `method` is the plain method that the pass scores with, the last one of `score.methods`.
    """
    if not ttt.enabled:
        return ""
    return "documents+lora" if ttt.method == "lora" else f"{method}+ttt"


def adapted_pass(
    ttt: TTTConfig,
    windows: Windows,
    model: nn.Module,  # its weights change while the pass runs, see `preserved`
    forward: Callable[[Tensor], Tensor],  # `model` or its compiled form: tokens (B, T) int64 -> logits (B, T, V)
    *,
    num_targets: int,  # of the whole text, for the learning rate schedule
    bos_id: int,
    seed: int,  # of the adapters' initial values
    world: World,
) -> AdaptedPass:
    """The pass that `ttt` describes (its method is not "none"), before its first target."""
    learner = partial(ChunkTTT, model, forward, world=world)
    if ttt.method == "lora":
        pieces = model.config.attention.document_tokens  # type: ignore[union-attr]

        def learn(tokens: np.ndarray) -> None:
            """Train all weights on scored tokens (n,), in rows as long as those of training."""
            size, num_targets = ttt.weights.chunk_tokens, len(tokens) - 1
            training = learner(
                TTTConfig(method="full", weights=ttt.weights),
                window=size if pieces else windows.length,
                num_targets=num_targets,
                batch_tokens=max(size, windows.batch_tokens),
            )
            for start in range(0, num_targets - size, size):  # nothing is learned from the last chunk
                training.update(lambda first, last: tokens[first:last], start, start + size)

        documents = DocumentScorer(
            model,  # type: ignore[arg-type]
            ttt.lora,
            window=windows.length,
            bos_id=bos_id,
            seed=seed,
            world=world,
            compiled=isinstance(forward, CompiledModel),
            learn=learn,
        )
        return AdaptedPass(documents, None, 0)
    adapter = learner(ttt, window=windows.length, num_targets=num_targets, batch_tokens=windows.batch_tokens)
    return AdaptedPass(windows.scorer(forward, world), adapter, ttt.weights.chunk_tokens)
