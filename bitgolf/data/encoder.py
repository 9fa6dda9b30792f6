"""Text -> tokens, by a SentencePiece model.

SentencePiece writes a space as U+2581, so a U+2581 in the text is encoded as its three byte pieces. If no piece of the
vocabulary crosses a word boundary, words are encoded once and cached. The tokens are the same, and encoding is several
times faster. Long texts are cut, because SentencePiece needs about 100 bytes of memory per character.

Legend: N tokens.
"""

import re
from array import array
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import sentencepiece

from bitgolf.data.case_markers import lowered
from bitgolf.data.spm_model import IDENTITY_NORMALIZER, SPACE, ModelSettings
from bitgolf.errors import DataError

Tokens = np.ndarray  # (N,) uint16

_WORDS = re.compile(f"{SPACE}|\n| *[^ \n{SPACE}]+| +")
_CACHE_CHARACTERS = 2_000_000  # about 80 MB of cached words; above it the cache is emptied
_LONG_WORD = 64  # characters; longer words are not cached
_LONG_TEXT = 250_000  # characters; longer texts are cut


class Encoder:
    """The encoder of a model. `lossless`: no byte of the text may be lost, else the text is normalized."""

    def __init__(
        self,
        processor: sentencepiece.SentencePieceProcessor,
        model_bytes: bytes,  # that the processor was made from
        settings: ModelSettings,
        lossless: bool,
    ) -> None:
        self._processor, self._model_bytes, self._lossless = processor, model_bytes, lossless
        self._marks_capitals = lossless and settings.marks_capitals
        self._literal_space: list[int] = []
        if lossless:
            by_text = {text: index for index, (text, _) in enumerate(settings.pieces)}
            self._literal_space = [by_text[f"<0x{byte:02X}>"] for byte in SPACE.encode()]
        self._words = (
            _WordIds(self._encode_around_literal_spaces) if lossless and settings.words_are_independent else None
        )

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Ids of each text. Raises DataError for lone surrogates, which have no UTF-8 form."""
        for index, text in enumerate(texts):
            _require_utf8(text, index)
        if self._lossless:
            return [self._encode_lossless(text) for text in texts]
        if all(len(text) <= _LONG_TEXT for text in texts):
            return [np.array(ids, dtype=np.uint16) for ids in self._processor.encode(list(texts), num_threads=1)]
        return [self._encode_normalized(text) for text in texts]

    def normalize(self, text: str) -> str:
        """The text that the tokens of `text` spell, with U+2581 for spaces."""
        return str(self._processor.normalize(text))

    def _encode_lossless(self, text: str) -> Tokens:
        words, parts = self._words, []
        for part in _cut(lowered(text) if self._marks_capitals else text, " "):
            if words is None:
                parts.append(np.array(self._encode_around_literal_spaces(part), dtype=np.uint16))
            else:
                joined = b"".join([words[word] for word in _WORDS.findall(part)])
                parts.append(np.frombuffer(joined, dtype=np.uint16))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _encode_normalized(self, text: str) -> Tokens:
        """Normalize `text` as a whole, and encode the parts by the same model without normalization."""
        if len(text) <= _LONG_TEXT:
            return np.array(self._processor.encode(text), dtype=np.uint16)
        plain = sentencepiece.SentencePieceProcessor(model_proto=self._model_bytes + IDENTITY_NORMALIZER)
        parts = _cut(self._processor.normalize(text), SPACE)
        return np.concatenate([np.array(plain.encode(part), dtype=np.uint16) for part in parts])

    def _encode_around_literal_spaces(self, text: str) -> list[int]:
        ids: list[int] = []
        for position, part in enumerate(text.split(SPACE)):
            ids += self._literal_space if position else []
            ids += self._processor.encode(part)
        return ids


class _WordIds(dict[str, bytes]):
    """A cache of at most _CACHE_CHARACTERS: word -> its ids as uint16 bytes."""

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


def _cut(text: str, space: str) -> Iterator[str]:
    """Parts of `text` of at most _LONG_TEXT characters, cut before a `space` after another character if possible."""
    start = 0
    while len(text) - start > _LONG_TEXT:
        end = start + _LONG_TEXT
        cut = text.rfind(space, start + 1, end)
        while cut > start and text[cut - 1] == space:
            cut -= 1
        end = cut if cut > start else end
        yield text[start:end]
        start = end
    yield text[start:]


def _require_utf8(text: str, index: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text {index} contains the lone surrogate U+{ord(text[error.start]):04X} at character "
            f"{error.start}, which has no UTF-8 form; remove it"
        ) from error
