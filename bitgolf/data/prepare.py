"""Stage `prepare`: a source becomes a data directory of token shards, tokenizer, document hashes and manifest.

Two passes over the text where a tokenizer is to be trained (the first stops after `tokenizer_bytes` of training
documents: validation text never shapes the tokenizer), one otherwise. Each document is encoded, proven to come
back byte for byte, and appended to its split. All is written into a temporary sibling directory that takes the
final name at the end, so a killed run leaves nothing behind that looks finished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bitgolf.config import DataConfig
from bitgolf.data.encode_stream import encode_batches, make_batches
from bitgolf.data.existing_shards import adopt_shards, local_shards, reject_text_settings
from bitgolf.data.fineweb import fetch_fineweb
from bitgolf.data.prepared import FORMAT, MANIFEST, SPLITS, TOKENIZER, PreparedData, open_data, read_manifest
from bitgolf.data.shards import ShardWriter, file_sha256
from bitgolf.data.sources import iterate_documents, parse_source, source_files
from bitgolf.data.split import (
    TRAIN_HASHES,
    VAL_HASHES,
    Document,
    Splitter,
    check_disjoint,
    number_documents,
)
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.data.train_tokenizer import train_tokenizer
from bitgolf.errors import DataError
from bitgolf.run import atomic
from bitgolf.run.progress import Progress, silent

__all__ = ["PreparedData", "check_disjoint", "open_data", "prepare"]

_HASH_FILES = {"train": TRAIN_HASHES, "val": VAL_HASHES}
_STAGE = "prepare"


def prepare(config: DataConfig, vocab_size: int, out: str | Path, progress: Progress = silent) -> PreparedData:
    """Make the data directory `out` from `config`, or open it when the same settings already made it.

    Args:
        config: section `data` of the configuration.
        vocab_size: pieces of the tokenizer, `model.vocab_size`.
        out: the directory; must not exist, be empty, or hold the result of the same settings.
        progress: called with stage 'prepare', raw bytes done and expected (0 = unknown).

    Raises:
        ConfigError: an unknown source or settings that do not go with it.
        DataError: bad text, tokens or tokenizer, an empty split, a corpus too small for the tokenizer, an
            `out` that holds something else, a full disk.
    """
    root = Path(out)
    settings = _settings(config, vocab_size)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        return _reuse(root, settings)
    kind, argument = parse_source(config.source)
    with _sibling(root) as work:
        if kind in ("shards", "fineweb"):
            reject_text_settings(config)
            found = (
                fetch_fineweb(argument or "sp1024", config.train_shards, progress)
                if kind == "fineweb"
                else local_shards(Path(argument), config, vocab_size)
            )
            body = adopt_shards(found, vocab_size, work, progress)
        else:
            body = _prepare_text(config, vocab_size, work, progress)
        manifest = {
            "format": FORMAT,
            "source": config.source,
            "fingerprint": _digest(settings),
            "settings": settings,
            **body,
        }
        atomic.write_json(work / MANIFEST, manifest)
    return open_data(root)


def _prepare_text(config: DataConfig, vocab_size: int, work: Path, progress: Progress) -> dict[str, Any]:
    """Tokenize a source of text into `work`; the body of the manifest."""
    val_hashes = None
    if config.val_source:
        val_hashes = np.fromiter((d.hash for d in _own_val(config)), dtype=np.uint64)
    tokenizer = _tokenizer(config, vocab_size, val_hashes, progress)
    atomic.write_bytes(work / TOKENIZER, tokenizer.model_bytes)

    splitter = _splitter(config, val_hashes)
    counts = {s: {"documents": 0, "tokens": 0, "raw_bytes": 0, "counted_bytes": 0} for s in SPLITS}
    done, expected = 0, config.train_bytes + config.val_bytes if config.train_bytes and config.val_bytes else 0
    with ExitStack() as stack:
        writers = {s: stack.enter_context(ShardWriter(work, s, config.shard_tokens)) for s in SPLITS}
        hashes: dict[str, BinaryIO] = {
            s: stack.enter_context((work / name).open("wb")) for s, name in _HASH_FILES.items()
        }
        batches = make_batches(_labeled(config, splitter))
        for batch, encoded in encode_batches(batches, tokenizer, config.workers):
            split = batch.split
            writers[split].append(encoded.tokens)
            hashes[split].write(np.array([d.hash for d in batch.documents], dtype="<u8").tobytes())
            count = counts[split]
            count["documents"] += encoded.num_documents
            count["tokens"] += len(encoded.tokens)
            count["raw_bytes"] += encoded.raw_bytes
            count["counted_bytes"] += encoded.counted_bytes
            done += encoded.raw_bytes
            progress(_STAGE, done, expected, f"{counts['train']['documents']:,} training documents")
    for split in SPLITS:
        if not counts[split]["documents"]:
            raise DataError(_empty_split(split, config, counts))
    num_train, num_val, overlap = check_disjoint(work)
    assert (num_train, num_val) == (counts["train"]["documents"], counts["val"]["documents"])
    if overlap:
        raise DataError(f"{overlap} training documents are validation documents too; this is a bug of the split")
    return {
        "tokenizer": {
            "name": tokenizer.name,
            "sha256": tokenizer.sha256,
            "lossless": tokenizer.lossless,
            "vocab_size": tokenizer.vocab_size,
        },
        "accounting": tokenizer.accounting,
        "splits": {s: {**counts[s], "shards": [asdict(info) for info in writers[s].shards]} for s in SPLITS},
        "document_hashes": {
            s: {"file": name, "sha256": file_sha256(work / name), "of": "utf-8 text"} for s, name in _HASH_FILES.items()
        },
        "disjoint": True,
        "overlap": 0,
        "dropped_duplicates": splitter.dropped_duplicates,
        "empty_documents": splitter.empty_documents,
    }


def _own_val(config: DataConfig) -> Iterator[Document]:
    """Documents of the validation source up to `val_bytes`."""
    room = config.val_bytes or float("inf")
    for document in number_documents(iterate_documents(config.val_source)):
        yield document
        room -= document.size
        if room <= 0:
            return


def _splitter(config: DataConfig, val_hashes: np.ndarray | None) -> Splitter:
    if val_hashes is None:
        return Splitter(config.val_fraction, config.val_bytes, config.train_bytes)
    return Splitter(0.0, 0, config.train_bytes, val_hashes)


def _labeled(config: DataConfig, splitter: Splitter) -> Iterator[tuple[str, Document]]:
    """(split, document) for every document that is used."""
    if config.val_source:
        for document in _own_val(config):
            yield "val", document
    for document in number_documents(iterate_documents(config.source), splitter.count_empty):
        if splitter.full:
            return
        if split := splitter.assign(document):
            yield split, document


def _tokenizer(config: DataConfig, vocab_size: int, val_hashes: np.ndarray | None, progress: Progress) -> Tokenizer:
    """Train a tokenizer on the first training documents, or load the one that was given."""
    if config.tokenizer not in ("lossless", "challenge"):
        tokenizer = Tokenizer.load(config.tokenizer)
        if tokenizer.vocab_size != vocab_size:
            raise DataError(
                f"tokenizer {config.tokenizer} has {tokenizer.vocab_size} pieces, model.vocab_size is "
                f"{vocab_size}; set model.vocab_size to {tokenizer.vocab_size}"
            )
        return tokenizer
    progress(_STAGE, 0, 0, f"training a {config.tokenizer} tokenizer of {vocab_size} pieces")
    return train_tokenizer(_tokenizer_text(config, val_hashes), vocab_size, config.tokenizer == "lossless")


def _tokenizer_text(config: DataConfig, val_hashes: np.ndarray | None) -> Iterator[str]:
    splitter = _splitter(config, val_hashes)
    room = config.tokenizer_bytes
    for document in number_documents(iterate_documents(config.source)):
        if room <= 0 or splitter.full:
            return
        if splitter.assign(document) == "train":
            room -= document.size
            yield document.text


def _empty_split(split: str, config: DataConfig, counts: dict[str, dict[str, int]]) -> str:
    total = sum(c["documents"] for c in counts.values())
    if not total:
        return f"source {config.source!r} holds no text"
    if split == "val" and not config.val_source:
        return (
            f"none of the {total} documents of {config.source!r} fell into validation (data.val_fraction "
            f"{config.val_fraction}); raise data.val_fraction, give more documents, or set data.val_source"
        )
    if split == "val":
        return f"the validation source {config.val_source!r} holds no text"
    return (
        f"source {config.source!r} leaves no training documents ({counts['val']['documents']} are validation); "
        "lower data.val_fraction or give more documents"
    )


def _settings(config: DataConfig, vocab_size: int) -> dict[str, Any]:
    """All that decides the result, in JSON; files by name and size."""
    settings = config.model_dump(mode="json", exclude={"workers"})
    settings["vocab_size"] = vocab_size
    if config.tokenizer not in ("lossless", "challenge") and Path(config.tokenizer).is_file():
        settings["tokenizer_sha256"] = file_sha256(config.tokenizer)
    for key in ("source", "val_source"):
        source = getattr(config, key)
        if not source:
            continue
        kind, argument = parse_source(source)
        if kind in ("jsonl", "dir"):
            listing = [(path.name, path.stat().st_size) for path in source_files(source)]
            settings[f"{key}_files"] = _digest(listing)
        elif kind == "shards" and Path(argument).is_dir():
            settings[f"{key}_files"] = _digest(sorted((p.name, p.stat().st_size) for p in Path(argument).glob("*.bin")))
        elif kind == "stdlib":
            settings[f"{key}_files"] = f"python {'.'.join(str(v) for v in sys.version_info[:3])}"
    return settings


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _reuse(root: Path, settings: dict[str, Any]) -> PreparedData:
    """Open `root` if `settings` made it. Raises DataError that names the settings that differ."""
    if not root.is_dir() or not (root / MANIFEST).exists():
        raise DataError(f"{root} exists and is not prepared data; choose another --out, or remove it first")
    stored = read_manifest(root).get("settings")
    if stored == settings:
        return open_data(root)
    old = stored if isinstance(stored, dict) else {}
    differing = [
        f"{k} {old.get(k)!r} (now {settings.get(k)!r})"
        for k in sorted(old.keys() | settings.keys())
        if old.get(k) != settings.get(k)
    ]
    raise DataError(
        f"{root} was prepared with other settings: {'; '.join(differing)}; choose another --out, or remove it first"
    )


@contextmanager
def _sibling(root: Path) -> Iterator[Path]:
    """A temporary directory beside `root` that takes its name when the block succeeds, and goes otherwise.

    Those of processes that were killed are removed first. A full disk becomes a DataError.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    for stale in root.parent.glob(f".{escape(root.name)}.*.partial"):
        if not _alive(stale.name.split(".")[-2]):
            shutil.rmtree(stale)
    work = root.with_name(f".{root.name}.{os.getpid()}.partial")
    try:
        work.mkdir()
        yield work
        work.replace(root)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"the disk is full: preparing {root} failed after {error.strerror}; free some space, or "
            "choose another --out"
        ) from error
    finally:
        if work.exists():
            shutil.rmtree(work)


def _alive(pid: str) -> bool:
    if not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
