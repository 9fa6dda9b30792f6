"""Take over token shards that somebody else wrote (`shards:PATH`, `fineweb`): checked, then used in place.

The data directory gets symbolic links to the shards, a copy of the tokenizer, and a manifest with counts made
here: documents by their BOS, bytes by the tokenizer's accounting. The original text is not at hand, so
`raw_bytes` is known only when the tokenizer is lossless, and documents are hashed by their tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitgolf.config import DataConfig
from bitgolf.data.prepared import SPLITS, TOKENIZER
from bitgolf.data.shards import TokenShards, file_sha256, find_shards
from bitgolf.data.split import TRAIN_HASHES, VAL_HASHES, check_disjoint, hash_document
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import ConfigError, DataError
from bitgolf.run import atomic
from bitgolf.run.progress import Progress

_SAMPLES = 32  # documents of a split that the tokenizer is tried on
_SAMPLE_TOKENS = 4_096  # of each
_TAIL = 32  # last tokens of a cut sample, which may merge with what was cut off
_MATCH = 0.5  # share of the samples that must come back; rare normalizations are not idempotent


@dataclass(frozen=True)
class FoundShards:
    """Shards of both splits and the tokenizer they were made with; `origin` goes into the manifest."""

    train: list[Path]
    val: list[Path]
    tokenizer: Tokenizer
    origin: dict[str, Any]


def reject_text_settings(config: DataConfig) -> None:
    """Raise ConfigError for settings that would have to cut or re-tokenize text that shards do not hold."""
    given = [key for key in ("val_source", "val_bytes", "train_bytes") if getattr(config, key)]
    if given:
        raise ConfigError(
            f"data.{given[0]} = {getattr(config, given[0])!r} does not go with data.source {config.source!r}: shards "
            "are used as they are; leave it out (data.train_shards limits the training shards)"
        )


def local_shards(directory: Path, config: DataConfig, vocab_size: int) -> FoundShards:
    """Find the shards of `directory` and their tokenizer: `data.tokenizer` when it is a path, else the model in
    the directory, in its `tokenizers`, or in those of the one or two directories above (the challenge's layout).

    Raises DataError when shards or tokenizer are missing, or more than one tokenizer would do.
    """
    if not directory.is_dir():
        raise DataError(f"{directory} is not a directory of shards")
    sidecars = sorted(p.name for p in directory.glob("*_bytes_*.bin"))
    if sidecars:
        raise DataError(
            f"{directory} has byte sidecars ({sidecars[0]}): its text was transformed before tokenization, and the "
            "bytes of its tokens cannot be known from the tokenizer; such shards are not supported"
        )
    found = {}
    for split in SPLITS:
        found[split] = find_shards(directory, split)
        if not found[split]:
            raise DataError(f"{directory} holds no shards named *{split}_*.bin")
    train = found["train"][: config.train_shards or None]
    tokenizer = _local_tokenizer(directory, config, vocab_size)
    return FoundShards(train, found["val"], tokenizer, {"directory": str(directory.resolve())})


def _local_tokenizer(directory: Path, config: DataConfig, vocab_size: int) -> Tokenizer:
    if config.tokenizer not in ("lossless", "challenge"):
        return Tokenizer.load(config.tokenizer)
    home = directory.resolve()
    places = [home, home / "tokenizers", home.parent / "tokenizers", home.parent.parent / "tokenizers"]
    models = [path for place in places for path in sorted(place.glob("*.model"))]
    if len(models) > 1:
        models = [path for path in models if Tokenizer.load(path).vocab_size == vocab_size]
    if len(models) != 1:
        what = "no tokenizer" if not models else "several: " + ", ".join(str(path) for path in models)
        raise DataError(
            f"{directory} needs the one *.model of {vocab_size} pieces that its shards were made with, in it or in "
            f"tokenizers/ beside it; found {what}. Set data.tokenizer to the path of the model"
        )
    return Tokenizer.load(models[0])


def adopt_shards(found: FoundShards, vocab_size: int, work: Path, progress: Progress) -> dict[str, Any]:
    """Check `found` and link it into `work`; the body of the manifest.

    Raises DataError when a shard is damaged, holds ids beyond the vocabulary or no BOS, or when the tokenizer
    is of another size or does not encode its own decoding of sample documents to the same tokens.
    """
    tokenizer = found.tokenizer
    if tokenizer.vocab_size != vocab_size:
        raise DataError(
            f"the tokenizer {tokenizer.name} of the shards has {tokenizer.vocab_size} pieces, model.vocab_size is "
            f"{vocab_size}; set model.vocab_size to {tokenizer.vocab_size}"
        )
    atomic.write_bytes(work / TOKENIZER, tokenizer.model_bytes)
    splits: dict[str, Any] = {}
    hashes: dict[str, Any] = {}
    for split, paths, name in (("train", found.train, TRAIN_HASHES), ("val", found.val, VAL_HASHES)):
        stream = TokenShards(paths)
        stream.validate(vocab_size)
        check_tokenizer(stream, tokenizer)
        documents = 0
        with (work / name).open("wb") as handle:
            for tokens in split_at_bos(stream, tokenizer.bos_id):
                handle.write(hash_document(tokens.tobytes()).to_bytes(8, "little"))
                documents += 1
        counted = _counted_bytes(stream, tokenizer, progress)
        splits[split] = {
            "documents": documents,
            "tokens": stream.num_tokens,
            "raw_bytes": counted if tokenizer.lossless else None,
            "counted_bytes": counted,
            "shards": [_link(path, count, work) for path, count in zip(paths, stream.shard_tokens, strict=True)],
        }
        hashes[split] = {"file": name, "sha256": file_sha256(work / name), "of": "uint16 tokens"}
    _, _, overlap = check_disjoint(work)
    return {
        "tokenizer": {
            "name": tokenizer.name,
            "sha256": tokenizer.sha256,
            "lossless": tokenizer.lossless,
            "vocab_size": tokenizer.vocab_size,
        },
        "accounting": tokenizer.accounting,
        "splits": splits,
        "document_hashes": hashes,
        "disjoint": overlap == 0,
        "overlap": overlap,
        "dropped_duplicates": 0,
        "empty_documents": 0,
        "origin": found.origin,
    }


def split_at_bos(stream: TokenShards, bos_id: int) -> Iterator[np.ndarray]:
    """Documents of `stream` without their BOS, each (tokens,) uint16; what stands before the first BOS is one."""
    held: list[np.ndarray] = []
    for chunk in stream.chunks():
        cuts = np.flatnonzero(chunk == bos_id)
        start = 0
        for cut in cuts.tolist():
            held.append(chunk[start:cut])
            if len(held) > 1 or held[0].size or start:
                yield held[0] if len(held) == 1 else np.concatenate(held)
            held, start = [], cut + 1
        held.append(chunk[start:])
    yield np.concatenate(held)


def check_tokenizer(stream: TokenShards, tokenizer: Tokenizer) -> None:
    """Decode documents spread over `stream` and encode them again; most must give the same tokens.

    Raises DataError when they do not (another tokenizer of the same size), or when there is no BOS at all.
    """
    tried = same = 0
    for number in range(_SAMPLES):
        start = number * (stream.num_tokens // _SAMPLES)
        window = stream.read(start, min(16 * _SAMPLE_TOKENS, stream.num_tokens - start))
        marks = np.flatnonzero(window == tokenizer.bos_id)
        if not len(marks):
            continue
        begin = int(marks[0]) + 1
        end = int(marks[1]) if len(marks) > 1 else len(window)
        tokens = window[begin : min(end, begin + _SAMPLE_TOKENS)]
        if len(tokens) < 2:
            continue
        again = np.array(tokenizer.encode(tokenizer.decode(tokens)), dtype=np.uint16)
        kept = max(len(tokens) - _TAIL, 1)
        tried += 1
        same += bool(np.array_equal(again[:kept], tokens[:kept]))
    if not tried and not any((chunk == tokenizer.bos_id).any() for chunk in stream.chunks()):
        raise DataError(
            f"{stream.paths[0]} and its following shards hold no BOS (id {tokenizer.bos_id}), which marks the start "
            "of every document; they were made with another tokenizer, or without BOS"
        )
    if same < _MATCH * tried:
        raise DataError(
            f"tokenizer {tokenizer.name} does not match the shards beginning with {stream.paths[0]}: of {tried} "
            f"documents decoded and encoded again, {same} gave the same tokens; give the model that made the shards"
        )


def _counted_bytes(stream: TokenShards, tokenizer: Tokenizer, progress: Progress) -> int:
    """Bytes charged to every token of `stream` but the first."""
    total = done = 0
    before = np.empty(0, dtype=np.uint16)
    for chunk in stream.chunks():
        total += int(tokenizer.byte_costs(np.concatenate([before, chunk])).sum(dtype=np.int64))
        before = chunk[-1:]
        done += len(chunk)
        progress("prepare", done, stream.num_tokens, "counting the bytes of the tokens")
    return total


def _link(path: Path, tokens: int, work: Path) -> dict[str, Any]:
    """Link the shard into `work`; its entry of the manifest."""
    target = path.resolve()
    (work / path.name).symlink_to(target)
    return {"file": path.name, "tokens": tokens, "sha256": file_sha256(target), "origin": str(target)}
