"""A prepared data directory, opened: token shards of both splits, the tokenizer, the manifest.

The manifest (`manifest.json`) is written last and names every other file with its size and SHA-256; opening
checks what is cheap (sizes, headers, the tokenizer's digest), `verify=True` reads and checks everything.
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
    """What `prepare` made. `train` and `val` are read-only streams; `manifest` is the parsed manifest.json."""

    path: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    train: TokenShards
    val: TokenShards

    def val_bytes(self, tokens: np.ndarray) -> np.ndarray:
        """Bytes charged to the targets `tokens[1:]`; (N-1,) int32 (see `Tokenizer.byte_costs`)."""
        return self.tokenizer.byte_costs(tokens)


def open_data(path: str | Path, verify: bool = False) -> PreparedData:
    """Open a prepared directory. `verify` also reads every file and compares its SHA-256.

    Raises DataError when the directory is not a prepared one, was made by a newer version, or a file is
    missing, damaged or not the one that the manifest names.
    """
    root = Path(path)
    manifest = read_manifest(root)
    try:
        about = manifest["tokenizer"]
        expected = {
            split: [(str(s["file"]), int(s["tokens"]), str(s["sha256"])) for s in manifest["splits"][split]["shards"]]
            for split in SPLITS
        }
        digest, lossless, name = str(about["sha256"]), bool(about["lossless"]), str(about["name"])
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
    streams = {split: _open_split(root, expected[split], verify) for split in SPLITS}
    if verify:
        for file, wanted in hashes.items():
            _check_digest(root / file, wanted)
    return PreparedData(root, manifest, tokenizer, streams["train"], streams["val"])


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of `root`. Raises DataError when there is none, or it cannot be read."""
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
    for path, tokens, (_, wanted, digest) in zip(stream.paths, stream.shard_tokens, shards, strict=True):
        if tokens != wanted:
            raise DataError(
                f"shard {path} holds {tokens:,} tokens, the manifest says {wanted:,}; prepare the data again"
            )
        if verify:
            _check_digest(path, digest)
    return stream


def _check_digest(path: Path, wanted: str) -> None:
    found = file_sha256(path)
    if found != wanted:
        raise DataError(f"{path} is damaged: its sha256 is {found}, the manifest says {wanted}; prepare the data again")
