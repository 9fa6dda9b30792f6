"""Which split a document belongs to, and the proof that the splits share none.

A document is known by an 8-byte hash of its text. Without a validation source of its own, the hash decides (so
a text and its copies always fall on the same side); with one, training documents equal to a validation document
are dropped. The hashes of both splits are stored beside the shards, so anyone can check the intersection.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitgolf.errors import DataError

TRAIN_HASHES = "train_documents.bin"
VAL_HASHES = "val_documents.bin"
_CHUNK = 1 << 22  # hashes compared at a time (32 MB)


@dataclass(frozen=True)
class Document:
    """A text with its place in the source, its hash and its size in UTF-8 bytes."""

    text: str
    index: int
    hash: int
    size: int


def hash_document(data: bytes) -> int:
    """64-bit BLAKE2b of a document (UTF-8 text, or uint16 tokens where the text is not at hand)."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def number_documents(texts: Iterable[str], on_empty: Callable[[], None] = lambda: None) -> Iterator[Document]:
    """Documents of a source with index, hash and size; for empty ones, which keep their number, `on_empty` is
    called instead."""
    for index, text in enumerate(texts):
        if text:
            data = text.encode()
            yield Document(text, index, hash_document(data), len(data))
        else:
            on_empty()


class Splitter:
    """Assigns the documents of one source to 'train' or 'val', in order; the same order gives the same split.

    Args:
        val_fraction: share of documents (by hash) that validation takes; 0 when it has its own source.
        val_bytes, train_bytes: a split is full once it has this many raw bytes (the document that reaches the
            limit is still taken); 0 = no limit. What validation no longer takes goes to training.
        val_hashes: hashes of an own validation source, any order.
    """

    def __init__(
        self, val_fraction: float, val_bytes: int = 0, train_bytes: int = 0, val_hashes: np.ndarray | None = None
    ) -> None:
        self._threshold = int(val_fraction * 2**64)
        self._room = {"val": val_bytes or float("inf"), "train": train_bytes or float("inf")}
        self._taken = array("Q")  # hashes of validation so far
        self._frozen = None if val_hashes is None else np.sort(val_hashes)
        self.dropped_duplicates = 0
        self.empty_documents = 0

    @property
    def full(self) -> bool:
        """Whether neither split takes more."""
        wants_val = self._threshold > 0 and self._room["val"] > 0
        return not wants_val and self._room["train"] <= 0

    def count_empty(self) -> None:
        """Note a document without text."""
        self.empty_documents += 1

    def assign(self, document: Document) -> str:
        """'train', 'val', or '' for a document that neither split takes."""
        if document.hash < self._threshold and self._room["val"] > 0:
            self._taken.append(document.hash)
            return self._take("val", document)
        if self._is_val(document.hash):
            self.dropped_duplicates += 1
            return ""
        return self._take("train", document) if self._room["train"] > 0 else ""

    def _take(self, split: str, document: Document) -> str:
        self._room[split] -= document.size
        return split

    def _is_val(self, value: int) -> bool:
        if self._frozen is None:
            if value >= self._threshold:
                return False
            self._frozen = np.sort(np.array(self._taken, dtype=np.uint64))  # validation is full: nothing is added
        place = int(np.searchsorted(self._frozen, np.uint64(value)))
        return place < len(self._frozen) and int(self._frozen[place]) == value


def read_hashes(path: Path) -> np.ndarray:
    """Document hashes stored at `path`, (documents,) uint64, memory-mapped. Raises DataError when the file is
    missing or not a multiple of 8 bytes."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read the document hashes {path}: {error.strerror}; prepare the data again") from error
    if size % 8:
        raise DataError(f"{path} is truncated: {size} bytes are not a whole number of 8-byte hashes")
    return np.memmap(path, dtype="<u8", mode="r") if size else np.empty(0, dtype=np.uint64)


def check_disjoint(directory: str | Path) -> tuple[int, int, int]:
    """Compare the document hashes of a prepared directory.

    Returns (training documents, validation documents, training documents that are also in validation).
    """
    train, val = read_hashes(Path(directory) / TRAIN_HASHES), read_hashes(Path(directory) / VAL_HASHES)
    return len(train), len(val), count_overlap(train, val)


def count_overlap(train: np.ndarray, val: np.ndarray) -> int:
    """Entries of `train` that occur in `val`; both (n,) uint64. Memory: a sorted copy of `val` and one chunk."""
    if not len(val):
        return 0
    known = np.sort(val)
    overlap = 0
    for start in range(0, len(train), _CHUNK):
        chunk = np.asarray(train[start : start + _CHUNK])
        places = np.minimum(np.searchsorted(known, chunk), len(known) - 1)
        overlap += int((known[places] == chunk).sum())
    return overlap
