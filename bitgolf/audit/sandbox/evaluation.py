"""What a sealed process evaluates: a run's own headline evaluation, built from the artifact and the configuration.

Unlike the stage `score`, which opens the data directory, nothing here reads a file but the artifact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bitgolf.artifact.open import PackedModel, open_model
from bitgolf.config import Config
from bitgolf.evaluate.adapted_pass import AdaptedPass, adapted_pass
from bitgolf.evaluate.chunk_training import preserved
from bitgolf.evaluate.document_scorer import DocumentScorer
from bitgolf.evaluate.split_model import Model, scoring_model
from bitgolf.evaluate.tape import Adapter, Scorer, ScoreTape
from bitgolf.evaluate.window_scorer import Windows
from bitgolf.run.ranks import World


def build(settings: dict[str, Any]) -> HeadlineEvaluation:
    """The evaluation that `settings` describe (plain values).

    artifact: path of the artifact. config: the run's configuration. device: where it runs. method: "chunked" or
    "sliding", or "" for the adapted pass. batch_tokens: of the plain methods. num_targets: of the whole text.
    num_threads: of PyTorch.
    """
    torch.set_num_threads(settings["num_threads"])
    config = Config.model_validate(settings["config"])
    device = torch.device(settings["device"])
    packed = open_model(settings["artifact"], device, config.train.attention, config.score.canonical)
    # As `score` calls it: the same kernels give the same losses.
    forward = scoring_model(packed.model, compiled=config.score.compile)
    plain = Windows.of(config, settings["method"], settings["batch_tokens"]) if settings["method"] else None
    return HeadlineEvaluation(packed, forward, config, World(0, 1, device), plain, settings["num_targets"])


class HeadlineEvaluation:
    """Scorer and adapter of a run's headline, on the model as it was loaded."""

    def __init__(
        self, packed: PackedModel, forward: Model, config: Config, world: World, plain: Windows | None, num_targets: int
    ) -> None:
        self.packed, self.forward, self.config, self.world = packed, forward, config, world
        self.plain, self.num_targets = plain, num_targets
        self._make()

    def _make(self) -> None:
        self.scorer: Scorer
        self.adapter: Adapter | None = None
        if self.plain is not None:
            self.scorer = self.plain.scorer(self.forward, self.world)
        else:
            adapted = self._adapted(self.config)
            self.scorer, self.adapter = adapted.scorer, adapted.adapter

    def _adapted(self, config: Config) -> AdaptedPass:
        return adapted_pass(
            config.ttt,
            Windows.of(config),
            self.packed.model,
            self.forward,
            num_targets=self.num_targets,
            bos_id=self.packed.tokenizer.bos_id,
            seed=config.seed,
            world=self.world,
        )

    def warm_up(self) -> None:
        """Score random tokens the way the real ones will be, then restore weights and adapters.

        On a GPU a whole chunk is learned from, so that every shape is compiled; on a CPU a window is enough.
        """
        config, window, size = self.config, self.config.window, 4 * self.config.window + 1
        on_gpu = self.world.device.type == "cuda"
        if on_gpu and self.adapter is not None:
            size = config.ttt.weights.chunk_tokens + window
        tokens = np.random.default_rng(0).integers(config.model.vocab_size, size=size).astype(np.uint16)
        if self.plain is not None:
            self.scorer.score(lambda a, b: tokens[a:b], 0, 2 * window)
            return
        with preserved(self.packed.model):
            adapted = self._adapted(config if on_gpu else config.updated({"ttt.weights.chunk_tokens": window}))
            if isinstance(adapted.scorer, DocumentScorer):
                tokens[:: max(2, window)] = self.packed.tokenizer.bos_id
            adapted.run(ScoreTape(tokens))
        self._make()
