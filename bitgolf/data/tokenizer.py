"""Tokenizers: SentencePiece BPE with an exact byte cost per token.

A lossless tokenizer (identity normalization, byte fallback, newline as a symbol) decodes its tokens to the original
text and charges each token its UTF-8 bytes. It may write capitals as marks (`case_markers`). All other models use the
challenge's accounting: the bytes of the normalized text, where the space before a word is charged unless a document
boundary precedes it (docs/rules.md, section 3). `encode_proven` checks both for every document; `prepare` writes shards
with it.

Legend: V vocabulary size, N tokens.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece

from bitgolf.data.case_markers import COSTS, spell
from bitgolf.data.encoder import Encoder, Tokens
from bitgolf.data.spm_model import MAX_MODEL_BYTES, SPACE, PieceKind, read_model
from bitgolf.errors import DataError, ForeignError, require_type
from bitgolf.foreign import read_bytes

_CHUNK = 1 << 16  # number of tokens spelled at a time


@dataclass(frozen=True)
class EncodedDocuments:
    """Documents as one token stream with BOS before each, and the proven byte counts."""

    tokens: Tokens  # (N,) uint16
    num_documents: int
    raw_bytes: int  # UTF-8 bytes of the original text
    counted_bytes: int  # bytes charged to the tokens


class Tokenizer:
    """A SentencePiece model with byte accounting. Build it with `Tokenizer.load` or `train_tokenizer`."""

    def __init__(self, model_bytes: bytes, lossless: bool | None = None, name: str = "tokenizer") -> None:
        settings = read_model(model_bytes)
        if lossless and not settings.lossless:
            raise DataError(
                f"tokenizer {name} is not lossless (it needs identity normalization, no dummy prefix, "
                "no white space removal, byte fallback, pieces for the space and the newline); "
                "load it with challenge accounting instead"
            )
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        except RuntimeError as error:
            raise DataError(f"SentencePiece refuses the model of tokenizer {name}: {error}") from error
        self.model_bytes = model_bytes  # the serialized SentencePiece model
        self.name = name  # the name in the manifest
        # True: tokens are charged the bytes of the original text; False: the challenge's accounting
        self.lossless = settings.lossless if lossless is None else lossless
        self.vocab_size = len(settings.pieces)  # V, at most 65,536
        self.bos_id = int(self._processor.bos_id())  # the id before each document
        if self.bos_id < 0:
            raise DataError(
                f"tokenizer {name} has no BOS piece, which marks the start of every document; train with bos_id >= 0"
            )
        self._encoder = Encoder(self._processor, model_bytes, settings, self.lossless)
        # whether tokens spell lower case with marks for capitals
        self.marks_capitals = self.lossless and settings.marks_capitals
        self._is_byte = [kind is PieceKind.BYTE for _, kind in settings.pieces]
        self._text = [_piece_bytes(text, kind) for text, kind in settings.pieces]
        silent = (PieceKind.CONTROL, PieceKind.UNKNOWN, PieceKind.UNUSED)
        spelled = (PieceKind.NORMAL, PieceKind.USER_DEFINED)
        self._boundary = np.array([kind in silent for _, kind in settings.pieces])  # (V,)
        self._leads = np.array([text.startswith(SPACE) and kind in spelled for text, kind in settings.pieces])  # (V,)
        marks = {mark.encode(): cost for mark, cost in COSTS.items()} if self.marks_capitals else {}
        self._cost = np.array([marks.get(text, len(text)) for text in self._text], dtype=np.int32)  # (V,)
        self._inner_cost = self._cost - self._leads  # without the leading space

    @classmethod
    def load(cls, source: str | Path | bytes, lossless: bool | None = None, name: str = "") -> Tokenizer:
        """Load a model from a file or from bytes.

        `lossless` is the accounting; None = lossless if the model is. Raises DataError if the file is missing, is not a
        model, has no BOS or more than 65,536 pieces, or if `lossless` is True and the model is not lossless.
        """
        if isinstance(source, bytes):
            return cls(source, lossless, name or "tokenizer")
        path = Path(source)
        try:
            data = read_bytes(path, MAX_MODEL_BYTES)
        except (FileNotFoundError, ForeignError) as error:
            reason = error.strerror if isinstance(error, FileNotFoundError) else error
            raise DataError(
                f"cannot read the tokenizer {path}: {reason}; give the path of a SentencePiece .model file"
            ) from error
        try:
            return cls(data, lossless, name or path.stem)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    @property
    def sha256(self) -> str:
        """Digest of `model_bytes`."""
        return hashlib.sha256(self.model_bytes).hexdigest()

    @property
    def accounting(self) -> str:
        """'original' (bytes of the untouched text) or 'challenge' (bytes of the normalized text)."""
        return "original" if self.lossless else "challenge"

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without BOS. Raises DataError for lone surrogates, which have no UTF-8 form."""
        require_type("text", text, str, "a string")
        return [int(i) for i in self.encode_documents([text])[0]]

    def encode_documents(self, texts: Sequence[str]) -> list[Tokens]:
        """Ids of each text, without BOS; uint16 arrays. Raises DataError for lone surrogates."""
        return self._encoder.encode(texts)

    def encode_proven(self, texts: Sequence[str], indices: Sequence[int] | None = None) -> EncodedDocuments:
        """Encode texts with BOS before each, and prove that no byte is lost.

        Lossless: the joined bytes of the tokens are the UTF-8 bytes of the text. Otherwise: decoding gives the
        normalized text. In both cases the byte costs of the tokens add up to the bytes of that text. Raises DataError
        with the number of the first document (from `indices`, or its position) for which this is false.
        """
        numbers = range(len(texts)) if indices is None else indices
        encoded = self.encode_documents(texts)
        sizes = np.array([len(ids) for ids in encoded], dtype=np.int64)
        starts = np.zeros(len(texts) + 1, dtype=np.int64)  # position of each BOS, and the end
        np.cumsum(sizes + 1, out=starts[1:])
        stream = np.full(starts[-1], self.bos_id, dtype=np.uint16)
        for ids, start in zip(encoded, starts, strict=False):
            stream[start + 1 : start + 1 + len(ids)] = ids
        total = np.zeros(len(stream) + 1, dtype=np.int64)  # total[i]: bytes charged to stream[:i]
        if len(stream):
            np.cumsum(self.byte_costs(stream), out=total[2:])
        charged = total[starts[1:]] - total[starts[:-1]]  # (documents,)

        raw_bytes = 0
        for position, (text, ids) in enumerate(zip(texts, encoded, strict=True)):
            expected = text.encode()
            raw_bytes += len(expected)
            if not self.lossless:  # the first space is free: it is a dummy prefix, or follows the document boundary
                expected = self._encoder.normalize(text).replace(SPACE, " ").encode()
            survived = b"".join(self.spell(ids)) == expected
            expected = expected if self.lossless else expected.removeprefix(b" ")
            if not survived or charged[position] != len(expected):
                what = "original" if self.lossless else "normalized"
                raise DataError(
                    f"document {numbers[position]} does not survive tokenizer {self.name}: its tokens "
                    f"are charged {charged[position]:,} bytes, the {what} text has {len(expected):,}"
                    f"{'' if survived else ', and decoding gives another text'}; "
                    f"it begins {text[:40]!r}"
                )
        return EncodedDocuments(stream, len(texts), raw_bytes, int(charged.sum()))

    def spell(self, ids: Sequence[int] | np.ndarray) -> list[bytes]:
        """The bytes that each token adds to the text; joined, they are the text of a lossless tokenizer."""
        ids, text = np.asarray(ids), self._text
        pieces = [text[i] for start in range(0, len(ids), _CHUNK) for i in ids[start : start + _CHUNK].tolist()]
        return spell(pieces) if self.marks_capitals else pieces

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids`. Control tokens give no text; bytes that are not UTF-8 give U+FFFD."""
        try:
            listed = [operator.index(i) for i in (ids.tolist() if isinstance(ids, np.ndarray) else ids)]
        except TypeError as error:
            raise TypeError(f"ids must be a list of whole numbers: {error}") from error
        bad = next((i for i in listed if not 0 <= i < self.vocab_size), None)
        if bad is not None:
            raise DataError(f"token id {bad} is outside the vocabulary of {self.vocab_size} of tokenizer {self.name}")
        if self.lossless:
            return b"".join(self.spell(listed)).decode("utf-8", errors="replace")
        return str(self._processor.decode(listed))

    def byte_costs(self, tokens: Tokens) -> np.ndarray:
        """Bytes charged to the targets `tokens[1:]`: (N-1,) int32. The first token is only context.

        Lossless: the UTF-8 bytes of the token, or `case_markers.COSTS`. Challenge: 1 for a byte piece; 0 for control,
        unknown and unused pieces; otherwise the bytes of the piece without its leading U+2581, plus 1 for that
        space unless the previous token is a control, unknown or unused piece.
        """
        targets = tokens[1:]
        if self.lossless:
            return self._cost[targets]
        return self._inner_cost[targets] + (self._leads[targets] & ~self._boundary[tokens[:-1]])

    def longest_prefixes(self) -> np.ndarray:
        """For every token the longest other token whose text begins its text, or -1: (V,) int64.

        Byte pieces and control tokens are no prefix and have none.
        """
        prefixes, begun = np.full(self.vocab_size, -1), [(b"", -1)]  # begun: each entry begins the next
        for text, token in sorted((text, i) for i, text in enumerate(self._text) if text and not self._is_byte[i]):
            while not text.startswith(begun[-1][0]):
                begun.pop()
            prefixes[token] = begun[-1][1]
            begun.append((text, token))
        return prefixes

    def token_text_bytes(self, token: int) -> bytes:
        """The bytes of a token by itself, a leading space included; empty for control tokens. See `spell`."""
        return self._text[token]


def _piece_bytes(text: str, kind: PieceKind) -> bytes:
    if kind is PieceKind.BYTE:
        return bytes([int(text[3:5], 16)])
    if kind in (PieceKind.NORMAL, PieceKind.USER_DEFINED):
        return text.replace(SPACE, " ").encode()
    return b""
