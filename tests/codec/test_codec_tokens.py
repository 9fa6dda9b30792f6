"""Bytes to token streams and back, for any bytes and for both kinds of tokenizer."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.codec.tokens import CodedTokens, detokenize, split_bytes, tokenize
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import ArtifactError, ConfigError

NASTY = [
    b"", b"\0", b"a", b"\n", b" ", b"  lead", b"trail  ", b"a\r\nb\r\n", "▁".encode(), "x▁y ▁".encode(), b"\xe2\x96",
    b"\xff", b"\x80\x80", bytes(range(256)), "caf\u00e9 \U0001f600".encode(), b"text \xc3 text", b"<s></s><unk><0x41>",
    b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\xef\xbb\xbfbom", b"z" * 3000,
]  # fmt: skip
BYTES = st.one_of(
    st.binary(max_size=60), st.text(st.characters(exclude_categories=["Cs"]), max_size=40).map(str.encode)
)


@pytest.mark.parametrize("data", NASTY, ids=repr)
def test_nasty_bytes_come_back(data: bytes, lossless: Tokenizer, lossy: Tokenizer) -> None:
    for tokenizer in (lossless, lossy):
        (stream,) = tokenize([data], tokenizer)
        assert detokenize(stream, tokenizer) == data
        assert stream.tokens.dtype == np.int64
        assert len(stream.tokens) <= len(data) + 1


@given(data=st.lists(BYTES, max_size=4).map(b"".join))
@settings(max_examples=150, deadline=None)
def test_any_bytes_come_back(data: bytes, lossless: Tokenizer, lossy: Tokenizer) -> None:
    for tokenizer in (lossless, lossy):
        (stream,) = tokenize([data], tokenizer)
        assert detokenize(stream, tokenizer) == data
        try:
            text = data.decode()
        except UnicodeDecodeError:
            assert stream.joined
        else:
            assert stream.joined is (not tokenizer.lossless and tokenizer.decode(tokenizer.encode(text)) != text)
            if not stream.joined:
                assert stream.tokens.tolist() == tokenizer.encode(text), "what is scored is what is coded"


def test_text_around_a_bad_byte_keeps_its_pieces(lossless: Tokenizer) -> None:
    (stream,) = tokenize([b"The river follows\xff the garden"], lossless)
    before, after = lossless.encode("The river follows"), lossless.encode(" the garden")
    assert stream.joined
    assert stream.tokens[: len(before)].tolist() == before
    assert stream.tokens[len(before) + 1 :].tolist() == after


def test_a_lossy_tokenizer_codes_what_it_changes_in_bytes(lossy: Tokenizer) -> None:
    kept, changed = tokenize([b"The river follows the garden", b"The river\nfollows"], lossy)
    assert not kept.joined and len(kept.tokens) < 20
    assert changed.joined and len(changed.tokens) == len(b"The river\nfollows")


def test_a_vocabulary_without_the_byte_is_refused() -> None:
    poor = SimpleNamespace(lossless=False, name="poor", vocab_size=3, token_text_bytes=[b"", b"a", b"b"].__getitem__)
    poor.encode_documents = lambda texts: [np.array([0])] * len(texts)
    poor.decode = lambda tokens: "?"
    with pytest.raises(ConfigError, match="byte 0x63, which tokenizer poor does not have"):
        tokenize([b"abcab"], cast(Tokenizer, poor))


def test_a_tokenizer_that_only_claims_to_be_lossless_is_found_out(lossy: Tokenizer) -> None:
    liar = SimpleNamespace(
        lossless=True,
        name="liar",
        vocab_size=lossy.vocab_size,
        encode_documents=lossy.encode_documents,
        token_text_bytes=lossy.token_text_bytes,
        spell=lossy.spell,
    )
    with pytest.raises(ConfigError, match="liar is declared lossless"):
        tokenize([b"two  spaces"], cast(Tokenizer, liar))


@pytest.mark.parametrize("joined", [False, True])
def test_tokens_that_stand_for_nothing_are_refused(joined: bool, lossless: Tokenizer, lossy: Tokenizer) -> None:
    for tokenizer in (lossless, lossy):
        size = tokenizer.vocab_size
        for token in (-1, 0, 1, 2, size, size + 1, 10**6):
            with pytest.raises(ArtifactError, match=f"token {token} at position 1 of a stream stands for no text"):
                detokenize(CodedTokens(np.array([70, token, 70]), joined), tokenizer)
        assert detokenize(CodedTokens(np.array([size - 1]), True), tokenizer) == tokenizer.token_text_bytes(size - 1)


@given(data=st.binary(min_size=1, max_size=400), share=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_parts_are_the_whole_and_about_equal(data: bytes, share: float) -> None:
    num = 1 + int(share * (len(data) - 1))
    parts = split_bytes(data, num)
    assert len(parts) == num and b"".join(parts) == data
    even = len(data) / num
    assert all(0 < len(part) <= even * 17 / 16 + 4 for part in parts)


def test_cuts_follow_lines_then_words_then_characters() -> None:
    lines = b"".join(b"line %02d of the text\n" % i for i in range(60))
    assert all(part.endswith(b"\n") for part in split_bytes(lines, 3))
    words = b"word " * 200
    assert all(part.startswith(b" ") for part in split_bytes(words, 3)[1:])
    for part in split_bytes("日本語".encode() * 100, 7):
        part.decode()
    assert split_bytes(b"\x80" * 64, 4) == [b"\x80" * 16] * 4 or b"".join(split_bytes(b"\x80" * 64, 4)) == b"\x80" * 64
