"""The source `fineweb-docs`: the documents that the challenge's shards were made from, for any tokenizer.

The repository has them as one file of JSON lines, docs_selected.jsonl (48 GB), and a manifest with its SHA-256. The
first 50,000 documents are the validation split; training documents follow. The file is downloaded only as far as it is
read. The part that was downloaded stays in the cache, so a second pass reads the disk, and after a lost connection or a
kill the download continues where it stopped. The SHA-256 can be compared only when the whole file has been read. Source
of the layout and of the split: data/README.md of openai/parameter-golf.
"""

from __future__ import annotations

import http.client
import itertools
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from io import BufferedReader, RawIOBase
from typing import Any

from bitgolf.data.hub import FOLDER, REPOSITORY, Hub
from bitgolf.data.text_files import read_lines, text_of_json_line
from bitgolf.errors import DataError, ForeignError
from bitgolf.foreign import as_object, as_text, field, read_json
from bitgolf.run.lock import locked_directory
from bitgolf.run.seal import file_digest

VALIDATION_DOCUMENTS = 50_000  # docs_val of the published manifest
FILE = f"{FOLDER}/docs_selected.jsonl"
_MANIFEST = f"{FOLDER}/docs_selected.source_manifest.json"
_BLOCK = 1 << 20  # bytes read at a time
_ATTEMPTS = 5  # connections in a row that bring no byte
_PAUSE_SECONDS = 2.0
_TIMEOUT_SECONDS = 60.0


class FinewebDocs:
    """The published documents. It is a context manager, which holds the lock of the cached part of the file.

    Attributes:
        origin: entry of the data manifest: repository, commit, SHA-256 of the whole file, and whether it was compared.
    """

    def __init__(self, hub: Hub | None = None) -> None:
        """Download the manifest. Raises DataError as `Hub.fetch`, or if the manifest has an unknown form."""
        hub = hub or Hub()
        try:
            record = as_object(read_json(hub.fetch(_MANIFEST)), "the manifest")
            sha256 = as_text(field(record, "docs_sha256"), "docs_sha256")
            if not re.fullmatch("[0-9a-f]{64}", sha256):
                raise ForeignError("docs_sha256 is not a SHA-256")
        except ForeignError as error:
            raise DataError(f"{_MANIFEST} of {REPOSITORY} has an unknown form: {error}") from error
        self._file = _CachedFile(hub, sha256)
        self._stack = ExitStack()
        self._origin = {"repository": REPOSITORY, "revision": hub.revision, "file": FILE, "docs_sha256": sha256}

    @property
    def origin(self) -> dict[str, Any]:
        return {**self._origin, "compared": self._file.compared}

    def __enter__(self) -> FinewebDocs:
        folder = self._file.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(locked_directory(folder, "prepare", f".{self._file.path.name}"))
        self._stack.enter_context(closing(self._file))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def validation(self) -> Iterator[str]:
        return itertools.starmap(_document, itertools.islice(self._lines(), VALIDATION_DOCUMENTS))

    def training(self) -> Iterator[str]:
        """The documents after those of the validation split."""
        return itertools.starmap(_document, itertools.islice(self._lines(), VALIDATION_DOCUMENTS, None))

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """(number, line) of every line that is not empty."""
        lines = read_lines(BufferedReader(_Stream(self._file), _BLOCK), FILE)
        return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _document(number: int, line: bytes) -> str:
    return text_of_json_line(line, f"{FILE}, line {number}")


class _CachedFile:
    """The first bytes of the published file in the cache, and the connection that brings the next ones."""

    def __init__(self, hub: Hub, sha256: str) -> None:
        self.path = hub.cache_folder / f"docs_selected-{sha256[:16]}.jsonl"
        self.compared = False
        self._hub, self._sha256 = hub, sha256
        self._size = hub.size(FILE, sha256)
        self._response: http.client.HTTPResponse | None = None

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes at `position`; empty at the end of the file. Raises DataError if the hub fails."""
        self.path.touch()
        cached = self.path.stat().st_size
        if cached > self._size:
            self._refuse(f"it has {cached:,} bytes, {self._size:,} were announced")
        if position == cached < self._size:
            self._append()
        elif position >= self._size:
            self._compare()
            return b""
        with self.path.open("rb") as file:
            file.seek(position)
            return file.read(size)

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response = None

    def _append(self) -> None:
        """Append the next bytes to the cached part. After a lost connection, try again."""
        failure: Exception = ConnectionError("the connection was closed")
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE_SECONDS * attempt)
            try:
                if self._response is None:
                    self._response = self._open(self.path.stat().st_size)
                if data := self._response.read(_BLOCK):
                    with self.path.open("ab") as file:
                        file.write(data)
                    return
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                failure = error
            self.close()
        raise self._hub.failure(FILE, failure) from failure

    def _open(self, position: int) -> http.client.HTTPResponse:
        request = urllib.request.Request(self._hub.url(FILE), headers={"Range": f"bytes={position}-"})
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
        if response.status != 206 and position:
            response.close()
            raise http.client.HTTPException("the server does not continue a download (no status 206)")
        return response

    def _compare(self) -> None:
        """Compare the SHA-256 of the complete file, once. Raises DataError and removes the file if it differs."""
        if not self.compared:
            if (actual := file_digest(self.path)) != self._sha256:
                self._refuse(f"its hash is {actual}, the manifest says {self._sha256}")
            self.compared = True

    def _refuse(self, reason: str) -> None:
        self.path.unlink()
        raise DataError(f"{FILE} is damaged: {reason}. It was removed; run the same command to download it again")


class _Stream(RawIOBase):
    """A cached file as a stream from its start."""

    def __init__(self, file: _CachedFile) -> None:
        self._file, self._position = file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self._file.read(self._position, len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
