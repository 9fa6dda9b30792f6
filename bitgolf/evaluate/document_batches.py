"""Which documents are scored side by side, in which order, and with which initial adapters.

A document is the tokens from its BOS (which is given) to the BOS of the next one, which is its last target. Every
target of a text so belongs to exactly one document. Batches follow the order of the text and ignore the lengths of
documents (rules C1 and C4, docs/rules.md). With `keep_a` each slot of a batch starts from the A matrices that the
previous document in the slot left. Source: PR 1530.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bitgolf.errors import RuleViolation

NOTHING = (0, 0)  # an empty range of tokens


@dataclass(frozen=True)
class DocumentBatch:
    """Documents of a text that are scored side by side, by slot.

    Attributes:
        spans: the targets (start, stop) of each document, as positions in the text.
        tokens: the tokens of each document, (stop - start + 1,), from its BOS to its last target.
        inherited: the tokens (start, stop) of the text that its initial A has learned from.
    """

    spans: list[tuple[int, int]]
    tokens: list[np.ndarray]
    inherited: list[tuple[int, int]]


def document_batches(
    tokens: np.ndarray,  # (n + 1,) integers, part of a text
    offset: int,  # position of tokens[0] in the text
    bos_id: int,
    size: int,  # documents per batch
    *,
    keep_a: bool,
) -> Iterator[DocumentBatch]:
    """Batches of the documents that the n targets of `tokens` belong to.

    Raises RuleViolation when `tokens` begin in the middle of a document.
    """
    borders = np.flatnonzero(tokens[:-1] == bos_id)
    if offset and (not len(borders) or borders[0]):
        raise RuleViolation(f"document adapters cannot start at target {offset}, in the middle of a document")
    starts = np.union1d(0, borders).tolist()
    spans = [(offset + a, offset + b) for a, b in zip(starts, [*starts[1:], len(tokens) - 1], strict=True)]
    for begin in range(0, len(spans), size):
        batch = spans[begin : begin + size]
        inherited = [NOTHING] * len(batch)
        if keep_a and begin:  # from the slot's document in the first batch to the one in the previous batch
            inherited = [(spans[slot][0], spans[begin - size + slot][1] + 1) for slot in range(len(batch))]
        yield DocumentBatch(batch, [tokens[a - offset : b - offset + 1] for a, b in batch], inherited)


def end_of_batches(tokens: np.ndarray, bos_id: int, size: int, batches: int) -> int:
    """One past the last target of the first `batches` batches of a text, (N,) integers."""
    later_starts = np.flatnonzero(tokens[1:-1] == bos_id) + 1  # of the second document and all after it
    index = batches * size - 1
    return int(later_starts[index]) if index < len(later_starts) else len(tokens) - 1
