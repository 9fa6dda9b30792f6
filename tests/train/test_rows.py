"""Which rows a training reads: the shares of ranks, the held-out rows, and ids that the model does not have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from bitgolf.config import Config
from bitgolf.errors import ConfigError, DataError
from bitgolf.train.rows import TrainingRows


class Shards:
    """Token i of the stream is i % 300."""

    num_tokens = 1001

    def read(self, start: int, length: int) -> np.ndarray:
        assert start >= 0 and start + length <= self.num_tokens
        return (np.arange(start, start + length) % 300).astype(np.uint16)

    def validate(self, vocab_size: int) -> None:
        raise DataError(f"an id is not below {vocab_size}")


@dataclass
class Data:
    """In place of prepared data."""

    vocab_size: int = 300
    bos_id: int = 1
    train: Any = field(default_factory=Shards)

    @property
    def tokenizer(self) -> Data:
        return self


def plan(num_ranks: int = 1, data: Data | None = None, **changes: object) -> TrainingRows:
    """Batches of 4 rows of 8 tokens, in micro-batches of 2 rows; the last 80 tokens are held out."""
    values = {
        "model.vocab_size": 300, "train.seq_len": 8, "train.batch_tokens": 32, "train.micro_batch_tokens": 16,
        "train.held_out_tokens": 80, "score.stride": 8,
    }  # fmt: skip
    config = Config().updated(values | {key.replace("__", "."): value for key, value in changes.items()})
    return TrainingRows.plan(data or Data(), config, num_ranks)  # type: ignore[arg-type]


def test_held_out_rows_are_the_last_and_are_never_in_a_batch() -> None:
    rows = plan()
    assert (rows.held_out.first, rows.held_out.num_rows, rows.order.num_tokens) == (920, 10, 920)
    assert not rows.order.shuffled and plan(train__loader="shuffled").order.shuffled


def test_documents_are_cut_as_attention_cuts_them_and_held_out_text_is_not_among_them() -> None:
    apart = {"model__attention__within_documents": True, "model__smear__document_mask": True}
    order = plan(train__loader="documents", model__attention__document_tokens=200, **apart).order
    spans = [span for row in range(order.rows_per_epoch) for span in order.spans(row)]
    assert order.first_mark == 300 and max(start + length for start, length in spans) <= 919
    # Documents begin at 1, 301, 601 and 901, the pieces after 200 tokens; the others begin where a row ends.
    begins = {0, 1, 201, 301, 501, 601, 801, 901}
    assert len(begins & {start for start, _ in spans}) >= 7
    rest = [start for start, _ in spans if start not in begins]
    assert all(any(start == before + length for before, length in spans) for start in rest)
    with pytest.raises(ValueError, match="within_documents"):
        plan(train__loader="documents")


def test_the_vocabulary_must_be_that_of_the_tokenizer() -> None:
    with pytest.raises(ConfigError, match=r"model.vocab_size 300 .* 299"):
        plan(data=Data(vocab_size=299))


def test_the_largest_id_of_the_vocabulary_is_read_and_the_next_is_refused() -> None:
    assert plan().stream.read(298, 2).tolist() == [298, 299]
    rows = plan(data=Data(vocab_size=299), model__vocab_size=299)
    assert rows.stream.read(0, 299).max() == 298
    with pytest.raises(DataError, match="not below 299"):
        rows.stream.read(290, 10)


@pytest.mark.parametrize(("tokens", "num_ranks", "count"), [(0, 1, 0), (1, 1, 1), (160, 1, 10), (160, 2, 5), (9, 2, 1)])
def test_the_number_of_micro_batches_holds_the_tokens_over_all_ranks(tokens: int, num_ranks: int, count: int) -> None:
    assert plan(num_ranks).num_micro_batches(tokens, num_ranks) == count


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_micro_batches_come_from_the_next_batches_and_no_more_are_read_than_needed(count: int) -> None:
    rows = plan()
    batches = [(torch.full((4, 8), number) + torch.arange(4)[:, None], None) for number in (0, 10, 20)]
    loader = iter(batches)
    micro = list(rows.micro_batches(loader, count))  # type: ignore[arg-type]
    expected = [batch[0][part : part + 2] for batch in batches for part in (0, 2)][:count]
    assert [m.tolist() for m in micro] == [m.tolist() for m in expected]
    assert len(list(loader)) == 3 - -(-count // 2)
