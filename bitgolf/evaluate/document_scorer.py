"""Scoring document by document: each document has adapters of its own that learn from its scored tokens.

The n targets of a document are scored in chunks of C. A chunk's window ends C targets after its start, wherever the
document itself ends, so no prediction depends on the document's length. The chunk's losses are committed, and one AdamW
step on their mean follows. Documents of a batch (`document_batches`) advance side by side without influence on each
other; each runs on a score tape of its own, which refuses to reveal unscored tokens. `evaluate_documents` then enters
the documents' events into the tape of the text, in the order of the text. The result equals scoring one document after
the other. Source: PR 1530, with a schedule that ignores document lengths, as rules C1 and C4 demand (docs/rules.md).

Legend: N documents, C chunk, T window, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from bitgolf.config.evaluate import LoraTTTConfig
from bitgolf.evaluate.document_batches import DocumentBatch, document_batches, end_of_batches
from bitgolf.evaluate.lora import DocumentAdapters, adapted_logits, initial_a, lora_sites
from bitgolf.evaluate.tape import ScoreTape, TokenReader
from bitgolf.model.gpt import GPT
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World


@dataclass(frozen=True)
class ScoredDocument:
    """Targets start..stop-1 of the text and what happened to them.

    Attributes:
        start, stop: range of targets in the text.
        inherited: the tokens of the text that its initial A has learned from, (0, 0) for a fresh A.
        nll: (n,) float32, nats.
        events: the tape's events (name, first, last), with positions in the document.
        log_p: (n, V) float32, if asked for.
    """

    start: int
    stop: int
    inherited: tuple[int, int]
    nll: np.ndarray
    events: list[tuple[str, int, int]]
    log_p: np.ndarray | None = None


class DocumentScorer:
    """A `Scorer` that adapts inside documents; the model and the scorer itself do not change.

    Args:
        model: not changed.
        config: adapters, chunks and batch.
        window: T, most tokens of context.
        bos_id: starts a document.
        seed: of the initial A.
        world: documents are dealt out to the ranks; all ranks get all losses and events.
    """

    def __init__(self, model: GPT, config: LoraTTTConfig, *, window: int, bos_id: int, seed: int, world: World) -> None:
        self.model, self.config, self.window, self.bos_id, self.world = model, config, window, bos_id, world
        self.sites = lora_sites(model, config.targets)
        self.first_a = initial_a(self.sites, config.rank, seed, world.device)

    def score(self, read: TokenReader, start: int, stop: int, tick: Callable[[int], None] | None = None) -> np.ndarray:
        """Losses of targets start..stop-1, (stop - start,) float32; target `start` begins a document."""
        return np.concatenate([document.nll for document in self.score_documents(read, start, stop, tick)])

    def distributions(self, read: TokenReader, start: int, stop: int) -> np.ndarray:
        """Log-probabilities (stop - start, V) float32 of the same targets; reads tokens up to stop-1 only."""
        # The last target's token is unknown. Its placeholder 0 is never an input, because no target follows it.
        tokens = np.append(read(start, stop), 0)
        documents = self._score(tokens, start, None, rank=0, world_size=1, with_log_p=True)
        return np.concatenate([document.log_p for document in documents if document.log_p is not None])

    def score_documents(
        self, read: TokenReader, start: int, stop: int, tick: Callable[[int], None] | None = None
    ) -> list[ScoredDocument]:
        """The documents that targets start..stop-1 belong to, in order, the same on every rank."""
        rank, world_size = self.world.rank, self.world.size
        documents = self._score(read(start, stop + 1), start, tick, rank, world_size, with_log_p=False)
        if world_size > 1:
            parts: list[list[ScoredDocument] | None] = [None] * world_size
            dist.all_gather_object(parts, documents)
            documents = [document for part in parts if part is not None for document in part]
        return sorted(documents, key=lambda document: document.start)

    def end_of_batch(self, tokens: np.ndarray, batches: int) -> int:
        """One past the last target of the first `batches` batches of documents of a text, (N,) integers."""
        return end_of_batches(tokens, self.bos_id, self.config.documents, batches)

    def _score(
        self,
        tokens: np.ndarray,
        offset: int,
        tick: Callable[[int], None] | None,
        rank: int,
        world_size: int,
        with_log_p: bool,
    ) -> list[ScoredDocument]:
        """This rank's documents of `tokens`, batch after batch; `tokens[0]` is token `offset` of the text."""
        size = self.config.documents
        a = [tensor.expand(size, *tensor.shape).clone() for tensor in self.first_a]  # (N, r, inputs) per slot
        documents: list[ScoredDocument] = []
        for batch in document_batches(tokens, offset, self.bos_id, size, keep_a=self.config.keep_a):
            slots = list(range(len(batch.spans)))[rank::world_size]
            if slots:
                documents += self._score_batch(batch, slots, a, with_log_p)
            if tick is not None:
                tick(batch.spans[-1][1] - offset)
        return documents

    def _score_batch(
        self, batch: DocumentBatch, slots: list[int], a: list[Tensor], with_log_p: bool
    ) -> list[ScoredDocument]:
        """Score the documents in `slots` of a batch side by side. With `keep_a` their final A replace those in `a`."""
        size = self.config.chunk_tokens
        tapes = [ScoreTape(batch.tokens[slot]) for slot in slots]
        shown: list[list[np.ndarray]] = [[] for _ in slots]
        adapters = DocumentAdapters(self.sites, [tensor[slots] for tensor in a], self.config)
        active = list(range(len(slots)))  # documents whose adapters are in `adapters`, in this order
        chunk = 0
        while active:
            now = [tapes[i] for i in active]
            stay = [row for row, tape in enumerate(now) if tape.num_targets > (chunk + 1) * size]
            with torch.set_grad_enabled(bool(stay)):
                for tensor in adapters.parameters:
                    tensor.requires_grad_(bool(stay))
                logits = self._logits(adapters, now, chunk)  # (n, C, V)
            for row, i in enumerate(active):
                self._commit(tapes[i], logits[row].detach(), chunk, shown[i] if with_log_p else None)
            gradients: list[Tensor] = []
            if stay:
                gradients = self._gradients(adapters, [now[row] for row in stay], logits[stay], chunk)
            for tensor in adapters.parameters:
                tensor.requires_grad_(False)
            if self.config.keep_a:
                ended = [row for row in range(len(active)) if row not in stay]
                for kept, learned in zip(a, adapters.a, strict=True):
                    kept[[slots[active[row]] for row in ended]] = learned[ended]
            if stay:
                self._step(adapters, gradients, stay, len(active))
            active, chunk = [active[row] for row in stay], chunk + 1
            for i in active:
                tapes[i].record_update((chunk - 1) * size, chunk * size + 1)
        return [
            ScoredDocument(
                *batch.spans[slot],
                batch.inherited[slot],
                tape.nll,
                _events(tape),
                np.concatenate(log_p) if with_log_p else None,
            )
            for slot, tape, log_p in zip(slots, tapes, shown, strict=True)
        ]

    def _logits(self, adapters: DocumentAdapters, tapes: list[ScoreTape], chunk: int) -> Tensor:
        """Logits (n, C, V) of a chunk of each document, padded on the right where a document ends before."""
        size = self.config.chunk_tokens
        end = (chunk + 1) * size
        begin = max(0, end - self.window)
        inputs = np.zeros((len(tapes), end - begin), dtype=np.int64)
        for row, tape in enumerate(tapes):
            stop = min(end, tape.num_targets)
            inputs[row, : stop - begin] = tape.chunk(stop)(begin, stop)
        tokens = torch.from_numpy(inputs).to(self.world.device)
        return adapted_logits(self.model, adapters, tokens, size)

    def _commit(self, tape: ScoreTape, logits: Tensor, chunk: int, shown: list[np.ndarray] | None) -> None:
        """Commit the losses of a document's chunk from its logits (C, V); append its log-probabilities to `shown`."""
        start = chunk * self.config.chunk_tokens
        stop = min(start + self.config.chunk_tokens, tape.num_targets)
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
        size = self.config.chunk_tokens
        revealed = np.stack([tape.revealed(chunk * size + 1, (chunk + 1) * size + 1) for tape in tapes])
        targets = torch.from_numpy(revealed.astype(np.int64)).to(logits.device)  # (n, C)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return list(torch.autograd.grad(losses.view(targets.shape).mean(1).sum(), adapters.parameters))

    def _step(self, adapters: DocumentAdapters, gradients: list[Tensor], stay: list[int], num_active: int) -> None:
        """Drop the adapters of documents that have ended; one update of the others, at positions `stay`."""
        if len(stay) < num_active:
            rows = torch.tensor(stay, device=self.world.device)
            adapters.keep(rows)
            gradients = [gradient[rows] for gradient in gradients]
        adapters.step(gradients)


def _events(tape: ScoreTape) -> list[tuple[str, int, int]]:
    return [
        (event["event"], *event["targets" if event["event"] == "score" else "tokens"])
        for event in tape.event_log["events"]
    ]


def evaluate_documents(tape: ScoreTape, scorer: DocumentScorer, progress: Progress = silent) -> np.ndarray:
    """Score a fresh tape document by document.

    Args:
        tape: without scores. Its event log gets every document's chunks and updates in the order of the text. The
            reset between two documents is an update that has read nothing or, with `keep_a`, the documents that the
            initial A has learned from.
        scorer: with several ranks every rank calls this function with the same tape.
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
