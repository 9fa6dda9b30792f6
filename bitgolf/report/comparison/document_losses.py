"""The losses of a run by document, and the proof that two runs scored the same documents.

A document is the targets that follow its BOS, up to and including the next BOS. The BOS after a document is part of
its cost, so every target belongs to one document and the documents add up to the headline. Runs with different
tokenizers can be compared by document in bits per byte if the documents have the same text. If only tokens were
hashed, both are decoded and compared byte for byte.

Legend: N tokens of the validation split, N-1 targets, D documents.
"""

import math
from dataclasses import dataclass

import numpy as np

from bitgolf.data.existing_shards import split_at_bos
from bitgolf.data.prepared import open_data
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import RunError
from bitgolf.evaluate.tape import tokens_sha256
from bitgolf.report.comparison.scored_runs import ScoredRun, require_same_accounting
from bitgolf.report.products import read_losses, require_product

_TOLERANCE = 1e-6  # relative, between nll.npy and the headline


@dataclass(frozen=True)
class DocumentLosses:
    """The cost of each document of the validation text."""

    bits: np.ndarray  # (D,) float64, sum of the losses of its targets
    bytes: np.ndarray  # (D,) int64, bytes of its text, all above 0

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the whole text, the ratio of the sums."""
        return float(self.bits.sum() / self.bytes.sum())


def document_starts(
    tokens: np.ndarray,  # (N,) integers
    bos_id: int,
    costs: np.ndarray,  # (N-1,) bytes of each target
) -> np.ndarray:
    """First target of each document, (D,) int64, the first of them 0.

    A document begins with the target after its BOS, or with target 0 if the text does not begin with BOS. A document
    without bytes is part of the one before it (the first ones: of the one after), so no document is empty.
    """
    starts = np.union1d(0, np.flatnonzero(tokens[:-1] == bos_id)).astype(np.int64)
    starts = starts[np.add.reduceat(costs, starts, dtype=np.int64) > 0]
    if len(starts):
        starts[0] = 0
    return starts


def document_losses(run: ScoredRun) -> DocumentLosses:
    """Read the losses by document of a run whose score is the headline.

    Raises RunError if a product is missing, nll.npy does not belong to score.json, or other validation data was scored,
    and DataError if the data directory is damaged.
    """
    path = run.run.require("nll.npy")
    data = open_data(run.run / "data")
    data.val.validate(data.tokenizer.vocab_size)
    tokens = data.val.read(0, data.val.num_tokens)
    costs = data.tokenizer.byte_costs(tokens)
    again = f"run `bitgolf score {run.run.path}` again"
    nll = read_losses(path, again)
    if nll.shape != costs.shape:
        raise RunError(f"{path} holds {nll.size:,} losses, the validation text has {len(costs):,} targets; {again}")
    if require_product(run.run, "tape")["tokens_sha256"] != tokens_sha256([tokens]):
        raise RunError(f"{run.label} was scored on other tokens than those of {data.path} (tape.json); {again}")
    starts = document_starts(tokens, data.tokenizer.bos_id, costs)
    if not len(starts):
        raise RunError(f"the validation tokens of {run.label} contain no text")
    bits = np.add.reduceat(nll, starts, dtype=np.float64) / math.log(2)
    losses = DocumentLosses(bits, np.add.reduceat(costs, starts, dtype=np.int64))
    if not abs(losses.bits_per_byte - run.bpb) <= _TOLERANCE * run.bpb:
        raise RunError(
            f"{path} adds up to {losses.bits_per_byte:.6f} bits per byte, score.json says {run.bpb:.6f}; {again}"
        )
    return losses


def require_same_text(a: ScoredRun, b: ScoredRun) -> None:
    """Prove that two runs validated on the same documents in the same order, with the same count of bytes.

    Hashes of the documents decide it if they can. Otherwise (existing shards, different tokenizers) every document of
    both is decoded. Raises RunError that names the runs and the first document that differs.
    """
    require_same_accounting(a, b)
    same = a.text.same_val_text(b.text)
    if same is None:
        _require_equal_documents(a, b)
    elif not same:
        raise RunError(
            f"{a.label} and {b.label} were scored on different texts: {_describe(a)}, and {_describe(b)}; bits per "
            "byte are comparable on one text only"
        )
    if a.text.bytes != b.text.bytes:
        raise RunError(
            f"{a.label} counts {a.text.bytes:,} bytes of validation text, {b.label} {b.text.bytes:,} for the same "
            "documents; their bits per byte are not comparable"
        )


def _require_equal_documents(a: ScoredRun, b: ScoredRun) -> None:
    (left, tokenizer), (right, other_tokenizer) = _documents(a), _documents(b)
    if len(left) != len(right):
        raise RunError(
            f"{a.label} and {b.label} were scored on different texts: {len(left):,} documents, and {len(right):,}"
        )
    for index, (tokens, other_tokens) in enumerate(zip(left, right, strict=True)):
        one, other = _text(tokens, tokenizer), _text(other_tokens, other_tokenizer)
        if one != other:
            beginnings = [text[:40].decode("utf-8", errors="replace") for text in (one, other)]
            raise RunError(
                f"{a.label} and {b.label} were scored on different texts: document {index} has {len(one):,} bytes and "
                f"begins {beginnings[0]!r}, and {len(other):,} bytes and begins {beginnings[1]!r}"
            )


def _documents(run: ScoredRun) -> tuple[list[np.ndarray], Tokenizer]:
    """The documents of a validation split that have tokens, and their tokenizer."""
    data = open_data(run.run / "data")
    return [tokens for tokens in split_at_bos(data.val, data.tokenizer.bos_id) if len(tokens)], data.tokenizer


def _text(tokens: np.ndarray, tokenizer: Tokenizer) -> bytes:
    """UTF-8 of a document. With a lossless tokenizer it is the original, otherwise the normalized text."""
    if tokenizer.lossless:
        return b"".join(tokenizer.spell(tokens))
    return tokenizer.decode(tokens).removeprefix(" ").encode()


def _describe(run: ScoredRun) -> str:
    source = run.run.config.data.val_source or run.run.config.data.source_text
    return f"{run.text.documents:,} documents of {source!r} ({run.text.val_hashes[:12]}...)"
