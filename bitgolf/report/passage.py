"""The texts of the report: a passage colored by surprisal, and prompts with sampled continuations.

Passages are chosen by rule. The surprisal passage is the beginning of the validation document whose mean loss is
nearest to the mean of all. Prompts are the beginnings of documents spread evenly over the split.

Legend: N tokens of the validation split, N-1 targets; target t is token t+1.
"""

import codecs
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bitgolf.data.shards import TokenShards
from bitgolf.data.tokenizer import Tokenizer

LEVEL_BITS = (1.0, 2.0, 4.0, 6.0, 9.0)  # bounds of the six shades of the surprisal passage
PROMPT_TOKENS = 60
_SCANNED_TOKENS = 2_000_000  # passages are chosen from this many first tokens of the split


@dataclass(frozen=True)
class Piece:
    """The text of one token, or of several tokens that share a character."""

    text: str
    bits: float
    num_tokens: int

    @property
    def level(self) -> int:
        """Shade 0 (expected) to 5 (surprising)."""
        return sum(self.bits >= bound for bound in LEVEL_BITS)


@dataclass(frozen=True)
class ColoredPassage:
    """Consecutive targets of one document with the cost of each."""

    pieces: tuple[Piece, ...]
    num_tokens: int
    bits_per_token: float
    bits_per_byte: float


@dataclass(frozen=True)
class Prompt:
    """The beginning of a validation document and its continuation."""

    text: str
    continues: str


def surprisal_passage(val: TokenShards, tokenizer: Tokenizer, nll: np.ndarray, length: int) -> ColoredPassage | None:
    """The most typical document's first `length` targets, each with its surprisal; None if the tokens contain no text.

    `nll`: (N-1,) floats, nats; the loss of each target.
    """
    tokens = np.asarray(val.read(0, min(val.num_tokens, _SCANNED_TOKENS)))
    losses = np.asarray(nll[: len(tokens) - 1], dtype=np.float64)
    spans = [(start, min(stop, start + length)) for start, stop in _document_targets(tokens, tokenizer.bos_id)]
    if not spans:
        return None
    longest = max(stop - start for start, stop in spans)
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    typical = sums[-1] / max(1, len(losses))
    start, stop = min(
        (span for span in spans if span[1] - span[0] == longest),
        key=lambda span: abs((sums[span[1]] - sums[span[0]]) / (span[1] - span[0]) - typical),
    )
    shown = tokens[start + 1 : stop + 1].tolist()
    bits = (losses[start:stop] / math.log(2)).tolist()
    spelled = tokenizer.spell(shown)
    pieces = split_pieces(spelled, bits)
    num_bytes = sum(map(len, spelled))
    if not num_bytes:
        return None
    return ColoredPassage(tuple(pieces), len(shown), sum(bits) / len(shown), sum(bits) / num_bytes)


def choose_prompts(val: TokenShards, tokenizer: Tokenizer, count: int, continues: int) -> list[Prompt]:
    """Beginnings of up to `count` documents, spread evenly over those that are long enough.

    `continues`: tokens of the document's own continuation to return with each.
    """
    tokens = np.asarray(val.read(0, min(val.num_tokens, _SCANNED_TOKENS)))
    spans = _document_targets(tokens, tokenizer.bos_id)
    long_enough = [span for span in spans if span[1] - span[0] >= 2 * PROMPT_TOKENS] or spans
    count = min(count, len(long_enough))
    prompts = []
    for index in range(count):
        start, stop = long_enough[(2 * index + 1) * len(long_enough) // (2 * count)]
        cut = min(start + PROMPT_TOKENS, stop)
        text, cut = _whole_characters(tokens, tokenizer, start + 1, cut + 1)
        true_text = tokenizer.decode(tokens[cut : min(cut + continues, stop + 1)].tolist())
        prompts.append(Prompt(text, true_text.rstrip("\N{REPLACEMENT CHARACTER}")))
    return prompts


def split_pieces(token_bytes: Sequence[bytes], bits: Sequence[float]) -> list[Piece]:
    """Join tokens until they end on a whole character. Bytes that are not UTF-8 become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pieces: list[Piece] = []
    held_bits, held_tokens = 0.0, 0
    last = len(token_bytes) - 1
    for index, (data, cost) in enumerate(zip(token_bytes, bits, strict=True)):
        text = decoder.decode(data, final=index == last)
        held_bits, held_tokens = held_bits + cost, held_tokens + 1
        if text or index == last:
            pieces.append(Piece(visible(text), held_bits, held_tokens))
            held_bits, held_tokens = 0.0, 0
    return pieces


def visible(text: str) -> str:
    """`text` with pictures (U+2400 and following) in place of control characters, which HTML must not contain."""
    return "".join(
        chr(0x2400 + ord(c))
        if ord(c) < 32 and c not in "\n\t"
        else "\N{REPLACEMENT CHARACTER}"
        if 127 <= ord(c) < 160
        else c
        for c in text
    )


def _document_targets(tokens: np.ndarray, bos: int) -> list[tuple[int, int]]:
    """Targets [start, stop) of each document, from after its BOS up to the next BOS, without empty documents.

    Text before the first BOS is a document whose first token is no target.
    """
    starts = np.flatnonzero(tokens == bos).tolist()
    if not starts or starts[0] > 0:
        starts.insert(0, 0)
    stops = [*(start - 1 for start in starts[1:]), len(tokens) - 1]
    return [(start, stop) for start, stop in zip(starts, stops, strict=True) if stop > start]


def _whole_characters(tokens: np.ndarray, tokenizer: Tokenizer, start: int, stop: int) -> tuple[str, int]:
    """Text of tokens [start, stop) and its end. Up to 3 last tokens are left out if they cut a character."""
    for end in range(stop, max(start, stop - 4), -1):
        text = tokenizer.decode(tokens[start:end].tolist())
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            return text, end
    return tokenizer.decode(tokens[start:stop].tolist()), stop
