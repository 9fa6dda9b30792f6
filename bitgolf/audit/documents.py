"""Checks of the documents: their bytes, their order, and the absence of validation documents from the training text.

The stored hashes say which documents the splits hold and in which order. Here the documents are taken out of the shards
again, decoded, weighed and hashed. Rules bytes, order and B7: docs/rules.md.

Legend: N tokens of a stream; documents are (n,) uint16 without their BOS.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bitgolf.audit.evidence import Evidence, run_checks
from bitgolf.audit.verdict import Finding, MissingEvidence, judge
from bitgolf.data.prepare import fingerprint
from bitgolf.data.prepare_text import validation_documents
from bitgolf.data.prepared import PreparedData
from bitgolf.data.shards import TokenShards
from bitgolf.data.sources import FILE_KINDS, all_sources, parse_source
from bitgolf.data.split import check_disjoint, hash_document, read_hashes
from bitgolf.data.spm_model import PieceKind, read_model
from bitgolf.errors import DataError
from bitgolf.run.seal import file_digest

_DECODED_TOKENS = 2_000_000  # decoded for a check; larger texts are sampled
_OVERLAP_TOKENS = 50_000_000  # training tokens compared with validation document by document
_OVERLAP_BLOCK = 1_000_000
# Normalization tables that may be applied before the counting (docs/rules.md, section 3): none, and "nmt_nfkc" of each
# release of SentencePiece, which the challenge's tokenizers use. Not case folding, for it removes information.
OWN_NORMALIZERS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",  # no table
    "51d3684747b35ef99cd4802f37cc1ee0c6bec4d060814f774efb1066d3c167f2",  # 0.1.99 and 0.2.0
    "79372c41389c2b9b29bc171017ab5400e352debd686b02670a42bec709015074",  # 0.2.1
    "5febaab28312e9dbddb42be695c9e4380367f7ebe65121cdf894fb5d59d37eed",  # 0.2.2
    "1e2c7b43d3ee9755ceaa2ac335e253d8703604e0249ee1e81156c92b46423844",  # 0.2.3
)
# Texts that have broken byte accounting before: NUL, the space symbol, spaces at both ends, newlines, emoji with
# joiners, combining marks, private-use sentinels, the names of control tokens, rare bytes.
EDGE_TEXTS = (
    "\0 in \0the text\0", "\u2581 \u2581\u2581x", "  two  spaces  ", "a\n\nb\r\n\tc", "e\u0301\u0302 \u00c5",
    "\U0001f469\u200d\U0001f680 flies", "\ue001\ue002x\ue003\ue004", "<s></s><unk><pad>", "\x7f\x80\xff \u2028\ufeff",
)  # fmt: skip


def documents(tokens: np.ndarray, bos_id: int) -> list[np.ndarray]:
    """Documents of a stream (N,), without their BOS. Tokens before the first BOS are one of them."""
    parts = np.split(tokens, np.flatnonzero(tokens == bos_id))
    return [part[1:] if len(part) and part[0] == bos_id else part for part in parts if len(part)]


def sample(count: int, total_tokens: int, rng: np.random.Generator) -> range:
    """Which of `count` documents to decode: all, or evenly spaced ones of about `_DECODED_TOKENS` tokens together."""
    step = max(1, -(-total_tokens // _DECODED_TOKENS))
    return range(int(rng.integers(step)) if step <= count else 0, count, step)


@run_checks.register("disjoint-splits", "B7", "no document is in both training and validation data")
def disjoint_splits(evidence: Evidence) -> Finding:
    """B7: neither the stored hashes of both splits nor the shards have a document in common."""
    root = evidence.require("data")
    hashes = evidence.data.manifest.get("document_hashes", {})
    missing = [entry["file"] for entry in hashes.values() if not (root / entry["file"]).is_file()]
    if missing or not hashes:
        raise MissingEvidence(f"{root} has no document hashes ({', '.join(missing) or 'none in its manifest'})")
    changed = [entry["file"] for entry in hashes.values() if file_digest(root / entry["file"]) != entry["sha256"]]
    num_train, num_val, overlap = check_disjoint(root)
    if num_train == 0 or num_val == 0:
        raise MissingEvidence(f"no document hashes to compare: {num_train} of training, {num_val} of validation")
    data, rng = evidence.data, evidence.rng("overlap")
    compared, copies = shard_overlap(data.train, evidence.tokens, data.tokenizer.bos_id, rng)
    problems = [f"{overlap:,} training documents are validation documents too"] if overlap else []
    if copies:
        problems.append(f"{copies:,} documents of the training shards are validation documents, token by token")
    problems += [f"{name} is not the file of hashes that the manifest names" for name in changed]
    return judge(
        problems,
        f"{num_train:,} training and {num_val:,} validation documents, none in common"
        + (f"; {compared:,} documents of the training shards compared" if compared else ""),
        num_train=num_train,
        num_val=num_val,
        overlap=overlap,
        shard_documents=compared,
        shard_overlap=copies,
        changed_files=changed,
    )


def shard_overlap(
    train: TokenShards,
    val_tokens: np.ndarray,  # (N,) uint16
    bos_id: int,
    rng: np.random.Generator,
) -> tuple[int, int]:
    """Documents of the training shards that were compared, and how many of them are validation documents."""
    val_documents = {part.tobytes() for part in documents(val_tokens, bos_id) if len(part)}
    copied = [part.tobytes() in val_documents for part in whole_documents(train, bos_id, rng)]
    return len(copied), sum(copied)


def whole_documents(stream: TokenShards, bos_id: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """All documents of a stream, or the whole ones in blocks at random places of a large stream."""
    if stream.num_tokens <= _OVERLAP_TOKENS:
        yield from documents(stream.read(0, stream.num_tokens), bos_id)
        return
    blocks = _OVERLAP_TOKENS // _OVERLAP_BLOCK
    for block in range(blocks):  # one in each of as many equal parts
        start = int((block + rng.random()) * (stream.num_tokens - _OVERLAP_BLOCK) / blocks)
        yield from documents(stream.read(start, _OVERLAP_BLOCK), bos_id)[1:-1]


@run_checks.register("one-order", "order", "one order of documents: as they were hashed, sharded and scored")
def one_order(evidence: Evidence) -> Finding:
    """Test 4: the documents on the tape are the hashed ones, in their order, in shards sorted by name."""
    data, root = evidence.data, evidence.require("data")
    entry = data.manifest.get("document_hashes", {}).get("val")
    if not entry or not (root / entry["file"]).is_file():
        raise MissingEvidence(f"{root} has no hashes of its validation documents")
    hashes, by_text = read_hashes(root / entry["file"]), entry.get("of", "") == "utf-8 text"
    shard_files = [Path(shard["file"]).name for shard in data.manifest["splits"]["val"]["shards"]]
    parts = documents(evidence.tokens, data.tokenizer.bos_id)
    problems = []
    if shard_files != sorted(shard_files):
        problems.append(f"the validation shards are not in the order of their names: {', '.join(shard_files[:4])}")
    if len(parts) != len(hashes):
        problems.append(f"{len(parts):,} documents are on the tape, {len(hashes):,} were hashed")
    checkable = not by_text or data.tokenizer.lossless
    count = min(len(parts), len(hashes)) if checkable else 0
    chosen = sample(count, len(evidence.tokens) if by_text else 0, evidence.rng("order"))
    problems += _misplaced(parts, chosen, hashes, data, by_text)
    how = f"{len(chosen):,} of them hashed again" if checkable else "their text cannot be recovered from the tokens"
    reason = f"{len(parts):,} documents, in the order in which they were prepared and of their shards' names; {how}"
    return judge(problems, reason, documents=len(parts), checked=len(chosen), shards=shard_files[:100])


def _misplaced(
    parts: list[np.ndarray], chosen: range, hashes: np.ndarray, data: PreparedData, by_text: bool
) -> list[str]:
    """The first five of the chosen documents whose hash is not the stored one, (documents,) uint64, of their place."""
    places = {value: position for position, value in enumerate(hashes.tolist())}
    problems: list[str] = []
    for index in chosen:
        ids = parts[index].astype(np.uint16)
        digest = hash_document(data.tokenizer.decode(ids).encode() if by_text else ids.tobytes())
        if digest != int(hashes[index]):
            where = f"it is document {places[digest]} of the hashes" if digest in places else "no hash is of its text"
            problems.append(f"document {index} on the tape is not the one that was hashed there: {where}")
        if len(problems) > 4:
            break
    return problems


@run_checks.register("validation-complete", "C4", "the validation documents are all those that the source has")
def validation_complete(evidence: Evidence) -> Finding:
    """C4: read the source again, where it is on this machine, and compare its validation documents with the hashes.

    A validation text that was reduced to its easiest documents before training has consistent seals. This check does
    not rely on them. It also tokenizes the documents again, or an even sample of them: hashes of texts do not show what
    was put on the tape under a tokenizer whose text cannot be recovered.
    """
    config, data, root = evidence.config.data, evidence.data, evidence.require("data")
    kinds = {parse_source(source)[0] for source in all_sources(config)}
    if not kinds <= {*FILE_KINDS, "stdlib"}:
        raise MissingEvidence(f"{config.source_text} is no source of text that can be read again")
    entry = data.manifest.get("document_hashes", {}).get("val")
    if not entry or entry.get("of") != "utf-8 text":
        raise MissingEvidence(f"{root} has no hashes of the texts of its validation documents")
    parts = documents(evidence.tokens, data.tokenizer.bos_id)
    chosen = sample(len(parts), len(evidence.tokens), evidence.rng("source"))
    source: list[tuple[int, int]] = []  # hash and bytes of each document
    rewritten: list[int] = []  # documents whose tokens are not those of their text
    try:
        current, recorded = fingerprint(config, data.tokenizer.vocab_size), data.manifest.get("settings", {})
        changed = [key for key in current if key.endswith("_files") and current[key] != recorded.get(key)]
        if changed:
            raise MissingEvidence("the files of the source are not those that were prepared")
        for number, document in enumerate(validation_documents(config)):
            source.append((document.hash, document.size))
            if number in chosen and not np.array_equal(
                data.tokenizer.encode_documents([document.text])[0], parts[number]
            ):
                rewritten.append(number)
    except (DataError, OSError) as error:
        raise MissingEvidence(f"the source cannot be read again: {error}") from error
    hashes = read_hashes(root / entry["file"])
    expected = np.array([value for value, _ in source], dtype=np.uint64)
    problems = []
    if not np.array_equal(hashes, expected):
        missing, added = len(np.setdiff1d(expected, hashes)), len(np.setdiff1d(hashes, expected))
        problems.append(
            f"the source has {len(expected):,} validation documents, {len(hashes):,} are scored: {missing:,} are left "
            f"out, {added:,} are none of its" + ("" if missing or added else ", and their order is another")
        )
    if rewritten:
        problems.append(
            f"{len(rewritten):,} of {len(chosen):,} documents have other tokens on the tape than their text has, "
            f"document {rewritten[0]} first"
        )
    raw_bytes, claimed = sum(size for _, size in source), data.manifest["splits"]["val"].get("raw_bytes")
    if claimed != raw_bytes:
        amount = "no" if claimed is None else claimed
        problems.append(f"the manifest gives {amount} bytes of validation text, the source has {raw_bytes:,}")
    reason = f"{len(hashes):,} validation documents of {raw_bytes:,} bytes as in the source, {len(chosen):,} tokenized"
    return judge(
        problems,
        reason,
        documents=len(hashes),
        source_documents=len(expected),
        raw_bytes=raw_bytes,
        tokenized=len(chosen),
    )


@run_checks.register("byte-accounting", "bytes", "the bytes of a document's tokens are the bytes of its text")
def byte_accounting(evidence: Evidence) -> Finding:
    """Section 3: decode documents and compare their bytes with the byte costs of their tokens, BOS before each.

    A tokenizer that rewrites the text before it counts can count bytes that the text does not have, or remove what is
    hard to predict. So more bytes than the text has are FAIL, and an unknown rewriting is NOT RUN.
    """
    tokens, tokenizer = evidence.tokens, evidence.data.tokenizer
    parts = documents(tokens, tokenizer.bos_id)
    chosen = sample(len(parts), len(tokens), evidence.rng("bytes"))
    problems: list[str] = []
    total = 0
    for index in chosen:
        ids = parts[index]
        text = tokenizer.decode(ids)
        expected = len((text if tokenizer.lossless else text.removeprefix(" ")).encode())
        charged = int(tokenizer.byte_costs(np.concatenate([[tokenizer.bos_id], ids]).astype(np.uint16)).sum())
        total += charged
        if charged != expected:
            problems.append(f"document {index} is charged {charged:,} bytes, its text has {expected:,}")
    if tokenizer.lossless:
        try:
            tokenizer.encode_proven([*EDGE_TEXTS, ""])
        except DataError as error:
            problems.append(str(error))
    raw_bytes = evidence.data.manifest["splits"]["val"].get("raw_bytes")
    if raw_bytes is not None and evidence.byte_total > raw_bytes:
        problems.append(f"{evidence.byte_total:,} bytes are counted, the original documents have {raw_bytes:,}")
    lost = 0 if tokenizer.lossless else int(np.isin(tokens, lost_tokens(tokenizer.model_bytes)).sum())
    if lost:
        problems.append(f"{lost:,} tokens are unknown or unused pieces, which stand for text that is not counted")
    if not problems and not tokenizer.lossless and normalizer_of(tokenizer.model_bytes) not in OWN_NORMALIZERS:
        raise MissingEvidence(
            "the tokenizer rewrites the text by a table of its own before the bytes are counted; what the bytes of the "
            "original text are cannot be told. Use a lossless tokenizer, or the normalization of the challenge"
        )
    return judge(
        problems[:5],
        f"{len(chosen):,} of {len(parts):,} documents decoded: {total:,} bytes charged, as many as their text has"
        + (f"; so do {len(EDGE_TEXTS)} texts of odd characters" if tokenizer.lossless else ""),
        documents=len(chosen),
        bytes=total,
        counted_bytes=evidence.byte_total,
        raw_bytes=raw_bytes,
        lossless=tokenizer.lossless,
        num_problems=len(problems),
    )


def lost_tokens(model_bytes: bytes) -> list[int]:
    """The tokens of a SentencePiece model whose text is lost: unknown and unused pieces."""
    lost = (PieceKind.UNKNOWN, PieceKind.UNUSED)
    return [token for token, (_, kind) in enumerate(read_model(model_bytes).pieces) if kind in lost]


def normalizer_of(model_bytes: bytes) -> str:
    """SHA-256 of the normalization table of a SentencePiece model."""
    return read_model(model_bytes).normalizer_sha256
