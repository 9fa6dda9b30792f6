"""Splitting by hash against sets and loops: deterministic, disjoint, within the limits."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.data.split import (
    Splitter,
    check_disjoint,
    count_overlap,
    hash_document,
    hash_limit,
    number_documents,
    read_hashes,
)
from bitgolf.errors import DataError

TEXTS = st.lists(st.text("abc", max_size=3), max_size=60)


def run(splitter: Splitter, texts: list[str]) -> dict[str, list[str]]:
    sides: dict[str, list[str]] = {"train": [], "val": [], "": []}
    for document in number_documents(texts):
        if splitter.full:
            break
        sides[splitter.assign(document)].append(document.text)
    return sides


def test_hash_is_blake2b() -> None:
    expected = int.from_bytes(hashlib.blake2b("é".encode(), digest_size=8).digest(), "little")
    assert hash_document("é".encode()) == expected


def test_documents_are_numbered_past_empty_ones() -> None:
    documents = [(d.index, d.text, d.size) for d in number_documents(["a", "", "é", ""])]
    assert documents == [(0, "a", 1), (2, "é", 2)]


@given(TEXTS, st.sampled_from([0.1, 0.5, 0.9]), st.integers(0, 30), st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_splits_are_disjoint_and_bounded(texts: list[str], fraction: float, val_limit: int, train_limit: int) -> None:
    sides = run(Splitter(int(fraction * 2**64), val_limit, train_limit), texts)
    assert not set(sides["train"]) & set(sides["val"])
    for side, limit in (("train", train_limit), ("val", val_limit)):
        sizes = [len(t.encode()) for t in sides[side]]
        assert not limit or sum(sizes[:-1]) < limit, "a document was taken after the limit was reached"
    if not val_limit and not train_limit:
        assert sides["val"] == [t for t in texts if t and hash_document(t.encode()) < int(fraction * 2**64)]
        assert sides["train"] == [t for t in texts if t and hash_document(t.encode()) >= int(fraction * 2**64)]


@pytest.mark.parametrize(
    ("hashes", "limit"),
    [
        ([7, 2**60, 3], 2**63),  # there are documents below the limit
        ([2**63 - 1], 2**63),
        ([2**63, 2**63 + 9, 2**63 + 4], 2**63 + 1),  # none is: the least hash alone
        ([2**63 + 9, 2**63 + 4, 2**63 + 4], 2**63 + 5),
        ([2**63 + 9, 2**63 + 9], 2**63),  # one text: nothing would be left to train on
        ([2**63 + 9], 2**63),
        ([], 2**63),
    ],
)
def test_at_least_one_document_is_held_out(hashes: list[int], limit: int) -> None:
    assert hash_limit(0.5, hashes) == limit
    assert hash_limit(0.0, hashes) == 0


def test_no_more_documents_are_read_than_decide_the_limit() -> None:
    hashes = iter([2**63 + 1, 5, 6])
    assert hash_limit(0.5, hashes) == 2**63
    assert next(hashes) == 6


@given(TEXTS, st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_what_validation_leaves_goes_to_training(texts: list[str], val_limit: int) -> None:
    splitter = Splitter(2**63, val_limit)
    sides = run(splitter, texts)
    assert len(sides["train"]) + len(sides["val"]) + splitter.dropped_duplicates == sum(map(bool, texts))
    assert set(sides[""]) <= set(sides["val"])


@given(TEXTS, TEXTS)
@settings(max_examples=100, deadline=None)
def test_documents_of_an_own_validation_source_are_dropped(train: list[str], val: list[str]) -> None:
    hashes = np.array([d.hash for d in number_documents(val)], dtype=np.uint64)
    splitter = Splitter(0, 0, 0, hashes)
    sides = run(splitter, train)
    assert sides["train"] == [t for t in train if t and t not in val] and not sides["val"]
    assert splitter.dropped_duplicates == sum(bool(t) and t in val for t in train)


@given(st.lists(st.integers(0, 40)), st.lists(st.integers(0, 40)))
def test_overlap_counts_like_a_loop(train: list[int], val: list[int]) -> None:
    as_hashes = [np.array(side, dtype=np.uint64) for side in (train, val)]
    assert count_overlap(*as_hashes) == sum(t in val for t in train)


def test_check_disjoint_reads_the_files(tmp_path: Path) -> None:
    np.array([5, 2**64 - 1, 7, 7], dtype="<u8").tofile(tmp_path / "train_documents.bin")
    np.array([7, 2**64 - 1], dtype="<u8").tofile(tmp_path / "val_documents.bin")
    assert check_disjoint(tmp_path) == (4, 2, 3)
    (tmp_path / "val_documents.bin").write_bytes(b"1234567")
    with pytest.raises(DataError, match="truncated: 7 bytes"):
        check_disjoint(tmp_path)
    with pytest.raises(DataError, match="cannot read"):
        read_hashes(tmp_path / "none.bin")
