"""Pairs that a tokenizer never emits, against the tokenizer itself."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import sentencepiece

from bitgolf.data import canonical
from bitgolf.data.canonical import forbidden_pairs
from bitgolf.data.spm_model import IDENTITY_NORMALIZER, SPACE, PieceKind, read_model
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.data.train_tokenizer import train_tokenizer
from bitgolf.errors import DataError


def pairs(tokenizer: Tokenizer) -> np.ndarray:
    """(V, V) bool."""
    bits = forbidden_pairs(tokenizer.model_bytes)
    return np.unpackbits(bits, axis=1, bitorder="little", count=tokenizer.vocab_size).astype(bool)


@pytest.fixture(scope="module", params=["lossless", "challenge", "across white space"])
def tokenizer(request: pytest.FixtureRequest, documents: list[str]) -> Tokenizer:
    if request.param != "across white space":
        return train_tokenizer(documents, 400, lossless=request.param == "lossless")
    train = sentencepiece.SentencePieceTrainer.train

    def crossing(**options: object) -> None:
        train(**options, split_by_whitespace=False, split_by_unicode_script=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentencepiece.SentencePieceTrainer, "train", crossing)
        crossed = train_tokenizer([*documents, *300 * ["once upon a time in the west"]], 400, lossless=True)
    assert any(SPACE in text.strip(SPACE) for text, _ in read_model(crossed.model_bytes).pieces)
    return crossed


def test_every_pair_of_normal_pieces_is_as_the_tokenizer_encodes_it(tokenizer: Tokenizer) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes + IDENTITY_NORMALIZER)
    forbidden = pairs(tokenizer)
    pieces = read_model(tokenizer.model_bytes).pieces
    normal = [i for i, (_, kind) in enumerate(pieces) if kind is PieceKind.NORMAL]
    for p in normal:
        encoded = processor.encode([(pieces[p][0] + pieces[x][0]).replace(SPACE, " ") for x in normal])
        emitted = [ids == [p, x] for x, ids in zip(normal, encoded, strict=True)]
        assert emitted == (~forbidden[p, normal]).tolist(), pieces[p]
    assert forbidden[np.ix_(normal, normal)].any()


def test_no_text_has_a_forbidden_pair(tokenizer: Tokenizer, documents: list[str]) -> None:
    rng = random.Random(0)
    forbidden, ranges = pairs(tokenizer), [(0, 128), (0, 0x800), (0x2500, 0x2600), (0, 0xD7FF), (0xE000, 0x110000)]
    texts = ["".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(60))) for _ in range(500)]
    texts += ["".join(rng.choice(f"abe 1\n{SPACE}é日\x00😀") for _ in range(60)) for _ in range(500)]
    tokens = tokenizer.encode_proven(documents + texts).tokens
    assert not forbidden[tokens[:-1], tokens[1:]].any()


def test_after_bytes_comes_what_utf8_allows(lossless: Tokenizer) -> None:
    pieces = {text: i for i, (text, _) in enumerate(read_model(lossless.model_bytes).pieces)}
    forbidden, byte = pairs(lossless), [pieces[f"<0x{value:02X}>"] for value in range(256)]
    assert not forbidden[byte[0xF0], byte[0x9F]] and forbidden[byte[0xF0], byte[0x8F]]  # U+10000 is the first of four
    assert not forbidden[byte[0xE2], byte[0x96]] and not forbidden[byte[0x96], byte[0x81]]  # a literal U+2581
    assert forbidden[byte[0xE2], pieces["e"]] and not forbidden[byte[0x81], pieces["e"]]
    assert forbidden[pieces["e"], byte[0x81]] and forbidden[byte[0xE2], byte[0xE2]]
    assert forbidden[:, byte[ord("e")]].sum() > 300 and forbidden[:, byte[0xC0]].sum() > 300  # has a piece; no UTF-8
    assert not forbidden[lossless.bos_id].any() and not forbidden[:, lossless.bos_id].any()
    assert forbidden[pieces["e"], [pieces["<pad>"], pieces["</s>"], pieces["<unk>"]]].all()


def _without_bpe(model: bytes) -> bytes:
    return model + b"\x12\x02\x18\x01"  # trainer_spec { model_type: UNIGRAM }


def _with_unused(model: bytes) -> bytes:
    return model + b"\x0a\x07\x0a\x03zzz\x18\x05"


def _with_long_symbol(model: bytes) -> bytes:
    return model + b"\x0a\x07\x0a\x03zzz\x18\x04"


@pytest.mark.parametrize("change", [_without_bpe, _with_unused, _with_long_symbol])
def test_other_tokenizers_are_refused(lossless: Tokenizer, change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(DataError, match="BPE without unused pieces"):
        forbidden_pairs(change(lossless.model_bytes))


@pytest.mark.parametrize(("limit", "words"), [("_MOST_PIECES", "400 pieces"), ("_MOST_COMPARISONS", "common parts")])
def test_work_is_bounded(lossless: Tokenizer, monkeypatch: pytest.MonkeyPatch, limit: str, words: str) -> None:
    monkeypatch.setattr(canonical, limit, 300)
    with pytest.raises(DataError, match=words.replace("400", "300")):
        forbidden_pairs.__wrapped__(lossless.model_bytes)
