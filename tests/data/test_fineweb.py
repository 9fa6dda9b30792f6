"""The published shards from a loopback server (`tests/support/hub_server.py`)."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_server import COMMIT, serving, shards_repository
from hub_server import Hub as Server

from bitgolf.config import DataConfig
from bitgolf.data import existing_shards, fineweb
from bitgolf.data import hub as hub_files
from bitgolf.data.hub import Hub
from bitgolf.data.prepare import prepare
from bitgolf.data.shards import write_shard
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import DataError

pytest.importorskip("huggingface_hub")


@pytest.fixture
def files(documents: list[str], challenge: Tokenizer, tmp_path: Path) -> dict[str, bytes]:
    """A repository in the layout of the published one: three training shards, one of validation."""
    shards = []
    for texts in (documents[:50], documents[50:130], documents[130:200], documents[200:]):
        write_shard(tmp_path / "shard.tmp", challenge.encode_proven(texts).tokens)
        shards.append((tmp_path / "shard.tmp").read_bytes())
    return shards_repository("sp400", challenge.model_bytes, shards[0], shards[1:])


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Server]:
    with serving(files) as server:
        yield server


def fetch(hub: Server, tmp_path: Path, shards: int = 0, variant: str = "sp400") -> existing_shards.ExistingShards:
    return fineweb.fetch_fineweb(variant, shards, hub=Hub(hub.url, tmp_path / "cache"))


def test_published_shards_arrive_whole(hub: Server, files: dict[str, bytes], tmp_path: Path, capfd) -> None:  # type: ignore[no-untyped-def]
    shards = fetch(hub, tmp_path, shards=2)
    assert [p.name for p in shards.train] == ["fineweb_train_000000.bin", "fineweb_train_000001.bin"]
    assert [p.name for p in shards.val] == ["fineweb_val_000000.bin"]
    for path in (*shards.train, *shards.val):
        assert path.read_bytes() == files[f"datasets/datasets/fineweb10B_sp400/{path.name}"]
    assert shards.tokenizer.vocab_size == 400 and not shards.tokenizer.lossless
    assert shards.origin["revision"] == COMMIT
    assert not hub.sent("fineweb_train_000002.bin"), "only the shards asked for are fetched"
    assert capfd.readouterr() == ("", "")


def test_complete_files_are_kept(hub: Server, tmp_path: Path) -> None:
    fetch(hub, tmp_path, shards=1)
    hub.log.clear()
    fetch(hub, tmp_path, shards=3)
    assert [len(hub.sent(f"train_00000{i}.bin")) for i in range(3)] == [0, 1, 1]
    assert not hub.sent("val_000000.bin") and not hub.sent(".model")


def test_after_a_kill_only_the_file_under_way_is_fetched(
    hub: Server, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(seconds: float) -> None:
        raise KeyboardInterrupt

    name = "datasets/datasets/fineweb10B_sp400/fineweb_train_000001.bin"
    hub.cut_after[name] = 3_000
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, DataError)):
        patch.setattr("time.sleep", kill)  # the hub's wait before it tries again
        fetch(hub, tmp_path)
    shards = fetch(hub, tmp_path)
    assert [p.read_bytes() for p in shards.train] == [files[f"{name[:-5]}{i}.bin"] for i in range(3)]
    assert [len(hub.sent(f"train_00000{i}.bin")) for i in range(3)] == [1, 2, 1] and len(
        hub.sent("val_000000.bin")
    ) == 1


@pytest.mark.parametrize(
    "name",
    ["datasets/datasets/fineweb10B_sp400/fineweb_val_000000.bin", "datasets/tokenizers/fineweb_400_bpe.model"],
)
def test_a_corrupted_file_is_caught_and_fetched_anew(hub: Server, tmp_path: Path, name: str) -> None:
    hub.damaged.add(name)
    with pytest.raises(DataError, match=f"{name} is damaged: its hash is .* the hub says"):
        fetch(hub, tmp_path, shards=1)
    hub.damaged.clear()
    assert fetch(hub, tmp_path, shards=1).tokenizer.vocab_size == 400
    assert len(hub.sent(name)) == 2


def test_in_a_cache_without_links_the_hub_is_asked_for_the_hash(hub: Server, tmp_path: Path) -> None:
    path = fetch(hub, tmp_path, shards=1).train[0]
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    assert fetch(hub, tmp_path, shards=1).train[0] == path and not path.is_symlink()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError, match=r"fineweb_train_000000.bin is damaged: its hash is .* the hub says"):
        fetch(hub, tmp_path, shards=1)
    assert fetch(hub, tmp_path, shards=1).train[0].read_bytes() == data


def test_a_file_damaged_in_the_cache_is_caught(hub: Server, tmp_path: Path) -> None:
    path = fetch(hub, tmp_path, shards=1).train[0].resolve()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"fineweb_train_000000.bin is damaged"):
        fetch(hub, tmp_path, shards=1)
    fetch(hub, tmp_path, shards=1)


def test_the_manifests_own_hashes_are_checked(hub: Server, files: dict[str, bytes], tmp_path: Path) -> None:
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
def test_what_is_not_published(hub: Server, tmp_path: Path, variant: str, shards: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fetch(hub, tmp_path, shards, variant)


def test_missing_files_and_strange_manifests(hub: Server, files: dict[str, bytes], tmp_path: Path) -> None:
    del files["datasets/datasets/fineweb10B_sp400/fineweb_train_000001.bin"]
    with pytest.raises(DataError, match=r"cannot download .*fineweb_train_000001.bin .* What is complete is kept"):
        fetch(hub, tmp_path)
    files["datasets/manifest.json"] = b'{"datasets": [{}]}'
    with pytest.raises(DataError, match="has an unknown form"):
        fineweb.fetch_fineweb("sp400", hub=Hub(hub.url, tmp_path / "other"))


def test_an_unreachable_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub's own retries
    with pytest.raises(DataError, match=r"cannot download datasets/manifest.json .* from http://127.0.0.1:9: "):
        fineweb.fetch_fineweb("sp400", hub=Hub("http://127.0.0.1:9", tmp_path / "cache"))


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"pip install 'bitgolf\[hub\]'"):
        fineweb.fetch_fineweb("sp400")


def test_the_default_variant_is_sp1024(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    requests = []

    def record(variant: str, shards: int, progress: object) -> None:
        requests.append((variant, shards))
        raise DataError("stop")

    monkeypatch.setattr("bitgolf.data.prepare.fetch_fineweb", record)
    with pytest.raises(DataError, match="stop"):
        prepare(DataConfig(source="fineweb", train_shards=7), 1024, tmp_path / "out")
    assert requests == [("sp1024", 7)]


def test_a_file_without_a_checksum_or_a_size_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"text")
    with pytest.raises(DataError, match=r"the hub gave no checksum for x.bin \(ETag 'W/\"5\"'\)"):
        hub_files._verify(path, "x.bin", 'W/"5"', None)
    hub_files._verify(path, "x.bin", 'W/"5"', hashlib.sha256(b"text").hexdigest())
    hub = Hub("http://127.0.0.1:9", tmp_path)
    metadata = SimpleNamespace(etag="5", size=None)
    monkeypatch.setattr(hub, "_hub", SimpleNamespace(get_hf_file_metadata=lambda url: metadata, hf_hub_url=str))
    monkeypatch.setattr(hub, "url", str)
    with pytest.raises(DataError, match=r"does not announce the size of x.bin"):
        hub.size("x.bin", "0" * 64)
    metadata.size = 7
    assert hub.size("x.bin", "0" * 64) == 7
    metadata.etag = "1" * 64
    with pytest.raises(DataError, match=f"announces the hash {'1' * 64} for x.bin, the manifest of .* says {'0' * 64}"):
        hub.size("x.bin", "0" * 64)


def test_only_files_of_up_to_64_megabytes_are_git_blobs(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    for size, is_blob in ((0, True), (1 << 26, True), ((1 << 26) + 1, False)):
        path.touch()
        os.truncate(path, size)
        expected = hashlib.sha1(b"blob %d\0" % size + bytes(size)).hexdigest() if is_blob else ""
        assert hub_files._git_sha1(path) == expected
