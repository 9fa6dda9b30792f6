"""A prepared data directory: token shards of both splits, the tokenizer, document hashes and the manifest.

`manifest.json` is written last and lists every other file with its SHA-256. `open_data` checks sizes, headers and the
tokenizer's digest; `verify=True` also reads every file and compares its SHA-256.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitgolf.data.shards import TokenShards
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import DataError, ForeignError
from bitgolf.foreign import (
    as_bool,
    as_integer,
    as_object,
    as_text,
    conform,
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


def _as_file(value: Any, name: str) -> None:
    """Raise ForeignError unless `value` is the name of a file in the directory itself."""
    file = as_text(value, name)
    if not file or Path(file).name != file:
        raise ForeignError(f"{name}: {printable(file)!r} is not the name of a file in the directory")


def _as_count(value: Any, name: str) -> None:
    as_integer(value, name, 1)


_SPLIT = {
    "shards": [{"file": _as_file, "sha256": as_text, "tokens": _as_count}],
    "documents?": as_integer,
    "raw_bytes?": (as_integer, None),  # unknown for shards of others
    "counted_bytes?": as_integer,
}
_FORM = {  # of the manifest, for `conform`
    "tokenizer": {"name": as_text, "sha256": as_text, "lossless": as_bool},
    "splits": dict.fromkeys(SPLITS, _SPLIT),
    "document_hashes": {"*": {"file": _as_file, "sha256": as_text}},
}


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
    entry = manifest["tokenizer"]
    tokenizer = Tokenizer.load(root / TOKENIZER, entry["lossless"], entry["name"])
    if tokenizer.sha256 != entry["sha256"]:
        raise DataError(
            f"{root / TOKENIZER} is not the tokenizer of this data: its sha256 is {tokenizer.sha256}, "
            f"the manifest says {entry['sha256']}"
        )
    streams = {split: _open_split(root, manifest["splits"][split]["shards"], verify) for split in SPLITS}
    if verify:
        for hashes in manifest["document_hashes"].values():
            _check_digest(root / hashes["file"], hashes["sha256"])
    return PreparedData(root, manifest, tokenizer, streams["train"], streams["val"])


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of `root`. Raises DataError if it is missing, damaged or of a newer version."""
    file = root / MANIFEST
    try:
        manifest = as_object(read_json(file, _MAX_MANIFEST_BYTES), "the manifest")
        version = as_integer(field(manifest, "format"), "format", 1)
        if version <= FORMAT:
            conform(manifest, _FORM, "manifest")
    except FileNotFoundError as error:
        raise DataError(
            f"{root} is not prepared data: it has no {MANIFEST}; make it with `bitgolf prepare SOURCE --out {root}`"
        ) from error
    except ForeignError as error:
        raise DataError(f"{file} is damaged: {error}; prepare the data again, or choose another directory") from error
    if version > FORMAT:
        raise DataError(f"{file} has format {version}, this program reads up to {FORMAT}; update bitgolf")
    return manifest


def _open_split(root: Path, shards: list[dict[str, Any]], verify: bool) -> TokenShards:
    stream = TokenShards([root / shard["file"] for shard in shards])
    for path, tokens, shard in zip(stream.paths, stream.shard_tokens, shards, strict=True):
        if tokens != shard["tokens"]:
            raise DataError(
                f"shard {path} has {tokens:,} tokens, the manifest says {shard['tokens']:,}; prepare the data again"
            )
        if verify:
            _check_digest(path, shard["sha256"])
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
