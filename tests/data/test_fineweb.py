"""The published shards from a loopback server that speaks the hub's protocol.

Large files are redirected to a second address, as the hub does, with their SHA-256 as linked ETag; small files
are answered directly with their git hash. The server can cut a connection or flip bytes, and keeps a log.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from bitgolf.config import DataConfig
from bitgolf.data import existing_shards, fineweb
from bitgolf.data.prepare import open_data, prepare
from bitgolf.data.shards import write_shard
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import DataError

pytest.importorskip("huggingface_hub")

COMMIT = "c0ffee" + "0" * 34
PREFIX = f"/datasets/{fineweb.REPOSITORY}/resolve/"


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
        if name.endswith(".bin") and not large:
            self.server.log.append((method, name, "", 0))
            self.send_response(302)
            self.send_header("Location", f"{self.server.url}/cdn/{name}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        payload = bytes(255 - b for b in data) if name in self.server.damaged else data
        part = payload[start:]
        if body and name in self.server.cut_after:
            part = part[: self.server.cut_after.pop(name)]
            self.close_connection = True
        # Logged before it is sent: the client may be done, and the test looking, before this thread goes on.
        self.server.log.append((method, name, wanted, len(part) if body else 0))
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha1(b"blob %d" % len(data) + bytes(1) + data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body:
            self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: `Hub.log` is the record."""


@pytest.fixture
def files(documents: list[str], challenge: Tokenizer, tmp_path: Path) -> dict[str, bytes]:
    """A repository in the layout of the published one: three training shards, one of validation."""
    folder = "datasets/datasets/fineweb10B_sp400"
    result: dict[str, bytes] = {"datasets/tokenizers/fineweb_400_bpe.model": challenge.model_bytes}
    for name, texts in {
        "fineweb_val_000000": documents[:50],
        "fineweb_train_000000": documents[50:130],
        "fineweb_train_000001": documents[130:200],
        "fineweb_train_000002": documents[200:],
    }.items():
        write_shard(tmp_path / "shard.tmp", challenge.encode_proven(texts).tokens)
        result[f"{folder}/{name}.bin"] = (tmp_path / "shard.tmp").read_bytes()
    result["datasets/manifest.json"] = json.dumps(
        {
            "version": "10B",
            "datasets": [
                {
                    "name": "fineweb10B_sp400",
                    "tokenizer_name": "sp_bpe_400",
                    "stats": {"files_train": 3, "files_val": 1},
                },
                {"name": "fineweb10B_byte260", "tokenizer_name": "byte", "stats": {"files_train": 9, "files_val": 1}},
            ],
            "tokenizers": [
                {"name": "sp_bpe_400", "model_path": "tokenizers/fineweb_400_bpe.model", "vocab_path": "x.vocab"},
                {"name": "byte", "path": "tokenizers/pure_byte.json"},
            ],
        }
    ).encode()
    return result


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    server = Hub(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(hub: Hub, tmp_path: Path, shards: int = 0, variant: str = "sp400") -> existing_shards.ExistingShards:
    return fineweb.fetch_fineweb(variant, shards, endpoint=hub.url, cache=tmp_path / "cache")


def test_published_shards_arrive_whole(hub: Hub, files: dict[str, bytes], tmp_path: Path, capfd) -> None:  # type: ignore[no-untyped-def]
    found = fetch(hub, tmp_path, shards=2)
    assert [p.name for p in found.train] == ["fineweb_train_000000.bin", "fineweb_train_000001.bin"]
    assert [p.name for p in found.val] == ["fineweb_val_000000.bin"]
    for path in (*found.train, *found.val):
        assert path.read_bytes() == files[f"datasets/datasets/fineweb10B_sp400/{path.name}"]
    assert found.tokenizer.vocab_size == 400 and not found.tokenizer.lossless
    assert found.origin["revision"] == COMMIT
    assert not hub.sent("fineweb_train_000002.bin"), "only the shards asked for are fetched"
    assert capfd.readouterr() == ("", "")


def test_complete_files_are_kept(hub: Hub, tmp_path: Path) -> None:
    fetch(hub, tmp_path, shards=1)
    hub.log.clear()
    fetch(hub, tmp_path, shards=3)
    assert [len(hub.sent(f"train_00000{i}.bin")) for i in range(3)] == [0, 1, 1]
    assert not hub.sent("val_000000.bin") and not hub.sent(".model")


def test_a_lost_connection_continues_where_it_broke(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1_000)  # written to disk at a time
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before trying again
    name = "datasets/datasets/fineweb10B_sp400/fineweb_train_000000.bin"
    hub.cut_after[name] = 3_000
    try:
        found = fetch(hub, tmp_path, shards=1)
    except DataError:  # huggingface_hub before 1.0 leaves it to the next call
        found = fetch(hub, tmp_path, shards=1)
    assert found.train[0].read_bytes() == files[name]
    (first, sent), (second, rest) = hub.sent("train_000000.bin")
    assert first == "" and second.startswith("bytes=") and sent == 3_000
    start = int(second.removeprefix("bytes=").rstrip("-"))
    assert 0 < start <= 3_000 and rest == len(files[name]) - start


def test_after_a_kill_only_the_file_under_way_is_fetched(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(seconds: float) -> None:
        raise KeyboardInterrupt

    name = "datasets/datasets/fineweb10B_sp400/fineweb_train_000001.bin"
    hub.cut_after[name] = 3_000
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, DataError)):
        patch.setattr("time.sleep", kill)  # the hub's wait before it tries again
        fetch(hub, tmp_path)
    found = fetch(hub, tmp_path)
    assert [p.read_bytes() for p in found.train] == [files[f"{name[:-5]}{i}.bin"] for i in range(3)]
    assert [len(hub.sent(f"train_00000{i}.bin")) for i in range(3)] == [1, 2, 1] and len(
        hub.sent("val_000000.bin")
    ) == 1


@pytest.mark.parametrize(
    "name",
    ["datasets/datasets/fineweb10B_sp400/fineweb_val_000000.bin", "datasets/tokenizers/fineweb_400_bpe.model"],
)
def test_a_corrupted_file_is_caught_and_fetched_anew(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.damaged.add(name)
    with pytest.raises(DataError, match=f"{name} is damaged: its hash is .* the hub says"):
        fetch(hub, tmp_path, shards=1)
    hub.damaged.clear()
    assert fetch(hub, tmp_path, shards=1).tokenizer.vocab_size == 400
    assert len(hub.sent(name)) == 2


def test_a_file_damaged_in_the_cache_is_caught(hub: Hub, tmp_path: Path) -> None:
    path = fetch(hub, tmp_path, shards=1).train[0].resolve()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"fineweb_train_000000.bin is damaged"):
        fetch(hub, tmp_path, shards=1)
    fetch(hub, tmp_path, shards=1)


def test_the_manifests_own_hashes_are_checked(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    manifest = json.loads(files["datasets/manifest.json"])
    manifest["datasets"][0]["files"] = [{"path": "x/fineweb_val_000000.bin", "sha256": "0" * 64}]
    files["datasets/manifest.json"] = json.dumps(manifest).encode()
    with pytest.raises(DataError, match=f"fineweb_val_000000.bin is damaged: .* the manifest says {'0' * 64}"):
        fetch(hub, tmp_path)


@pytest.mark.parametrize(
    ("variant", "shards", "message"),
    [
        ("sp9999", 1, "no variant 'sp9999'; published variants: byte260, sp400"),
        ("sp400", 4, "train_shards is 4; .* has 3"),
        ("byte260", 1, "has no SentencePiece tokenizer"),
    ],
)
def test_what_is_not_published(hub: Hub, tmp_path: Path, variant: str, shards: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fetch(hub, tmp_path, shards, variant)


def test_missing_files_and_strange_manifests(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    del files["datasets/datasets/fineweb10B_sp400/fineweb_train_000001.bin"]
    with pytest.raises(DataError, match=r"cannot download .*fineweb_train_000001.bin .* Complete files are kept"):
        fetch(hub, tmp_path)
    files["datasets/manifest.json"] = b'{"datasets": [{}]}'
    with pytest.raises(DataError, match="has an unknown form"):
        fineweb.fetch_fineweb("sp400", endpoint=hub.url, cache=tmp_path / "other")


def test_an_unreachable_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub's own retries
    with pytest.raises(DataError, match=r"cannot download datasets/manifest.json .* from http://127.0.0.1:9: "):
        fineweb.fetch_fineweb("sp400", endpoint="http://127.0.0.1:9", cache=tmp_path / "cache")


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"pip install 'bitgolf\[hub\]'"):
        fineweb.fetch_fineweb("sp400")


def test_prepare_honours_hf_endpoint(hub: Hub, documents: list[str], challenge: Tokenizer, tmp_path: Path) -> None:
    """The whole stage in a fresh process, with nothing but HF_ENDPOINT and HF_HOME to find the server."""
    script = (
        "from bitgolf.config import DataConfig\nfrom bitgolf.data.prepare import prepare\n"
        f"prepare(DataConfig(source='fineweb:sp400', train_shards=2), 400, {str(tmp_path / 'out')!r})"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    data = open_data(tmp_path / "out", verify=True)
    val, train = challenge.encode_proven(documents[:50]), challenge.encode_proven(documents[50:200])
    assert np.array_equal(data.val.read(0, data.val.num_tokens), val.tokens)
    assert np.array_equal(data.train.read(0, data.train.num_tokens), train.tokens)
    assert data.manifest["accounting"] == "challenge" and data.manifest["disjoint"] is True
    assert data.manifest["splits"]["val"]["counted_bytes"] == val.counted_bytes
    assert data.manifest["origin"]["variant"] == "sp400"


def test_the_default_variant_is_sp1024(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def record(variant: str, shards: int, progress: object) -> None:
        asked.append((variant, shards))
        raise DataError("stop")

    monkeypatch.setattr("bitgolf.data.prepare.fetch_fineweb", record)
    with pytest.raises(DataError, match="stop"):
        prepare(DataConfig(source="fineweb", train_shards=7), 1024, tmp_path / "out")
    assert asked == [("sp1024", 7)]
