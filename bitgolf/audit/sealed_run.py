"""The run's headline scored again by a sealed process, which has the artifact and nothing else of the run.

The process starts early, so that it loads while other checks are made. The score tape stays in this process: a chunk's
tokens go over when it is the chunk's turn, and its losses are committed here (see `sandbox.client`).

Legend: N-1 targets of the validation text.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from bitgolf.audit.headline import MODEL_ROWS, Headline, sample_blocks
from bitgolf.audit.sandbox.client import SealedFailure, SealedProcess
from bitgolf.audit.sandbox.process_limits import Limits
from bitgolf.errors import RuleViolation
from bitgolf.evaluate.document_batches import end_of_batches
from bitgolf.evaluate.tape import ScoreTape, evaluate
from bitgolf.evaluate.window_scorer import window_plan

_NUM_UPDATES = {True: 1, False: 3}  # chunks that an adapter learns from in the reproduction, by `quick`
_NUM_BLOCKS = {True: 4, False: 16}
_WHOLE_PASS_TARGETS = 1 << 17  # adapted passes up to this length are scored again as a whole, unless quick

Losses = list[tuple[int, np.ndarray]]  # first target of a block, and its losses (stop - start,) float32, nats


class SealedRun:
    """Scores parts of the validation text again.

    Attributes:
        num_targets: scored so far.
        reaches_end: whether losses from the end of the text are among them.
        not_isolated: why the process runs without isolation; "" when it is isolated.
    """

    def __init__(
        self,
        headline: Headline,
        hidden: Callable[[], Iterable[Path]],  # files that the process must not see: run directory, data, corpus
        everything: bool,  # score all targets
        rng: np.random.Generator,  # draws the blocks
        limits: Limits,  # of the process
    ) -> None:
        self.headline, self.hidden, self.everything, self.rng, self.limits = headline, hidden, everything, rng, limits
        self.num_targets, self.reaches_end, self.not_isolated = 0, True, ""
        self._stack = ExitStack()

    def close(self) -> None:
        self._stack.close()

    @cached_property
    def process(self) -> SealedProcess:
        headline, config = self.headline, self.headline.config
        settings = {
            "config": config.model_dump(mode="json"),
            "device": str(headline.device),
            "method": "" if headline.adapted else headline.method,
            "batch_tokens": self.rows * config.window,
            "num_targets": len(headline.tokens) - 1,
        }
        return self._stack.enter_context(
            SealedProcess(
                headline.artifact,
                settings,
                self.hidden(),
                num_threads=torch.get_num_threads(),
                isolated=not self.not_isolated,
                first_token=self._first_token,
                limits=self.limits,
            )
        )

    def _first_token(self, target: int) -> int:
        """The first token that targets from `target` on need and that has not gone over already."""
        if self.headline.adapted:  # is continued from chunk to chunk
            return target + 1 if target else 0
        return int(window_plan(target, target + 1, self.headline.config.window, self.headline.stride)[0, 0])

    @property
    def rows(self) -> int:
        """Windows of a batch: those of the score where kernels depend on them, or all is scored again."""
        configured = self.headline.config.score.batch_tokens // self.headline.config.window
        return max(MODEL_ROWS, configured) if self.everything or self.headline.device.type == "cuda" else MODEL_ROWS

    def losses(self) -> Losses:
        """Losses of the blocks that are scored again.

        An evaluation that cannot run isolated is run once more without isolation; `not_isolated` then says why.
        """
        try:
            losses = self._score()
        except (SealedFailure, RuleViolation) as failure:
            on_gpu = self.headline.device.type == "cuda"  # whose driver may need files at any time
            if not isinstance(failure, SealedFailure) and (not on_gpu or self.process.attempts()):
                raise
            self.not_isolated = str(failure)
            self._stack.close()
            del self.process
            losses = self._score()
        self.num_targets = sum(len(block) for _, block in losses)
        return losses

    def _score(self) -> Losses:
        if not self.headline.adapted:
            return self._blocks()
        independent = self.headline.by_documents and self.headline.config.ttt.independent_documents
        return self._documents() if independent and not self._whole else self._prefix()

    @property
    def _whole(self) -> bool:
        short = len(self.headline.tokens) <= _WHOLE_PASS_TARGETS and not self.headline.quick
        return self.everything or short

    def _blocks(self) -> Losses:
        headline = self.headline
        num_targets, block = len(headline.tokens) - 1, self.rows * headline.stride
        num_blocks = -(-num_targets // block) if self.everything else _NUM_BLOCKS[headline.quick]
        return [
            (start, self.process.score(lambda a, b: headline.tokens[a:b], start, stop))
            for start, stop in sample_blocks(num_targets, block, num_blocks, self.rng)
        ]

    def _documents(self) -> Losses:
        """The first, the last and random documents, whose adapters know nothing of other documents."""
        headline = self.headline
        tokens, bos_id = headline.tokens, headline.bos_id
        spans = list(pairwise([0, *(np.flatnonzero(tokens[1:] == bos_id) + 1).tolist(), len(tokens)]))
        count = min(len(spans), _NUM_UPDATES[headline.quick] * headline.config.ttt.lora.documents)
        chosen = sorted({0, len(spans) - 1, *self.rng.permutation(len(spans))[:count].tolist()})
        spans = [spans[number] for number in chosen]
        text = np.concatenate([*(tokens[start:stop] for start, stop in spans), [bos_id]])
        tape = ScoreTape(text.astype(tokens.dtype))
        tape.commit(0, tape.num_targets, self.process.score(tape.chunk(tape.num_targets), 0, tape.num_targets))
        ends = np.cumsum([stop - start for start, stop in spans])
        losses = np.split(tape.nll, ends[:-1])
        # The last target of the last document is a border that the validation text does not have.
        return [(start, block[: len(tokens) - 1 - start]) for (start, _), block in zip(spans, losses, strict=True)]

    def _prefix(self) -> Losses:
        """The adapted pass again from the first target, through a few updates or to the end."""
        headline, config = self.headline, self.headline.config
        adapter = self.process if config.ttt.between_chunks else None
        stop = self._end_of_prefix()
        self.reaches_end = stop == len(headline.tokens) - 1
        tape = ScoreTape(headline.tokens[: stop + 1])
        if headline.by_documents:
            tape.commit(0, tape.num_targets, self.process.score(tape.chunk(tape.num_targets), 0, tape.num_targets))
            return [(0, tape.nll)]
        chunk_targets = config.ttt.weights.chunk_tokens if adapter else 0
        return [(0, evaluate(tape, self.process, adapter, chunk_targets=chunk_targets))]

    def _end_of_prefix(self) -> int:
        """One past the last target that an adapted pass is scored again to."""
        headline, config = self.headline, self.headline.config
        num_targets, updates = len(headline.tokens) - 1, _NUM_UPDATES[headline.quick]
        if self._whole:
            return num_targets
        if headline.by_documents:
            return end_of_batches(headline.tokens, headline.bos_id, config.ttt.lora.documents, updates)
        chunks = updates * config.ttt.weights.chunk_tokens if config.ttt.between_chunks else 0
        return min(num_targets, chunks + config.score.batch_tokens // config.window * headline.stride)
