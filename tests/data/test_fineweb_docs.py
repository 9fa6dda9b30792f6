"""The published documents from a loopback server: streamed, cached as far as they were read, continued."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hub_server import COMMIT, documents_repository, serving
from hub_server import Hub as Server

from bitgolf.config import DataConfig
from bitgolf.data import fineweb_docs
from bitgolf.data.fineweb_docs import FinewebDocs
from bitgolf.data.hub import Hub
from bitgolf.data.prepare import open_data, prepare
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import DataError

pytest.importorskip("huggingface_hub")

FILE = "datasets/docs_selected.jsonl"
MANIFEST = "datasets/docs_selected.source_manifest.json"
NUM_VAL = 40


@pytest.fixture
def texts(documents: list[str]) -> list[str]:
    return [*documents[:200], documents[3], *documents[200:]]  # a validation document again among those of training


@pytest.fixture
def hub(texts: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setattr(fineweb_docs, "VALIDATION_DOCUMENTS", NUM_VAL)
    monkeypatch.setattr(fineweb_docs, "_BLOCK", 4_096)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with serving(documents_repository(texts)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def config(**options: object) -> DataConfig:
    return DataConfig.model_validate({"source": "fineweb-docs", "workers": 1, **options})


def decoded(data, split: str) -> list[str]:  # type: ignore[no-untyped-def]
    stream = getattr(data, split)
    return data.tokenizer.decode(stream.read(0, stream.num_tokens)), data.manifest["splits"][split]["documents"]


@pytest.mark.parametrize("kind", ["lossless", "given"])
def test_the_first_documents_are_validation_and_training_follows(
    hub: Server, texts: list[str], lossless: Tokenizer, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "t.model").write_bytes(lossless.model_bytes)
    tokenizer = "lossless" if kind == "lossless" else str(tmp_path / "t.model")
    data = prepare(config(tokenizer=tokenizer), 400, tmp_path / "out")
    train = [text for text in texts[NUM_VAL:] if text not in texts[:NUM_VAL]]
    assert decoded(data, "val") == ("".join(texts[:NUM_VAL]), NUM_VAL)
    assert decoded(data, "train") == ("".join(train), len(train))
    assert data.manifest["dropped_duplicates"] == 1
    assert data.manifest["origin"] == {
        "repository": "willdepueoai/parameter-golf",
        "revision": COMMIT,
        "file": FILE,
        "docs_sha256": json.loads(hub.files[MANIFEST])["docs_sha256"],
        "compared": True,
    }
    assert sum(size for _, size in hub.sent(FILE)) == len(hub.files[FILE]), "the file is downloaded once"
    open_data(data.path, verify=True)


def test_only_what_is_used_is_downloaded(hub: Server, lossless: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "t.model").write_bytes(lossless.model_bytes)
    options = config(tokenizer=str(tmp_path / "t.model"), val_bytes=1_000, train_bytes=2_000)
    data = prepare(options, 400, tmp_path / "out")
    text, count = decoded(data, "train")
    assert text == "".join(texts[NUM_VAL : NUM_VAL + count]) and count < 20
    assert not data.manifest["origin"]["compared"]
    (part,) = (tmp_path / "cache" / "bitgolf").glob("docs_selected-*.jsonl")
    assert part.stat().st_size < len(hub.files[FILE]) / 2
    assert hub.files[FILE].startswith(part.read_bytes())
    prepare(config(tokenizer=options.tokenizer), 400, tmp_path / "more")
    assert part.read_bytes() == hub.files[FILE]
    assert hub.sent(FILE)[-1][0] != "bytes=0-", "the second preparation continues the download"


def test_a_lost_connection_continues_where_it_broke(hub: Server, texts: list[str]) -> None:
    hub.cut_after[FILE] = 5_000
    with FinewebDocs() as published:
        assert list(published.validation()) == texts[:NUM_VAL]
        assert list(published.training()) == texts[NUM_VAL:]
    assert [start for start, _ in hub.sent(FILE)] == ["bytes=0-", "bytes=5000-"]


def test_after_a_kill_the_download_continues(hub: Server, texts: list[str]) -> None:
    with FinewebDocs() as published:
        assert list(islice(published.validation(), 3)) == texts[:3]
    with FinewebDocs() as published:
        assert list(published.validation()) == texts[:NUM_VAL]
    second = hub.sent(FILE)[1][0]
    assert second.startswith("bytes=") and 0 < int(second.removeprefix("bytes=").rstrip("-")) < len(hub.files[FILE])


def test_a_hub_that_stays_away_is_named(hub: Server) -> None:
    with FinewebDocs() as published:
        del hub.files[FILE]
        with pytest.raises(DataError, match=r"cannot download .*docs_selected\.jsonl .* What is complete is kept"):
            list(published.validation())


def test_a_damaged_file_is_caught_at_its_end_and_removed(hub: Server, texts: list[str], tmp_path: Path) -> None:
    data = hub.files[FILE].replace(texts[-1][:12].encode(), b"X" * 12)
    assert len(data) == len(hub.files[FILE]) and data != hub.files[FILE]
    with FinewebDocs() as published:
        hub.files[FILE] = data
        with pytest.raises(DataError, match=r"is damaged: its hash is \w{64}, the manifest says .*download it again"):
            list(published.training())
    assert not list((tmp_path / "cache" / "bitgolf").glob("*.jsonl"))


def test_a_cached_part_that_is_too_long_is_removed(hub: Server, tmp_path: Path) -> None:
    with FinewebDocs() as published:
        next(published.validation())
        (part,) = (tmp_path / "cache" / "bitgolf").glob("*.jsonl")
        part.write_bytes(hub.files[FILE] + b"more")
        with pytest.raises(DataError, match="is damaged: it has"):
            list(published.training())


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"{}", "docs_sha256 is missing"),
        (b"[]", "the manifest is a list"),
        (b'{"docs_sha256": null}', "docs_sha256 is null"),
        (b'{"docs_sha256": "../../x"}', "is not a SHA-256"),
        (b"[" * 9_999, "nested"),
        (json.dumps({"docs_sha256": "0" * 64}).encode(), "the hub announces the hash"),
    ],
)
def test_strange_manifests_are_named(hub: Server, manifest: bytes, message: str) -> None:
    hub.files[MANIFEST] = manifest
    with pytest.raises(DataError, match=message):
        FinewebDocs()


def test_another_hub_can_be_given(hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with FinewebDocs(Hub(hub.url, tmp_path / "elsewhere")) as published:
        assert next(published.validation())
    assert list((tmp_path / "elsewhere" / "bitgolf").glob("*.jsonl"))
