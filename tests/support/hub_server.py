"""A loopback server that speaks the protocol of the Hugging Face hub.

Large files (.bin, .jsonl) are redirected to a second address, as on the hub, with their SHA-256 as linked ETag. Small
files are answered directly with their git hash. The server can cut a connection or flip bytes, and it keeps a log.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bitgolf.data.hub import REPOSITORY

COMMIT = "c0ffee" + "0" * 34
PREFIX = f"/datasets/{REPOSITORY}/resolve/"


class Hub(ThreadingHTTPServer):
    """Serves `files` (path in the repository -> bytes)."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.cut_after: dict[str, int] = {}  # bytes after which the next GET of a file is dropped
        self.damaged: set[str] = set()
        self.log: list[tuple[str, str, str, int]] = []  # method, file, Range, bytes sent

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def sent(self, name: str) -> list[tuple[str, int]]:
        return [(r, n) for method, file, r, n in self.log if method == "GET" and file.endswith(name) and n]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        method = "GET" if body else "HEAD"
        large = self.path.startswith("/cdn/")
        revision, _, name = self.path.removeprefix("/cdn/").removeprefix(PREFIX).partition("/")
        if large:
            name = self.path.removeprefix("/cdn/")
        data = self.server.files.get(name)
        if data is None or (not large and revision not in ("main", COMMIT)):
            self.server.log.append((method, name, "", 0))
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if name.endswith((".bin", ".jsonl")) and not large:
            self.server.log.append((method, name, "", 0))
            self.send_response(302)
            self.send_header("Location", f"{self.server.url}/cdn/{name}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        byte_range = self.headers.get("Range", "")
        start = int(byte_range.removeprefix("bytes=").split("-")[0]) if byte_range else 0
        payload = bytes(255 - b for b in data) if name in self.server.damaged else data
        part = payload[start:]
        if body and name in self.server.cut_after:
            part = part[: self.server.cut_after.pop(name)]
            self.close_connection = True
        # Logged before it is sent: the client may be done, and the test looking, before this thread goes on.
        self.server.log.append((method, name, byte_range, len(part) if body else 0))
        self.send_response(206 if byte_range else 200)
        self.send_header("ETag", f'"{hashlib.sha1(b"blob %d" % len(data) + bytes(1) + data).hexdigest()}"')
        if large:
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if byte_range:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body:
            self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: `Hub.log` is the record."""


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    """A running `Hub`."""
    server = Hub(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def shards_repository(
    variant: str, model: bytes, val: bytes, train: list[bytes], tokenizer: str = "fineweb_400_bpe.model"
) -> dict[str, bytes]:
    """The files of a repository in the layout of the published one: shards of one variant and its tokenizer."""
    folder = f"datasets/datasets/fineweb10B_{variant}"
    manifest = {
        "version": "10B",
        "datasets": [
            {
                "name": f"fineweb10B_{variant}",
                "tokenizer_name": "sp_bpe",
                "stats": {"files_train": len(train), "files_val": 1},
            },
            {"name": "fineweb10B_byte260", "tokenizer_name": "byte", "stats": {"files_train": 9, "files_val": 1}},
        ],
        "tokenizers": [
            {"name": "sp_bpe", "model_path": f"tokenizers/{tokenizer}", "vocab_path": "x.vocab"},
            {"name": "byte", "path": "tokenizers/pure_byte.json"},
        ],
    }
    return {
        "datasets/manifest.json": json.dumps(manifest).encode(),
        f"datasets/tokenizers/{tokenizer}": model,
        f"{folder}/fineweb_val_000000.bin": val,
        **{f"{folder}/fineweb_train_{i:06d}.bin": data for i, data in enumerate(train)},
    }


def documents_repository(texts: list[str]) -> dict[str, bytes]:
    """The files of a repository with the published documents."""
    data = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    manifest = {"docs_sha256": hashlib.sha256(data).hexdigest(), "docs_bytes": len(data), "docs_val": 50_000}
    return {
        "datasets/docs_selected.jsonl": data,
        "datasets/docs_selected.source_manifest.json": json.dumps(manifest).encode(),
    }
