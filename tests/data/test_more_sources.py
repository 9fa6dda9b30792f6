"""Sources people have: single text files, standard input, fields of any name, Parquet, data sets, mixes."""

import gzip
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_run import documents, done, read_json, write_jsonl

from bitgolf.config import DataConfig
from bitgolf.data import table_texts
from bitgolf.data.prepare import open_data, prepare
from bitgolf.data.prepare_text import validation_documents, validation_share
from bitgolf.data.sources import _in_turn, iterate_documents, parse_source, training_documents
from bitgolf.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "file"),
        ("a.jsonl", "jsonl"),
        ("a.JSONL.gz", "jsonl"),
        ("a.parquet", "parquet"),
        ("sub", "dir"),
        ("enwik8", "file"),
    ],
)
def test_a_path_alone_is_a_source(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "sub").mkdir()
    if name != "sub":
        (tmp_path / name).touch()
    assert parse_source(str(tmp_path / name)) == (kind, str(tmp_path / name))


def test_a_path_that_does_not_exist_is_named() -> None:
    assert parse_source("none/at/all.txt") == ("file", "none/at/all.txt")
    with pytest.raises(DataError, match=r"no file matches 'none/at/all\.txt'"):
        list(iterate_documents("none/at/all.txt"))
    with pytest.raises(ConfigError, match="did you mean 'jsonl'"):
        parse_source("jsnl:a.jsonl")
    with pytest.raises(ConfigError, match="unknown data source 'text'"):
        parse_source("text")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_text_file_is_cut_into_about_a_hundred_documents(tmp_path: Path, pack: object) -> None:
    text = "\n\n".join(documents())
    path = tmp_path / ("a.txt.gz" if pack is gzip.compress else "a.txt")
    path.write_bytes(pack(text.encode()))  # type: ignore[operator]
    cut = list(iterate_documents(f"file:{path}"))
    assert "".join(cut) == text
    sizes = [len(document.encode()) for document in cut]
    assert max(sizes) <= max(2048, path.stat().st_size // 100)
    assert len(cut) > 90
    assert sum(document.endswith("\n\n") for document in cut) > 0.9 * len(cut)


def test_one_line_without_an_end_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "text8").write_text("word é " * 30_000, encoding="utf-8")
    cut = list(iterate_documents(str(tmp_path / "text8")))
    assert "".join(cut) == "word é " * 30_000 and len(cut) >= 100


def test_small_files_hold_out_more(tmp_path: Path) -> None:
    def share(num_bytes: int, **changes: object) -> float:
        (tmp_path / "a.txt").write_bytes(b"x" * num_bytes)
        return validation_share(DataConfig(source=str(tmp_path / "a.txt"), **changes))

    assert share(100_000) == 0.2
    assert share(1_000_000) == pytest.approx(0.1)
    assert share(4_000_000) == 0.05
    assert share(100_000, val_fraction=0.01) == 0.01
    assert validation_share(DataConfig(source="stdlib")) == 0.05


def test_a_small_text_file_prepares_and_its_validation_can_be_read_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(documents()[:200]), encoding="utf-8")  # about 120 KB
    config = DataConfig(source=str(tmp_path / "a.txt"), workers=1)
    data = prepare(config, 384, tmp_path / "data")
    val = data.manifest["splits"]["val"]
    assert val["documents"] >= 5
    assert sum(document.size for document in validation_documents(config)) == val["raw_bytes"]
    assert prepare(config, 384, tmp_path / "data").manifest == data.manifest


def test_standard_input_is_saved_and_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n\n".join(documents()[:200])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    done("prepare", "-", "--out", tmp_path / "data", "--model.vocab_size", "384", "--data.workers", "1")
    assert (tmp_path / "data.stdin.txt").read_text(encoding="utf-8") == text
    manifest = open_data(tmp_path / "data").manifest
    assert sum(split["raw_bytes"] for split in manifest["splits"].values()) == len(text.encode())


def test_the_field_of_json_lines_has_any_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": i, "body": f"text {i}"}) + "\n" for i in range(3)))
    assert list(iterate_documents(str(path), "body")) == ["text 0", "text 1", "text 2"]
    with pytest.raises(DataError, match=r"has no field 'text': it is keys \['body', 'id'\].*data.text_field"):
        list(iterate_documents(str(path)))


def test_parquet_files_are_read_in_order(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"document {i} é" for i in range(2_500)]
    for number, part in enumerate((texts[:2_000], texts[2_000:])):
        parquet.write_table(pyarrow.table({"id": list(range(len(part))), "body": part}), tmp_path / f"{number}.parquet")
    assert list(iterate_documents(f"parquet:{tmp_path}/*.parquet", "body")) == texts
    with pytest.raises(DataError, match=r"has no field 'text', but body, id; set data.text_field"):
        list(iterate_documents(str(tmp_path / "0.parquet")))
    with pytest.raises(DataError, match=r"row 1: the field 'id' is int, not a string"):
        list(iterate_documents(str(tmp_path / "0.parquet"), "id"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="cannot read"):
        list(iterate_documents(str(tmp_path / "bad.parquet")))
    offsets, latin = pyarrow.py_buffer(np.array([0, 4], np.int32)), pyarrow.py_buffer(b"caf\xe9")
    table = pyarrow.table({"text": pyarrow.StringArray.from_buffers(1, offsets, latin)})
    parquet.write_table(table, tmp_path / "latin.parquet")
    with pytest.raises(DataError, match=r"latin.parquet: a text after row 0 is not UTF-8"):
        list(iterate_documents(str(tmp_path / "latin.parquet")))


def test_a_data_set_in_a_folder_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "letters"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", documents()[:20])
    write_jsonl(folder / "test.jsonl", documents()[20:25])
    assert tuple(iterate_documents(f"hf:{folder}")) == documents()[:20]
    assert tuple(iterate_documents(f"hf:{folder}@test")) == documents()[20:25]
    with pytest.raises(DataError, match="has no field 'body', but text"):
        list(iterate_documents(f"hf:{folder}", "body"))
    with pytest.raises(DataError, match="cannot open the data set"):
        list(iterate_documents(f"hf:{tmp_path}/none"))


def test_the_parts_of_the_name_of_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load_dataset(*names: object, split: str, streaming: bool) -> Iterator[dict[str, object]]:
        asked.append((*names, split, streaming))
        yield {"text": "a", "id": 1}
        yield {"text": "b", "id": 2} if names[0] != "odd" else {"id": 2}
        if names[0] == "broken":
            raise OSError("gone")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    for name in ("a/b", "a/b:c", "a/b@test", "a/b:c@test"):
        assert list(iterate_documents(f"hf:{name}")) == ["a", "b"]
    parts = [("a/b", None, "train"), ("a/b", "c", "train"), ("a/b", None, "test"), ("a/b", "c", "test")]
    assert asked == [(*part, True) for part in parts]
    for name, field, words in (
        ("a/b", "body", "hf:a/b has no field 'body', but id, text; set data.text_field"),
        ("odd", "text", "hf:odd has no field 'text', but id;"),
        ("a/b", "id", "hf:a/b, row 1: the field 'id' is int, not a string"),
        ("broken", "text", "reading hf:broken failed: gone; run the same command again"),
    ):
        with pytest.raises(DataError, match=re.escape(words)):
            list(iterate_documents(f"hf:{name}", field))


def test_the_source_with_the_fewest_bytes_is_next() -> None:
    """A document has one byte more than its text, so that empty ones count."""
    assert list(_in_turn([(iter(["", "", "x"]), 1.0), (iter(["yy", "z"]), 1.0)])) == ["", "yy", "", "x", "z"]
    assert list(_in_turn([(iter("abcdef"), 2.0), (iter("xyz"), 1.0)])) == ["a", "x", "b", "c", "y", "d", "e", "z", "f"]


def test_a_mix_has_the_shares_of_its_weights(tmp_path: Path) -> None:
    texts = documents()
    write_jsonl(tmp_path / "a.jsonl", texts[:300])
    write_jsonl(tmp_path / "b.jsonl", texts[300:])
    config = DataConfig(mix=(f"jsonl:{tmp_path}/a.jsonl=3", f"{tmp_path}/b.jsonl=1"), workers=1)
    mixed = list(training_documents(config))
    first = set(texts[:300])
    taken = sum(len(text) for text in mixed if text in first)
    assert set(mixed) >= first, "the mix ends with the source that ends first"
    assert taken / sum(map(len, mixed)) == pytest.approx(0.75, abs=0.01)
    data = prepare(config, 384, tmp_path / "data")
    assert sum(split["documents"] for split in data.manifest["splits"].values()) == len(mixed)
    assert data.manifest["source"] == f"jsonl:{tmp_path}/a.jsonl=3 + {tmp_path}/b.jsonl=1"
    write_jsonl(tmp_path / "b.jsonl", texts[301:])
    with pytest.raises(DataError, match="mix_1_files"):
        prepare(config, 384, tmp_path / "data")
    for entry in ("jsonl:a.jsonl", "=1", "a.txt=0", "a.txt=x"):
        with pytest.raises(ConfigError, match="is not SOURCE=WEIGHT"):
            list(training_documents(DataConfig(mix=(entry,))))
    with pytest.raises(ConfigError, match="contains tokens"):
        list(training_documents(DataConfig(mix=("shards:x=1",))))


def test_the_manifest_of_earlier_data_still_fits(tmp_path: Path) -> None:
    """Settings that did not exist when data was prepared do not make it other data."""
    path = write_jsonl(tmp_path / "a.jsonl", documents()[:200])
    config = DataConfig(source=f"jsonl:{path}", workers=1, val_fraction=0.1)
    prepare(config, 384, tmp_path / "data")
    settings = read_json(tmp_path / "data" / "manifest.json")["settings"]
    assert "mix" not in settings and "text_field" not in settings and settings["val_fraction"] == 0.1


def test_without_its_package_a_source_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("pyarrow", "datasets"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=r"reading Parquet needs pyarrow: pip install 'bitgolf\[parquet\]'"):
        next(table_texts.parquet_texts([Path("x.parquet")], "text"))
    with pytest.raises(DataError, match=r"the source hf: needs datasets: pip install 'bitgolf\[datasets\]'"):
        next(table_texts.hub_texts("x", "text"))
