"""Checks around document borders: nothing is predicted from where a document will end, or from the one before it.

Length: a later BOS is put in or taken out, and predictions before it must stay. A schedule that looks up a document's
length (smaller adaptation chunks for short ones, PR 2014) gives itself away. Isolation, where the method claims it
(adapters reset for each document): the document before is rewritten, and the next one's predictions must stay. A
smeared embedding that reaches over the BOS (PR 1667, 1797) does not.
Source: test 5 and the row on cross-document leaks of the challenge's audit rules.
"""

from __future__ import annotations

import numpy as np

from bitgolf.audit.flips import Evaluation, flip_tokens, largest_difference, trace
from bitgolf.audit.verdict import Check, MissingEvidence, Rule

LENGTH_BLIND = Rule("length-blind", "C1", "no prediction depends on where its document will end")
ISOLATED = Rule("document-isolation", "isolation", "no prediction depends on the document before, as the method claims")

# Another border is another batch of documents, whose sums round differently; learning carries that along.
TOLERANCE_NATS = 1e-3


def length_blind(
    evaluation: Evaluation,
    tokens: np.ndarray,  # (N,) integers, a piece of text
    *,
    vocab_size: int,
    bos_id: int,
    num_moves: int,  # borders taken out, and as many put in
    seed: int,
    chunk_targets: int,  # as in `evaluate`
    exact_shapes: bool,  # this device computes alike in batches of other shapes, up to rounding in fp32
) -> Check:
    """C1: take out a BOS, or put one in; the predictions before it must not move."""
    rng = np.random.default_rng(seed)
    borders = np.flatnonzero(tokens[2:] == bos_id) + 2
    insides = np.flatnonzero(tokens[2:] != bos_id) + 2
    moves = [
        int(position)
        for positions in (borders, insides)
        for position in rng.permutation(positions)[: min(num_moves, len(positions))]
    ]
    if not moves:
        raise MissingEvidence(f"the {len(tokens)} tokens are too few to move a border in")
    base = trace(evaluation, tokens, chunk_targets).log_p
    worst, where, compared = 0.0, -1, 0
    for position in sorted(moves):
        moved = tokens.copy()
        other = int(rng.integers(vocab_size - 1))
        moved[position] = other + (other >= bos_id) if tokens[position] == bos_id else bos_id
        # Targets before `position` are predicted from tokens before it.
        largest = largest_difference(trace(evaluation, moved, chunk_targets).log_p[:position], base[:position])
        compared += position
        if largest > worst:
            worst, where = largest, position
    evidence = {
        "moves": sorted(moves),
        "borders": len(borders),
        "largest_nats": str(worst),
        "tolerance": TOLERANCE_NATS,
    }
    if worst > TOLERANCE_NATS and exact_shapes:
        return LENGTH_BLIND.failed(
            f"moving the document border at token {where} moved predictions before it by up to {worst:.3g} nats",
            **evidence,
        )
    if worst > TOLERANCE_NATS:
        return LENGTH_BLIND.not_run(
            f"predictions moved by up to {worst:.3g} nats, but other batches alone do that on this device; audit on "
            "the CPU",
            **evidence,
        )
    return LENGTH_BLIND.passed(
        f"{compared:,} distributions before {len(moves)} moved borders stayed within {worst:.1e} nats", **evidence
    )


def document_isolation(
    evaluation: Evaluation,
    tokens: np.ndarray,  # (N,) integers, text with a document border in it
    *,
    vocab_size: int,
    bos_id: int,
    seed: int,
) -> Check:
    """Rewrite all that stands before a border, that of the longest document; what follows must be bit-identical."""
    borders = np.flatnonzero(tokens[1:-1] == bos_id) + 1
    if not len(borders):
        raise MissingEvidence(f"the {len(tokens)} tokens hold no document border")
    border = int(borders[np.argmax(np.diff(borders, append=len(tokens)))])
    rewritten = flip_tokens(tokens, slice(0, border), vocab_size, bos_id, np.random.default_rng(seed))
    base, again = (trace(evaluation, text).log_p for text in (tokens, rewritten))
    largest = largest_difference(base[border:], again[border:])
    noise = largest_difference(base, trace(evaluation, tokens).log_p)
    evidence = {"border": border, "targets": len(base) - border, "largest_nats": str(largest), "noise_nats": str(noise)}
    if largest > 10 * noise:
        return ISOLATED.failed(
            f"rewriting the document before token {border} moved predictions of the next by up to {largest:.3g} nats",
            **evidence,
        )
    if noise > 0:
        return ISOLATED.not_run(
            f"two identical runs differ by {noise:.3g} nats on this device; audit on the CPU", **evidence
        )
    return ISOLATED.passed(
        f"{evidence['targets']:,} distributions after the border are bit-identical with another document before it",
        **evidence,
    )
