"""Shards that somebody else wrote are linked if they fit their tokenizer, otherwise refused."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bitgolf.config import DataConfig
from bitgolf.data.existing_shards import check_tokenizer, split_at_bos
from bitgolf.data.prepare import check_disjoint, open_data, prepare
from bitgolf.data.shards import TokenShards, write_shard
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.data.train_tokenizer import train_tokenizer
from bitgolf.errors import ConfigError, DataError

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, documents: list[str], lossless: Tokenizer) -> Make:
    """Write a directory of challenge shards (two of training, one of validation) and its tokenizer."""

    def build(tokenizer: Tokenizer = lossless, model: str = "tok.model", overlap: int = 0, bos: bool = True) -> Path:
        folder = tmp_path / "data" / "datasets" / "mine"
        folder.mkdir(parents=True)
        for name, texts in (
            ("fineweb_train_000000", documents[50 - overlap : 170]),
            ("fineweb_train_000001", documents[170:]),
            ("fineweb_val_000000", documents[:50]),
        ):
            tokens = tokenizer.encode_proven(texts).tokens
            write_shard(folder / f"{name}.bin", tokens if bos else tokens[tokens != tokenizer.bos_id])
        if model:
            (folder / model).parent.mkdir(exist_ok=True)
            (folder / model).write_bytes(tokenizer.model_bytes)
        return folder

    return build


def config(folder: Path, **options: object) -> DataConfig:
    return DataConfig.model_validate({"source": f"shards:{folder}", **options})


@pytest.mark.parametrize("kind", ["lossless", "challenge"])
def test_shards_are_used_in_place(
    kind: str, make: Make, request: pytest.FixtureRequest, documents: list[str], tmp_path: Path
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    folder = make(tokenizer, "../../tokenizers/tok.model")
    data = prepare(config(folder), 400, tmp_path / "out")
    expected = [tokenizer.encode_proven(part) for part in (documents[50:], documents[:50])]
    for (split, stream), want in zip((("train", data.train), ("val", data.val)), expected, strict=True):
        entry = data.manifest["splits"][split]
        assert np.array_equal(stream.read(0, stream.num_tokens), want.tokens)
        assert entry["documents"] == want.num_documents and entry["tokens"] == len(want.tokens)
        assert entry["counted_bytes"] == want.counted_bytes
        assert entry["raw_bytes"] == (want.raw_bytes if kind == "lossless" else None)
    link = data.path / "fineweb_train_000001.bin"
    assert link.is_symlink() and link.resolve() == folder / link.name
    assert data.manifest["accounting"] == ("original" if kind == "lossless" else "challenge")
    assert data.manifest["dropped_duplicates"] == data.manifest["empty_documents"] == 0
    assert data.manifest["disjoint"] is True and check_disjoint(data.path) == (250, 50, 0)
    open_data(data.path, verify=True)
    (folder / "fineweb_train_000001.bin").unlink()
    with pytest.raises(DataError, match=r"cannot read shard .*fineweb_train_000001"):
        open_data(data.path)


def test_overlap_of_the_splits_is_recorded(make: Make, tmp_path: Path) -> None:
    data = prepare(config(make(overlap=3)), 400, tmp_path / "out")
    assert data.manifest["disjoint"] is False and data.manifest["overlap"] == 3


def test_fewer_training_shards(make: Make, tmp_path: Path) -> None:
    folder = make()
    data = prepare(config(folder, train_shards=1), 400, tmp_path / "out")
    assert [p.name for p in data.train.paths] == ["fineweb_train_000000.bin"]
    assert len(prepare(config(folder, train_shards=3), 400, tmp_path / "other").train.paths) == 2


def test_a_tokenizer_that_did_not_make_the_shards_is_caught(make: Make, documents: list[str], tmp_path: Path) -> None:
    backwards = [" ".join(word[::-1] for word in text.split()) for text in documents]
    padded, other = train_tokenizer(backwards, 400, True), train_tokenizer(backwards, 350, True)
    folder = make()
    for tokenizer, message in (
        (padded, "does not match the shards"),
        (other, "has 350 pieces, but model.vocab_size is 400"),
    ):
        (tmp_path / "o.model").write_bytes(tokenizer.model_bytes)
        with pytest.raises(DataError, match=message):
            prepare(config(folder, tokenizer=str(tmp_path / "o.model")), 400, tmp_path / "out")
    with pytest.raises(DataError, match=r"set model.vocab_size to 400"):
        prepare(config(folder), 1024, tmp_path / "out")


def test_ids_beyond_the_vocabulary(make: Make, tmp_path: Path) -> None:
    folder = make()
    write_shard(folder / "fineweb_val_000001.bin", np.array([1, 5, 900]))
    with pytest.raises(DataError, match=r"fineweb_val_000001\.bin: token 2 is id 900, beyond the vocabulary of 400"):
        prepare(config(folder), 400, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_without_bos(make: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no BOS \(id 1\)"):
        prepare(config(make(bos=False)), 400, tmp_path / "out")


def test_missing_parts_are_named(make: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a directory of shards"):
        prepare(config(tmp_path / "none"), 400, tmp_path / "out")
    folder = make(model="")
    with pytest.raises(DataError, match=r"found no tokenizer\..* set data\.tokenizer"):
        prepare(config(folder), 400, tmp_path / "out")
    (folder / "fineweb_val_bytes_000000.bin").touch()
    with pytest.raises(DataError, match="byte sidecars"):
        prepare(config(folder), 400, tmp_path / "out")
    (folder / "fineweb_val_bytes_000000.bin").unlink()
    (folder / "fineweb_val_000000.bin").unlink()
    with pytest.raises(DataError, match=r"no shards named \*val_\*"):
        prepare(config(folder), 400, tmp_path / "out")


def test_the_model_of_the_right_size_is_chosen(make: Make, documents: list[str], tmp_path: Path) -> None:
    folder = make()
    (folder / "aaa.model").write_bytes(train_tokenizer(documents, 350, True).model_bytes)
    assert prepare(config(folder), 400, tmp_path / "out").tokenizer.name == "tok"
    (folder / "bbb.model").write_bytes((folder / "tok.model").read_bytes())
    with pytest.raises(DataError, match=r"found several: .*bbb.model.*tok.model"):
        prepare(config(folder), 400, tmp_path / "other")


@pytest.mark.parametrize("option", [{"val_bytes": 5}, {"train_bytes": 5}, {"val_source": "stdlib"}])
def test_settings_of_text_do_not_apply(make: Make, option: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"data.{next(iter(option))} .* does not apply to data.source 'shards:"):
        prepare(config(make(), **option), 400, tmp_path / "out")


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_documents_are_found_across_chunks(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for tokens in ([1, 5, 6, 1, 7, 1, 1, 8, 9, 9], [4, 1, 5], [1], [1, 1], [3, 3, 3]):
        write_shard(tmp_path / "a.bin", np.array(tokens))
        stream = TokenShards([tmp_path / "a.bin"])
        plain = TokenShards.chunks
        monkeypatch.setattr(TokenShards, "chunks", lambda self, size=chunk, plain=plain: plain(self, size))
        documents: list[list[int]] = [] if tokens[0] == 1 else [[]]
        for token in tokens:
            if token == 1:
                documents.append([])
            else:
                documents[-1].append(token)
        assert [d.tolist() for d in split_at_bos(stream, 1)] == documents
        monkeypatch.undo()


@pytest.mark.parametrize(("length", "compared"), [(0, False), (1, False), (2, True)])
def test_documents_of_one_token_say_nothing_of_their_tokenizer(length: int, compared: bool) -> None:
    tokens = np.array([1, *[5] * length] * 200, dtype=np.uint16)
    stream: Any = SimpleNamespace(
        num_tokens=len(tokens),
        read=lambda start, count: tokens[start : start + count],
        chunks=lambda: [tokens],
        paths=["a.bin"],
    )
    other: Any = SimpleNamespace(bos_id=1, name="other", decode=lambda ids: "text", encode=lambda text: [9])
    if compared:
        with pytest.raises(DataError, match="0 of 32 documents gave the same tokens"):
            check_tokenizer(stream, other)
    else:
        check_tokenizer(stream, other)
