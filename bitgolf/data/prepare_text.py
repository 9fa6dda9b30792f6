"""Text to token shards, in three steps: read the documents, get a tokenizer, write the splits.

The documents are read twice if a tokenizer is trained: the first pass stops after `data.tokenizer_bytes` of training
documents, and validation text never enters the tokenizer (rule B7, docs/rules.md). Each document is encoded, proven to
decode to the same bytes, and appended to its split.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bitgolf.config import DataConfig
from bitgolf.data.encode_stream import encode_batches, make_batches
from bitgolf.data.fineweb_docs import FinewebDocs
from bitgolf.data.prepared import SPLITS, TOKENIZER, describe_tokenizer
from bitgolf.data.shards import ShardWriter
from bitgolf.data.sources import (
    FILE_KINDS,
    all_sources,
    iterate_documents,
    parse_source,
    source_files,
    training_documents,
)
from bitgolf.data.split import (
    TRAIN_HASHES,
    VAL_HASHES,
    SourceDocument,
    Splitter,
    check_disjoint,
    hash_limit,
    number_documents,
)
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.data.train_tokenizer import NEW_TOKENIZERS, train_tokenizer
from bitgolf.errors import DataError
from bitgolf.run import atomic
from bitgolf.run.progress import Progress
from bitgolf.run.seal import file_digest

_VAL_SHARE, _MOST_VAL_SHARE, _VAL_BYTES = 0.05, 0.2, 100_000
_HASH_FILES = {"train": TRAIN_HASHES, "val": VAL_HASHES}


def prepare_text(config: DataConfig, vocab_size: int, work: Path, progress: Progress) -> dict[str, Any]:
    """Write the shards, the tokenizer and the document hashes of a text source into `work`.

    Returns the manifest's entries about them. Raises DataError for bad text, for an empty split, and for a tokenizer
    that counts more bytes than the text has.
    """
    if not config.mix and parse_source(config.source)[0] == "fineweb-docs":
        with FinewebDocs() as published:
            return _prepare(_Documents(config, published), config, vocab_size, work, progress)
    return _prepare(_Documents(config, None), config, vocab_size, work, progress)


def _prepare(
    documents: _Documents, config: DataConfig, vocab_size: int, work: Path, progress: Progress
) -> dict[str, Any]:
    tokenizer = _get_tokenizer(config, vocab_size, documents, progress)
    atomic.write_bytes(work / TOKENIZER, tokenizer.model_bytes)
    splitter = documents.splitter()
    splits = _write_splits(documents.labeled(splitter), tokenizer, config, work, progress)
    for split in SPLITS:
        if not splits[split]["documents"]:
            raise DataError(_empty_split(split, config, splits))
        if splits[split]["counted_bytes"] > splits[split]["raw_bytes"]:
            raise DataError(
                f"tokenizer {tokenizer.name} makes the {split} text longer: it counts "
                f"{splits[split]['counted_bytes']:,} bytes for {splits[split]['raw_bytes']:,}, which would make its "
                "bits per byte too small; use another tokenizer"
            )
    num_train, num_val, overlap = check_disjoint(work)
    assert (num_train, num_val, overlap) == (splits["train"]["documents"], splits["val"]["documents"], 0)
    return {
        **describe_tokenizer(tokenizer),
        "splits": splits,
        "document_hashes": {
            s: {"file": name, "sha256": file_digest(work / name), "of": "utf-8 text"} for s, name in _HASH_FILES.items()
        },
        "disjoint": True,
        "overlap": 0,
        "dropped_duplicates": splitter.dropped_duplicates,
        "empty_documents": splitter.empty_documents,
        **({} if documents.origin is None else {"origin": documents.origin}),
    }


def validation_documents(config: DataConfig) -> Iterator[SourceDocument]:
    """The documents that a source on this machine puts into validation, in order; reads the whole source."""
    documents = _Documents(config, None)
    return (document for split, document in documents.labeled(documents.splitter()) if split == "val")


def validation_share(config: DataConfig) -> float:
    """`data.val_fraction`, or the default share: enough of small files to hold out 100 KB, but at most a fifth."""
    if config.val_fraction:
        return config.val_fraction
    sources = all_sources(config)
    if not all(parse_source(source)[0] in FILE_KINDS for source in sources):
        return _VAL_SHARE
    total = sum(path.stat().st_size for source in sources for path in source_files(source))
    return min(_MOST_VAL_SHARE, max(_VAL_SHARE, _VAL_BYTES / max(1, total)))


def is_new_tokenizer(config: DataConfig) -> bool:
    """Whether `data.tokenizer` names a kind of tokenizer to train, not the path of a model."""
    return config.tokenizer in NEW_TOKENIZERS


class _Documents:
    """The documents of the configured sources. They can be read more than once.

    Attributes:
        origin: entry of the manifest about published documents; None for other sources.
    """

    def __init__(self, config: DataConfig, published: FinewebDocs | None) -> None:
        self._config, self._published = config, published
        self._has_own_val = bool(config.val_source) or published is not None
        self._val_hashes: np.ndarray | None = None  # (validation documents,) uint64
        self._limit = 0
        if self._has_own_val:
            self._val_hashes = np.fromiter((d.hash for d in self._validation()), dtype=np.uint64)
        else:
            hashes = (document.hash for document in number_documents(self._training_source()))
            self._limit = hash_limit(validation_share(config), hashes)

    @property
    def origin(self) -> dict[str, Any] | None:
        return None if self._published is None else self._published.origin

    def splitter(self) -> Splitter:
        val_bytes = 0 if self._has_own_val else self._config.val_bytes
        return Splitter(self._limit, val_bytes, self._config.train_bytes, self._val_hashes)

    def labeled(self, splitter: Splitter) -> Iterator[tuple[str, SourceDocument]]:
        """(split, document) for every document that a split takes. A validation source comes first."""
        if self._has_own_val:
            for document in self._validation():
                yield "val", document
        for document in number_documents(self._training_source(), splitter.count_empty):
            if splitter.full:
                return
            if split := splitter.assign(document):
                yield split, document
                if splitter.full:
                    return

    def tokenizer_text(self) -> Iterator[str]:
        """The first `data.tokenizer_bytes` of the training documents."""
        splitter = self.splitter()
        room = self._config.tokenizer_bytes
        for document in number_documents(self._training_source()):
            if room <= 0 or splitter.full:
                return
            if splitter.assign(document) == "train":
                room -= document.size
                yield document.text

    def _training_source(self) -> Iterator[str]:
        return self._published.training() if self._published is not None else training_documents(self._config)

    def _validation(self) -> Iterator[SourceDocument]:
        """Documents of the validation source up to `data.val_bytes`."""
        if self._config.val_source or self._published is None:
            texts = iterate_documents(self._config.val_source, self._config.text_field)
        else:
            texts = self._published.validation()
        room = self._config.val_bytes or float("inf")
        for document in number_documents(texts):
            yield document
            room -= document.size
            if room <= 0:
                return


def _get_tokenizer(config: DataConfig, vocab_size: int, documents: _Documents, progress: Progress) -> Tokenizer:
    """Train a tokenizer on the first training documents, or load the configured model."""
    if is_new_tokenizer(config):
        progress("prepare", 0, 0, f"training a {config.tokenizer} tokenizer of {vocab_size} pieces")
        return train_tokenizer(
            documents.tokenizer_text(),
            vocab_size,
            config.tokenizer == "lossless",
            case_markers=config.tokenizer == "lossless-case",
        )
    if not Path(config.tokenizer).exists():
        kinds = ", ".join(NEW_TOKENIZERS)
        raise DataError(f"data.tokenizer {config.tokenizer!r} is neither one of {kinds} nor an existing .model file")
    tokenizer = Tokenizer.load(config.tokenizer)
    if tokenizer.vocab_size != vocab_size:
        raise DataError(
            f"tokenizer {config.tokenizer} has {tokenizer.vocab_size} pieces, but model.vocab_size is {vocab_size}; "
            f"set model.vocab_size to {tokenizer.vocab_size}"
        )
    return tokenizer


def _write_splits(
    labeled: Iterator[tuple[str, SourceDocument]],
    tokenizer: Tokenizer,
    config: DataConfig,
    work: Path,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Encode the documents and write shards and document hashes. Returns the manifest's entry per split."""
    splits: dict[str, dict[str, Any]] = {
        s: {"documents": 0, "tokens": 0, "raw_bytes": 0, "counted_bytes": 0} for s in SPLITS
    }
    done, expected = 0, config.train_bytes + config.val_bytes if config.train_bytes and config.val_bytes else 0
    with ExitStack() as stack:
        writers = {s: stack.enter_context(ShardWriter(work, s, config.shard_tokens)) for s in SPLITS}
        hash_files = {s: stack.enter_context((work / name).open("wb")) for s, name in _HASH_FILES.items()}
        for batch, encoded in encode_batches(make_batches(labeled), tokenizer, config.workers):
            writers[batch.split].append(encoded.tokens)
            hash_files[batch.split].write(np.array([d.hash for d in batch.documents], dtype="<u8").tobytes())
            entry = splits[batch.split]
            entry["documents"] += encoded.num_documents
            entry["tokens"] += len(encoded.tokens)
            entry["raw_bytes"] += encoded.raw_bytes
            entry["counted_bytes"] += encoded.counted_bytes
            done += encoded.raw_bytes
            progress("prepare", done, expected, f"{splits['train']['documents']:,} training documents")
    for split, writer in writers.items():
        splits[split]["shards"] = writer.shards
    return splits


def _empty_split(split: str, config: DataConfig, splits: dict[str, dict[str, Any]]) -> str:
    total = sum(entry["documents"] for entry in splits.values())
    if not total:
        return f"source {config.source_text!r} has no text"
    if split == "val" and config.val_source:
        return f"the validation source {config.val_source!r} has no text"
    if split == "val":
        return (
            f"none of the {total} documents of {config.source_text!r} is in the validation split (data.val_fraction "
            f"{validation_share(config):g}); raise data.val_fraction, add documents, or set data.val_source"
        )
    return (
        f"source {config.source_text!r} has no training documents ({splits['val']['documents']} are validation); "
        "lower data.val_fraction or add documents"
    )
