"""How much memory a piece of work takes."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def memory_below(num_bytes: float) -> Iterator[None]:
    """Fail if the block has so many bytes of Python and NumPy allocated at one time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < num_bytes
