"""Scoring document by document: each document has adapters of its own that learn from its scored tokens.

The n targets of a document are scored in chunks of C. A chunk's window ends C targets after its start, wherever the
document itself ends, so no prediction depends on the document's length. The chunk's losses are committed, and one AdamW
step on their mean follows. Documents advance side by side without influence on each other; each runs on a score tape of
its own, which refuses to reveal unscored tokens. `evaluate_documents` then enters the documents' events into the tape
of the text, in the order of the text. The result equals scoring one document after the other.

No document waits for a longer one: as soon as one ends, the next takes its row of adapters. A pass takes rows whose
windows have about the same length, and pads them on the right, which changes nothing in a causal model. Lengths of
documents decide only which rows share a pass. Source: PR 1530, with a schedule that ignores document lengths, as rules
C1 and C4 demand (docs/rules.md).

Legend: N rows, n documents of a pass, C chunk, T window, W length of a pass, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from bitgolf.config.evaluate import LoraTTTConfig
from bitgolf.evaluate.chunk_training import preserved
from bitgolf.evaluate.document_batches import NOTHING, Document, document_lines
from bitgolf.evaluate.lora import DocumentAdapters, adamw_, adapted_logits, initial_a, lora_sites
from bitgolf.evaluate.split_model import compiled_blocks_
from bitgolf.evaluate.tape import ScoreTape, TokenReader
from bitgolf.model.gpt import GPT
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World

# Tokens of a pass. Its activations take about 25 GB of a GPU for 17 layers of 512 channels, and kernels are efficient.
_PASS_TOKENS = 32_768
_SHORTEST_PASS = 512  # shorter windows are padded to it on a GPU, where small passes cost as much


@dataclass(frozen=True)
class ScoredDocument:
    """Targets start..stop-1 of the text and what happened to them."""

    # start, stop: range of targets in the text.
    start: int
    stop: int
    # the tokens of the text that its initial A has learned from, (0, 0) for a fresh A; after a phase, the tokens that
    # the model has learned from.
    inherited: tuple[int, int]
    nll: np.ndarray  # (n,) float32, nats
    tokens: np.ndarray  # of the document; its tape has revealed all of them
    events: list[tuple[str, int, int]]  # the tape's events (name, first, last), with positions in the document
    log_p: np.ndarray | None = None  # (n, V) float32, if asked for


class DocumentScorer:
    """A `Scorer` that adapts inside documents; the model and the scorer itself do not change."""

    def __init__(
        self,
        model: GPT,  # not changed
        config: LoraTTTConfig,  # adapters, chunks and rows
        *,
        window: int,  # T, most tokens of context
        bos_id: int,  # starts a document
        seed: int,  # of the initial A
        # lines of documents are shared out to the ranks by their work; all ranks get all losses and events.
        world: World,
        compiled: bool = False,  # compile the layers and the update
        # trains the model on tokens (n,) that are scored; for `config.global_after`.
        learn: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        self.learn = learn
        self.compiled = compiled
        self.options = {"blocks": compiled_blocks_(model)} if compiled else {}
        self.update = torch.compile(adamw_, dynamic=True) if compiled else adamw_
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
        documents = self._in_order(tokens, start, None, World(0, 1, self.world.device), with_log_p=True)
        return np.concatenate([document.log_p for document in documents if document.log_p is not None])

    def score_documents(
        self, read: TokenReader, start: int, stop: int, tick: Callable[[int], None] | None = None
    ) -> list[ScoredDocument]:
        """The documents that targets start..stop-1 belong to, in order, the same on every rank."""
        return self._in_order(read(start, stop + 1), start, tick, self.world, with_log_p=False)

    def _in_order(
        self,
        tokens: np.ndarray,
        offset: int,
        tick: Callable[[int], None] | None,
        world: World,
        with_log_p: bool,
    ) -> list[ScoredDocument]:
        """All documents of `tokens`, in order. Between phases the model learns from all documents so far."""
        starts = np.flatnonzero(tokens[1:-1] == self.bos_id) + 1  # of the second document and all after it
        ends = [int(starts[n - 1]) for n in self.config.global_after if n <= len(starts)]
        documents: list[ScoredDocument] = []
        with preserved(self.model) if ends else nullcontext():
            for first, last in itertools.pairwise([0, *ends, len(tokens) - 1]):
                if first:
                    assert self.learn is not None
                    self.learn(np.concatenate([document.tokens for document in documents]))
                part = self._score(tokens[first : last + 1], offset + first, tick, world, with_log_p)
                if world.size > 1:
                    parts: list[list[ScoredDocument]] = [[]] * world.size
                    dist.all_gather_object(parts, part)
                    part = [document for share in parts for document in share]
                part.sort(key=lambda document: document.start)
                if first:
                    part[0] = replace(part[0], inherited=(0, offset + first + 1))
                documents += part
        return documents

    def _score(
        self,
        tokens: np.ndarray,
        offset: int,
        tick: Callable[[int], None] | None,
        world: World,
        with_log_p: bool,
    ) -> list[ScoredDocument]:
        """The documents of `tokens` of this rank of `world`, as they end; `tokens[0]` is token `offset` of the text."""
        size = self.config.documents
        lines = document_lines(tokens, offset, self.bos_id, size, keep_a=self.config.keep_a)
        lines = share_lines(lines, self._work, world.size)[world.rank]
        total = sum(len(document.tokens) - 1 for line in lines for document in line)
        count = min(len(lines), -(-size // world.size))
        first_a = [a.expand(count, *a.shape) for a in self.first_a]
        adapters = DocumentAdapters(self.sites, first_a, self.config, self.update)
        rows = [row for row in map(_Row, range(count)) if self._next(row, lines, adapters)]
        scored: list[ScoredDocument] = []
        done = 0
        while rows:
            for row in self._pass(adapters, self._choose(rows), with_log_p):
                scored.append(row.scored())
                done += row.tape.num_targets
                if not self._next(row, lines, adapters):
                    rows.remove(row)
            if tick is not None:
                tick(offset + (len(tokens) - 1) * done // total)
        return scored

    def _next(self, row: _Row, lines: list[list[Document]], adapters: DocumentAdapters) -> bool:
        """Put the next document of a row's line, or of the first line that waits, into it; False if there is none."""
        row.line = row.line[1:] or (lines.pop(0) if lines else [])
        if not row.line:
            return False
        row.tape, row.chunk, row.log_p = ScoreTape(row.line[0].tokens), 0, []
        row.work = sum(map(self._work, row.line))
        self._begin(adapters, row)
        return True

    def _begin(self, adapters: DocumentAdapters, row: _Row) -> None:
        """Give a row the initial adapters of its document."""
        adapters.begin(row.place, self.first_a if row.line[0].inherited == NOTHING else None)

    def _work(self, document: Document) -> int:
        """Tokens in all windows of a document."""
        size = self.config.chunk_tokens
        return int(np.arange(size, len(document.tokens) - 1 + size, size).clip(max=self.window).sum())

    def _length(self, row: _Row) -> int:
        """W of the pass for a row: its window, padded to a power of two."""
        end = (row.chunk + 1) * self.config.chunk_tokens
        shortest = 1 if self.world.device.type == "cpu" else _SHORTEST_PASS
        return min(max(shortest, 1 << (end - 1).bit_length()), self.window)

    def _choose(self, rows: list[_Row]) -> list[_Row]:
        """The rows of the next pass: those of a length that fill it best, the ones with the most work first."""
        groups: dict[int, list[_Row]] = {}
        for row in sorted(rows, key=lambda row: -row.work):
            groups.setdefault(self._length(row), []).append(row)
        best = max(groups, key=lambda length: (min(1, len(groups[length]) / _room(length)), groups[length][0].work))
        return groups[best][: _room(best)]

    def _pass(self, adapters: DocumentAdapters, rows: list[_Row], with_log_p: bool) -> list[_Row]:
        """Score a chunk of each row's document and learn from it; returns the rows whose documents have ended."""
        size = self.config.chunk_tokens
        rows = sorted(rows, key=lambda row: row.tape.num_targets <= (row.chunk + 1) * size)
        stay = sum(row.tape.num_targets > (row.chunk + 1) * size for row in rows)  # they are the first
        learns = bool(stay) or self.compiled  # a compiled function is made for passes with gradients
        places = [row.place for row in rows]
        if self.compiled:
            places += places[:1] * (_room(self._length(rows[0])) - len(rows))
        parameters = adapters.split(adapters.values[places].to(self.model.compute_dtype))
        for tensor in parameters:
            tensor.requires_grad_(learns)
        with torch.set_grad_enabled(learns):
            logits = self._logits(adapters, parameters, rows)  # (n, C, V)
        self._commit(rows, logits.detach(), with_log_p)
        if stay:
            gradients = self._gradients(parameters, rows[:stay], logits[:stay])
            adapters.step(gradients, [row.place for row in rows[:stay]])
            for row in rows[:stay]:
                row.tape.record_update(row.chunk * size, (row.chunk + 1) * size + 1)
        for row in rows:
            row.chunk += 1
        return [row for row in rows if row.tape.complete]

    def _logits(self, adapters: DocumentAdapters, parameters: Sequence[Tensor], rows: list[_Row]) -> Tensor:
        """Logits (n, C, V) of a chunk of each document, padded on the right where a document ends before."""
        size = self.config.chunk_tokens
        inputs = np.zeros((len(parameters[0]), max(map(self._length, rows))), dtype=np.int64)
        ends = np.full(len(inputs), size)
        for i, row in enumerate(rows):
            end = (row.chunk + 1) * size
            begin, stop = max(0, end - self.window), min(end, row.tape.num_targets)
            inputs[i, : stop - begin] = row.tape.chunk(stop)(begin, stop)
            ends[i] = end - begin
        tokens, places = (torch.from_numpy(array).to(self.world.device) for array in (inputs, ends))
        return adapted_logits(self.model, adapters, tokens, size, parameters, places, **self.options)[: len(rows)]

    def _commit(self, rows: list[_Row], logits: Tensor, with_log_p: bool) -> None:
        """Commit the losses of a chunk of each document from its logits (n, C, V); keep log-probabilities if asked."""
        size = self.config.chunk_tokens
        spans = [(row.chunk * size, min((row.chunk + 1) * size, row.tape.num_targets)) for row in rows]
        tokens = np.zeros(logits.shape[:2], dtype=np.int64)
        for i, (row, (start, stop)) in enumerate(zip(rows, spans, strict=True)):
            tokens[i, : stop - start] = row.tape.chunk(stop)(start + 1, stop + 1)
        targets = torch.from_numpy(tokens).to(logits.device)
        chosen = logits.gather(-1, targets[..., None]).squeeze(-1)
        losses = (logits.logsumexp(-1) - chosen).cpu().numpy()
        for i, (row, (start, stop)) in enumerate(zip(rows, spans, strict=True)):
            row.tape.commit(start, stop, losses[i, : stop - start])
            if with_log_p:
                row.log_p.append(logits[i, : stop - start].log_softmax(-1).cpu().numpy())

    def _gradients(self, parameters: Sequence[Tensor], rows: list[_Row], logits: Tensor) -> list[Tensor]:
        """Gradients of the sum over documents of a scored chunk's mean loss; `logits` (n, C, V) of `rows`."""
        size = self.config.chunk_tokens
        revealed = np.stack([row.tape.revealed(row.chunk * size + 1, (row.chunk + 1) * size + 1) for row in rows])
        targets = torch.from_numpy(revealed.astype(np.int64)).to(logits.device)  # (n, C)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return list(torch.autograd.grad(losses.view(targets.shape).mean(1).sum(), parameters))


def _room(length: int) -> int:
    """Rows of a pass of this length."""
    return max(1, _PASS_TOKENS // length)


@dataclass
class _Row:
    """A row of the adapters, and what is scored with it."""

    place: int  # its number
    line: list[Document] = field(default_factory=list)  # the document that is scored, then those that follow it
    # tape, chunk: of the document.
    tape: ScoreTape = field(init=False)
    chunk: int = 0
    work: int = 0  # tokens in the windows of all documents in `line`
    log_p: list[np.ndarray] = field(default_factory=list)  # (C, V) each, if asked for

    def scored(self) -> ScoredDocument:
        """The document, after its last chunk."""
        document, tape = self.line[0], self.tape
        events = [
            (event["event"], *event["targets" if event["event"] == "score" else "tokens"])
            for event in tape.event_log["events"]
        ]
        log_p = np.concatenate(self.log_p) if self.log_p else None
        return ScoredDocument(
            document.start,
            document.stop,
            document.inherited,
            tape.nll,
            tape.revealed(0, tape.num_tokens),
            events,
            log_p,
        )


def share_lines(
    lines: list[list[Document]], work: Callable[[Document], int], world_size: int
) -> list[list[list[Document]]]:
    """The lines of each rank, those with the most work first; each line goes to the rank with the least work so far."""
    shares: list[list[list[Document]]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for total, line in sorted(((sum(map(work, line)), line) for line in lines), key=lambda pair: -pair[0]):
        rank = loads.index(min(loads))
        shares[rank].append(line)
        loads[rank] += total
    return shares


def evaluate_documents(tape: ScoreTape, scorer: DocumentScorer, progress: Progress = silent) -> np.ndarray:
    """Score a fresh tape document by document; returns the losses of all targets, (num_targets,) float32, nats.

    The tape's event log gets every document's chunks and updates in the order of the text. The reset between two
    documents is an update that has read nothing or, with `keep_a`, the documents that the initial A has learned from.
    With several ranks every rank calls this function with the same tape.
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
