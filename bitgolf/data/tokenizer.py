"""Tokenizers whose bytes add up: SentencePiece BPE with an exact byte cost for every token.

A lossless tokenizer (identity normalization, byte fallback, newline as a symbol) gives every text back and
charges each token its original UTF-8 bytes. Any other model is scored the challenge's way: bytes of the
normalized text, the space of a word charged unless a document boundary stands before it (docs/rules.md, section 3).
`encode_proven` checks both claims document by document and is what `prepare` writes shards with.

SentencePiece writes a space as U+2581; a literal U+2581 of the text is therefore encoded as its three byte
pieces. Where no piece of the vocabulary reaches over a word boundary, merges never cross one either, so words
are encoded once and remembered: the result is the same, several times faster.

Legend: V vocabulary, N tokens.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece

from bitgolf.data.spm_model import SPACE, PieceKind, read_model
from bitgolf.errors import DataError

Tokens = np.ndarray  # (N,) uint16

_MAX_VOCAB = 65_536  # ids are stored as uint16
_WORDS = re.compile(f"{SPACE}|\n| *[^ \n{SPACE}]+| +")
_CACHE_CHARACTERS = 2_000_000  # about 80 MB of remembered words, then they are forgotten
_LONG_WORD = 64  # characters; rarer than once, so not worth remembering


@dataclass(frozen=True)
class EncodedDocuments:
    """Documents as one token stream, BOS before each, with the proven byte counts."""

    tokens: Tokens  # (N,) uint16
    num_documents: int
    raw_bytes: int  # UTF-8 bytes of the original text
    counted_bytes: int  # bytes charged to the tokens


class Tokenizer:
    """A SentencePiece model with byte accounting. Build it with `Tokenizer.load` or `train_tokenizer`.

    Attributes:
        vocab_size: V, at most 65,536.
        bos_id: the id that stands before each document.
        lossless: True: bytes are those of the original text; False: the challenge's accounting.
        name: what the manifest calls it.
        model_bytes: the serialized SentencePiece model.
    """

    def __init__(self, model_bytes: bytes, lossless: bool | None = None, name: str = "tokenizer") -> None:
        """See `load`."""
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
        self.model_bytes = model_bytes
        self.name = name
        self.lossless = settings.lossless if lossless is None else lossless
        self.vocab_size = len(settings.pieces)
        self.bos_id = int(self._processor.bos_id())
        if self.vocab_size > _MAX_VOCAB:
            raise DataError(f"tokenizer {name} has {self.vocab_size:,} pieces; shards hold at most {_MAX_VOCAB:,}")
        if self.bos_id < 0:
            raise DataError(
                f"tokenizer {name} has no BOS piece, which marks the start of every document; train it with bos_id >= 0"
            )
        self._literal_space: list[int] = []
        if self.lossless:
            by_text = {text: index for index, (text, _) in enumerate(settings.pieces)}
            self._literal_space = [by_text[f"<0x{byte:02X}>"] for byte in SPACE.encode()]
        by_words = self.lossless and settings.words_are_independent
        self._words = _WordIds(self._encode_around_literal_spaces) if by_words else None

        self._text = [_piece_bytes(text, kind) for text, kind in settings.pieces]
        silent = (PieceKind.CONTROL, PieceKind.UNKNOWN, PieceKind.UNUSED)
        boundary = np.array([kind in silent for _, kind in settings.pieces])  # (V,)
        leads = np.array(
            [
                text.startswith(SPACE) and kind in (PieceKind.NORMAL, PieceKind.USER_DEFINED)
                for text, kind in settings.pieces
            ]
        )  # (V,)
        cost = np.array([len(text) for text in self._text], dtype=np.int32)  # (V,)
        self._cost = cost
        self._inner_cost = cost - leads  # without the leading space
        self._leads, self._boundary = leads, boundary

    @classmethod
    def load(cls, source: str | Path | bytes, lossless: bool | None = None, name: str = "") -> Tokenizer:
        """Load a model file or its bytes; `lossless` None means: find out from the model.

        Raises DataError when the file is missing, is not a model, has no BOS, has more than 65,536 pieces, or
        is asked to be lossless and is not.
        """
        if isinstance(source, bytes):
            return cls(source, lossless, name or "tokenizer")
        path = Path(source)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"cannot read the tokenizer {path}: {error.strerror or error}; give the path of a "
                "SentencePiece .model file"
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
        """Ids of `text`, without BOS. Raises DataError when it holds lone surrogates (no UTF-8 form)."""
        return [int(i) for i in self.encode_documents([text])[0]]

    def encode_documents(self, texts: Sequence[str]) -> list[Tokens]:
        """Ids of each text, without BOS; uint16 arrays. Raises DataError for lone surrogates."""
        for index, text in enumerate(texts):
            _utf8(text, index)
        if self._words is not None:
            words = self._words
            return [
                np.frombuffer(b"".join([words[word] for word in _WORDS.findall(text)]), dtype=np.uint16)
                for text in texts
            ]
        if self.lossless:
            return [np.array(self._encode_around_literal_spaces(text), dtype=np.uint16) for text in texts]
        return [np.array(ids, dtype=np.uint16) for ids in self._processor.encode(list(texts), num_threads=1)]

    def encode_proven(self, texts: Sequence[str], indices: Sequence[int] | None = None) -> EncodedDocuments:
        """Encode and prove: BOS before each text, every byte accounted for.

        Lossless: the bytes of the tokens, joined, are the UTF-8 bytes of the text (so it decodes to itself).
        Otherwise: decoding gives the normalized text. Both: the byte costs of the stream add up to that text.
        Raises DataError that names the first document (`indices`, else its position) for which this fails.
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
        decoded = [] if self.lossless else self._processor.decode([ids.tolist() for ids in encoded], num_threads=1)
        for position, (text, ids) in enumerate(zip(texts, encoded, strict=True)):
            original = text.encode()
            raw_bytes += len(original)
            if self.lossless:
                expected = original
                survived = b"".join([self._text[i] for i in ids.tolist()]) == original
            else:
                normalized = self._processor.normalize(text).replace(SPACE, " ").removeprefix(" ")
                expected = normalized.encode()
                survived = decoded[position].removeprefix(" ") == normalized
            if not survived or charged[position] != len(expected):
                what = "original" if self.lossless else "normalized"
                raise DataError(
                    f"document {numbers[position]} does not survive tokenizer {self.name}: its tokens "
                    f"stand for {charged[position]:,} bytes, the {what} text has {len(expected):,}"
                    f"{'' if survived else ', and decoding does not give it back'}; "
                    f"it begins {text[:40]!r}"
                )
        return EncodedDocuments(stream, len(texts), raw_bytes, int(charged.sum()))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids`; control tokens give nothing, bytes that are not UTF-8 give U+FFFD."""
        listed = np.asarray(ids, dtype=np.int64).tolist()
        bad = next((i for i in listed if not 0 <= i < self.vocab_size), None)
        if bad is not None:
            raise DataError(f"token id {bad} is outside the vocabulary of {self.vocab_size} of tokenizer {self.name}")
        if self.lossless:
            return b"".join([self._text[i] for i in listed]).decode("utf-8", errors="replace")
        return str(self._processor.decode(listed))

    def byte_costs(self, tokens: Tokens) -> np.ndarray:
        """Bytes charged to the targets `tokens[1:]`; (N-1,) int32. The first token is only context.

        Lossless: the UTF-8 bytes of the token. Challenge: a byte piece 1; control, unknown and unused 0;
        otherwise the piece without its leading U+2581, plus 1 for it unless the token before is a control,
        unknown or unused piece.
        """
        targets = tokens[1:]
        if self.lossless:
            return self._cost[targets]
        return self._inner_cost[targets] + (self._leads[targets] & ~self._boundary[tokens[:-1]])

    def token_text_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for (a leading space included); empty for control tokens."""
        return self._text[token]

    def _encode_around_literal_spaces(self, text: str) -> list[int]:
        ids: list[int] = []
        for position, part in enumerate(text.split(SPACE)):
            ids += self._literal_space if position else []
            ids += self._processor.encode(part)
        return ids


class _WordIds(dict[str, bytes]):
    """Ids of words as uint16 bytes, encoded at first sight and remembered up to _CACHE_CHARACTERS."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self._encode = encode
        self._characters = 0

    def __missing__(self, word: str) -> bytes:
        ids = array("H", self._encode(word)).tobytes()
        if len(word) <= _LONG_WORD:
            if self._characters > _CACHE_CHARACTERS:
                self.clear()
                self._characters = 0
            self[word] = ids
            self._characters += len(word)
        return ids


def _piece_bytes(text: str, kind: PieceKind) -> bytes:
    if kind is PieceKind.BYTE:
        return bytes([int(text[3:5], 16)])
    if kind in (PieceKind.NORMAL, PieceKind.USER_DEFINED):
        return text.replace(SPACE, " ").encode()
    return b""


def _utf8(text: str, index: int) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text {index} holds the lone surrogate U+{ord(text[error.start]):04X} at character "
            f"{error.start}, which has no UTF-8 form; remove it"
        ) from error
