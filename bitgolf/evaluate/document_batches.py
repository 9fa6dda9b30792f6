"""The documents of a text, and the lines in which they are scored.

A document is the tokens from its BOS (which is given) to the BOS of the next one, which is its last target. Every
target of a text so belongs to exactly one document. The documents of a line are scored one after the other, and lines
do not influence each other. With `keep_a`, line s of `size` lines has the documents s, s + size, s + 2 size and so on,
and a document starts from the A matrices of the one before it in its line. Otherwise every document is a line of its
own. Neither depends on the lengths of documents (rules C1 and C4, docs/rules.md). Source: PR 1530.
"""

from dataclasses import dataclass

import numpy as np

from bitgolf.errors import RuleViolation

NOTHING = (0, 0)  # an empty range of tokens


@dataclass(frozen=True)
class Document:
    """Targets start..stop-1 of the text."""

    # start, stop: positions in the text.
    start: int
    stop: int
    tokens: np.ndarray  # (stop - start + 1,), from its BOS to its last target
    inherited: tuple[int, int]  # the tokens (start, stop) of the text that its initial A has learned from


def document_lines(
    tokens: np.ndarray,  # (n + 1,) integers, part of a text
    offset: int,  # position of tokens[0] in the text
    bos_id: int,
    size: int,  # lines
    *,
    keep_a: bool,
) -> list[list[Document]]:
    """The lines of the documents that the n targets of `tokens` belong to.

    Raises RuleViolation when `tokens` begin in the middle of a document.
    """
    borders = np.flatnonzero(tokens[:-1] == bos_id)
    if offset and (not len(borders) or borders[0]):
        raise RuleViolation(f"document adapters cannot start at target {offset}, in the middle of a document")
    starts = np.union1d(0, borders).tolist()
    spans = list(zip(starts, [*starts[1:], len(tokens) - 1], strict=True))
    documents = []
    for number, (start, stop) in enumerate(spans):
        inherited = NOTHING
        if keep_a and number >= size:  # from the first document of the line to the one before
            inherited = (offset + spans[number % size][0], offset + spans[number - size][1] + 1)
        documents.append(Document(offset + start, offset + stop, tokens[start : stop + 1], inherited))
    return [documents[line::size] for line in range(min(size, len(documents)))] if keep_a else [[d] for d in documents]


def end_of_batches(tokens: np.ndarray, bos_id: int, size: int, batches: int) -> int:
    """One past the last target of the first `batches` times `size` documents of a text, (N,) integers."""
    later_starts = np.flatnonzero(tokens[1:-1] == bos_id) + 1  # of the second document and all after it
    index = batches * size - 1
    return int(later_starts[index]) if index < len(later_starts) else len(tokens) - 1
