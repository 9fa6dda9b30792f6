"""Tokenizers lose no byte of any text, and the bytes charged per token follow the rule."""

import functools
import io
import random
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import memory_below

from bitgolf.config import DataConfig
from bitgolf.data.encoder import _cut, _WordIds
from bitgolf.data.prepare import prepare
from bitgolf.data.spm_model import read_model
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.data.train_tokenizer import train_tokenizer
from bitgolf.errors import DataError

NASTY = [
    "", " ", "   ", "\n", "\n\n \n", "\0", "a\0b", "▁", "▁▁ ▁", "x▁y ▁z", " lead", "trail ", "a  b\t\tc\r\nd", "<s>",
    "<unk> <0x41> </s>", "é e\u0301 ﬁ ½", "😀👩‍👩‍👧", "\ufeffbom", "\u2028\u00a0\u3000", "\U0010ffff\ufffd\ufffe",
    "0" * 99, "z" * 5000,
]  # fmt: skip
# Lists, because `st.text` draws from the union of its characters, in which these few are hardly ever drawn.
TEXT = st.lists(st.one_of(st.sampled_from(" \n\tab▁\0the"), st.characters(exclude_categories=["Cs"])), max_size=80).map(
    "".join
)


def slow_costs(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """docs/rules.md, section 3, token by token, from SentencePiece's own answers."""
    sp = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)
    silent = lambda t: sp.is_control(t) or sp.is_unknown(t) or sp.is_unused(t)  # noqa: E731
    costs = []
    for before, token in pairwise(tokens):
        piece = sp.id_to_piece(token)
        if silent(token):
            costs.append(0)
        elif sp.is_byte(token):
            costs.append(1)
        elif tokenizer.lossless:
            costs.append(len(piece.replace("▁", " ").encode()))
        else:
            space = piece.startswith("▁") and not silent(before)
            costs.append(len(piece.removeprefix("▁").encode()) + space)
    return costs


SEA = ["the quick brown fox jumps over the lazy dogs of the moon by the sea"] * 9


def model_of(sentences: list[str] = SEA, **options: object) -> bytes:
    """A small BPE model, lossless unless `options` change it."""
    model = io.BytesIO()
    base: dict[str, object] = {
        "add_dummy_prefix": False, "remove_extra_whitespaces": False, "normalization_rule_name": "identity",
        "byte_fallback": True, "user_defined_symbols": ["\n"], "vocab_size": 330, "model_type": "bpe", "bos_id": 1,
        "unk_id": 0, "hard_vocab_limit": False, "minloglevel": 2,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences), model_writer=model, **(base | options))
    return model.getvalue()


@pytest.mark.parametrize("text", NASTY)
def test_lossless_gives_nasty_text_back(lossless: Tokenizer, text: str) -> None:
    ids = lossless.encode(text)
    assert lossless.decode(ids) == text
    assert sum(slow_costs(lossless, [lossless.bos_id, *ids])) == len(text.encode())


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_lossless_gives_any_text_back(lossless: Tokenizer, text: str) -> None:
    ids = [lossless.bos_id, *lossless.encode(text)]
    assert lossless.decode(ids) == text
    assert lossless.byte_costs(np.array(ids)).sum() == len(text.encode())
    assert b"".join(lossless.token_text_bytes(i) for i in ids) == text.encode()


@given(TEXT.filter(lambda text: "▁" not in text))
@settings(max_examples=300, deadline=None)
def test_word_by_word_equals_sentencepiece(lossless: Tokenizer, text: str) -> None:
    sp = sentencepiece.SentencePieceProcessor(model_proto=lossless.model_bytes)
    assert lossless.encode(text) == sp.encode(text)
    assert lossless.decode(lossless.encode(text)) == sp.decode(sp.encode(text))


def test_real_documents_equal_sentencepiece(lossless: Tokenizer, documents: list[str]) -> None:
    sp = sentencepiece.SentencePieceProcessor(model_proto=lossless.model_bytes)
    assert [ids.tolist() for ids in lossless.encode_documents(documents)] == sp.encode(documents)
    assert any(len(lossless.token_text_bytes(i).strip(b" ")) == 0 < len(lossless.token_text_bytes(i)) - 1
               for i in range(400)), "no piece for a run of spaces: indentation would cost a token a space"  # fmt: skip


def test_pieces_across_words_switch_the_word_path_off() -> None:
    """A vocabulary with pieces over word boundaries must not be encoded word by word."""
    text = ["of the moon of the sea of the sky"] * 50
    tokenizer = Tokenizer(model_of(text, vocab_size=300, split_by_whitespace=False))
    assert tokenizer.lossless and not read_model(tokenizer.model_bytes).words_are_independent
    sp = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)
    text = "of the moon of the sea\n of the"
    assert tokenizer.encode(text) == sp.encode(text)
    assert tokenizer.decode(tokenizer.encode(text + "▁\0")) == text + "▁\0"
    assert len(tokenizer.encode("of the moon of the sea")) < 6


@given(st.lists(st.integers(0, 399), max_size=60))
@settings(max_examples=200, deadline=None)
def test_byte_costs_follow_the_rule(lossless: Tokenizer, challenge: Tokenizer, ids: list[int]) -> None:
    for tokenizer in (lossless, challenge):
        costs = tokenizer.byte_costs(np.array(ids, dtype=np.uint16))
        assert costs.dtype == np.int32 and costs.tolist() == slow_costs(tokenizer, ids)


@given(st.lists(st.integers(0, 399), max_size=40))
@settings(max_examples=100, deadline=None)
def test_decode_equals_sentencepiece_on_any_ids(lossless: Tokenizer, ids: list[int]) -> None:
    """Control tokens give nothing, also between two bytes of a character, where sentencepiece gives up on both."""
    sp = sentencepiece.SentencePieceProcessor(model_proto=lossless.model_bytes)
    pieces = [i for i in ids if i != sp.unk_id()]
    text_pieces = [i for i in pieces if not sp.is_control(i)]
    assert lossless.decode(pieces) == lossless.decode(text_pieces)
    # How many U+FFFD a broken character becomes is the decoder's choice.
    assert lossless.decode(pieces).replace("\ufffd", "") == sp.decode(text_pieces).replace("\ufffd", "")


@given(st.lists(TEXT, max_size=5))
@settings(max_examples=100, deadline=None)
def test_proven_batches_count_every_byte(lossless: Tokenizer, challenge: Tokenizer, texts: list[str]) -> None:
    for tokenizer in (lossless, challenge):
        result = tokenizer.encode_proven(texts)
        parts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
        assert result.tokens.tolist() == [i for part in parts for i in part]
        assert result.raw_bytes == sum(len(text.encode()) for text in texts)
        assert result.counted_bytes == sum(sum(slow_costs(tokenizer, part)) for part in parts)
        assert result.num_documents == len(texts)
    assert lossless.encode_proven(texts).counted_bytes == sum(len(text.encode()) for text in texts)


def test_challenge_counts_the_normalized_text(challenge: Tokenizer) -> None:
    result = challenge.encode_proven(["a  b\n\nc ﬁ "])
    assert challenge.decode(result.tokens[1:]) == "a b c fi"
    assert result.counted_bytes == len("a b c fi") and result.raw_bytes == len("a  b\n\nc ﬁ ".encode())
    assert not challenge.lossless and challenge.accounting == "challenge"


def test_space_after_a_boundary_is_free_only_in_the_challenge(lossless: Tokenizer, challenge: Tokenizer) -> None:
    for tokenizer, expected in ((lossless, [1, 1]), (challenge, [0, 1])):
        space = read_model(tokenizer.model_bytes).pieces.index(("▁", 1))
        assert tokenizer.byte_costs(np.array([tokenizer.bos_id, space, space])).tolist() == expected


def test_proof_catches_a_tokenizer_that_loses_bytes(lossless: Tokenizer) -> None:
    broken = Tokenizer(lossless.model_bytes)
    broken._text[broken.encode("\n")[0]] = b"\r"
    with pytest.raises(DataError, match=r"document 7 does not survive.*decoding gives another text"):
        broken.encode_proven(["fine", "two\nlines"], indices=[4, 7])


def test_loading_detects_the_kind(lossless: Tokenizer, challenge: Tokenizer, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine.model").write_bytes(lossless.model_bytes)
    loaded = Tokenizer.load(tmp_path / "mine.model")
    assert loaded.lossless and loaded.name == "mine" and loaded.vocab_size == 400 and loaded.bos_id == 1
    assert not Tokenizer.load(challenge.model_bytes).lossless
    assert Tokenizer.load(lossless.model_bytes, lossless=False).accounting == "challenge"
    with pytest.raises(DataError, match="is not lossless"):
        Tokenizer.load(challenge.model_bytes, lossless=True)


@pytest.mark.parametrize(
    "options",
    [
        {"add_dummy_prefix": True}, {"remove_extra_whitespaces": True}, {"normalization_rule_name": "nmt_nfkc"},
        {"byte_fallback": False}, {"user_defined_symbols": []}, {"treat_whitespace_as_suffix": True},
    ],
)  # fmt: skip
def test_each_lossy_option_is_noticed(options: dict[str, object]) -> None:
    assert read_model(model_of()).lossless and not read_model(model_of(**options)).lossless


def test_training_is_deterministic_and_quiet(documents: list[str], lossless: Tokenizer, capfd) -> None:  # type: ignore[no-untyped-def]
    assert train_tokenizer(iter(documents), 400, lossless=True).model_bytes == lossless.model_bytes
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [True, False])
def test_training_on_hostile_text(kind: bool) -> None:
    tokenizer = train_tokenizer(
        ["\0" * 10, "▁", "word " * 20_000, "x" * 100_000, "", "\n\n", "café ▁ \0 end"], 275, kind
    )
    assert tokenizer.vocab_size == 275
    result = tokenizer.encode_proven(["no space piece missing", "▁\0"])
    assert kind is False or result.raw_bytes == result.counted_bytes


def test_a_corpus_too_small_says_what_is_possible() -> None:
    with pytest.raises(DataError, match=r"tokenizer of 4,000 tokens on 10 characters.*at most 2\d\d"):
        train_tokenizer(["abc abc de"], 4000, True)
    with pytest.raises(DataError, match=r"distinct characters alone need 2\d\d"):
        train_tokenizer(["abcdefghij klmnop"], 260, True)
    with pytest.raises(DataError, match="the corpus is empty"):
        train_tokenizer(["", "\n"], 300, True)
    with pytest.raises(DataError, match="65,536"):
        train_tokenizer(["a"], 70_000, True)


def test_an_error_of_the_documents_comes_through() -> None:
    def documents():  # type: ignore[no-untyped-def]
        yield "some text"
        raise DataError("line 3 is broken")

    with pytest.raises(DataError, match=r"^line 3 is broken$"):
        train_tokenizer(documents(), 300, True)


@pytest.mark.parametrize("damage", ["", "empty", "garbage", "truncated", "missing", "no bos"])
def test_bad_models(lossless: Tokenizer, tmp_path, damage: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "bad.model"
    data = {"empty": b"", "garbage": b"\x0f\xff" * 50, "truncated": lossless.model_bytes[:-500],
            "no bos": model_of(bos_id=-1)}  # fmt: skip
    if damage in data:
        path.write_bytes(data[damage])
    elif not damage:
        path.write_bytes(lossless.model_bytes)
        Tokenizer.load(path)
        return
    with pytest.raises(DataError, match=r"bad\.model"):
        Tokenizer.load(path)


def test_surrogates_and_foreign_ids_are_named(lossless: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"U\+D800 at character 2"):
        lossless.encode("ab\ud800")
    with pytest.raises(DataError, match="token id 400 is outside the vocabulary of 400"):
        lossless.decode([1, 400])


SPACES = ["the fox", " the fox", "  the", "", " ", "   ", "\n the", "▁ the", " ▁", "the  fox  ", "\u3000x", "▅ ▅"]


@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("dummy", [True, False])
@pytest.mark.parametrize("remove", [True, False])
def test_documents_that_begin_with_spaces(rule: str, dummy: bool, remove: bool) -> None:
    """Llama-style models add a space before the text. It is free; a space of the text itself is charged after it."""
    tokenizer = Tokenizer(
        model_of(normalization_rule_name=rule, add_dummy_prefix=dummy, remove_extra_whitespaces=remove), lossless=False
    )
    sp = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)
    result = tokenizer.encode_proven(SPACES)
    assert result.counted_bytes <= result.raw_bytes
    for text in SPACES:
        ids = [tokenizer.bos_id, *tokenizer.encode(text)]
        assert sp.decode(ids) == tokenizer.decode(ids[1:])
        decoded = len(sp.decode(ids).encode())
        charged = tokenizer.encode_proven([text]).counted_bytes
        assert charged == sum(slow_costs(tokenizer, ids))
        if "▁" not in text:  # sentencepiece's own decoder drops some spaces that stand for U+2581
            assert charged == decoded - (0 if dummy else sp.decode(ids).startswith(" "))


@given(TEXT)
@settings(max_examples=100, deadline=None)
def test_any_text_survives_a_model_with_a_dummy_prefix(text: str) -> None:
    result = _llama().encode_proven([text])
    assert result.counted_bytes == len(text.replace("▁", " ").encode())


@functools.cache
def _llama() -> Tokenizer:
    return Tokenizer(model_of(add_dummy_prefix=True))


@pytest.mark.parametrize("kind", ["lossless", "challenge", "across words", "llama"])
@pytest.mark.parametrize(
    "text",
    ["the cat  sat\n" * 40, " " * 300, "x" * 300, "ab▁" * 90, "é" * 200 + " " + "😀" * 200, "the " * 99 + "\n" * 99],
    ids=lambda text: text[:6],
)
def test_long_texts_are_encoded_in_parts(
    kind: str, text: str, lossless: Tokenizer, challenge: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = {"lossless": lossless, "challenge": challenge, "llama": _llama()}.get(kind)
    tokenizer = tokenizer or Tokenizer(model_of(split_by_whitespace=False))
    whole = tokenizer.encode_proven([text])
    monkeypatch.setattr("bitgolf.data.encoder._LONG_TEXT", 50)
    parts = tokenizer.encode_proven([text])
    assert (parts.raw_bytes, parts.counted_bytes) == (whole.raw_bytes, whole.counted_bytes)
    assert tokenizer.decode(parts.tokens[1:]) == tokenizer.decode(whole.tokens[1:])
    if kind != "across words" and text.startswith("the cat"):
        assert parts.tokens.tolist() == whole.tokens.tolist(), "cuts between words change no token"
    lengths = []
    real = sentencepiece.SentencePieceProcessor.encode
    monkeypatch.setattr(
        sentencepiece.SentencePieceProcessor, "encode",
        lambda self, part, **rest: (lengths.append(max(map(len, part)) if isinstance(part, list) else len(part)),
                                    real(self, part, **rest))[1],
    )  # fmt: skip
    Tokenizer(tokenizer.model_bytes, tokenizer.lossless).encode(text)
    assert max(lengths) <= 50


@pytest.mark.parametrize("character", ["\u2585", "\u2581", "\0"])
@pytest.mark.parametrize("kind", [True, False])
def test_reserved_characters_do_not_keep_a_line_out_of_the_training(character: str, kind: bool) -> None:
    """SentencePiece stops at a sentence of such a character alone and skips sentences that contain one."""
    words = [f"{character}\n", f"zebra zebra zebra {character} zebra\n" * 20, "plain words\n"]
    tokenizer = train_tokenizer(words, 290, kind)
    assert any(b"zebr" in tokenizer.token_text_bytes(i) for i in range(tokenizer.vocab_size))
    result = tokenizer.encode_proven([f"a{character}b", character])
    assert not kind or result.counted_bytes == result.raw_bytes


def varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x0a\x00" * 8_000_000, "more than 65,536 pieces"),
        (b"\x0a" + varint(5_000) + b"\0" * 5_000, "piece 0 has 5,000 bytes, at most 4,096"),
        (b"\0" * (16 * 1024 * 1024 + 1), "at most 16,777,216"),
        (b"\x0a" + varint(2**62), "bytes are left|are left"),
        (b"\x0a" + b"\xff" * 20, "varint longer"),
        (b"\x0a\x02\x18\x63", "not a valid PieceKind"),
        (b"\x33" * 999, "wire type"),
        (b"\x0b" * 999, "field 1 before byte 1 is not written as"),
    ],
    ids=["pieces", "long piece", "large", "declared size", "varint", "kind", "wire", "other wire"],
)
def test_hostile_models_cost_little(data: bytes, words: str) -> None:
    start = time.process_time()
    with memory_below(200e6), pytest.raises(DataError, match=words):
        Tokenizer(data)
    assert time.process_time() - start < 5


def test_a_tokenizer_that_lengthens_the_text_is_not_used(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A normalizer that writes `e` as twelve `e` would make bits per byte twelve times smaller."""
    model = model_of(normalization_rule_tsv=_rule(tmp_path, "65", " ".join(["65"] * 12)), normalization_rule_name="")
    (tmp_path / "t.model").write_bytes(model)
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "eee tree {i}"}}\n' for i in range(50)))
    vocab_size = Tokenizer(model).vocab_size
    config = DataConfig(
        source=f"jsonl:{tmp_path}/a.jsonl", tokenizer=str(tmp_path / "t.model"), val_fraction=0.5, workers=1
    )
    with pytest.raises(DataError, match="makes the train text longer: it counts"):
        prepare(config, vocab_size, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _rule(folder, source: str, target: str) -> str:  # type: ignore[no-untyped-def]
    path = folder / "rule.tsv"
    path.write_text(f"{source}\t{target}\n")
    return str(path)


@pytest.mark.parametrize("text", [b"<0xZZ>", b"<0x1>", b"", b"<0x123>", b"0x41"])
def test_byte_pieces_that_are_no_bytes_are_refused(lossless: Tokenizer, text: bytes) -> None:
    piece = b"\x0a" + varint(len(text)) + text + b"\x15\0\0\0\0\x18\x06"
    with pytest.raises(DataError, match="byte piece 400 is not written as"):
        Tokenizer(lossless.model_bytes + b"\x0a" + varint(len(piece)) + piece)


@pytest.mark.parametrize("kind", [True, False])
def test_the_options_of_the_published_tokenizer(kind: bool) -> None:
    """Digits one by one, ids 0 to 3 for the control pieces, all bytes, and exactly the requested size."""
    tokenizer = train_tokenizer(["year 2026 2026 2026 in the year 2026\n    indented    again\n"] * 50, 310, kind)
    sp = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)
    assert (sp.pad_id(), sp.bos_id(), sp.eos_id(), sp.unk_id()) == (0, 1, 2, 3)
    assert tokenizer.vocab_size == 310 and sum(map(sp.is_byte, range(310))) == 256
    assert [tokenizer.token_text_bytes(i).strip() for i in tokenizer.encode("2026")][-4:] == [b"2", b"0", b"2", b"6"]
    pieces = [sp.id_to_piece(i) for i in range(310) if not sp.is_byte(i)]
    assert {piece.strip("▁") for piece in pieces if any(c.isdigit() for c in piece)} == {"0", "2", "6"}
    assert any(set(piece) == {"▁"} and len(piece) > 1 for piece in pieces) == kind, "runs of spaces"
    assert ("\n" in pieces) == kind


@pytest.mark.parametrize("lossless", [True, False])
def test_characters_of_at_least_a_thousandth_of_the_text_are_pieces_and_the_space_always_is(lossless: bool) -> None:
    text = "abcdefghij" * 10_000
    tokenizer = train_tokenizer([text[:-250] + "\u00e9" * 200 + "\u00fc" * 50], 280, lossless)
    sp = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)
    assert not sp.is_unknown(sp.piece_to_id("\u00e9")) and not sp.is_unknown(sp.piece_to_id("\u2581"))
    assert sp.is_unknown(sp.piece_to_id("\u00fc")), "it is spelled in bytes"


def test_a_long_line_of_long_characters_is_learned_from() -> None:
    rng = random.Random(0)
    pairs = [chr(0x1F600 + i) + chr(0x1F640 + i) for i in range(8)]
    line = "".join(rng.choice(pairs) for _ in range(2_000))  # 4,000 characters, 16,000 bytes
    assert len(train_tokenizer([line] * 3, 300, True).encode(line)) <= 2_000


def test_a_given_name_is_kept_and_bos_may_be_the_first_piece(lossless: Tokenizer, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine.model").write_bytes(lossless.model_bytes)
    assert Tokenizer.load(tmp_path / "mine.model", name="other").name == "other"
    assert Tokenizer.load(lossless.model_bytes, name="other").name == "other"
    assert Tokenizer.load(lossless.model_bytes).name == "tokenizer"
    first = Tokenizer(model_of(bos_id=0, unk_id=1))
    assert first.bos_id == 0 and first.encode_proven(["sea"]).tokens[0] == 0


def test_texts_of_many_tokens_are_spelled_whole(lossless: Tokenizer) -> None:
    text = "\0\n" * 40_000
    assert len(ids := lossless.encode(text)) == 80_000 and lossless.decode(ids) == text


def test_a_proof_that_fails_on_the_count_alone_says_so(lossless: Tokenizer) -> None:
    broken = Tokenizer(lossless.model_bytes)
    broken._cost[broken.encode("\n")[0]] += 1
    with pytest.raises(DataError, match=r"document 1 .* are charged 10 bytes, the original text has 9; .*lines'$"):
        broken.encode_proven(["fine", "two\nlines"])


def test_documents_that_end_in_an_error_train_no_tokenizer() -> None:
    def broken() -> Iterator[str]:
        yield from SEA * 20
        raise DataError("line 7 is damaged")

    with pytest.raises(DataError, match="line 7 is damaged"):
        train_tokenizer(broken(), 300, lossless=True)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ab  cd efgh", ["ab", "  cd", " efgh"]),
        ("abcdefg h", ["abcde", "fg h"]),
        ("       a", ["     ", "  a"]),
        ("abcde", ["abcde"]),
        ("a bcdef", ["a", " bcde", "f"]),
    ],
)
def test_long_texts_are_cut_before_a_space(text: str, parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitgolf.data.encoder._LONG_TEXT", 5)
    assert list(_cut(text, " ")) == parts


def test_the_cache_of_words_is_emptied_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitgolf.data.encoder._CACHE_CHARACTERS", 5)
    monkeypatch.setattr("bitgolf.data.encoder._LONG_WORD", 4)
    encoded: list[str] = []
    words = _WordIds(lambda word: encoded.append(word) or [len(word)])  # type: ignore[func-returns-value]
    contents = []
    for word in ("abc", "abc", "defg", "hi", "hi", "longer", "longer", "abc"):
        assert np.frombuffer(words[word], dtype=np.uint16).tolist() == [len(word)]
        contents.append("".join(words))
    assert encoded == ["abc", "defg", "hi", "longer", "longer", "abc"]
    assert contents == ["abc", "abc", "abcdefg", "hi", "hi", "hi", "hi", "hiabc"]
