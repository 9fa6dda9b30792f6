"""Checks of documents: their bytes, their order, and their absence from the training shards."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sentencepiece
from fake_evidence import evidence, judged
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import file_digest, read_json

from bitgolf.audit import documents
from bitgolf.audit.evidence import Evidence
from bitgolf.audit.verdict import Finding, MissingEvidence
from bitgolf.config import Config
from bitgolf.data import spm_model
from bitgolf.data.shards import TokenShards, write_shard
from bitgolf.data.split import hash_document
from bitgolf.data.spm_model import read_model
from bitgolf.errors import DataError
from bitgolf.run.directory import RunDirectory
from bitgolf.run.seal import sealed


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 4), max_size=40))
def test_documents_are_what_stands_between_bos(ids: list[int]) -> None:
    expected: list[list[int]] = []
    for position, token in enumerate(ids):
        if token == 1:
            expected.append([])
        elif position == 0:
            expected.append([token])
        else:
            expected[-1].append(token)
    finding = documents.documents(np.array(ids, dtype=np.uint16), 1)
    assert [part.tolist() for part in finding] == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 5000), st.integers(0, 100_000_000), st.integers(0, 99))
def test_samples_of_documents_are_spread_and_bounded(count: int, tokens: int, seed: int) -> None:
    chosen = documents.sample(count, tokens, np.random.default_rng(seed))
    assert list(chosen) == sorted(set(chosen)) and all(0 <= index < count for index in chosen)
    assert len(chosen) == count if tokens <= 2_000_000 else len(chosen) * tokens <= 2_000_000 * count + tokens


class Letters:
    """A tokenizer of one letter per token; id 1 is BOS."""

    bos_id, lossless, model_bytes = 1, True, b""

    def decode(self, ids: np.ndarray) -> str:
        return "".join(chr(96 + int(i)) for i in ids if i != 1)

    def byte_costs(self, tokens: np.ndarray) -> np.ndarray:
        return (tokens[1:] != 1).astype(np.int32)

    def encode_proven(self, texts: list[str]) -> None:
        assert "" in texts and len(texts) > 5


LETTERS = np.array([1, 2, 3, 1, 4, 5, 6, 1, 2, 2], dtype=np.uint16)
HASHES = np.array([hash_document(t.encode()) for t in ("bc", "def", "bb")], dtype=np.uint64)


def order(
    folder: Path,
    tokens: np.ndarray = LETTERS,
    hashes: np.ndarray = HASHES,
    files: tuple[str, ...] = ("a", "b"),
    hashed: str = "utf-8 text",
    tokenizer: Any = None,
) -> Finding:
    (folder / "val.hashes").write_bytes(hashes.astype("<u8").tobytes())
    manifest = {
        "document_hashes": {"val": {"file": "val.hashes", "of": hashed}},
        "splits": {"val": {"shards": [{"file": name} for name in files]}},
    }
    data = SimpleNamespace(manifest=manifest, tokenizer=tokenizer or Letters())
    return documents.one_order(evidence(data=data, tokens=tokens, require=lambda name: folder))


def test_one_order(tmp_path: Path) -> None:
    judged(order(tmp_path), "")
    judged(order(tmp_path, files=("b", "a")), "not in the order of their names")
    judged(order(tmp_path, hashes=HASHES[[1, 0, 2]]), "it is document 0 of the hashes")
    judged(order(tmp_path, tokens=np.where(LETTERS == 5, 7, LETTERS)), "no hash is of its text")
    judged(order(tmp_path, tokens=LETTERS[:7]), "2 documents are on the tape, 3 were hashed")
    by_tokens = np.array([hash_document(part.tobytes()) for part in documents.documents(LETTERS, 1)], dtype=np.uint64)
    judged(order(tmp_path, hashes=by_tokens, hashed="uint16 tokens"), "")


def test_an_order_that_cannot_be_hashed_again_says_so(tmp_path: Path) -> None:
    lossy = Letters()
    lossy.lossless = False
    finding = order(tmp_path, hashes=HASHES[[1, 0, 2]], tokenizer=lossy)
    assert finding.verdict == "PASS" and "cannot be recovered" in finding.reason and finding.evidence["checked"] == 0


def weighed(tokenizer: Any, raw_bytes: int | None = 7) -> Finding:
    manifest = {"splits": {"val": {"raw_bytes": raw_bytes}}}
    data = SimpleNamespace(tokenizer=tokenizer, manifest=manifest)
    counted = int(tokenizer.byte_costs(LETTERS).sum())
    return documents.byte_accounting(evidence(tokens=LETTERS, data=data, byte_total=counted))


def test_byte_accounting(tmp_path: Path) -> None:
    judged(weighed(Letters()), "")
    judged(weighed(Letters(), 8), "")
    judged(weighed(Letters(), None), "")
    judged(weighed(Letters(), 6), "7 bytes are counted, the original documents have 6")
    dear = Letters()
    dear.byte_costs = lambda tokens: 2 * (tokens[1:] != 1).astype(np.int32)  # type: ignore[method-assign]
    judged(weighed(dear), "document 0 is charged 4 bytes, its text has 2")
    losing = Letters()

    def encode_proven(texts: list[str]) -> None:
        raise DataError("the tokenizer loses a tab")

    losing.encode_proven = encode_proven  # type: ignore[method-assign]
    judged(weighed(losing), "the tokenizer loses a tab")
    losing.lossless, losing.model_bytes = False, model_with("nmt_nfkc", tmp_path)
    judged(weighed(losing), "")


def test_overlap_is_looked_for_in_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    train = np.concatenate([np.append(1, rng.integers(2, 50, size=rng.integers(1, 40))) for _ in range(200)])
    val = np.concatenate([np.append(1, rng.integers(50, 60, size=20)) for _ in range(5)])
    write_shard(tmp_path / "train.bin", np.concatenate([train, val[21:42], val[:21]]))
    stream = TokenShards([tmp_path / "train.bin"])
    assert documents.shard_overlap(stream, val.astype(np.uint16), 1, rng) == (202, 2)
    monkeypatch.setattr(documents, "_OVERLAP_TOKENS", 3_000)
    monkeypatch.setattr(documents, "_OVERLAP_BLOCK", 1_000)
    compared, copies = documents.shard_overlap(stream, val.astype(np.uint16), 1, rng)
    assert 0 < compared < 202 and copies <= 1, "blocks hold whole documents only; the last one is cut off at the end"


def test_nobody_knows_which_blocks_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy between evenly spaced blocks was never found. Blocks at random places find it in some audits."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(documents, "_OVERLAP_TOKENS", 2_000)
    monkeypatch.setattr(documents, "_OVERLAP_BLOCK", 1_000)
    copy = np.append(1, np.full(9, 60)).astype(np.uint16)
    other = np.concatenate([np.append(1, rng.integers(2, 50, size=9)) for _ in range(600)]).astype(np.uint16)
    write_shard(tmp_path / "train.bin", np.concatenate([other[:4_500], copy, other[4_500:]]))
    stream = TokenShards([tmp_path / "train.bin"])
    hits = [documents.shard_overlap(stream, copy, 1, np.random.default_rng(seed))[1] for seed in range(30)]
    assert 5 <= sum(hits) <= 25


def test_tokens_of_lost_text_are_a_problem(tmp_path: Path) -> None:
    """An unknown piece decodes to nothing where the model says so, and counts no bytes: hard text would vanish."""
    lossy = Letters()
    lossy.lossless, lossy.model_bytes = False, model_with("nmt_nfkc", tmp_path)
    (unknown,) = documents.lost_tokens(lossy.model_bytes)
    assert unknown == sentencepiece.SentencePieceProcessor(model_proto=lossy.model_bytes).unk_id()
    assert unknown not in LETTERS
    judged(weighed(lossy, None), "")
    monkeypatched = LETTERS.copy()
    monkeypatched[3] = unknown
    counted = int(lossy.byte_costs(monkeypatched).sum())
    data = SimpleNamespace(tokenizer=lossy, manifest={"splits": {"val": {}}})
    made = documents.byte_accounting(evidence(tokens=monkeypatched, data=data, byte_total=counted))
    judged(made, "1 tokens are unknown or unused pieces")


def model_with(rules: list[tuple[str, str]] | str, tmp_path: Path) -> bytes:
    """A SentencePiece model whose normalization is a named one, or the given replacements."""
    options: dict[str, Any] = {"normalization_rule_name": rules}
    if not isinstance(rules, str):
        table = tmp_path / "rules.tsv"
        lines = (" ".join(f"{ord(c):X}" for c in a) + "\t" + " ".join(f"{ord(c):X}" for c in b) for a, b in rules)
        table.write_text("\n".join(lines) + "\n")
        options = {"normalization_rule_tsv": str(table)}
    model = io.BytesIO()
    text = ["the quiet river finds the golden lantern", "every evening the miller opens the garden"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, model_type="bpe", vocab_size=300, byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2, **options,
    )  # fmt: skip
    return model.getvalue()


@pytest.mark.parametrize(
    ("rules", "own"),
    [
        ("identity", True),
        ("nmt_nfkc", True),
        ("nmt_nfkc_cf", False),  # folds case: what is hard to predict is gone
        ([("e", "e" * 12)], False),  # twelve bytes for one
        ([("q", "e")], False),
    ],
)
def test_only_the_normalization_of_the_challenge_may_come_before_the_count(
    rules: list[tuple[str, str]] | str, own: bool, tmp_path: Path
) -> None:
    model_bytes = model_with(rules, tmp_path)
    assert (documents.normalizer_of(model_bytes) in documents.OWN_NORMALIZERS) == own
    lossy = Letters()
    lossy.lossless, lossy.model_bytes = False, model_bytes
    if own:
        judged(weighed(lossy, None), "")
    else:
        with pytest.raises(MissingEvidence, match="rewrites the text by a table of its own"):
            weighed(lossy, None)


def test_a_normalization_table_cannot_hide_in_a_message_that_is_given_twice(tmp_path: Path) -> None:
    """Protobuf merges them: SentencePiece uses the table of the first, whatever the second says."""
    evil = model_with([("e", "e" * 12)], tmp_path)
    twice = evil + b"\x1a\x00"  # an empty normalizer_spec
    assert documents.normalizer_of(twice) == documents.normalizer_of(evil)
    processor = sentencepiece.SentencePieceProcessor(model_proto=twice)
    assert processor.normalize("we").count("e") == 12


def as_field(tag: bytes, value: bytes) -> bytes:
    """A field of the wire format; its length in as many bytes as it takes."""
    size = len(value)
    length = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14])
    return tag + length + value


@pytest.mark.parametrize("how", ["number", "fixed", "long key", "long key of the message", "written back"])
def test_a_normalization_table_cannot_hide_from_the_reader(how: str, tmp_path: Path) -> None:
    """SentencePiece ignores a value of another type, and the upper bits of a key. It would use the table."""
    plain = model_with("identity", tmp_path)
    table = read_field(model_with([("e", "e" * 12)], tmp_path), 3, 2)
    hidden = {
        "number": as_field(b"\x1a", as_field(b"\x12", table) + b"\x10\x00"),
        "fixed": as_field(b"\x1a", as_field(b"\x12", table) + b"\x15\x00\x00\x00\x00"),
        "long key": as_field(b"\x1a", as_field(b"\x92\x80\x80\x80\x10", table)),
        "long key of the message": as_field(b"\x9a\x80\x80\x80\x10", as_field(b"\x12", table)),
        "written back": as_field(b"\x2a", as_field(b"\x12", table)),  # denormalizer_spec
    }
    processor = sentencepiece.SentencePieceProcessor(model_proto=plain + hidden[how])
    shown = processor.decode(processor.encode("we")) if how == "written back" else processor.normalize("we")
    assert shown.count("e") == 12
    with pytest.raises(DataError, match="not a SentencePiece model"):
        read_model(plain + hidden[how])


def read_field(message: bytes, *path: int) -> bytes:
    """The value of a field in a field: `3, 2` is the second one of the third."""
    for number in path:
        message = [value for key, value in spm_model._fields(message, {}) if key == number][-1]
    return message


# --- the source, read again ------------------------------------------------------------------------------------------


def test_documents_left_out_before_training_are_missed(run_copy: Path, corpus: Path) -> None:
    """Hashes, counts and seals agree; the source says what is missing."""
    run = RunDirectory.open(run_copy)
    judged(documents.validation_complete(Evidence(run)), "")
    path = run_copy / "data" / "val_documents.bin"
    path.write_bytes(path.read_bytes()[: 8 * 40])
    digest = file_digest(path)
    manifest = read_json(run_copy / "data" / "manifest.json")
    manifest["document_hashes"]["val"]["sha256"] = digest
    (run_copy / "data" / "manifest.json").write_text(json.dumps(sealed(manifest)))
    judged(documents.validation_complete(Evidence(run)), "61 validation documents, 40 are scored: 21 are left out")
    manifest["settings"]["source_files"] = "other"
    (run_copy / "data" / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(MissingEvidence, match="not those that were prepared"):
        documents.validation_complete(Evidence(run))


@pytest.mark.parametrize("token", [0, 2, 3, 77])  # padding, the end of a text, unknown, a letter
def test_other_tokens_than_those_of_the_text_are_noticed(run_copy: Path, token: int) -> None:
    """The hashes are those of the source, and a tokenizer that is said to lose text cannot give it back."""
    path = run_copy / "data" / "val_000000.bin"
    stream = TokenShards([path])
    tokens = np.array(stream.read(0, stream.num_tokens))
    tokens[9] = token
    write_shard(path, tokens)
    judged(documents.validation_complete(Evidence(RunDirectory.open(run_copy))), "1 of 61 documents have other tokens")


def test_a_source_on_another_machine_and_hashes_of_tokens_cannot_be_compared() -> None:
    for source, of, words in (
        ("hf:somebody/texts", "utf-8 text", "hf:somebody/texts is no source of text that can be read again"),
        ("stdlib", "tokens", "data has no hashes of the texts of its validation documents"),
    ):
        data = SimpleNamespace(manifest={"document_hashes": {"val": {"of": of}}})
        record = evidence(config=Config().updated({"data.source": source}), data=data, require=lambda name: name)
        with pytest.raises(MissingEvidence, match=words):
            documents.validation_complete(record)
