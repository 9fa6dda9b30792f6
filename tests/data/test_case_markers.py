"""Capitals as marks: every text comes back, its bytes are counted exactly, and words share their tokens."""

import dataclasses
import time

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.artifact.generate import _Spelling
from bitgolf.codec.tokens import detokenize, tokenize
from bitgolf.data.canonical import forbidden_pairs
from bitgolf.data.case_markers import lowered, spell
from bitgolf.data.spm_model import PieceKind, read_model
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.data.train_tokenizer import train_tokenizer

TITLE, UPPER, ESCAPE = "\ue001", "\ue002", "\ue003"
# Lists, because `st.text` draws from the union of its characters, in which these few are hardly ever drawn.
TEXT = st.lists(
    st.one_of(st.sampled_from(" \n\ue001\ue002\ue003▁theTHEabcABC."), st.characters(exclude_categories=["Cs"])),
    max_size=80,
).map("".join)


@pytest.fixture(scope="session")
def cased(documents: list[str]) -> Tokenizer:
    return train_tokenizer([*documents, "abcdefghijklmnopqrstuvwxyz"], 400, lossless=True, case_markers=True)


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("plain text", "plain text"),
        ("The cat", "^the cat"),
        ("a Cat", "a^ cat"),
        ("I am", "^i am"),
        ("in the USA", "in the_ usa"),
        ("USA's A", "_usa's^ a"),
        ("iPhone McDonald", "i^phone^ mc^donald"),
        ("USAs", "^u^s^as"),
        ("x  Y\nZ", "x ^ y\n^z"),
        ("AB1CD", "_ab1_cd"),
        ("Éa ÉA", "É" + "a É^a"),
        ("\ue001\ue002B\ue003c", "!a!b^b!cc"),
    ],
)
def test_marks_stand_before_the_space_of_their_word(text: str, marked: str) -> None:
    assert lowered(text).translate({ord(TITLE): "^", ord(UPPER): "_", ord(ESCAPE): "!"}) == marked


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_with_its_bytes_counted(cased: Tokenizer, text: str) -> None:
    ids = [cased.bos_id, *cased.encode(text)]
    assert cased.decode(ids) == text
    assert b"".join(cased.spell(ids)) == text.encode()
    assert cased.byte_costs(np.array(ids)).sum() == len(text.encode())
    assert cased.encode_proven([text]).counted_bytes == len(text.encode())


@given(st.lists(st.one_of(st.binary(max_size=30), TEXT.map(str.encode)), max_size=4).map(b"".join))
@settings(max_examples=200, deadline=None)
def test_any_bytes_come_back_through_the_codec(cased: Tokenizer, data: bytes) -> None:
    (stream,) = tokenize([data], cased)
    assert detokenize(stream, cased) == data


def test_no_pair_of_neighbors_is_forbidden(cased: Tokenizer) -> None:
    rng = np.random.default_rng(3)
    text = "".join(rng.choice(list(" \n\ue001thecatTHECAT.é"), 4_000))
    ids = np.array([cased.bos_id, *cased.encode(text)])
    bits = np.unpackbits(forbidden_pairs(cased.model_bytes), axis=1, bitorder="little")
    assert not bits[ids[:-1], ids[1:]].any() and bits.any()


def test_forms_of_a_word_share_tokens(cased: Tokenizer) -> None:
    words = [cased.token_text_bytes(i).decode(errors="replace").strip() for i in range(400)]
    word = max((word for word in words if word.isascii() and word.isalpha()), key=len)
    assert word.islower() and len(word) > 3
    plain, title, upper = (cased.encode(f"x {form} x") for form in (word, word.capitalize(), word.upper()))
    marks = [cased.encode("A")[0], cased.encode("AB")[0]]
    assert [i for i in title if i not in marks] == [i for i in upper if i not in marks] == plain
    assert len(title) == len(upper) == len(plain) + 1


def test_each_token_adds_its_own_bytes() -> None:
    pieces = [
        TITLE,
        " mc",
        TITLE,
        "do",
        "nald",
        UPPER,
        " ",
        "us",
        "a",
        " the",
        UPPER,
        "é",
        TITLE,
        "",
        "x",
        ESCAPE,
        "cd",
        ESCAPE,
        "a",
        ESCAPE,
        "",
        "a",
        UPPER,
        "",
        "ab",
    ]
    added = ["", " Mc", "", "Do", "nald", "", " ", "US", "A", " the", "", "é", "", "", "x", "", ESCAPE + "d"]
    added += ["", TITLE, "", "", "a", "", "", "ab"]
    assert [part.decode() for part in spell([piece.encode() for piece in pieces])] == added


def test_a_model_without_the_marks_keeps_capitals(lossless: Tokenizer, cased: Tokenizer) -> None:
    assert cased.marks_capitals and not lossless.marks_capitals
    assert Tokenizer(cased.model_bytes).marks_capitals, "the model's pieces say it"
    assert not Tokenizer(cased.model_bytes, lossless=False).marks_capitals, "the challenge's accounting has no marks"
    assert TITLE in lossless.decode(lossless.encode(f"{TITLE}a"))


@pytest.mark.parametrize("text", ["a", "A", "aB", " ", "\ue001"], ids=ascii)
def test_the_work_is_proportional_to_the_text(text: str) -> None:
    begin = time.process_time()
    lowered(text * 2_000_000)
    assert time.process_time() - begin < 20  # quadratic work would take hours


def test_sentencepiece_itself_gives_the_same_tokens(cased: Tokenizer) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=cased.model_bytes)
    text = "The Quick brown FOX"
    assert cased.encode(text) == processor.encode(lowered(text))


def test_a_vocabulary_has_marks_if_it_has_all_three_as_symbols(cased: Tokenizer) -> None:
    settings = read_model(cased.model_bytes)
    assert settings.marks_capitals and cased.name == "lossless-case-400"
    for pieces in (
        tuple(piece for piece in settings.pieces if piece[0] != ESCAPE),
        tuple((text, PieceKind.NORMAL if text == TITLE else kind) for text, kind in settings.pieces),
    ):
        assert not dataclasses.replace(settings, pieces=pieces).marks_capitals


def test_a_mark_at_the_end_of_a_prompt_acts_on_what_is_generated(cased: Tokenizer) -> None:
    mark = cased.encode("A")[0]
    letter = cased.encode("a")[-1]
    spelling = _Spelling(cased, [cased.bos_id, mark])
    assert spelling.add(letter) + spelling.add(letter) + spelling.finish() == "Aa"
