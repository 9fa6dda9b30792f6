"""Stage `prepare` on text: the data directory contains every byte of the source, or there is no directory."""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bitgolf.config import DataConfig
from bitgolf.data import encode_stream
from bitgolf.data.prepare import check_disjoint, fingerprint, open_data, prepare
from bitgolf.data.prepared import read_manifest
from bitgolf.data.shards import ShardWriter, write_shard
from bitgolf.data.split import hash_document
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.data.train_tokenizer import train_tokenizer
from bitgolf.errors import DataError

Write = Callable[..., str]


def texts_of(data, split: str) -> list[str]:  # type: ignore[no-untyped-def]
    """Documents of a split, decoded one by one from the raw shard files."""
    stream = np.concatenate([np.fromfile(p, dtype="<u2", offset=1024) for p in getattr(data, split).paths])
    starts = [*np.flatnonzero(stream == 1).tolist(), len(stream)]
    assert starts[0] == 0
    return [data.tokenizer.decode(stream[a + 1 : b]) for a, b in pairwise(starts)]


def config(source: str, **options: object) -> DataConfig:
    values: dict[str, object] = {"source": source, "val_fraction": 0.2, "shard_tokens": 4096, "workers": 1}
    return DataConfig.model_validate({**values, **options})


def test_every_byte_of_every_document(documents: list[str], write_jsonl: Write, tmp_path: Path) -> None:
    texts = [documents[0], "", "\0▁ odd\u2028", *documents[1:], documents[3], "  \n"]
    data = prepare(config(write_jsonl(texts)), 400, tmp_path / "out")
    is_val = [t for t in texts if t and hash_document(t.encode()) < int(0.2 * 2**64)]
    assert texts_of(data, "val") == is_val and len(is_val) > 20
    assert texts_of(data, "train") == [t for t in texts if t and t not in is_val]
    for split in ("train", "val"):
        entry = data.manifest["splits"][split]
        stream = getattr(data, split)
        kept = texts_of(data, split)
        assert entry["documents"] == len(kept) and entry["tokens"] == stream.num_tokens
        assert entry["raw_bytes"] == entry["counted_bytes"] == sum(len(t.encode()) for t in kept)
        assert data.tokenizer.byte_costs(stream.read(0, stream.num_tokens)).sum() == entry["counted_bytes"]
        assert sum(s["tokens"] for s in entry["shards"]) == stream.num_tokens
        for shard in entry["shards"]:
            assert hashlib.sha256((data.path / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
    assert data.manifest["empty_documents"] == 1
    assert len(data.train.paths) > 1, "the test should cross shards"
    assert check_disjoint(data.path) == (len(texts_of(data, "train")), len(is_val), 0)
    assert data.manifest["accounting"] == "original" and data.manifest["disjoint"] is True
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.jsonl", "out"]
    open_data(data.path, verify=True)


def test_same_settings_same_bytes_and_reuse(documents: list[str], write_jsonl: Write, tmp_path: Path) -> None:
    source = write_jsonl(documents)
    prepare(config(source), 400, tmp_path / "a")
    prepare(config(source), 400, tmp_path / "b")
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert [(tmp_path / "a" / f).read_bytes() for f in files] == [(tmp_path / "b" / f).read_bytes() for f in files]
    before = {f: (tmp_path / "a" / f).stat().st_mtime_ns for f in files}
    prepare(config(source, workers=2), 400, tmp_path / "a")
    assert before == {f: (tmp_path / "a" / f).stat().st_mtime_ns for f in files}
    with pytest.raises(DataError, match=r"other settings: val_fraction 0.2 \(now 0.3\); choose another"):
        prepare(config(source, val_fraction=0.3), 400, tmp_path / "a")
    with pytest.raises(DataError, match=r"vocab_size 400 \(now 401\)"):
        prepare(config(source), 401, tmp_path / "a")
    write_jsonl([*documents, "one more"])
    with pytest.raises(DataError, match="source_files"):
        prepare(config(source), 400, tmp_path / "a")


@pytest.mark.parametrize("kind", ["jsonl", "dir", "val_source", "tokenizer"])
def test_a_source_edited_in_place_is_another_source(
    kind: str, documents: list[str], lossless: Tokenizer, write_jsonl: Write, tmp_path: Path
) -> None:
    """The edit keeps name, size and time of modification."""
    source, options = write_jsonl(documents), {}
    edited = tmp_path / "corpus.jsonl"
    if kind == "dir":
        (tmp_path / "notes").mkdir()
        edited = tmp_path / "notes" / "a.txt"
        edited.write_text("\n\n".join(documents * 9))
        source = f"dir:{tmp_path / 'notes'}"
    elif kind == "val_source":
        options["val_source"], edited = write_jsonl(["held out text"], "val.jsonl"), tmp_path / "val.jsonl"
    elif kind == "tokenizer":
        edited = tmp_path / "t.model"
        edited.write_bytes(lossless.model_bytes)
        options["tokenizer"] = str(edited)
    prepare(config(source, **options), 400, tmp_path / "out")
    times, data = edited.stat(), edited.read_bytes()
    edited.write_bytes(data.replace(b"o", b"u"))
    os.utime(edited, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match=r"was prepared with other settings: .*(files|sha256)"):
        prepare(config(source, **options), 400, tmp_path / "out")
    edited.write_bytes(data)
    prepare(config(source, **options), 400, tmp_path / "out")


def test_worker_processes_give_the_same_shards(
    documents: list[str], lossless: Tokenizer, write_jsonl: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_stream, "BATCH_BYTES", 3_000)
    (tmp_path / "t.model").write_bytes(lossless.model_bytes)
    options = {"tokenizer": str(tmp_path / "t.model"), "val_fraction": 0.3}
    source = write_jsonl(documents)
    one = prepare(config(source, workers=1, **options), 400, tmp_path / "one")
    two = prepare(config(source, workers=2, **options), 400, tmp_path / "two")
    assert one.manifest == two.manifest


def test_own_validation_source(documents: list[str], write_jsonl: Write, tmp_path: Path) -> None:
    val = write_jsonl(documents[:50], "val.jsonl")
    train = write_jsonl(documents[30:], "train.jsonl")
    data = prepare(config(train, val_source=val), 400, tmp_path / "out")
    assert texts_of(data, "val") == documents[:50]
    assert texts_of(data, "train") == documents[50:]
    assert data.manifest["dropped_duplicates"] == 20
    assert check_disjoint(data.path) == (250, 50, 0)
    limited = prepare(config(train, val_source=val, val_bytes=1_000), 400, tmp_path / "limited")
    kept = texts_of(limited, "val")
    assert kept == documents[: len(kept)] and 1 < len(kept) < 30
    assert texts_of(limited, "train") == documents[30:]


@pytest.mark.parametrize("own_source", [False, True])
def test_the_tokenizer_is_trained_on_the_first_training_documents_alone(
    own_source: bool, lossless: Tokenizer, write_jsonl: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"é{i}" * (i % 7 + 1) for i in range(400)]
    seen: list[str] = []
    monkeypatch.setattr(
        "bitgolf.data.prepare_text.train_tokenizer", lambda documents, *_, **__: seen.extend(documents) or lossless
    )
    options = {"val_source": write_jsonl(texts[5:40], "val.jsonl")} if own_source else {}
    prepare(config(write_jsonl(texts), tokenizer_bytes=1_000, **options), 400, tmp_path / "out")
    is_val = [t in texts[5:40] if own_source else hash_document(t.encode()) < int(0.2 * 2**64) for t in texts]
    train = [text for text, val in zip(texts, is_val, strict=True) if not val]
    assert any(is_val[:100]) and seen == train[: len(seen)]
    sizes = [len(text.encode()) for text in seen]
    assert sum(sizes[:-1]) < 1_000 <= sum(sizes)


@pytest.mark.parametrize("own_source", [False, True])
def test_limits_count_bytes_of_utf_8(own_source: bool, lossless: Tokenizer, write_jsonl: Write, tmp_path: Path) -> None:
    texts = [f"{i:03d}" + "😀" * 30 for i in range(200)]  # 123 bytes, 33 characters
    (tmp_path / "t.model").write_bytes(lossless.model_bytes)
    options: dict[str, object] = {"tokenizer": str(tmp_path / "t.model"), "val_bytes": 1_000, "train_bytes": 3_000}
    if own_source:
        options["val_source"] = write_jsonl(texts[:100], "val.jsonl")
    data = prepare(config(write_jsonl(texts), **options), 400, tmp_path / "out")
    assert len(texts_of(data, "val")) == 9 and len(texts_of(data, "train")) == 25
    assert data.manifest["splits"]["val"]["raw_bytes"] == 9 * 123


def test_challenge_options_are_labeled(documents: list[str], write_jsonl: Write, tmp_path: Path) -> None:
    data = prepare(config(write_jsonl(documents), tokenizer="challenge"), 400, tmp_path / "out")
    entry = data.manifest["splits"]["val"]
    assert data.manifest["accounting"] == "challenge" and data.manifest["tokenizer"]["lossless"] is False
    assert entry["counted_bytes"] < entry["raw_bytes"]
    assert entry["counted_bytes"] == sum(len(t.encode()) for t in texts_of(data, "val"))
    assert entry["counted_bytes"] == data.tokenizer.byte_costs(data.val.read(0, data.val.num_tokens)).sum()


def test_a_given_model_is_used_as_it_is(
    documents: list[str], challenge: Tokenizer, write_jsonl: Write, tmp_path: Path
) -> None:
    path = tmp_path / "mine.model"
    path.write_bytes(challenge.model_bytes)
    data = prepare(config(write_jsonl(documents), tokenizer=str(path)), 400, tmp_path / "out")
    assert data.tokenizer.model_bytes == challenge.model_bytes and data.tokenizer.name == "mine"
    with pytest.raises(DataError, match=r"has 400 pieces, but model.vocab_size is 500; set model.vocab_size to 400"):
        prepare(config(write_jsonl(documents), tokenizer=str(path)), 500, tmp_path / "other")
    with pytest.raises(DataError, match="neither one of lossless, lossless-case, challenge nor an existing"):
        prepare(config(write_jsonl(documents), tokenizer=str(tmp_path / "none.model")), 400, tmp_path / "other")


def test_a_small_corpus_holds_out_one_document(
    documents: list[str], lossless: Tokenizer, write_jsonl: Write, tmp_path: Path
) -> None:
    (tmp_path / "t.model").write_bytes(lossless.model_bytes)
    tiny = config(write_jsonl(documents[:5]), tokenizer=str(tmp_path / "t.model"), val_fraction=1e-9)
    data = prepare(tiny, 400, tmp_path / "data")
    least = min(documents[:5], key=lambda text: hash_document(text.encode()))
    assert texts_of(data, "val") == [least]
    assert data.manifest["splits"]["train"]["documents"] == 4


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "the corpus is empty"),
        (["", "\n" * 3], {"tokenizer": "given"}, "no training documents|in the validation split"),
        ([""], {"tokenizer": "given"}, "has no text"),
        (["only one"], {"tokenizer": "given", "val_fraction": 1e-9}, "none of the 1 documents .* in the validation"),
        (["only one"], {"tokenizer": "given", "val_fraction": 0.999999}, "has no training documents"),
        (["too small"], {"val_fraction": 1e-9}, r"cannot train a tokenizer of 400 tokens on 9 characters.*at most"),
    ],
)
def test_empty_and_tiny_corpora(
    texts: list[str], options: dict[str, object], message: str, lossless: Tokenizer, write_jsonl: Write, tmp_path: Path
) -> None:
    (tmp_path / "t.model").write_bytes(lossless.model_bytes)
    if options.get("tokenizer") == "given":
        options = {**options, "tokenizer": str(tmp_path / "t.model")}
    with pytest.raises(DataError, match=message):
        prepare(config(write_jsonl(texts), **options), 400, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.jsonl", "t.model"]


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [(errno.ENOSPC, DataError, "disk is full"), (errno.EDQUOT, DataError, "disk is full"), (errno.EIO, OSError, "why")],
)
def test_a_full_disk_is_said_and_leaves_nothing(
    number: int,
    kind: type[Exception],
    words: str,
    documents: list[str],
    write_jsonl: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: ShardWriter, tokens: np.ndarray) -> None:
        raise OSError(number, "why")

    source = write_jsonl(documents)
    monkeypatch.setattr(ShardWriter, "append", full)
    with pytest.raises(kind, match=words):
        prepare(config(source), 400, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_what_a_killed_run_left_is_removed(documents: list[str], write_jsonl: Write, tmp_path: Path) -> None:
    source = write_jsonl(documents)
    dead, alive, other = (
        tmp_path / f".out.{2**22 + 7}.partial", tmp_path / f".out.{os.getppid()}.partial", tmp_path / ".outer.5.partial"
    )  # fmt: skip
    for folder in (dead, alive, other):
        folder.mkdir()
    (tmp_path / "out").mkdir()  # an empty directory may be taken
    prepare(config(source), 400, tmp_path / "out")
    assert not dead.exists() and alive.exists() and other.exists()


def test_a_directory_of_something_else_is_refused(documents: list[str], write_jsonl: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="exists and is not prepared data"):
        prepare(config(write_jsonl(documents)), 400, out)
    assert (out / "thesis.txt").read_text() == "precious"


def test_progress_is_reported(documents: list[str], write_jsonl: Write, tmp_path: Path) -> None:
    calls: list[tuple[str, float, float, str]] = []
    prepare(config(write_jsonl(documents)), 400, tmp_path / "out", lambda *args: calls.append(args))  # type: ignore[arg-type]
    total = sum(len(t.encode()) for t in documents)
    assert {c[0] for c in calls} == {"prepare"} and calls[-1][1] == total


class TestOpening:
    @pytest.fixture(scope="class")
    def prepared(self, documents: list[str], lossless: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("prepared")
        (root / "t.model").write_bytes(lossless.model_bytes)
        (root / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in documents))
        return prepare(config(f"jsonl:{root / 'a.jsonl'}", tokenizer=str(root / "t.model")), 400, root / "out").path

    @pytest.fixture
    def made(self, prepared: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(prepared, tmp_path / "out"))

    def refused(self, path: Path, message: str, verify: bool = False) -> None:
        with pytest.raises(DataError, match=message):
            open_data(path, verify=verify)

    def test_not_prepared(self, tmp_path: Path) -> None:
        self.refused(tmp_path, "is not prepared data: it has no manifest.json; make it with")

    @pytest.mark.parametrize(
        "content",
        ["{", "[]", "{}", "null", '{"format": 1}', '{"format": "1"}', '{"format": 1e400}',
         '{"format": ' + "9" * 5_000 + "}", "[" * 9_999, '{"format": 1, "source": "\\ud800"}', '{"format": NaN}'],
        ids=lambda text: text[:20],
    )  # fmt: skip
    def test_damaged_manifests(self, made: Path, content: str) -> None:
        (made / "manifest.json").write_text(content)
        self.refused(made, "manifest.json is damaged")

    def test_a_manifest_has_at_most_64_mib(self, made: Path) -> None:
        manifest, most = (made / "manifest.json").read_bytes(), 64 * 2**20
        (made / "manifest.json").write_bytes(manifest + b" " * (most - len(manifest)))
        assert open_data(made).manifest == json.loads(manifest)
        with (made / "manifest.json").open("ab") as file:
            file.write(b" ")
        self.refused(made, r"manifest.json is damaged: it has more than 67,108,864 bytes")

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("splits", {"train": 3}), ("splits", None), ("splits.val.shards", {}), ("splits.val.shards", [None]),
            ("splits.val.shards", [[1]]), ("splits.train", []), ("tokenizer", None), ("tokenizer.lossless", 1),
            ("tokenizer.sha256", ["a"]), ("tokenizer.name", None), ("document_hashes", []),
            ("document_hashes.val", "x"), ("splits.val.shards", [{"file": "../x", "tokens": 1, "sha256": ""}]),
            ("splits.val.shards", [{"file": "/etc/passwd", "tokens": 1, "sha256": ""}]),
            ("splits.val.shards", [{"file": "val_000000.bin", "tokens": 1.5, "sha256": ""}]),
            ("splits.val.shards", [{"file": "val_000000.bin", "sha256": ""}]),
            ("splits.val.raw_bytes", "x"), ("splits.val.counted_bytes", [1]), ("splits.val.documents", None),
        ],
        ids=str,
    )  # fmt: skip
    def test_manifests_with_other_kinds_of_values(self, made: Path, path: str, value: object) -> None:
        manifest = json.loads((made / "manifest.json").read_text())
        *folders, last = path.split(".")
        entry = manifest
        for name in folders:
            entry = entry[name]
        entry[last] = value
        (made / "manifest.json").write_text(json.dumps(manifest))
        self.refused(made, "manifest.json is damaged")
        with pytest.raises(DataError, match=r"manifest\.json is damaged"):  # every reader gets a sound one
            read_manifest(made)

    def test_a_file_of_hashes_that_is_missing_or_a_pipe(self, made: Path) -> None:
        (made / "val_documents.bin").unlink()
        self.refused(made, r"val_documents\.bin cannot be read: No such file", verify=True)
        os.mkfifo(made / "val_documents.bin")
        self.refused(made, r"val_documents\.bin cannot be read", verify=True)

    def test_a_newer_manifest(self, made: Path) -> None:
        whole = json.loads((made / "manifest.json").read_text())
        (made / "manifest.json").write_text(json.dumps({**whole, "format": 2}))
        self.refused(made, "format 2, this program reads up to 1")

    def test_missing_truncated_and_exchanged_shards(self, made: Path) -> None:
        shard = made / "val_000000.bin"
        data = shard.read_bytes()
        shard.write_bytes(data[:-2])
        self.refused(made, "val_000000.bin is truncated")
        write_shard(shard, np.arange(7))
        self.refused(made, "val_000000.bin has 7 tokens, the manifest says")
        shard.unlink()
        self.refused(made, "cannot read shard .*val_000000.bin")

    @pytest.mark.parametrize("name", ["train_000000.bin", "val_documents.bin"])
    def test_flipped_bytes_are_found_by_verify(self, made: Path, name: str) -> None:
        data = bytearray((made / name).read_bytes())
        data[-3] ^= 4
        (made / name).write_bytes(data)
        open_data(made)
        self.refused(made, f"{name} is damaged: its sha256 is", verify=True)

    def test_another_tokenizer(self, made: Path, challenge: Tokenizer, documents: list[str]) -> None:
        (made / "tokenizer.model").write_bytes(train_tokenizer(documents[:99], 400, True).model_bytes)
        self.refused(made, "is not the tokenizer of this data")
        (made / "tokenizer.model").write_bytes(challenge.model_bytes)
        self.refused(made, "is not lossless")


def test_the_library_of_python_is_known_by_its_version() -> None:
    version = f"python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    own = fingerprint(config("stdlib"), 400)
    assert own["source_files"] == version and "val_source_files" not in own
    assert fingerprint(config("hf:a/b", val_source="stdlib", val_fraction=0), 400)["val_source_files"] == version
