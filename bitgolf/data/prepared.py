"""A prepared data directory: token shards of both splits, the tokenizer, document hashes and the manifest.

`manifest.json` is written last and lists every other file with its SHA-256. `open_data` checks sizes, headers and the
tokenizer's digest; `verify=True` also reads every file and compares its SHA-256.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitgolf.data.shards import TokenShards, file_sha256
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import DataError

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
FORMAT = 1
SPLITS = ("train", "val")


@dataclass(frozen=True)
class PreparedData:
    """An open data directory. `train` and `val` are read-only token streams; `manifest` is the parsed manifest.json."""

    path: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    train: TokenShards
    val: TokenShards

    def val_bytes(self, tokens: np.ndarray) -> np.ndarray:
        """Bytes charged to the targets `tokens[1:]`; (N-1,) int32 (see `Tokenizer.byte_costs`)."""
        return self.tokenizer.byte_costs(tokens)


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """The manifest's entries about the tokenizer."""
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
        entry = manifest["tokenizer"]
        shards = {
            split: [(str(s["file"]), int(s["tokens"]), str(s["sha256"])) for s in manifest["splits"][split]["shards"]]
            for split in SPLITS
        }
        digest, lossless, name = str(entry["sha256"]), bool(entry["lossless"]), str(entry["name"])
        hashes = {str(h["file"]): str(h["sha256"]) for h in manifest["document_hashes"].values()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{root / MANIFEST} is damaged: {type(error).__name__} {error}; prepare the data again"
        ) from error
    tokenizer = Tokenizer.load(root / TOKENIZER, lossless, name)
    if tokenizer.sha256 != digest:
        raise DataError(
            f"{root / TOKENIZER} is not the tokenizer of this data: its sha256 is {tokenizer.sha256}, "
            f"the manifest says {digest}"
        )
    streams = {split: _open_split(root, shards[split], verify) for split in SPLITS}
    if verify:
        for file, sha256 in hashes.items():
            _check_digest(root / file, sha256)
    return PreparedData(root, manifest, tokenizer, streams["train"], streams["val"])


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of `root`. Raises DataError if it is missing, damaged or of a newer version."""
    file = root / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{root} is not prepared data: it has no {MANIFEST}; make it with `bitgolf prepare SOURCE --out {root}`"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is damaged: {error}; prepare the data again") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise DataError(f"{file} is not a manifest of prepared data; choose another directory")
    if manifest["format"] > FORMAT:
        raise DataError(f"{file} has format {manifest['format']}, this program reads up to {FORMAT}; update bitgolf")
    return manifest


def _open_split(root: Path, shards: list[tuple[str, int, str]], verify: bool) -> TokenShards:
    stream = TokenShards([root / file for file, _, _ in shards])
    for path, tokens, (_, expected, sha256) in zip(stream.paths, stream.shard_tokens, shards, strict=True):
        if tokens != expected:
            raise DataError(
                f"shard {path} has {tokens:,} tokens, the manifest says {expected:,}; prepare the data again"
            )
        if verify:
            _check_digest(path, sha256)
    return stream


def _check_digest(path: Path, expected: str) -> None:
    sha256 = file_sha256(path)
    if sha256 != expected:
        raise DataError(
            f"{path} is damaged: its sha256 is {sha256}, the manifest says {expected}; prepare the data again"
        )
