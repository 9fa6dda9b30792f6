"""Encodes batches of documents in order, in this process or in several.

Each worker has at most two batches in progress, so memory does not grow with the corpus. The process that encodes a
batch also proves it (`Tokenizer.encode_proven`). Ctrl-C reaches only this process, and the workers end when it ends.
"""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context

from bitgolf.data.split import SourceDocument
from bitgolf.data.tokenizer import EncodedDocuments, Tokenizer
from bitgolf.errors import DataError
from bitgolf.run.workers import end_with_parent, interrupts_blocked

BATCH_BYTES = 1_000_000
_POOL_AFTER = 4  # batches; fewer are encoded before other processes would have started
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Batch:
    """Documents of one split."""

    split: str
    documents: list[SourceDocument]


def make_batches(labeled: Iterable[tuple[str, SourceDocument]]) -> Iterator[Batch]:
    """Group (split, document) pairs into batches of about BATCH_BYTES. The order within a split is kept."""
    held: dict[str, list[SourceDocument]] = {}
    sizes: dict[str, int] = {}
    for split, document in labeled:
        held.setdefault(split, []).append(document)
        sizes[split] = sizes.get(split, 0) + document.size
        if sizes[split] >= BATCH_BYTES:
            yield Batch(split, held.pop(split))
            del sizes[split]
    for split, documents in held.items():
        yield Batch(split, documents)


def encode_batches(
    batches: Iterable[Batch], tokenizer: Tokenizer, workers: int = 0
) -> Iterator[tuple[Batch, EncodedDocuments]]:
    """Encode `batches` in order with `workers` processes. A few batches are encoded in this process.

    0 workers means one per core, at most 8. Each worker caches the ids of words (about 150 MB), so 8 of them need less
    than 2 GB.

    Raises DataError for a document that does not decode to its text, or if a worker process dies.
    """
    count = workers or min(os.cpu_count() or 1, _MOST_WORKERS)
    source = iter(batches)
    first = list(itertools.islice(source, _POOL_AFTER)) if count > 1 else []
    if count == 1 or len(first) < _POOL_AFTER:
        for batch in itertools.chain(first, source):
            yield batch, _encode(tokenizer, batch)
        return
    with interrupts_blocked():
        pool = ProcessPoolExecutor(
            count,
            mp_context=get_context("spawn"),
            initializer=_start_worker,
            initargs=(tokenizer.model_bytes, tokenizer.lossless, tokenizer.name),
        )
    waiting: deque[tuple[Batch, Future[EncodedDocuments]]] = deque()
    try:
        for batch in itertools.chain(first, source):
            with interrupts_blocked():  # the workers start at the first call
                waiting.append((batch, pool.submit(_encode_in_worker, batch)))
            if len(waiting) > 2 * count:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died (out of memory, or a script without `if __name__ == "
            "'__main__':`); use data.workers=1 to tokenize in one process"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: list[Tokenizer] = []  # the tokenizer of a worker process


def _start_worker(model_bytes: bytes, lossless: bool, name: str) -> None:
    end_with_parent()
    _worker.append(Tokenizer(model_bytes, lossless, name))


def _encode_in_worker(batch: Batch) -> EncodedDocuments:
    return _encode(_worker[0], batch)


def _encode(tokenizer: Tokenizer, batch: Batch) -> EncodedDocuments:
    documents = batch.documents
    return tokenizer.encode_proven([d.text for d in documents], [d.index for d in documents])
