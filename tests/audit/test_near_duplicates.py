"""Near-duplicates: copies with few changes are found, whatever was changed; independent texts are not."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from fake_evidence import evidence, judged

from bitgolf.audit.near_duplicates import ShingleIndex, near_duplicates, shingles
from bitgolf.audit.verdict import Finding, MissingEvidence
from bitgolf.config import Config

WORDS = [f"w{number}" for number in range(4000)]


def texts(count: int, length: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=length)) for _ in range(count)]


class Bytes:
    """A tokenizer of one byte per token, shifted so that 1 is BOS."""

    bos_id = 1

    def decode(self, ids: np.ndarray) -> str:
        return bytes((ids - 2).astype(np.uint8).tolist()).decode("utf-8")


def stream(parts: list[str]) -> np.ndarray:
    return np.concatenate([np.array([1, *(byte + 2 for byte in part.encode())], dtype=np.uint16) for part in parts])


def compared(val: list[str], train: list[str]) -> Finding:
    tokens = stream(train)
    shards = SimpleNamespace(num_tokens=len(tokens), read=lambda start, length: tokens[start : start + length])
    data = SimpleNamespace(tokenizer=Bytes(), train=shards)
    config = Config().updated({"data.source": "dir:/corpus"})
    return near_duplicates(evidence(config=config, data=data, tokens=stream(val)))


VAL, TRAIN = texts(20, 120, seed=0), texts(60, 120, seed=1)


def test_independent_documents_pass() -> None:
    finding = compared(VAL, TRAIN)
    judged(finding, "")
    assert finding.evidence["share"] == 0 and finding.evidence["compared"] == 60


CHANGES = {
    "one word": lambda text: text.replace(text.split()[50], "other", 1),
    "two words": lambda text: text.replace(text.split()[20], "x", 1).replace(text.split()[90], "y", 1),
    "case and punctuation": lambda text: text.upper().replace(" ", ", ") + "!",
    "another end": lambda text: text + " and so on",
    "a new beginning": lambda text: "Breaking news: " + text,
    "no change": lambda text: text,
    "line breaks": lambda text: text.replace(" ", "\n"),
    "inside a longer document": lambda text: TRAIN[0] + " " + text + " " + TRAIN[1],
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_copy_with_few_changes_fails(how: str) -> None:
    finding = compared(VAL, [*TRAIN, CHANGES[how](VAL[7])])
    judged(finding, "1 of 20 validation documents stand in training with at most 2 words changed (0.1% are allowed): ")
    assert "of validation document 7 in training document 60" in finding.reason
    assert finding.evidence["copies"] == 1


def test_many_half_copies_fail_by_their_share() -> None:
    val = texts(20, 600, seed=3)
    changed = [" ".join(w if i % 60 else "x" for i, w in enumerate(text.split())) for text in val[:2]]
    judged(compared(val, [*TRAIN, *changed]), "2 of 20 validation documents have a near-duplicate in training")


def reordered(text: str) -> str:
    words = text.split()
    sentences = [words[start : start + 15] for start in range(0, len(words), 15)]
    return " ".join(word for sentence in sentences[::-1] for word in sentence)


HALVES = {
    "every tenth word": lambda text: " ".join(w if i % 10 else "x" for i, w in enumerate(text.split())),
    "another order of sentences": reordered,
    "the first half": lambda text: " ".join(text.split()[:65]),
    "half in a long document": lambda text: f"{TRAIN[0]} {' '.join(text.split()[55:])} {TRAIN[1]}",
}


@pytest.mark.parametrize("how", HALVES)
def test_many_documents_by_half_fail_by_their_share(how: str) -> None:
    changed = list(map(HALVES[how], VAL))
    judged(compared(VAL, [*TRAIN, *changed[:3]]), "3 of 20 validation documents stand in one training document by 40%")
    check = compared(VAL, [*TRAIN, *changed[:2]])
    judged(check, "")
    assert check.evidence["halves"] == 2 and check.evidence["share"] == 0


def test_documents_cut_into_pieces_fail_by_their_share() -> None:
    words = VAL[7].split()
    pieces = [" ".join(words[start : start + 30]) for start in range(0, len(words), 30)]
    judged(compared(VAL, [*TRAIN, *pieces]), "1 more of 20 validation documents stand in training in pieces")
    judged(compared(VAL, [*TRAIN, *pieces[:2]]), "")
    check = compared(VAL, [f"{piece} {TRAIN[number]}" for number, piece in enumerate(pieces)])
    judged(check, "1 more of 20 validation documents stand in training in pieces")
    assert check.evidence["in_pieces"] == 1 and check.evidence["share"] == 0


def test_texts_without_spaces_are_compared_by_characters() -> None:
    rng = random.Random(0)
    chinese = ["".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(80)) for _ in range(6)]
    judged(compared(chinese[:3], chinese[3:]), "")
    judged(compared(chinese[:3], [*chinese[3:], chinese[1][:40] + "x" + chinese[1][41:]]), "document 1 in training")


def test_short_documents_prove_nothing() -> None:
    with pytest.raises(MissingEvidence, match="long enough"):
        compared(["one two three four five six"] * 3, TRAIN)
    assert len(shingles("only four words here")) == 0 and len(shingles("")) == 0


def test_the_index_counts_shared_shingles_exactly() -> None:
    """Against sets of word tuples."""

    def slow(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    rng = random.Random(5)
    val = [" ".join(rng.choices(WORDS[:12], k=60)) for _ in range(8)]
    index = ShingleIndex(val)
    for number in range(8):
        words = val[number].split()
        words[rng.randrange(60)] = "changed"
        text = " ".join(words)
        expected = {
            v: len(slow(text) & slow(val[v]))
            for v in range(8)
            if len(slow(text) & slow(val[v])) >= len(slow(val[v])) - 10
        }
        assert {pair.val: pair.shared for pair in index.pairs(text, 0)} == expected and number in expected
