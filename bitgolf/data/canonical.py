"""Which token can follow which: the pairs of neighboring tokens that a SentencePiece BPE tokenizer never emits.

A BPE tokenizer emits one sequence per text, so most other sequences with the same text have probability zero. The mask
is derived from the tokenizer, so an artifact does not store it. Source: arXiv 2506.07956, modded-nanogpt PR 350.

The tokenizer starts from code points and joins the two neighbors whose text is the piece with the highest score, the
leftmost ones first. Let p and x be pieces that are emitted for their own texts, and let their joins have the scores
s_1 .. s_n. The text p + x is encoded as p and x, unless at some time a part that ends p and a part that begins x are
joined. That happens with a piece of score s if the last part of p is a and the first part of x is b, the next join of p
has a score below s and that of x has one of at most s. After i joins of p and j joins of x both states exist at one
time if no later join of one was due before an earlier join of the other. With e_i, the least score of the first i
joins, this is e_j(x) > e_{i+1}(p) and e_i(p) >= e_{j+1}(x). Because a join depends only on its surroundings, a sequence
is emitted if and only if all its pairs are. After a byte piece the mask forbids only what cannot be UTF-8 of a
character without a piece.

Legend: V vocabulary size, n joins of a piece.
"""

import functools
import itertools
import math
import sys
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import sentencepiece

from bitgolf.data.spm_model import SPACE, PieceKind, read_model
from bitgolf.errors import DataError

_SURROGATES = range(0xD800, 0xE000)
# A tokenizer may come from a foreign artifact, so memory and work are bounded.
_MOST_PIECES, _LONGEST_PIECE, _MOST_COMPARISONS = 16_384, 64, 1 << 31


class _State(NamedTuple):
    """A piece while it is encoded, after some of its joins."""

    part: str  # at the border in question
    next_score: float  # of its next join; -inf = none
    least: float  # score of the joins so far, e_i
    least_next: float  # e_{i+1}


@functools.lru_cache(maxsize=2)
def forbidden_pairs(model_bytes: bytes) -> np.ndarray:
    """The pairs that the tokenizer of a serialized SentencePiece model never emits, (V, V / 8) uint8.

    Bit x % 8 of [p, x // 8] is 1 if the token x never follows p. Raises DataError if the model is not BPE, has unused
    pieces or user-defined symbols of several characters, or is large.
    """
    settings = read_model(model_bytes)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
    kinds = [kind for _, kind in settings.pieces]
    symbols = [text for text, kind in settings.pieces if kind is PieceKind.USER_DEFINED]
    if len(kinds) > _MOST_PIECES or max(len(text) for text, _ in settings.pieces) > _LONGEST_PIECE:
        raise DataError(f"more than {_MOST_PIECES:,} pieces, or one of more than {_LONGEST_PIECE} characters")
    if not settings.is_bpe or PieceKind.UNUSED in kinds or any(len(text) > 1 for text in symbols):
        raise DataError(
            "the pairs that a tokenizer never emits are known for BPE without unused pieces and without user-defined "
            "symbols of several characters"
        )
    scores = {
        text: processor.get_score(i) for i, (text, kind) in enumerate(settings.pieces) if kind is PieceKind.NORMAL
    }
    forbidden = np.zeros((len(kinds), len(kinds)), dtype=bool)
    _forbid_joined(forbidden, [text if text in scores else "" for text, _ in settings.pieces], scores)
    bytes_ = {int(text[3:5], 16): i for i, (text, kind) in enumerate(settings.pieces) if kind is PieceKind.BYTE}
    if len(bytes_) == 256:
        _forbid_bytes(forbidden, bytes_, {*scores, *symbols, " "} - {SPACE})
    bos = processor.bos_id()
    for i, kind in enumerate(kinds):
        if i != bos and (kind is PieceKind.CONTROL or (kind is PieceKind.UNKNOWN and bytes_)):
            forbidden[:, i] = True
    forbidden[bos] = forbidden[:, bos] = False
    return np.packbits(forbidden, axis=1, bitorder="little")


def _forbid_joined(forbidden: np.ndarray, pieces: list[str], scores: dict[str, float]) -> None:
    """Forbid pairs of normal pieces (their texts, "" for others) that are joined, and pieces that are never emitted."""
    ends: dict[str, list[tuple[int, _State]]] = defaultdict(list)  # states by their last part
    begins: dict[str, list[tuple[int, _State]]] = defaultdict(list)  # states by their first part
    for i, piece in enumerate(pieces):
        if not piece:
            continue
        steps = _joins(piece, scores)
        if len(steps[-1][1]) > 1:
            forbidden[:, i] = True
            continue
        least = [math.inf, *np.minimum.accumulate([score for score, _ in steps[1:]]).tolist(), -math.inf]
        for j, (_, parts) in enumerate(steps):
            next_score = steps[j + 1][0] if j + 1 < len(steps) else -math.inf
            ends[parts[-1]].append((i, _State(parts[-1], next_score, least[j], least[j + 1])))
            begins[parts[0]].append((i, _State(parts[0], next_score, least[j], least[j + 1])))
    left, right = ({part: _columns(states) for part, states in each.items()} for each in (ends, begins))
    cuts = [(piece[:cut], piece[cut:], score) for piece, score in scores.items() for cut in range(1, len(piece))]
    cuts = [(a, b, score) for a, b, score in cuts if a in left and b in right]
    if sum(left[a].shape[1] * right[b].shape[1] for a, b, _ in cuts) > _MOST_COMPARISONS:
        raise DataError("its pieces have too many common parts")
    for a, b, score in cuts:
        p, x = left[a], right[b]
        p, x = p[:, p[1] < score], x[:, x[1] <= score]
        rows, columns = ((x[2] > p[3][:, None]) & (p[2][:, None] >= x[3])).nonzero()
        forbidden[p[0].astype(np.int64)[rows], x[0].astype(np.int64)[columns]] = True


def _columns(states: list[tuple[int, _State]]) -> np.ndarray:
    """Piece, next score, least score and next least score of each state, (4, states) float64."""
    return np.array([(i, *state[1:]) for i, state in states]).T


def _joins(text: str, scores: dict[str, float]) -> list[tuple[float, list[str]]]:
    """The score of every join with the parts after it; the first entry is the text before the first join."""
    parts = list(text)
    steps = [(math.inf, parts)]
    while True:
        joined = [(scores.get(a + b, -math.inf), -i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        score, i = max(joined, default=(-math.inf, 0))
        if score == -math.inf:
            return steps
        parts = [*parts[:-i], parts[-i] + parts[1 - i], *parts[2 - i :]]
        steps.append((score, parts))


def _forbid_bytes(forbidden: np.ndarray, ids: dict[int, int], characters: set[str]) -> None:
    """Forbid byte pieces where no character outside `characters` has them. `ids`: piece of each byte."""
    codes = (chr(code) for code in range(sys.maxunicode + 1) if code not in _SURROGATES)
    text = np.frombuffer("".join(c for c in codes if c not in characters).encode(), dtype=np.uint8)
    begins = (text & 0xC0) != 0x80  # the first byte of a character
    first, last, follows = np.zeros(256, dtype=bool), np.zeros(256, dtype=bool), np.zeros((256, 256), dtype=bool)
    first[text[begins]] = True
    last[text[np.append(begins[1:], True)]] = True
    follows[text[:-1][~begins[1:]], text[1:][~begins[1:]]] = True
    last[~np.isin(np.arange(256), text)] = True  # after a byte that is never emitted, everything stays possible
    follows |= last[:, None] & first
    pieces = np.array([ids[byte] for byte in range(256)])
    forbidden[:, pieces] = ~first
    forbidden[pieces[~last]] = True
    forbidden[np.ix_(pieces, pieces)] = ~follows
