"""Checks of the validation documents themselves: their bytes, their order, and their absence from the training text.

The stored hashes say which documents the splits hold and in which order; here the documents are taken out of the
shards again, decoded, weighed and hashed. Source: section 3 (byte accounting) and tests 4 (one order) and B7 (disjoint
splits) of the challenge's audit rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from bitgolf.audit.verdict import Check, Rule
from bitgolf.errors import DataError

if TYPE_CHECKING:
    from bitgolf.data.shards import TokenShards
    from bitgolf.data.tokenizer import Tokenizer

BYTES = Rule("byte-accounting", "bytes", "the bytes of a document's tokens are the bytes of its text")
ONE_ORDER = Rule("one-order", "order", "one order of documents: as they were hashed, sharded and scored")

_MOST_TOKENS = 2_000_000  # decoded for a check; larger texts are sampled
_OVERLAP_TOKENS = 50_000_000  # training tokens compared with validation document by document
_OVERLAP_BLOCK = 1_000_000
# What has broken byte accounting before: NUL, the space symbol, spaces at both ends, newlines, emoji with joiners,
# combining marks, private-use sentinels, the names of control tokens, bytes that are rare.
EDGE_TEXTS = (
    "\0 in \0the text\0", "\u2581 \u2581\u2581x", "  two  spaces  ", "a\n\nb\r\n\tc", "e\u0301\u0302 \u00c5",
    "\U0001f469\u200d\U0001f680 flies", "\ue001\ue002x\ue003\ue004", "<s></s><unk><pad>", "\x7f\x80\xff \u2028\ufeff",
)  # fmt: skip


def documents(tokens: np.ndarray, bos_id: int) -> list[np.ndarray]:
    """Documents of a stream without their BOS, each (n,); what stands before the first BOS is one of them."""
    starts = np.flatnonzero(tokens == bos_id)
    parts = np.split(tokens, starts)
    return [part[1:] if len(part) and part[0] == bos_id else part for part in parts if len(part)]


def sample(count: int, total_tokens: int) -> range:
    """Which of `count` documents to decode: all of them, or evenly spaced ones of about `_MOST_TOKENS` tokens."""
    return range(0, count, max(1, -(-total_tokens // _MOST_TOKENS)))


def byte_accounting(
    tokens: np.ndarray,  # (N,) validation tokens
    tokenizer: Tokenizer,
) -> Check:
    """Section 3: decode documents and weigh them against the byte costs of their tokens, BOS before each."""
    parts = documents(tokens, tokenizer.bos_id)
    chosen = sample(len(parts), len(tokens))
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
    return BYTES.judge(
        problems[:5],
        f"{len(chosen):,} of {len(parts):,} documents decoded: {total:,} bytes charged, as many as their text has"
        + (f"; so do {len(EDGE_TEXTS)} texts of odd characters" if tokenizer.lossless else ""),
        documents=len(chosen),
        bytes=total,
        lossless=tokenizer.lossless,
        num_problems=len(problems),
    )


def one_order(
    tokens: np.ndarray,  # (N,) validation tokens, in the order of the tape
    tokenizer: Tokenizer,
    hashes: np.ndarray,  # (documents,) uint64, in the order in which they were prepared
    hashed: str,  # what was hashed: "utf-8 text" or "uint16 tokens"
    shard_files: list[str],  # in the order of the stream
) -> Check:
    """Test 4: the documents on the tape are the hashed ones, in their order, in shards sorted by name."""
    from bitgolf.data.split import hash_document

    parts = documents(tokens, tokenizer.bos_id)
    problems = []
    if shard_files != sorted(shard_files):
        problems.append(f"the validation shards are not in the order of their names: {', '.join(shard_files[:4])}")
    if len(parts) != len(hashes):
        problems.append(f"{len(parts):,} documents are on the tape, {len(hashes):,} were hashed")
    by_text = hashed == "utf-8 text"
    checkable = not by_text or tokenizer.lossless
    chosen = sample(min(len(parts), len(hashes)), len(tokens) if by_text else 0) if checkable else range(0)
    known = {int(value): position for position, value in enumerate(hashes.tolist())}
    for index in chosen:
        ids = parts[index].astype(np.uint16)
        found = hash_document(tokenizer.decode(ids).encode() if by_text else ids.tobytes())
        if found != int(hashes[index]):
            where = f"it is document {known[found]} of the hashes" if found in known else "no hash is of its text"
            problems.append(f"document {index} on the tape is not the one that was hashed there: {where}")
        if len(problems) > 4:
            break
    how = f"{len(chosen):,} of them hashed again" if checkable else "their text cannot be had back from the tokens"
    return ONE_ORDER.judge(
        problems,
        f"{len(parts):,} documents, in the order in which they were prepared and of their shards' names; {how}",
        documents=len(parts),
        checked=len(chosen),
        shards=shard_files[:100],
    )


def shard_overlap(train: TokenShards, val_tokens: np.ndarray, bos_id: int) -> tuple[int, int]:
    """Look for validation documents among the training shards, whatever the stored hashes say.

    Returns (training documents looked at, those that are validation documents too, token by token).
    """
    known = {part.tobytes() for part in documents(val_tokens, bos_id) if len(part)}
    looked_at = found = 0
    for part in _whole_documents(train, bos_id):
        looked_at += 1
        found += part.tobytes() in known
    return looked_at, found


def _whole_documents(stream: TokenShards, bos_id: int) -> Iterator[np.ndarray]:
    """Documents of a stream, or those that are whole in evenly spaced blocks when it is a large one."""
    if stream.num_tokens <= _OVERLAP_TOKENS:
        yield from documents(stream.read(0, stream.num_tokens), bos_id)
        return
    blocks = _OVERLAP_TOKENS // _OVERLAP_BLOCK
    for number in range(blocks):
        start = number * (stream.num_tokens - _OVERLAP_BLOCK) // (blocks - 1)
        yield from documents(stream.read(start, _OVERLAP_BLOCK), bos_id)[1:-1]
