"""The run's headline evaluation, rebuilt from its artifact for the checks that look at distributions.

It runs eagerly, with the run's own method, window and stride, on a passage of the validation text. An evaluation that
adapts is rebuilt with its adapter. Its chunks are shortened to one window, so that a short passage has several updates.

Legend: n tokens of the passage, V vocabulary.
"""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path

import numpy as np

from bitgolf.artifact.open import PackedModel, open_model
from bitgolf.audit.traces import Trace, deterministic_kernels, trace
from bitgolf.audit.verdict import MissingEvidence
from bitgolf.config import Config
from bitgolf.evaluate.adapted_pass import AdaptedPass, adapted_pass, adapted_pass_name
from bitgolf.evaluate.tape import Adapter, Scorer
from bitgolf.evaluate.window_scorer import METHODS, Windows, make_scorer
from bitgolf.model.backends import reproducible_backend
from bitgolf.run.ranks import World, choose_device

MODEL_ROWS = 4  # windows of a forward pass in the checks that run the model
_STRIDES = 3  # sliding windows after the first in the passage
_NUM_BLOCKS = 4  # of a pass beside the headline
_UPDATES = {True: 1, False: 2}  # chunks that an adapter learns from in the passage, by `quick`


class Headline:
    """The evaluation behind the headline of score.json.

    Args:
        name: the headline's pass, e.g. "sliding".
        config: of the run.
        artifact: path of model.bitgolf.
        tokens: (N,) uint16, the validation data.
        bos_id: the token before each document.
        quick: a shorter passage.
        rng: draws the place of the passage.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        artifact: Path,
        tokens: np.ndarray,
        bos_id: int,
        *,
        quick: bool,
        rng: np.random.Generator,
    ) -> None:
        self.name, self.config, self.artifact = name, config, artifact
        self.tokens, self.bos_id, self.quick, self.rng = tokens, bos_id, quick, rng
        self.device = choose_device("auto" if config.device == "cuda" else config.device)
        self.vocab_size = config.model.vocab_size
        self.adapted = name == adapted_pass_name(config.ttt, config.score.methods[-1])
        self.method = str(config.score.methods[-1]) if self.adapted else name
        if self.method not in METHODS:
            raise MissingEvidence(
                f"the headline method {self.method!r} cannot be rebuilt by the audit (it has {', '.join(METHODS)})"
            )

    @property
    def by_documents(self) -> bool:
        """Whether adapters learn document by document."""
        return self.adapted and self.config.ttt.method == "lora"

    @property
    def stride(self) -> int:
        """Targets newly scored by a window."""
        return self.config.window if self.method == "chunked" else self.config.score.stride

    @property
    def chunk_targets(self) -> int:
        """Targets between two updates on the passage; 0 when there are none."""
        return self.config.window if self.adapted and self.config.ttt.between_chunks else 0

    @cached_property
    def packed(self) -> PackedModel:
        """The artifact, loaded."""
        return open_model(self.artifact, device=str(self.device))

    @cached_property
    def passage(self) -> np.ndarray:
        """(n,) uint16: one window of validation tokens (one per update where something is learned between chunks) and a
        few strides, from a random place."""
        window = self.config.window
        first = window * (_UPDATES[self.quick] if self.chunk_targets else 1)
        length = min(first + min(_STRIDES * self.stride, window) + 1, len(self.tokens))
        start = int(self.rng.integers(len(self.tokens) - length + 1))
        return self.tokens[start : start + length]

    @cached_property
    def shown(self) -> Trace:
        """The distributions and losses of the passage."""
        with deterministic_kernels(self.device):
            return trace(self.build, self.passage, self.chunk_targets, with_losses=True)

    def build(self, tokens: np.ndarray) -> tuple[Scorer, Adapter | None]:
        """The evaluation from scratch (`traces.Evaluation`)."""
        batch_tokens = MODEL_ROWS * self.config.window
        if self.adapted:
            adapted = self._adapted(len(tokens) - 1, batch_tokens)
            return adapted.scorer, adapted.adapter
        scorer = make_scorer(
            self.method,
            self.packed.model,
            window=self.config.window,
            stride=self.stride,
            batch_tokens=batch_tokens,
            device=self.device,
        )
        return scorer, None

    def plain_losses(self, method: str, rng: np.random.Generator) -> list[tuple[int, np.ndarray]]:
        """Losses of a pass without adaptation on a few blocks: first target and (n,) float32 nats of each."""
        stride = self.config.window if method == "chunked" else self.config.score.stride
        scorer = make_scorer(
            method,
            self.packed.model,
            window=self.config.window,
            stride=stride,
            batch_tokens=MODEL_ROWS * self.config.window,
            device=self.device,
        )
        blocks = sample_blocks(len(self.tokens) - 1, MODEL_ROWS * stride, _NUM_BLOCKS, rng)
        return [(start, scorer.score(lambda a, b: self.tokens[a:b], start, stop)) for start, stop in blocks]

    def with_chunks(self, chunk_tokens: int) -> Config:
        """The configuration with other chunks, where something is learned between chunks."""
        if not self.config.ttt.between_chunks:
            return self.config
        return self.config.updated({"ttt.weights.chunk_tokens": chunk_tokens})

    def _adapted(self, num_targets: int, batch_tokens: int) -> AdaptedPass:
        """The adapted pass on a copy of the artifact's model, with reproducible gradients."""
        model = copy.deepcopy(self.packed.model)
        if self.device.type == "cuda":
            model.set_attention_backend(reproducible_backend(model.config.attention.within_documents))
        config = self.with_chunks(self.chunk_targets)
        return adapted_pass(
            config.ttt,
            Windows.of(config, batch_tokens=batch_tokens),
            model,
            model,
            num_targets=num_targets,
            bos_id=self.bos_id,
            seed=config.seed,
            world=World(0, 1, self.device),
        )


def sample_blocks(num_targets: int, block: int, num_blocks: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Ranges [start, stop) of up to `block` targets: the first, the last and random ones between, sorted."""
    total = -(-num_targets // block)
    chosen = {0, total - 1}
    inner = np.arange(1, max(1, total - 1))
    count = min(max(0, num_blocks - len(chosen)), len(inner))
    chosen |= set(rng.choice(inner, count, replace=False).tolist())
    return [(k * block, min((k + 1) * block, num_targets)) for k in sorted(chosen)]
