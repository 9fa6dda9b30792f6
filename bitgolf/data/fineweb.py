"""The source `fineweb[:VARIANT]`: the challenge's published shards, from the Hugging Face hub.

The repository's manifest gives the number of shards of a variant and its tokenizer. Files go to the hub's cache
(HF_HOME), which all runs share; HF_ENDPOINT is the address of the hub. After a lost connection the download continues,
and after a kill complete files are kept. Every file is compared with the hash that the hub announced (the name of its
blob in the cache), and with the hash in the manifest if there is one.
Source of the layout: data/cached_challenge_fineweb.py of openai/parameter-golf.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitgolf.data.existing_shards import ExistingShards
from bitgolf.data.shards import file_sha256, read_header
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import DataError
from bitgolf.run.progress import Progress, silent

REPOSITORY = "willdepueoai/parameter-golf"
_ROOT = "datasets"  # folder of the repository that holds manifest.json, datasets/ and tokenizers/


def fetch_fineweb(
    variant: str,
    train_shards: int = 0,
    progress: Progress = silent,
    *,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> ExistingShards:
    """Download the shards of `variant`, for example 'sp1024', unless they are in the cache.

    Args:
        train_shards: number of training shards; 0 = all. All validation shards are downloaded.
        progress: called with files done and all files.
        endpoint: address of the hub; None = HF_ENDPOINT or huggingface.co.
        cache: the download cache; None = the hub's default.

    Raises:
        DataError: huggingface_hub is not installed, the hub cannot be reached, the variant or the number of
            shards does not exist, or a file does not have the hash that the hub announced.
    """
    hub = _Hub(endpoint, cache)
    manifest_path = hub.fetch(f"{_ROOT}/manifest.json", "main")
    hub.revision = _snapshot(manifest_path)
    name = f"fineweb10B_{variant}"
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        datasets = {entry["name"]: entry for entry in manifest["datasets"]}
        if name not in datasets:
            variants = ", ".join(sorted(key.removeprefix("fineweb10B_") for key in datasets))
            raise DataError(f"{REPOSITORY} has no variant {variant!r}; published variants: {variants}")
        entry = datasets[name]
        num_train, num_val = int(entry["stats"]["files_train"]), int(entry["stats"]["files_val"])
        models = {t["name"]: t.get("model_path") for t in manifest["tokenizers"]}
        model = models[entry["tokenizer_name"]]
        digests = _digests(entry)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"the manifest of {REPOSITORY} has an unknown form ({type(error).__name__}: {error})"
        ) from error
    if not model:
        raise DataError(
            f"variant {variant!r} has no SentencePiece tokenizer; choose a variant whose name begins with sp"
        )
    if train_shards > num_train:
        raise DataError(f"data.train_shards is {train_shards}; {REPOSITORY} has {num_train} for {variant!r}")

    folder = f"{_ROOT}/datasets/{name}"
    files = [f"{folder}/fineweb_val_{i:06d}.bin" for i in range(num_val)]
    files += [f"{folder}/fineweb_train_{i:06d}.bin" for i in range(train_shards or num_train)]
    paths = []
    for number, file in enumerate(files):
        progress("prepare", number, len(files) + 1, f"downloading {Path(file).name}")
        path = hub.fetch(file, hub.revision, digests.get(Path(file).name))
        read_header(path)
        paths.append(path)
    tokenizer = Tokenizer.load(hub.fetch(f"{_ROOT}/{model}", hub.revision))
    progress("prepare", len(files) + 1, len(files) + 1, "all files downloaded")
    origin = {"repository": REPOSITORY, "revision": hub.revision, "variant": variant}
    return ExistingShards(paths[num_val:], paths[:num_val], tokenizer, origin)


def _digests(entry: dict[str, Any]) -> dict[str, str]:
    """File name -> SHA-256, if the manifest lists them (`files: [{path, sha256}]`)."""
    files = entry.get("files") or []
    return {Path(str(f["path"])).name: str(f["sha256"]) for f in files if isinstance(f, dict) and f.get("sha256")}


class _Hub:
    """Downloads of one repository. Each file is compared with the hash that the hub announced."""

    def __init__(self, endpoint: str | None, cache: Path | None) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import errors
        except ImportError as error:
            raise DataError(
                "the source fineweb needs the package huggingface_hub: pip install 'bitgolf[hub]', or download the "
                "shards yourself and use shards:PATH"
            ) from error
        self._hub: Any = huggingface_hub
        # The base class of transport errors (requests, httpx, ...) depends on the version of huggingface_hub.
        self._failures: tuple[type[BaseException], ...] = (OSError, *errors.HfHubHTTPError.__bases__)
        self._endpoint, self._cache = endpoint, cache
        self.revision = "main"

    def fetch(self, file: str, revision: str, digest: str | None = None) -> Path:
        """Download `file` if it is not in the cache, verify it, and return its path."""
        try:
            with self._quiet():
                path = Path(
                    self._hub.hf_hub_download(
                        REPOSITORY,
                        file,
                        repo_type="dataset",
                        revision=revision,
                        endpoint=self._endpoint,
                        cache_dir=self._cache,
                    )
                )
        except self._failures as error:
            where = self._endpoint or self._hub.constants.ENDPOINT
            reason = " ".join(str(error).split()).rstrip(".") + "."
            raise DataError(
                f"cannot download {file} of {REPOSITORY} from {where}: {type(error).__name__}: {reason} "
                "Complete files are kept: run the same command again to continue, set HF_ENDPOINT to a mirror, or "
                "use shards:PATH"
            ) from error
        _verify(path, file, self._announced(path, file, revision), digest)
        return path

    def _announced(self, path: Path, file: str, revision: str) -> str:
        """The hash that the hub announced for `file`.

        It is the name of the blob that the cache entry links to. Without links, the hub is asked again.
        """
        if path.is_symlink():
            return path.readlink().name
        url = self._hub.hf_hub_url(REPOSITORY, file, repo_type="dataset", revision=revision, endpoint=self._endpoint)
        return str(self._hub.get_hf_file_metadata(url).etag)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Switch off the progress bars of huggingface_hub, because the library never prints."""
        from huggingface_hub.utils import (
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )

        if are_progress_bars_disabled():
            yield
            return
        disable_progress_bars()
        try:
            yield
        finally:
            enable_progress_bars()


def _snapshot(path: Path) -> str:
    """The commit of a file in the cache: .../snapshots/<commit>/<path in the repository>."""
    parts = path.parts
    return parts[len(parts) - 1 - parts[::-1].index("snapshots") + 1] if "snapshots" in parts else "main"


def _verify(path: Path, file: str, announced: str, digest: str | None) -> None:
    """Compare a cached file with the hash in the manifest, if any, and with the hash that the hub announced.

    The hub announces a SHA-256 for large files and the SHA-1 of a git blob for others. A damaged file is removed, so
    that the next run downloads it again.
    """
    checks = [("manifest", digest)] if digest else []
    if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", announced):
        checks.append(("hub", announced))
    if not checks:
        raise DataError(f"the hub gave no checksum for {file} (ETag {announced!r}), so it cannot be verified")
    actual = {64: file_sha256(path), 40: _git_sha1(path)}
    for origin, expected in checks:
        if actual[len(expected)] != expected:
            for link in _links(path):
                link.unlink(missing_ok=True)
            raise DataError(
                f"{file} is damaged: its hash is {actual[len(expected)]}, the {origin} says {expected}. It was "
                "removed; run the same command to download it again"
            )


def _git_sha1(path: Path) -> str:
    """The hash of a file as a git blob, or '' for files above 64 MB, which the hub identifies by SHA-256."""
    if path.stat().st_size > 64 * 1024 * 1024:
        return ""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _links(path: Path) -> list[Path]:
    """`path` and every path in its chain of links."""
    chain = [path]
    while chain[-1].is_symlink():
        chain.append(chain[-1].parent / chain[-1].readlink())
    return chain
