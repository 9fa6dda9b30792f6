"""Seals: SHA-256 digests that are recorded when something is made, so that a later change can be named.

Every record of a run ends with a `seal`, the digest of its content and of the seal before it:

    manifest.json  names the digests of the tokenizer, of every shard and of both lists of documents
    train.jsonl    one seal per line; the first line names the data's seal, the settings and the code, the last one the
                   digests of weights and statistics
    artifact       its header has the digest of the weights and statistics that it was made from; so the same training
                   gives the same bytes again
    pack.json      after train.jsonl; the settings, the code, the digest of the artifact
    score.json     after pack.json; the settings, the code, the data's seal, the digests of the losses of every pass

The audit recomputes all of them (`audit.seals`). Seals show that one thing was changed after another was made. They
cannot show that a whole run was invented consistently: see docs/auditing.md.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitgolf.config import Config
from bitgolf.errors import ForeignError
from bitgolf.foreign import as_object, as_text, field, parse_json, read_json

# The settings that each stage seals, by the beginning of their dotted key.
TRAIN_SETTINGS = ("name", "seed", "data.", "model.", "train.", "qat.", "budget.train_seconds")
PACK_SETTINGS = ("pack.", "budget.artifact_bytes")
SCORE_SETTINGS = (
    "score.methods", "score.stride", "score.batch_tokens", "score.canonical", "ttt.", "budget.eval_seconds"
)  # fmt: skip


# The files that train.jsonl seals in its last line and that `pack` reads.
TRAIN_PRODUCTS = ("weights.safetensors", "weights-last.safetensors", "calibration/*")


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, hexadecimal. Key order and white space make no difference."""
    stored = json.loads(json.dumps(value))  # as it is read again: tuples become lists, keys become text
    text = json.dumps(stored, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def file_digests(folder: Path, *patterns: str) -> dict[str, str]:
    """Digests of the files of `folder` that match a pattern, by their path in it."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}


def seal_of(record: Mapping[str, Any], before: str = "") -> str:
    """The seal of a record after the seal `before`, whatever seal it has already."""
    return digest([before, {**record, "seal": ""}])


def sealed(record: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    return {**record, "seal": seal_of(record, before)}


def settings_of(config: Config, prefixes: tuple[str, ...]) -> dict[str, Any]:
    """The settings that begin with one of `prefixes`, by dotted key."""
    return {key: value for key, value in config.flat().items() if key.startswith(prefixes)}


def data_seal(folder: Path) -> str:
    """The seal of a prepared data directory: that of its manifest as it is now."""
    return seal_of(as_object(read_json(folder / "manifest.json"), "manifest.json"))


def record_seal(path: Path) -> str:
    """The seal that a record has; "" without a record, without a seal, and for a damaged record."""
    return _seal_in(path.read_bytes()) if path.is_file() else ""


def last_seal(train_log: Path) -> str:
    """The seal of the last line of a train.jsonl; "" when there is none, or the line is damaged."""
    lines = train_log.read_bytes().splitlines() if train_log.is_file() else []
    return _seal_in(lines[-1]) if lines else ""


def _seal_in(record: bytes) -> str:
    try:
        return as_text(field(as_object(parse_json(record), "record"), "seal"), "seal")
    except ForeignError:
        return ""


@functools.lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 of the program: all modules of the package, or the single file that holds them (see `bundle`)."""
    here = Path(__file__).resolve()
    single_file = next((path for path in here.parents if path.is_file()), None)
    return digest(file_digests(here.parents[1], "**/*.py") if single_file is None else file_digest(single_file))
