"""A prepared data directory: token shards of both splits, the tokenizer, document hashes and the manifest.

`manifest.json` is written last and lists every other file with its SHA-256. `open_data` checks sizes, headers and the
tokenizer's digest; `verify=True` also reads every file and compares its SHA-256.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitgolf.data.shards import TokenShards
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import DataError, ForeignError
from bitgolf.foreign import (
    as_bool,
    as_integer,
    as_list,
    as_object,
    as_text,
    field,
    printable,
    read_json,
    require_regular,
)
from bitgolf.run.seal import file_digest

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
FORMAT = 1
SPLITS = ("train", "val")
_MAX_MANIFEST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class PreparedData:
    """An open data directory. `train` and `val` are read-only token streams; `manifest` is the parsed manifest.json."""

    path: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    train: TokenShards
    val: TokenShards


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "tokenizer": {
            "name": tokenizer.name,
            "sha256": tokenizer.sha256,
            "lossless": tokenizer.lossless,
            "vocab_size": tokenizer.vocab_size,
        },
        "accounting": tokenizer.accounting,
    }


def open_data(path: str | Path, verify: bool = False) -> PreparedData:
    """Open a prepared directory. With `verify`, every file is read and its SHA-256 compared.

    Raises DataError if the directory is not a prepared one or was made by a newer version, or if a file is missing,
    damaged or not the one in the manifest.
    """
    root = Path(path)
    manifest = read_manifest(root)
    try:
        entry = as_object(field(manifest, "tokenizer"), "tokenizer")
        digest, name = (as_text(field(entry, key), key) for key in ("sha256", "name"))
        lossless = as_bool(field(entry, "lossless"), "lossless")
        splits = as_object(field(manifest, "splits"), "splits")
        shards = {split: _shard_list(as_object(field(splits, split), split)) for split in SPLITS}
        hash_files = as_object(field(manifest, "document_hashes"), "document_hashes")
        hashes = [_named_digest(as_object(value, split)) for split, value in hash_files.items()]
    except ForeignError as error:
        raise DataError(f"{root / MANIFEST} is damaged: {error}; prepare the data again") from error
    tokenizer = Tokenizer.load(root / TOKENIZER, lossless, name)
    if tokenizer.sha256 != digest:
        raise DataError(
            f"{root / TOKENIZER} is not the tokenizer of this data: its sha256 is {tokenizer.sha256}, "
            f"the manifest says {digest}"
        )
    streams = {split: _open_split(root, shards[split], verify) for split in SPLITS}
    if verify:
        for file, sha256 in hashes:
            _check_digest(root / file, sha256)
    return PreparedData(root, manifest, tokenizer, streams["train"], streams["val"])


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of `root`. Raises DataError if it is missing, damaged or of a newer version."""
    file = root / MANIFEST
    try:
        manifest = as_object(read_json(file, _MAX_MANIFEST_BYTES), "the manifest")
        version = as_integer(field(manifest, "format"), "format", 1)
    except FileNotFoundError as error:
        raise DataError(
            f"{root} is not prepared data: it has no {MANIFEST}; make it with `bitgolf prepare SOURCE --out {root}`"
        ) from error
    except ForeignError as error:
        raise DataError(f"{file} is damaged: {error}; prepare the data again, or choose another directory") from error
    if version > FORMAT:
        raise DataError(f"{file} has format {version}, this program reads up to {FORMAT}; update bitgolf")
    return manifest


def _shard_list(split: dict[str, Any]) -> list[tuple[str, str, int]]:
    """(file, SHA-256, tokens) of every shard of a split."""
    entries = [as_object(shard, "a shard") for shard in as_list(field(split, "shards"), "shards")]
    return [(*_named_digest(shard), as_integer(field(shard, "tokens"), "tokens", 1)) for shard in entries]


def _named_digest(entry: dict[str, Any]) -> tuple[str, str]:
    """(file, SHA-256) of an entry. The file must lie in the directory itself."""
    file = as_text(field(entry, "file"), "file")
    if not file or Path(file).name != file:
        raise ForeignError(f"{printable(file)!r} is not the name of a file in the directory")
    return file, as_text(field(entry, "sha256"), "sha256")


def _open_split(root: Path, shards: list[tuple[str, str, int]], verify: bool) -> TokenShards:
    stream = TokenShards([root / file for file, _, _ in shards])
    for path, tokens, (_, sha256, expected) in zip(stream.paths, stream.shard_tokens, shards, strict=True):
        if tokens != expected:
            raise DataError(
                f"shard {path} has {tokens:,} tokens, the manifest says {expected:,}; prepare the data again"
            )
        if verify:
            _check_digest(path, sha256)
    return stream


def _check_digest(path: Path, expected: str) -> None:
    try:
        require_regular(path)
        sha256 = file_digest(path)
    except (OSError, ForeignError) as error:
        reason = getattr(error, "strerror", "") or error
        raise DataError(f"{path} cannot be read: {reason}; prepare the data again") from error
    if sha256 != expected:
        raise DataError(
            f"{path} is damaged: its sha256 is {sha256}, the manifest says {expected}; prepare the data again"
        )
