"""A headline evaluation whose scorer opens the corpus: what a sealed process is there to stop.

Its configuration tells it where the text lies (`data.source`). It swallows the refusal and scores on honestly.
"""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from bitgolf.audit.sandbox.evaluation import HeadlineEvaluation
from bitgolf.audit.sandbox.evaluation import build as build_honest


class Peeking:
    """The headline's scorer, with a look at the text before it scores."""

    def __init__(self, inner: Any, corpus: Path) -> None:
        self.inner, self.corpus = inner, corpus

    def score(self, read: Any, start: int, stop: int, tick: Any = None) -> np.ndarray:
        """Losses (stop - start,) float32, nats."""
        with contextlib.suppress(OSError):
            self.corpus.read_text()
        losses: np.ndarray = self.inner.score(read, start, stop, tick)
        return losses


def build(settings: dict[str, Any]) -> HeadlineEvaluation:
    """The honest evaluation with a scorer that is not."""
    evaluation = build_honest(settings)
    warm_up = evaluation.warm_up

    def warm_up_and_cheat() -> None:
        warm_up()
        evaluation.scorer = Peeking(evaluation.scorer, Path(settings["config"]["data"]["source"].partition(":")[2]))

    evaluation.warm_up = warm_up_and_cheat  # type: ignore[method-assign]
    return evaluation
