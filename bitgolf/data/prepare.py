"""Stage `prepare`: a source becomes a data directory of token shards, tokenizer, document hashes and manifest.

Text sources go through `prepare_text`; shards that somebody else wrote are checked and linked by `existing_shards`.
Everything is written into a temporary directory that gets its final name at the end, so a killed run leaves nothing
that looks finished. Preparing again with the same settings opens the directory.
"""

import errno
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from bitgolf.config import DataConfig
from bitgolf.data.existing_shards import adopt_shards, local_shards, reject_text_settings
from bitgolf.data.fineweb import fetch_fineweb
from bitgolf.data.prepare_text import is_new_tokenizer, prepare_text, validation_share
from bitgolf.data.prepared import FORMAT, MANIFEST, PreparedData, open_data, read_manifest
from bitgolf.data.sources import FILE_KINDS, all_sources, parse_source, source_files
from bitgolf.data.split import check_disjoint
from bitgolf.errors import DataError
from bitgolf.run import atomic
from bitgolf.run.lock import locked_directory
from bitgolf.run.progress import Progress, silent
from bitgolf.run.seal import file_digest, sealed

__all__ = ["PreparedData", "check_disjoint", "open_data", "prepare"]


def prepare(config: DataConfig, vocab_size: int, out: str | Path, progress: Progress = silent) -> PreparedData:
    """Make the data directory `out`, or open it if the same settings already made it.

    `out` must not exist, be empty, or hold the result of the same settings. `progress` gets raw bytes done and expected
    (0 = unknown). Raises ConfigError for an unknown source and for settings that do not apply to it; DataError for bad
    text, tokens or tokenizer, an empty split, a corpus too small for the tokenizer, an `out` with other content, and a
    full disk; RunError if another process prepares `out`.
    """
    root = Path(out)
    settings = fingerprint(config, vocab_size)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        return _reuse(root, settings)
    root.parent.mkdir(parents=True, exist_ok=True)
    with locked_directory(root.parent, "prepare", f".{root.name}"):
        if not root.exists() or not any(root.iterdir()):  # another process may have finished it
            _prepare_locked(config, vocab_size, root, settings, progress)
        return _reuse(root, settings)


def _prepare_locked(
    config: DataConfig, vocab_size: int, root: Path, settings: dict[str, Any], progress: Progress
) -> None:
    try:
        with atomic.atomic_directory(root) as work:
            manifest = {
                "format": FORMAT,
                "source": config.source_text,
                "fingerprint": _digest(settings),
                "settings": settings,
                **_write_data(config, vocab_size, work, progress),
            }
            atomic.write_json(work / MANIFEST, sealed(manifest))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"the disk is full: preparing {root} failed ({error.strerror}); free some space, or choose another --out"
        ) from error


def _write_data(config: DataConfig, vocab_size: int, work: Path, progress: Progress) -> dict[str, Any]:
    """Write shards, tokenizer and document hashes into `work`. Returns the manifest's entries about them."""
    kind, argument = parse_source(config.source)
    if config.mix or kind not in ("shards", "fineweb"):
        return prepare_text(config, vocab_size, work, progress)
    reject_text_settings(config)
    if kind == "fineweb":
        shards = fetch_fineweb(argument or "sp1024", config.train_shards, progress)
    else:
        shards = local_shards(Path(argument), config, vocab_size)
    return adopt_shards(shards, vocab_size, work, progress)


def fingerprint(config: DataConfig, vocab_size: int) -> dict[str, Any]:
    """All settings that determine the result, as JSON. Files enter by the SHA-256 of their content."""
    settings = config.model_dump(mode="json", exclude={"workers"})
    settings |= {"val_fraction": validation_share(config), "vocab_size": vocab_size}
    for key, usual in (("mix", []), ("text_field", "text")):  # data of earlier versions does not have them
        if settings[key] == usual:
            del settings[key]
    if not is_new_tokenizer(config) and Path(config.tokenizer).is_file():
        settings["tokenizer_sha256"] = file_digest(Path(config.tokenizer))
    named = {f"mix_{number}": source for number, source in enumerate(all_sources(config)[: len(config.mix)])}
    for key, source in ((named or {"source": config.source}) | {"val_source": config.val_source}).items():
        if not source:
            continue
        kind, argument = parse_source(source)
        if kind in FILE_KINDS:
            settings[f"{key}_files"] = _contents(source_files(source))
        elif kind == "shards" and Path(argument).is_dir():
            settings[f"{key}_files"] = _contents(sorted(Path(argument).glob("*.bin")))
        elif kind == "stdlib":
            settings[f"{key}_files"] = f"python {'.'.join(str(v) for v in sys.version_info[:3])}"
    return settings


def _contents(paths: list[Path]) -> str:
    """SHA-256 over the names and contents of files, so that a file edited in place counts as another source."""
    try:
        return _digest([(path.name, file_digest(path)) for path in paths])
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _reuse(root: Path, settings: dict[str, Any]) -> PreparedData:
    """Open `root` if `settings` made it. Raises DataError with the settings that differ."""
    if not root.is_dir() or not (root / MANIFEST).exists():
        raise DataError(f"{root} exists and is not prepared data; choose another --out, or remove it first")
    stored = read_manifest(root).get("settings")
    if stored == settings:
        return open_data(root)
    earlier = stored if isinstance(stored, dict) else {}
    differing = [
        f"{k} {earlier.get(k)!r} (now {settings.get(k)!r})"
        for k in sorted(earlier.keys() | settings.keys())
        if earlier.get(k) != settings.get(k)
    ]
    raise DataError(
        f"{root} was prepared with other settings: {'; '.join(differing)}; choose another --out, or remove it first"
    )
