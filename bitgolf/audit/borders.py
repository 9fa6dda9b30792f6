"""Checks around document borders: nothing is predicted from where a document will end, or from the one before it.

Length (C1): a later BOS is inserted or removed, and the predictions before it must stay. A schedule that looks up a
document's length (smaller adaptation chunks for short ones, PR 2014) fails. Isolation, where the method claims it
(adapters that start afresh for each document): the document before is rewritten, and the next one's predictions must
stay. A smeared embedding that reaches over the BOS (PR 1667, 1797) fails. Source: docs/rules.md, test 5.

"""

from dataclasses import replace

import numpy as np

from bitgolf.audit.evidence import Evidence, run_checks
from bitgolf.audit.traces import Passage, largest_difference
from bitgolf.audit.verdict import Finding, MissingEvidence, failed, not_run, passed

# Another border is another batch of documents, whose sums round differently; learning carries that along.
TOLERANCE_NATS = 1e-3
_NUM_MOVES = {True: 1, False: 3}  # borders that are removed, and as many inserted, by `quick`


@run_checks.register("length-blind", "C1", "no prediction depends on where its document will end")
def length_blind(evidence: Evidence) -> Finding:
    """C1: move document borders in the passage."""
    passage, rng = evidence.headline.passage, evidence.rng("length-blind")
    return move_borders(passage, _NUM_MOVES[evidence.quick], rng, exact_shapes=passage.device.type == "cpu")


@run_checks.register(
    "document-isolation",
    "isolation",
    "no prediction depends on the document before, as the method claims",
    applies=lambda evidence: evidence.config.ttt.independent_documents,
)
def document_isolation(evidence: Evidence) -> Finding:
    """Rewrite the documents before a random border of the validation text."""
    headline, rng = evidence.headline, evidence.rng("document-isolation")
    if not headline.by_documents:
        raise MissingEvidence("the headline is not the pass with adapters; run `bitgolf score` again")
    tokens, length = evidence.tokens, len(headline.passage.tokens)
    inner = np.flatnonzero(tokens[1:-1] == headline.bos_id) + 1
    if not len(inner):
        raise MissingEvidence("the validation text is a single document")
    start = max(0, int(rng.choice(inner)) - length // 2)
    return rewrite_before(replace(headline.passage, tokens=tokens[start : start + length]), rng)


def move_borders(
    passage: Passage,
    num_moves: int,  # borders that are removed, and as many inserted
    rng: np.random.Generator,
    *,
    exact_shapes: bool,  # this device computes alike in batches of other shapes, up to rounding in fp32
) -> Finding:
    """Remove a BOS, or insert one; the predictions before it must not move."""
    tokens, bos_id = passage.tokens, passage.bos_id
    borders = np.flatnonzero(tokens[2:] == bos_id) + 2
    insides = np.flatnonzero(tokens[2:] != bos_id) + 2
    moves = [
        int(position)
        for positions in (borders, insides)
        for position in rng.permutation(positions)[: min(num_moves, len(positions))]
    ]
    if not moves:
        raise MissingEvidence(f"the {len(tokens)} tokens are too few to move a border in")
    base = passage.log_p(tokens)
    worst, where, compared = 0.0, -1, 0
    for position in sorted(moves):
        moved = tokens.copy()
        other = int(rng.integers(passage.vocab_size - 1))
        moved[position] = other + (other >= bos_id) if tokens[position] == bos_id else bos_id
        # Targets before `position` are predicted from tokens before it.
        largest = largest_difference(passage.log_p(moved)[:position], base[:position])
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
        return failed(
            f"moving the document border at token {where} moved predictions before it by up to {worst:.3g} nats",
            **evidence,
        )
    if worst > TOLERANCE_NATS:
        return not_run(
            f"predictions moved by up to {worst:.3g} nats, but other batches alone do that on this device; audit on "
            "the CPU",
            **evidence,
        )
    reason = f"{compared:,} distributions before {len(moves)} moved borders stayed within {worst:.1e} nats"
    return passed(reason, **evidence)


def rewrite_before(passage: Passage, rng: np.random.Generator) -> Finding:
    """Rewrite all that stands before the border of the longest document; what follows must be bit-identical."""
    tokens = passage.tokens
    borders = np.flatnonzero(tokens[1:-1] == passage.bos_id) + 1
    if not len(borders):
        raise MissingEvidence(f"the {len(tokens)} tokens hold no document border")
    border = int(borders[np.argmax(np.diff(borders, append=len(tokens)))])
    base, again = passage.log_p(tokens), passage.log_p(passage.flipped(slice(0, border), rng))
    largest = largest_difference(base[border:], again[border:])
    noise = largest_difference(base, passage.log_p(tokens))
    evidence = {"border": border, "targets": len(base) - border, "largest_nats": str(largest), "noise_nats": str(noise)}
    if largest > 10 * noise:
        return failed(
            f"rewriting the document before token {border} moved predictions of the next by up to {largest:.3g} nats",
            **evidence,
        )
    if noise > 0:
        return not_run(f"two identical runs differ by {noise:.3g} nats on this device; audit on the CPU", **evidence)
    return passed(
        f"{evidence['targets']:,} distributions after the border are bit-identical with another document before it",
        **evidence,
    )
