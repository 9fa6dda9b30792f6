"""Trains a SentencePiece BPE model on documents, with lossless options or with those of the challenge.

Lossless options keep every code point (identity normalization), do not change white space, and make the newline a
symbol. With case markers, capitals become marks before lower-case words (`case_markers`). The challenge's options are
those of its SP1024 (data/download_hf_docs_and_tokenize.py of openai/parameter-golf): nmt_nfkc normalization and
collapsed white space. All have byte fallback, split digits, a character coverage of 0.999, and the ids pad 0, BOS 1,
EOS 2, unknown 3. The same documents give the same model.
"""

import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

import sentencepiece

from bitgolf.data.case_markers import MARKERS, lowered
from bitgolf.data.spm_model import MAX_PIECES, SPACE
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import DataError

NEW_TOKENIZERS = ("lossless", "lossless-case", "challenge")  # values of `data.tokenizer` that are no path
_SENTENCE = 4_000  # characters per sentence; SentencePiece skips sentences above max_sentence_length bytes
_RESERVED = f"\0{SPACE}\u2585"  # SentencePiece skips sentences that contain them, or stops


def train_tokenizer(
    documents: Iterable[str], vocab_size: int, lossless: bool, *, case_markers: bool = False
) -> Tokenizer:
    """Train on all of `documents`. SentencePiece keeps them in memory, so the caller limits their bytes.

    With `case_markers` the tokenizer is lossless and marks capitals.

    Raises DataError if there is no text, or if there is too little text or there are too many distinct characters for
    `vocab_size`. The message gives the possible sizes.
    """
    if vocab_size > MAX_PIECES:
        raise DataError(f"model.vocab_size {vocab_size:,} is above the {MAX_PIECES:,} that shards can hold")
    lossless = lossless or case_markers
    options: dict[str, Any] = {"normalization_rule_name": "nmt_nfkc"}
    if lossless:
        options = {
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "allow_whitespace_only_pieces": True,
            "user_defined_symbols": ["\n", *MARKERS] if case_markers else ["\n"],
        }
    sentences = _Sentences(map(lowered, documents) if case_markers else documents, lossless)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=0.999,
            byte_fallback=True,
            split_digits=True,
            add_dummy_prefix=False,
            required_chars=SPACE,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            hard_vocab_limit=True,
            max_sentence_length=8 * _SENTENCE,
            num_threads=1,
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        if sentences.failure is not None:
            raise sentences.failure from None
        raise _explain(str(error), sentences.num_characters, vocab_size) from error
    if sentences.failure is not None:
        raise sentences.failure
    kind = "lossless-case" if case_markers else "lossless" if lossless else "challenge"
    return Tokenizer(model.getvalue(), lossless, f"{kind}-{vocab_size}")


class _Sentences:
    """Cuts documents into training sentences at places that no piece may cross.

    These places are newlines if the newline is a symbol (lossless), otherwise spaces. NUL and U+2581 are left out
    because SentencePiece cannot train on them. An exception of `documents` is kept in `failure`, because SentencePiece
    would replace it by its own.
    """

    def __init__(self, documents: Iterable[str], lossless: bool) -> None:
        self._documents = documents
        self._cut = re.compile(f"[\n{_RESERVED}]+" if lossless else f"[{_RESERVED}]+")
        self._lossless = lossless
        self.failure: BaseException | None = None
        self.num_characters = 0

    def __iter__(self) -> Iterator[str]:
        try:
            for document in self._documents:
                text = document if self._lossless else " ".join(document.split())
                for line in self._cut.split(text):
                    for sentence in _pieces(line):
                        self.num_characters += len(sentence)
                        yield sentence
        except (Exception, KeyboardInterrupt) as error:
            self.failure = error


def _pieces(line: str) -> Iterator[str]:
    """Cut `line` before spaces into sentences of at most _SENTENCE characters. An empty line gives none."""
    start = 0
    while start < len(line):
        end = min(start + _SENTENCE, len(line))
        if end < len(line):
            space = line.rfind(" ", start + 1, end)
            end = space if space > 0 else end
        yield line[start:end]
        start = end


def _explain(message: str, num_characters: int, vocab_size: int) -> DataError:
    refusal = f"cannot train a tokenizer of {vocab_size:,} tokens on {num_characters:,} characters of text: "
    if high := re.search(r"value <= (\d+)", message):
        return DataError(
            f"{refusal}the text supports at most {int(high[1]):,}; lower model.vocab_size or give more text"
        )
    if low := re.search(r"required_chars\. (\d+) vs (\d+)", message):
        return DataError(
            f"{refusal}the byte pieces and the distinct characters alone need {int(low[2]):,}; raise model.vocab_size"
        )
    if num_characters == 0:
        return DataError(f"{refusal}the corpus is empty")
    return DataError(f"{refusal}SentencePiece says: {message}")
