"""Assigns documents to the training or validation split, and proves that the splits share no document (rule B7).

A document is identified by an 8-byte hash of its text. Without a validation source the hash decides, so equal texts are
always in the same split, and at least one document is held out. With a validation source, training documents that equal
a validation document are dropped. The hashes of both splits are stored beside the shards, so anyone can compute the
intersection. docs/rules.md explains the rule codes.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitgolf.errors import DataError, ForeignError
from bitgolf.foreign import require_regular

TRAIN_HASHES = "train_documents.bin"
VAL_HASHES = "val_documents.bin"
_CHUNK = 1 << 22  # number of hashes compared at a time (32 MB)


@dataclass(frozen=True)
class SourceDocument:
    """A text, its position in the source, its hash, and its size in UTF-8 bytes."""

    text: str
    index: int
    hash: int
    size: int


def hash_document(data: bytes) -> int:
    """64-bit BLAKE2b of a document (UTF-8 text, or uint16 tokens if the text is unknown)."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def number_documents(texts: Iterable[str], on_empty: Callable[[], None] = lambda: None) -> Iterator[SourceDocument]:
    """Yield the documents of a source with index, hash and size.

    An empty text counts in the numbering but is not yielded; `on_empty` is called instead.
    """
    for index, text in enumerate(texts):
        if text:
            data = text.encode()
            yield SourceDocument(text, index, hash_document(data), len(data))
        else:
            on_empty()


def hash_limit(val_fraction: float, hashes: Iterable[int]) -> int:
    """Documents of a source with a hash below this limit belong to validation.

    The limit is the share `val_fraction` of the range of hashes. If no document of the source is below it, the limit
    is such that the documents with the least hash are held out, provided that there are others. `hashes` are those of
    the source, in order; they are read up to the first one below the limit.
    """
    limit = int(val_fraction * 2**64)
    least, has_others = 2**64, False
    for value in hashes:
        if value < limit:
            return limit
        has_others |= least not in (value, 2**64)
        least = min(least, value)
    return least + 1 if limit and has_others else limit


class Splitter:
    """Assigns the documents of one source to 'train' or 'val'. The same documents in the same order give the same
    split.

    Args:
        limit: hashes below it belong to validation (see `hash_limit`); 0 if validation has its own source.
        val_bytes, train_bytes: raw bytes after which a split is full; 0 = no limit. The document that reaches the limit
            is still taken. When validation is full, its share goes to training.
        val_hashes: document hashes of the validation source, in any order.
    """

    def __init__(
        self, limit: int, val_bytes: int = 0, train_bytes: int = 0, val_hashes: np.ndarray | None = None
    ) -> None:
        self._threshold = limit
        self._room = {"val": val_bytes or float("inf"), "train": train_bytes or float("inf")}
        self._taken = array("Q")  # hashes of the validation documents so far
        self._val_hashes = None if val_hashes is None else np.sort(val_hashes)
        self.dropped_duplicates = 0
        self.empty_documents = 0

    @property
    def full(self) -> bool:
        """Whether both splits are full."""
        val_is_open = self._threshold > 0 and self._room["val"] > 0
        return not val_is_open and self._room["train"] <= 0

    def count_empty(self) -> None:
        """Count a document without text."""
        self.empty_documents += 1

    def assign(self, document: SourceDocument) -> str:
        """'train' or 'val', or '' for a document that belongs to neither split."""
        if document.hash < self._threshold and self._room["val"] > 0:
            self._taken.append(document.hash)
            split = "val"
        elif self._is_val(document.hash):
            self.dropped_duplicates += 1
            return ""
        else:
            split = "train" if self._room["train"] > 0 else ""
        if split:
            self._room[split] -= document.size
        return split

    def _is_val(self, value: int) -> bool:
        if self._val_hashes is None:
            if value >= self._threshold:
                return False
            self._val_hashes = np.sort(np.array(self._taken, dtype=np.uint64))  # validation is full: the set is final
        place = int(np.searchsorted(self._val_hashes, np.uint64(value)))
        return place < len(self._val_hashes) and int(self._val_hashes[place]) == value


def read_hashes(path: Path) -> np.ndarray:
    """The document hashes in the file `path`, (documents,) uint64, memory-mapped.

    Raises DataError if the file is missing or its size is not a multiple of 8 bytes.
    """
    try:
        require_regular(path)
        size = path.stat().st_size
    except (OSError, ForeignError) as error:
        raise DataError(
            f"cannot read the document hashes {path}: {getattr(error, 'strerror', '') or error}; prepare the data again"
        ) from error
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
    """The number of entries of `train` that occur in `val`; both (n,) uint64. Needs the memory of `val` once more."""
    if not len(val):
        return 0
    val = np.sort(val)
    overlap = 0
    for start in range(0, len(train), _CHUNK):
        chunk = np.asarray(train[start : start + _CHUNK])
        places = np.minimum(np.searchsorted(val, chunk), len(val) - 1)
        overlap += int((val[places] == chunk).sum())
    return overlap
