"""Downloads from the challenge's repository on the Hugging Face hub, verified and cached.

Files go to the hub's cache (HF_HOME), which all runs share; HF_ENDPOINT is the address of the hub. After a lost
connection the download continues, and after a kill complete files are kept. Every file is compared with the hash that
the hub announced (the name of its blob in the cache), and with the hash in a manifest if there is one.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitgolf.errors import DataError
from bitgolf.run.seal import file_digest

REPOSITORY = "willdepueoai/parameter-golf"
FOLDER = "datasets"  # folder of the repository that contains all files


class Hub:
    """Downloads of the repository. All files come from one commit: that of the first download."""

    def __init__(
        self,
        endpoint: str | None = None,  # address of the hub; None = HF_ENDPOINT or huggingface.co
        cache: Path | None = None,  # None = the hub's default
    ) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import errors
        except ImportError as error:
            raise DataError(
                "the sources fineweb and fineweb-docs need the package huggingface_hub: pip install 'bitgolf[hub]', or "
                "download the files yourself and use shards:PATH or jsonl:PATH"
            ) from error
        self._hub: Any = huggingface_hub
        # The base class of transport errors (requests, httpx, ...) depends on the version of huggingface_hub.
        self._failures: tuple[type[BaseException], ...] = (OSError, *errors.HfHubHTTPError.__bases__)
        self._endpoint, self._cache = endpoint or os.environ.get("HF_ENDPOINT") or None, cache
        self.revision = "main"

    def fetch(self, file: str, digest: str | None = None) -> Path:
        """Download `file` if it is not in the cache, verify it, and return its path.

        Raises DataError if the hub cannot be reached, has no such file, or the file does not have the announced hash or
        the SHA-256 `digest`.
        """
        try:
            with self._quiet():
                where = {"repo_type": "dataset", "revision": self.revision, "endpoint": self._endpoint}
                path = Path(self._hub.hf_hub_download(REPOSITORY, file, **where, cache_dir=self._cache))
        except self._failures as error:
            raise self.failure(file, error) from error
        if self.revision == "main":
            self.revision = _snapshot(path)
        _verify(path, file, self._announced(path, file), digest)
        return path

    def url(self, file: str) -> str:
        return str(
            self._hub.hf_hub_url(REPOSITORY, file, repo_type="dataset", revision=self.revision, endpoint=self._endpoint)
        )

    def size(self, file: str, sha256: str) -> int:
        """The size of `file` in bytes. Raises DataError if the hub announces another SHA-256 than `sha256`."""
        try:
            metadata = self._hub.get_hf_file_metadata(self.url(file))
        except self._failures as error:
            raise self.failure(file, error) from error
        etag = str(metadata.etag)
        if re.fullmatch(r"[0-9a-f]{64}", etag) and etag != sha256:
            raise DataError(f"the hub announces the hash {etag} for {file}, the manifest of {REPOSITORY} says {sha256}")
        if not isinstance(metadata.size, int):
            raise DataError(f"the hub does not announce the size of {file}")
        return metadata.size

    def failure(self, file: str, error: BaseException) -> DataError:
        where = self._endpoint or self._hub.constants.ENDPOINT
        reason = " ".join(str(error).split()).rstrip(".") + "."
        return DataError(
            f"cannot download {file} of {REPOSITORY} from {where}: {type(error).__name__}: {reason} What is complete "
            "is kept: run the same command again to continue, set HF_ENDPOINT to a mirror, or use another source"
        )

    @property
    def cache_folder(self) -> Path:
        """A folder for files of bitgolf beside the cache of the hub."""
        return (self._cache or Path(self._hub.constants.HF_HUB_CACHE)) / "bitgolf"

    def _announced(self, path: Path, file: str) -> str:
        """The hash that the hub announced for `file`.

        It is the name of the blob that the cache entry links to. Without links, the hub is asked again.
        """
        if path.is_symlink():
            return path.readlink().name
        return str(self._hub.get_hf_file_metadata(self.url(file)).etag)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Switch off the progress bars of huggingface_hub, because the library never prints."""
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

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
    actual = {64: file_digest(path), 40: _git_sha1(path)}
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
