"""Passages: characters and bits are conserved, choices follow the rule that the page states."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import BOS, ByteTokenizer, Tokens, stream

from bitgolf.report.passage import (
    LEVEL_BITS,
    PROMPT_TOKENS,
    Piece,
    choose_prompts,
    split_pieces,
    surprisal_passage,
    visible,
)

TOKENIZER = ByteTokenizer()
TEXT_BYTES = st.lists(st.one_of(st.text(max_size=4).map(str.encode), st.binary(max_size=3)), max_size=30)


@given(TEXT_BYTES, st.randoms(use_true_random=False))
def test_pieces_conserve_text_bits_and_tokens(tokens: list[bytes], random: object) -> None:
    bits = [random.random() * 12 for _ in tokens]
    pieces = split_pieces(tokens, bits)
    assert "".join(p.text for p in pieces) == visible(b"".join(tokens).decode("utf-8", errors="replace"))
    assert math.isclose(sum(p.bits for p in pieces), sum(bits), abs_tol=1e-9)
    assert sum(p.num_tokens for p in pieces) == len(tokens)


def test_a_character_spread_over_tokens_is_one_piece() -> None:
    assert split_pieces([b"a", b"\xe2", b"\x82", b"\xac", b"b"], [1, 2, 3, 4, 5]) == [
        Piece("a", 1, 1),
        Piece("\u20ac", 9, 3),
        Piece("b", 5, 1),
    ]


@given(st.text())
def test_visible_text_has_no_control_characters(text: str) -> None:
    shown = visible(text)
    assert len(shown) == len(text)
    assert all(c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160) for c in shown)
    assert all(a == b for a, b in zip(text, shown, strict=True) if ord(a) >= 160)


def test_levels_rise_at_the_bounds() -> None:
    assert [Piece("x", bits, 1).level for bits in (0.0, 0.99, *LEVEL_BITS, 30.0)] == [0, 0, 1, 2, 3, 4, 5, 5]


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(2, 30), st.integers(0, 2**32 - 1), st.booleans()
)
def test_the_passage_is_the_most_typical_of_the_longest(sizes: list[int], length: int, seed: int, lead: bool) -> None:
    rng = np.random.default_rng(seed)
    val = stream(*("abcdefgh"[i % 8] * size for i, size in enumerate(sizes)))
    if lead:  # text before the first BOS
        val = Tokens(np.concatenate([np.array([65, 66, 67], dtype=np.uint16), val.tokens]))
    nll = rng.gamma(1.0, 2.0, max(0, val.num_tokens - 1)).astype(np.float32)
    passage = surprisal_passage(val, TOKENIZER, nll, length)

    candidates: list[list[int]] = []  # slow definition: walk the tokens
    for position, token in enumerate(val.tokens.tolist()):
        if token == BOS or position == 0:
            candidates.append([])
        else:
            candidates[-1].append(position)
    candidates = [c[:length] for c in candidates if c]
    if not candidates:
        assert passage is None
        return
    longest = [c for c in candidates if len(c) == max(map(len, candidates))]
    mean = float(np.mean(nll, dtype=np.float64))
    distance = [abs(float(np.mean([nll[p - 1] for p in c], dtype=np.float64)) - mean) for c in longest]
    assert passage is not None
    possible = [c for c, d in zip(longest, distance, strict=True) if d <= min(distance) + 1e-9]
    assert passage.num_tokens == len(possible[0])
    texts = ["".join(chr(val.tokens[p]) for p in c) for c in possible]
    assert "".join(piece.text for piece in passage.pieces) in texts
    best = [sum(float(nll[p - 1]) for p in c) / math.log(2) / len(c) for c in possible]
    assert any(math.isclose(passage.bits_per_token, b, rel_tol=1e-9) for b in best)
    assert math.isclose(passage.bits_per_token, passage.bits_per_byte, rel_tol=1e-9)  # one byte per token here


def test_bits_are_divided_by_tokens_and_by_their_bytes() -> None:
    class Pairs(ByteTokenizer):
        def token_text_bytes(self, token: int) -> bytes:
            return b"" if token == BOS else bytes([token, token])

    passage = surprisal_passage(stream("abc"), Pairs(), np.full(3, 2 * math.log(2)), 10)
    assert passage is not None and "".join(piece.text for piece in passage.pieces) == "aabbcc"
    assert (passage.bits_per_token, passage.bits_per_byte) == (2, 1)


def test_a_split_without_text_has_no_passage() -> None:
    val = Tokens(np.array([BOS, BOS, BOS], dtype=np.uint16))
    assert surprisal_passage(val, TOKENIZER, np.ones(2, np.float32), 10) is None
    assert choose_prompts(val, TOKENIZER, 3, 10) == []

    class Silent(ByteTokenizer):
        def token_text_bytes(self, token: int) -> bytes:
            return b""

    assert surprisal_passage(stream("abc"), Silent(), np.ones(3), 10) is None  # tokens without bytes


def test_prompts_begin_documents_and_continue_them() -> None:
    documents = [f"{i:03d} " + "word " * 40 for i in range(10)] + ["short"]
    prompts = choose_prompts(stream(*documents), TOKENIZER, 3, 20)
    assert len({p.text for p in prompts}) == 3
    for prompt in prompts:
        assert len(prompt.text) == PROMPT_TOKENS and len(prompt.continues) == 20
        assert any(d.startswith(prompt.text + prompt.continues) for d in documents)


def test_prompts_do_not_cut_characters_and_lose_nothing() -> None:
    document = "x" + "\u20ac" * 100  # three bytes a character: token 60 is inside one
    (prompt,) = choose_prompts(stream(document), TOKENIZER, 1, 300)
    assert "\N{REPLACEMENT CHARACTER}" not in prompt.text
    assert prompt.text + prompt.continues == document


def test_more_prompts_than_documents() -> None:
    assert len(choose_prompts(stream("one", "two"), TOKENIZER, 5, 10)) == 2
