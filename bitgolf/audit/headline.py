"""The run's headline evaluation, rebuilt from its artifact for the checks that look at distributions.

It runs eagerly, with the run's own method, window and stride, on a passage of the validation text. An evaluation that
adapts is rebuilt with its adapter. Its chunks are shortened to one window, so that a short passage has several updates.

Legend: n tokens of the passage, V vocabulary.
"""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bitgolf.artifact.open import PackedModel, open_model
from bitgolf.audit.traces import Passage, Trace, deterministic_kernels, trace
from bitgolf.audit.verdict import MissingEvidence
from bitgolf.config import Config
from bitgolf.evaluate.adapted_pass import adapted_pass, adapted_pass_name
from bitgolf.evaluate.tape import Adapter, Scorer
from bitgolf.evaluate.window_scorer import METHODS, Windows
from bitgolf.model.backends import reproducible_backend
from bitgolf.run.ranks import World, choose_device

MODEL_ROWS = 4  # windows of a forward pass in the checks that run the model
_STRIDES = 3  # sliding windows after the first in the passage
_NUM_BLOCKS = 4  # of a pass beside the headline
_UPDATES = {True: 1, False: 2}  # chunks that an adapter learns from in the passage, by `quick`


@dataclass(eq=False)
class Headline:
    """The evaluation behind the headline of score.json."""

    name: str  # the headline's pass, e.g. "sliding".
    config: Config  # of the run
    artifact: Path  # path of model.bitgolf
    tokens: np.ndarray  # (N,) uint16, the validation data
    bos_id: int  # the token before each document
    quick: bool  # a shorter passage
    rng: np.random.Generator  # draws the place of the passage

    def __post_init__(self) -> None:
        self.device = choose_device("auto" if self.config.device == "cuda" else self.config.device)
        self.adapted = self.name == adapted_pass_name(self.config.ttt, self.config.score.methods[-1])
        self.method = str(self.config.score.methods[-1]) if self.adapted else self.name
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
        return open_model(self.artifact, str(self.device), canonical=self.config.score.canonical)

    @cached_property
    def passage(self) -> Passage:
        """One window of validation tokens (one per update where something is learned between chunks) and a few strides,
        from a random place."""
        window = self.config.window
        first = window * (_UPDATES[self.quick] if self.chunk_targets else 1)
        length = min(first + min(_STRIDES * self.stride, window) + 1, len(self.tokens))
        start = int(self.rng.integers(len(self.tokens) - length + 1))
        tokens, vocab_size = self.tokens[start : start + length], self.config.model.vocab_size
        return Passage(self.build, tokens, vocab_size, self.bos_id, self.chunk_targets, self.device)

    @cached_property
    def shown(self) -> Trace:
        """The distributions and losses of the passage."""
        with deterministic_kernels(self.device):
            return trace(self.build, self.passage.tokens, self.chunk_targets, with_losses=True)

    def build(self, tokens: np.ndarray) -> tuple[Scorer, Adapter | None]:
        """The evaluation from scratch (`traces.Evaluation`).

        An adapted pass gets a copy of the artifact's model, and attention with reproducible gradients.
        """
        if not self.adapted:
            return self._plain(self.method), None
        model = copy.deepcopy(self.packed.model)
        if self.device.type == "cuda":
            model.set_attention_backend(reproducible_backend(model.config.attention.is_masked))
        config = self.with_chunks(self.chunk_targets)
        adapted = adapted_pass(
            config.ttt,
            Windows.of(config, batch_tokens=MODEL_ROWS * config.window),
            model,
            model,
            num_targets=len(tokens) - 1,
            bos_id=self.bos_id,
            seed=config.seed,
            world=World(0, 1, self.device),
        )
        return adapted.scorer, adapted.adapter

    def plain_losses(self, method: str, rng: np.random.Generator) -> list[tuple[int, np.ndarray]]:
        """Losses of a pass without adaptation on a few blocks: first target and (n,) float32 nats of each."""
        scorer = self._plain(method)
        stride = self.config.window if method == "chunked" else self.config.score.stride
        blocks = sample_blocks(len(self.tokens) - 1, MODEL_ROWS * stride, _NUM_BLOCKS, rng)
        return [(start, scorer.score(lambda a, b: self.tokens[a:b], start, stop)) for start, stop in blocks]

    def _plain(self, method: str) -> Scorer:
        windows = Windows.of(self.config, method, MODEL_ROWS * self.config.window)
        return windows.scorer(self.packed.model, World(0, 1, self.device))

    def with_chunks(self, chunk_tokens: int) -> Config:
        """The configuration with other chunks, where something is learned between chunks or after documents."""
        ttt = self.config.ttt
        if ttt.method == "lora" and ttt.lora.global_after:  # the passage has few documents
            few = list(range(1, 1 + len(ttt.lora.global_after)))
            return self.config.updated({"ttt.weights.chunk_tokens": self.config.window, "ttt.lora.global_after": few})
        if not ttt.between_chunks:
            return self.config
        return self.config.updated({"ttt.weights.chunk_tokens": chunk_tokens})


def sample_blocks(num_targets: int, block: int, num_blocks: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Ranges [start, stop) of up to `block` targets: the first, the last and random ones between, sorted."""
    total = -(-num_targets // block)
    chosen = {0, total - 1}
    inner = np.arange(1, max(1, total - 1))
    count = min(max(0, num_blocks - len(chosen)), len(inner))
    chosen |= set(rng.choice(inner, count, replace=False).tolist())
    return [(k * block, min((k + 1) * block, num_targets)) for k in sorted(chosen)]
