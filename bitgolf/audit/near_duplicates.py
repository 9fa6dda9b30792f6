"""Check of near-duplicates: validation documents that stand in the training text with few changes (B7).

Exact copies are found by their hashes (`documents.disjoint_splits`). A copy with one changed word has another hash. So
documents are compared as sets of shingles: all runs of five words, without case and punctuation (Broder 1997, "On the
resemblance and containment of documents"). The shingles of the validation documents are kept in one sorted array of
64-bit hashes. Each training document is looked up in it. The *containment* of a validation document in a training
document is the share of its shingles that the training document has. This is exact up to collisions of hashes, where
MinHash estimates it, and linear in the text: 650 MB take two minutes of one core and 0.5 GB. A document that was cut
into pieces for several training documents is found by the share of its shingles that stand in any of them.

Legend: S shingles of one document, D validation documents.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from bitgolf.audit.documents import documents, whole_documents
from bitgolf.audit.evidence import Evidence, run_checks
from bitgolf.audit.verdict import Finding, MissingEvidence, judge

SHINGLE_WORDS = 5
NEAR = 0.8  # containment from which on a pair is a near-duplicate
HALF = 0.4  # containment of a pair of which half was changed: every tenth word, the order of sentences, the end
PIECE = 0.2  # of a validation document, in one of the training documents that have it in pieces
COPY_WORDS = 2  # a pair is a copy when no more than this many words were changed
# Bounds, as shares of the validation documents. In a mixed corpus of 650 MB whose split ignores near-duplicates, 0.5 %
# of the validation documents have one, all of them filled-in forms, and none is a copy.
MAX_NEAR = 0.01
MAX_COPIES = 0.001
# In that corpus, pieces raise 0.5 % to 0.9 %, and 4.8 % of the validation documents stand there by half.
MAX_NEAR_IN_PIECES = 0.02
MAX_HALF = 0.1
_MIN_SHINGLES = 20  # shorter documents have too little text to be recognized
_LEAST_SHARED = _MIN_SHINGLES - COPY_WORDS * SHINGLE_WORDS  # shingles of a pair
_WORST = 10  # pairs in the evidence
# A word is a run of letters and digits; scripts without spaces are split into characters.
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_POWERS = np.array([pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(SHINGLE_WORDS)], dtype=np.uint64)


@dataclass(frozen=True)
class Pair:
    """A validation document and a training document that has much of it.

    `shared` of the `size` shingles of the validation document are in the training document.
    """

    val: int
    train: int
    shared: int
    size: int

    @property
    def containment(self) -> float:
        return self.shared / self.size

    @property
    def is_copy(self) -> bool:
        """Whether changing `COPY_WORDS` words can explain the difference."""
        return self.size - self.shared <= COPY_WORDS * SHINGLE_WORDS


@run_checks.register("near-duplicates", "B7", "no validation document stands in the training text with few changes")
def near_duplicates(evidence: Evidence) -> Finding:
    """B7: the share of validation documents that have a near-duplicate among the training documents."""
    tokenizer = evidence.data.tokenizer
    val = [tokenizer.decode(part) for part in documents(evidence.tokens, tokenizer.bos_id)]
    index = ShingleIndex(val)
    if not index.num_indexed:
        raise MissingEvidence("no validation document is long enough to be recognized")
    train = whole_documents(evidence.data.train, tokenizer.bos_id, evidence.rng("near-duplicates"))
    pairs, compared = index.closest(tokenizer.decode(part) for part in train)
    halves = len(pairs)
    pairs = {number: pair for number, pair in pairs.items() if pair.containment >= NEAR or pair.is_copy}
    worst = sorted(pairs.values(), key=lambda pair: -pair.containment)
    copies = sum(pair.is_copy for pair in worst)
    in_pieces = len(set(index.spread()) - pairs.keys())
    shown = "; ".join(
        f"{pair.containment:.1%} of validation document {pair.val} in training document {pair.train}"
        for pair in worst[:3]
    )
    problems = []
    if copies > MAX_COPIES * len(val):
        problems.append(
            f"{copies:,} of {len(val):,} validation documents stand in training with at most {COPY_WORDS} words "
            f"changed ({MAX_COPIES:.1%} are allowed): {shown}"
        )
    if len(worst) > MAX_NEAR * len(val):
        problems.append(
            f"{len(worst):,} of {len(val):,} validation documents have a near-duplicate in training ({MAX_NEAR:.0%} "
            f"are allowed): {shown}"
        )
    if len(worst) + in_pieces > MAX_NEAR_IN_PIECES * len(val) and in_pieces:
        problems.append(
            f"{in_pieces:,} more of {len(val):,} validation documents stand in training in pieces "
            f"({MAX_NEAR_IN_PIECES:.0%} are allowed, near-duplicates included)"
        )
    if halves > MAX_HALF * len(val):
        problems.append(
            f"{halves:,} of {len(val):,} validation documents stand in one training document by {HALF:.0%} or more "
            f"({MAX_HALF:.0%} are allowed)"
        )
    if evidence.config.data.source_text == "stdlib":  # the demonstration: parts of the interpreter's library repeat
        problems = []
    return judge(
        problems,
        f"{len(worst):,} of {len(val):,} validation documents have a near-duplicate among {compared:,} training "
        f"documents, {copies:,} of them a copy; {in_pieces:,} more stand there in pieces, {halves - len(worst):,} half",
        halves=halves,
        max_share_of_halves=MAX_HALF,
        share=len(worst) / len(val),
        in_pieces=in_pieces,
        max_share_in_pieces=MAX_NEAR_IN_PIECES,
        copies=copies,
        max_share=MAX_NEAR,
        max_copies=MAX_COPIES,
        compared=compared,
        indexed=index.num_indexed,
        worst=[[pair.containment, pair.val, pair.train] for pair in worst[:_WORST]],
    )


def shingles(text: str) -> np.ndarray:
    """Distinct hashes of the shingles of a text, (S,) uint64, sorted; empty for a text of fewer than five words."""
    words = np.fromiter(map(hash, _WORD.findall(text.lower())), dtype=np.int64).view(np.uint64)
    words ^= words >> np.uint64(29)
    if len(words) < SHINGLE_WORDS:
        return np.empty(0, dtype=np.uint64)
    mixed = words ^ (words >> np.uint64(29))
    hashes = np.zeros(len(words) - SHINGLE_WORDS + 1, dtype=np.uint64)
    for offset, power in enumerate(_POWERS):
        hashes += mixed[offset : offset + len(hashes)] * power
    return np.unique(hashes)


class ShingleIndex:
    """The shingles of the validation documents."""

    def __init__(self, texts: list[str]) -> None:
        sets = [shingles(text) for text in texts]
        self.sizes = np.array([len(hashes) for hashes in sets])  # (D,)
        long_enough = [number for number, size in enumerate(self.sizes.tolist()) if size >= _MIN_SHINGLES]
        self.num_indexed = len(long_enough)  # documents that are long enough to be recognized
        empty = np.empty(0, dtype=np.uint64)
        hashes = np.concatenate([empty, *(sets[number] for number in long_enough)])
        owners = np.repeat(np.array(long_enough, dtype=np.int32), self.sizes[long_enough])
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.owners = hashes[order], owners[order]
        self.covered = np.zeros(len(hashes), dtype=bool)  # stands in a training document with a piece of its document

    def closest(self, texts: Iterable[str]) -> tuple[dict[int, Pair], int]:
        """The closest pair of each validation document among training documents, and how many were compared."""
        closest: dict[int, Pair] = {}
        compared = 0
        for text in texts:
            for pair in self.pairs(text, compared):
                if pair.val not in closest or pair.containment > closest[pair.val].containment:
                    closest[pair.val] = pair
            compared += 1
        return closest, compared

    def pairs(self, text: str, train: int) -> Iterator[Pair]:
        """The validation documents that a training document has by half or more."""
        own = shingles(text)
        first = np.searchsorted(self.hashes, own, side="left")
        hit = first < len(self.hashes)
        hit[hit] = self.hashes[first[hit]] == own[hit]
        if np.count_nonzero(hit) < _LEAST_SHARED:
            return
        last = np.searchsorted(self.hashes, own[hit], side="right")
        spans = [np.arange(start, stop) for start, stop in zip(first[hit].tolist(), last.tolist(), strict=True)]
        places = np.concatenate(spans)
        owners, inverse, counts = np.unique(self.owners[places], return_inverse=True, return_counts=True)
        shared = counts[inverse]
        is_piece = (shared >= _LEAST_SHARED) & (shared >= PIECE * self.sizes[self.owners[places]])
        self.covered[places[is_piece]] = True
        for owner, count in zip(owners.tolist(), counts.tolist(), strict=True):
            pair = Pair(owner, train, count, int(self.sizes[owner]))
            if pair.containment >= HALF or pair.is_copy:
                yield pair

    def spread(self) -> list[int]:
        """The validation documents that stand in the training documents seen so far in pieces, or whole."""
        shared = np.bincount(self.owners[self.covered], minlength=len(self.sizes))
        return np.flatnonzero((shared >= NEAR * self.sizes) & (shared > 0)).tolist()
