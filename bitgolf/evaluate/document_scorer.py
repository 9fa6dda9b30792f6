"""Scoring document by document, each with adapters of its own that learn from its scored tokens.

A document is the tokens from its BOS (which is given) to the BOS of the next one, which is its last target: that it
ends is predicted by its own adapted model, so every target of the text belongs to exactly one document. A
document of targets 0..n-1 is scored in chunks of C: its window ends C targets on (wherever the document itself
ends, so that no prediction depends on its length), the chunk's losses are committed, and one AdamW step on their
mean follows. Documents of a batch advance side by side, but nothing passes between them; each runs on a score
tape of its own, which refuses to reveal what is not scored. `evaluate_documents` then enters the documents' events
into the tape of the text in the order of the text: exactly what scoring one document after the other would write.
Sources: PR 1530; a schedule that ignores document length and the order of the text follow rules C1 and C4.

Legend: N documents, C chunk, T window, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from bitgolf.config import TTTConfig
from bitgolf.errors import RuleViolation
from bitgolf.evaluate.lora import DocumentAdapters, adapted_logits, initial_a, lora_sites
from bitgolf.evaluate.tape import ScoreTape, TokenReader
from bitgolf.model.gpt import GPT
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World


@dataclass(frozen=True)
class ScoredDocument:
    """Targets start..stop-1 of the text, their losses (n,) float32, and the ledger's events with positions in the
    document. `inherited` is the range of tokens that the A it started from has learned from, (0, 0) for a fresh A."""

    start: int
    stop: int
    inherited: tuple[int, int]
    nll: np.ndarray
    events: list[tuple[str, int, int]]
    log_p: np.ndarray | None = None  # (n, V) float32, when asked for


class DocumentScorer:
    """A `Scorer` that adapts inside documents; it leaves the model and itself as they were.

    Args:
        model: not changed.
        config: adapters, chunks and batch.
        window: T, most tokens of context.
        bos_id: starts a document.
        seed: of the initial A.
        world: documents are dealt out to the ranks; losses and events are gathered on all of them.
    """

    def __init__(self, model: GPT, config: TTTConfig, *, window: int, bos_id: int, seed: int, world: World) -> None:
        self.model, self.config, self.window, self.bos_id, self.world = model, config, window, bos_id, world
        self.sites = lora_sites(model, config.lora.targets)
        self.first_a = initial_a(self.sites, config.lora.rank, seed, world.device)

    def score(self, read: TokenReader, start: int, stop: int, tick: Callable[[int], None] | None = None) -> np.ndarray:
        """Losses of targets start..stop-1, (stop - start,) float32; target `start` begins a document."""
        return np.concatenate([document.nll for document in self.score_documents(read, start, stop, tick)])

    def distributions(self, read: TokenReader, start: int, stop: int) -> np.ndarray:
        """Log-probabilities (stop - start, V) float32 of the same targets; reads tokens up to stop-1 only."""
        # The last target's token is not known; whatever stands for it is never read, as nothing follows it.
        tokens = np.append(read(start, stop), 0)
        found = [
            document.log_p
            for batch in self._batches(tokens, start, self.config.lora.documents)
            for document in self._run(batch, slice(None), True)
        ]
        return np.concatenate([log_p for log_p in found if log_p is not None])

    def score_documents(
        self, read: TokenReader, start: int, stop: int, tick: Callable[[int], None] | None = None
    ) -> list[ScoredDocument]:
        """The documents that targets start..stop-1 belong to, in order, the same on every rank."""
        world, size = self.world, self.config.lora.documents
        found: list[ScoredDocument] = []
        for batch in self._batches(read(start, stop + 1), start, size):
            found += self._run(batch, slice(world.rank, None, world.size), False)
            if tick is not None:
                tick(batch.spans[-1][1] - start)
        if world.size > 1:
            parts: list[list[ScoredDocument] | None] = [None] * world.size
            dist.all_gather_object(parts, found)
            found = [document for part in parts if part is not None for document in part]
        return sorted(found, key=lambda document: document.start)

    def end_of_batch(self, tokens: np.ndarray, batch: int) -> int:
        """One past the last target of the first `batch` batches of documents of a text, (N,) integers."""
        after = np.flatnonzero(tokens[1:-1] == self.bos_id) + 1  # where the second document begins, and the others
        index = batch * self.config.lora.documents - 1
        return int(after[index]) if index < len(after) else len(tokens) - 1

    def _batches(self, tokens: np.ndarray, offset: int, size: int) -> Iterator[_Batch]:
        """Documents of `tokens` in order, `size` at a time; `tokens[0]` is token `offset` of the text."""
        borders = np.flatnonzero(tokens[:-1] == self.bos_id)
        if offset and (not len(borders) or borders[0]):
            raise RuleViolation(f"document adapters cannot start at target {offset}, in the middle of a document")
        starts = np.union1d(0, borders).tolist()
        spans = list(zip(starts, [*starts[1:], len(tokens) - 1], strict=True))
        a = [tensor.expand(size, *tensor.shape).clone() for tensor in self.first_a]  # (N, r, inputs) by slot
        for begin in range(0, len(spans), size):
            inherited = [(0, 0)] * size
            if self.config.lora.keep_a and begin:  # each slot's line: its first document to the one just before
                inherited = [
                    (offset + spans[slot][0], offset + spans[begin - size + slot][1] + 1) for slot in range(size)
                ]
            chosen = spans[begin : begin + size]
            yield _Batch(
                [(offset + first, offset + last) for first, last in chosen],
                [tokens[first : last + 1] for first, last in chosen],
                a,
                inherited,
            )

    def _run(self, batch: _Batch, slots: slice, with_distributions: bool) -> list[ScoredDocument]:
        """Score the documents in `slots` of a batch, side by side, and hand their A down in the slots."""
        mine = list(range(len(batch.spans)))[slots]
        if not mine:
            return []
        device, size = self.world.device, self.config.lora.chunk_tokens
        tapes = [ScoreTape(batch.tokens[slot]) for slot in mine]
        shown: list[list[np.ndarray]] = [[] for _ in mine]
        adapters = DocumentAdapters(self.sites, [a[mine] for a in batch.a], self.config)
        active = list(range(len(mine)))  # whose adapters are in `adapters`, in this order
        chunk = 0
        while active:
            going = [i for i in active if tapes[i].num_targets > (chunk + 1) * size]
            with torch.set_grad_enabled(bool(going)):
                for tensor in adapters.parameters:
                    tensor.requires_grad_(bool(going))
                logits = self._logits(adapters, [tapes[i] for i in active], chunk)  # (n, C, V)
            for row, i in enumerate(active):
                self._commit(tapes[i], logits[row].detach(), chunk, shown[i] if with_distributions else None)
            stay = [row for row, i in enumerate(active) if tapes[i].num_targets > (chunk + 1) * size]
            gradients: list[Tensor] = []
            if going:
                gradients = self._gradients(adapters, [tapes[i] for i in going], logits[stay], chunk)
            for tensor in adapters.parameters:
                tensor.requires_grad_(False)
            if self.config.lora.keep_a:
                ended = [row for row in range(len(active)) if row not in stay]
                for handed, a in zip(batch.a, adapters.a, strict=True):
                    handed[[mine[active[row]] for row in ended]] = a[ended]
            if going:
                kept = torch.tensor(stay, device=device)
                if len(stay) < len(active):
                    adapters.keep(kept)
                    gradients = [gradient[kept] for gradient in gradients]
                adapters.step(gradients)
                for i in going:
                    tapes[i].record_update(chunk * size, (chunk + 1) * size + 1)
            active, chunk = going, chunk + 1
        return [
            ScoredDocument(
                *batch.spans[slot],
                batch.inherited[slot],
                tape.nll,
                _events(tape),
                np.concatenate(log_p) if with_distributions else None,
            )
            for slot, tape, log_p in zip(mine, tapes, shown, strict=True)
        ]

    def _logits(self, adapters: DocumentAdapters, tapes: list[ScoreTape], chunk: int) -> Tensor:
        """Logits (n, C, V) of a chunk of each document, padded on the right where a document ends before."""
        size = self.config.lora.chunk_tokens
        end = (chunk + 1) * size
        begin = max(0, end - self.window)
        inputs = np.zeros((len(tapes), end - begin), dtype=np.int64)
        for row, tape in enumerate(tapes):
            stop = min(end, tape.num_targets)
            inputs[row, : stop - begin] = tape.chunk(stop)(begin, stop)
        tokens = torch.from_numpy(inputs).to(self.world.device)
        return adapted_logits(self.model, adapters, tokens, size)

    def _commit(self, tape: ScoreTape, logits: Tensor, chunk: int, shown: list[np.ndarray] | None) -> None:
        """Commit the losses of a document's chunk from its logits (C, V), and keep the distributions if asked to."""
        start = chunk * self.config.lora.chunk_tokens
        stop = min(start + self.config.lora.chunk_tokens, tape.num_targets)
        logits = logits[: stop - start]
        targets = torch.from_numpy(tape.chunk(stop)(start + 1, stop + 1).astype(np.int64)).to(logits.device)
        chosen = logits.gather(-1, targets[:, None]).squeeze(-1)
        if shown is not None:
            shown.append(logits.log_softmax(-1).cpu().numpy())
        tape.commit(start, stop, (logits.logsumexp(-1) - chosen).cpu().numpy())

    def _gradients(
        self, adapters: DocumentAdapters, tapes: list[ScoreTape], logits: Tensor, chunk: int
    ) -> list[Tensor]:
        """Gradients of the sum over documents of a scored chunk's mean loss; `logits` (n, C, V)."""
        size = self.config.lora.chunk_tokens
        revealed = np.stack([tape.revealed(chunk * size + 1, (chunk + 1) * size + 1) for tape in tapes])
        targets = torch.from_numpy(revealed.astype(np.int64)).to(logits.device)  # (n, C)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return list(torch.autograd.grad(losses.view(targets.shape).mean(1).sum(), adapters.parameters))


@dataclass(frozen=True)
class _Batch:
    """Documents scored side by side: their targets, their tokens, A by slot (replaced as it is handed down), and the
    tokens that each slot's A has learned from."""

    spans: list[tuple[int, int]]
    tokens: list[np.ndarray]
    a: list[Tensor]
    inherited: list[tuple[int, int]]


def _events(tape: ScoreTape) -> list[tuple[str, int, int]]:
    return [
        (event["event"], *event["targets" if event["event"] == "score" else "tokens"])
        for event in tape.event_log["events"]
    ]


def evaluate_documents(tape: ScoreTape, scorer: DocumentScorer, progress: Progress = silent) -> np.ndarray:
    """Score a fresh tape document by document.

    Args:
        tape: nothing scored yet. Its ledger gets every document's chunks and updates in the order of the text; the
            reset between two documents is an update that has read nothing or, with A handed down, the documents
            that A has learned from.
        scorer: with several ranks every rank calls this with the same tape.
        progress: called with stage "score" and the number of targets scored.
    Returns:
        The losses of all targets, (num_targets,) float32, nats.
    """
    total = tape.num_targets
    progress("score", 0, total)
    documents = scorer.score_documents(tape.chunk(total), 0, total, lambda done: progress("score", done, total))
    for number, document in enumerate(documents):
        if number:
            tape.record_update(*document.inherited)
        for name, first, last in document.events:
            if name == "score":
                tape.commit(document.start + first, document.start + last, document.nll[first:last])
            else:
                tape.record_update(document.start + first, document.start + last)
    return tape.nll
