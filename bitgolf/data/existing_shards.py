"""Token shards that somebody else wrote (`shards:PATH`, `fineweb`): checks them and links them into a data directory.

The data directory gets symbolic links to the shards, a copy of the tokenizer, and a manifest. The documents in it are
counted by their BOS, the bytes by the tokenizer's accounting. The original text is unknown, so `raw_bytes` is known
only for lossless tokenizers, and documents are hashed by their tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitgolf.config import DataConfig
from bitgolf.data.prepared import SPLITS, TOKENIZER, describe_tokenizer
from bitgolf.data.shards import TokenShards
from bitgolf.data.split import TRAIN_HASHES, VAL_HASHES, check_disjoint, hash_document
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.data.train_tokenizer import NEW_TOKENIZERS
from bitgolf.errors import ConfigError, DataError
from bitgolf.run import atomic
from bitgolf.run.progress import Progress
from bitgolf.run.seal import file_digest

_SAMPLES = 32  # number of documents of a split that test the tokenizer
_SAMPLE_TOKENS = 4_096  # largest number of tokens of a sample
_TAIL = 32  # last tokens of a sample, not compared because the cut may change them
_MATCH = 0.5  # share of samples that must give the same tokens; some normalizations are not idempotent


@dataclass(frozen=True)
class ExistingShards:
    """Shards of both splits and the tokenizer that made them. `origin` is an entry of the manifest."""

    train: list[Path]
    val: list[Path]
    tokenizer: Tokenizer
    origin: dict[str, Any]


def reject_text_settings(config: DataConfig) -> None:
    """Raise ConfigError for settings that need the text of the shards."""
    for key in ("val_source", "val_bytes", "train_bytes"):
        if value := getattr(config, key):
            raise ConfigError(
                f"data.{key} = {value!r} does not apply to data.source {config.source!r}, because shards are used "
                f"unchanged; leave data.{key} out (data.train_shards limits the training shards)"
            )


def local_shards(directory: Path, config: DataConfig, vocab_size: int) -> ExistingShards:
    """The shards of `directory` and their tokenizer.

    The tokenizer is `data.tokenizer` if that is a path. Otherwise it is the model in the directory, in its
    `tokenizers/`, or in `tokenizers/` of the one or two directories above (the challenge's layout).

    Raises DataError if shards or tokenizer are missing, or if more than one tokenizer fits.
    """
    if not directory.is_dir():
        raise DataError(f"{directory} is not a directory of shards")
    sidecars = sorted(p.name for p in directory.glob("*_bytes_*.bin"))
    if sidecars:
        raise DataError(
            f"{directory} has byte sidecars ({sidecars[0]}): its text was transformed before tokenization, so the "
            "tokenizer cannot give the bytes of the tokens; such shards are not supported"
        )
    train, val = (TokenShards.open(directory, split).paths for split in SPLITS)
    tokenizer = _local_tokenizer(directory, config, vocab_size)
    origin = {"directory": str(directory.resolve())}
    return ExistingShards(train[: config.train_shards or None], val, tokenizer, origin)


def _local_tokenizer(directory: Path, config: DataConfig, vocab_size: int) -> Tokenizer:
    if config.tokenizer not in NEW_TOKENIZERS:
        return Tokenizer.load(config.tokenizer)
    home = directory.resolve()
    places = [home, home / "tokenizers", home.parent / "tokenizers", home.parent.parent / "tokenizers"]
    models = [path for place in places for path in sorted(place.glob("*.model"))]
    if len(models) > 1:
        models = [path for path in models if Tokenizer.load(path).vocab_size == vocab_size]
    if len(models) != 1:
        what = "no tokenizer" if not models else "several: " + ", ".join(str(path) for path in models)
        raise DataError(
            f"the tokenizer of the shards in {directory} is not clear: found {what}. Put the one *.model of "
            f"{vocab_size} pieces that made them beside the shards, or set data.tokenizer to its path"
        )
    return Tokenizer.load(models[0])


def adopt_shards(shards: ExistingShards, vocab_size: int, work: Path, progress: Progress) -> dict[str, Any]:
    """Check `shards` and link them into `work`. Returns the manifest's entries about them.

    Raises DataError if a shard is damaged or contains ids beyond the vocabulary or no BOS, or if the tokenizer has
    another size or does not encode decoded sample documents to the same tokens.
    """
    tokenizer = shards.tokenizer
    if tokenizer.vocab_size != vocab_size:
        raise DataError(
            f"the tokenizer {tokenizer.name} of the shards has {tokenizer.vocab_size} pieces, but model.vocab_size is "
            f"{vocab_size}; set model.vocab_size to {tokenizer.vocab_size}"
        )
    atomic.write_bytes(work / TOKENIZER, tokenizer.model_bytes)
    splits: dict[str, Any] = {}
    hashes: dict[str, Any] = {}
    for split, paths, name in (("train", shards.train, TRAIN_HASHES), ("val", shards.val, VAL_HASHES)):
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
        hashes[split] = {"file": name, "sha256": file_digest(work / name), "of": "uint16 tokens"}
    _, _, overlap = check_disjoint(work)
    return {
        **describe_tokenizer(tokenizer),
        "splits": splits,
        "document_hashes": hashes,
        "disjoint": overlap == 0,
        "overlap": overlap,
        "dropped_duplicates": 0,
        "empty_documents": 0,
        "origin": shards.origin,
    }


def split_at_bos(stream: TokenShards, bos_id: int) -> Iterator[np.ndarray]:
    """Documents of `stream` without their BOS, each (tokens,) uint16. Tokens before the first BOS are a document."""
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
    """Decode sample documents of `stream` and encode them again; most must give the same tokens.

    Raises DataError if they do not (another tokenizer of the same size), or if the stream contains no BOS.
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
            f"{stream.paths[0]} and the shards after it contain no BOS (id {tokenizer.bos_id}), which marks the start "
            "of every document; they were made with another tokenizer, or without BOS"
        )
    if same < _MATCH * tried:
        raise DataError(
            f"tokenizer {tokenizer.name} does not match the shards that begin with {stream.paths[0]}: {same} of "
            f"{tried} documents gave the same tokens after decoding and encoding; use the model that made the shards"
        )


def _counted_bytes(stream: TokenShards, tokenizer: Tokenizer, progress: Progress) -> int:
    """Bytes charged to all tokens of `stream` except the first."""
    total = done = 0
    before = np.empty(0, dtype=np.uint16)
    for chunk in stream.chunks():
        total += int(tokenizer.byte_costs(np.concatenate([before, chunk])).sum(dtype=np.int64))
        before = chunk[-1:]
        done += len(chunk)
        progress("prepare", done, stream.num_tokens, "counting the bytes of the tokens")
    return total


def _link(path: Path, tokens: int, work: Path) -> dict[str, Any]:
    """Link the shard into `work`. Returns its entry in the manifest."""
    target = path.resolve()
    (work / path.name).symlink_to(target)
    return {"file": path.name, "tokens": tokens, "sha256": file_digest(target), "origin": str(target)}
