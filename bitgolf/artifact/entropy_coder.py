"""The entropy coder for weights: integer matrices and fp16 tensors become bytes, and the same again, bit for bit.

    >>> import numpy as np
    >>> from bitgolf.artifact.entropy_coder import Matrix, decode_matrices, encode_matrices
    >>> rng = np.random.default_rng(0)
    >>> scales = np.exp(rng.normal(0, 0.3, (512, 1)))  # rows of different scale, as in trained weights
    >>> codes = np.rint(4 * scales * rng.normal(0, 1, (512, 256))).astype(np.int8)
    >>> message = encode_matrices([Matrix(codes)])
    >>> print(f"{8 * len(message) / codes.size:.2f} bits per weight")
    4.06 bits per weight
    >>> [(decoded, _)] = decode_matrices(message, shapes=[(512, 256)], num_states=[0])
    >>> bool((decoded == codes).all())
    True

Decoding takes about 0.06 us per weight. The parts, from the bottom:

    message        one stack of bits: numbers, equally likely bits, and symbols with given frequencies (ANS)
    frequency      the frequency table of a distribution, from a few small integers, in integer arithmetic
    scale_model    the distribution of a matrix, and its fit (law_fit, scale_classes)
    parities       the first half of trellis codes
    integer_coder  one matrix: the distribution, then the integers
    float_coder    one fp16 tensor, as integers
    this file      messages of several tensors, and their limits

Source of the coder: Bamler 2022, arXiv 2201.01741 (constriction). The model of weights is this project's.

Legend: R rows, C columns.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitgolf.artifact.float_coder import get_floats, put_floats
from bitgolf.artifact.integer_coder import get_integers, put_integers
from bitgolf.artifact.message import Reader, WorkBudget, Writer
from bitgolf.errors import ArtifactError

MAX_CODE = 32_767  # largest magnitude of a code
MAX_EXPANSION = 1 << 20  # numbers per byte of a message; a constant matrix takes no bytes
_FREE_WORK = 1 << 24  # units of 0.1 us that reading any file may take (see `WorkBudget`)
_WORK_PER_BYTE = 8  # and that it may take in addition, for each byte of its messages

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""`map`, or something like it that works in several processes."""


@dataclass(frozen=True)
class Matrix:
    """Integers to code."""

    codes: np.ndarray  # (R, C) integers from -32,767 to 32,767, contiguous or not
    num_states: int = 0  # of the trellis that they are a path of; 0 = none


def encode_matrices(matrices: Sequence[Matrix], apply: Map = map) -> bytes:
    """One message with all `matrices`; `apply` may work on them in parallel. Raises ArtifactError if readers would
    refuse it."""
    out = Writer()
    for written in apply(_written, matrices):
        out.append(written)
    return _finish(out)


def _written(matrix: Matrix) -> Writer:
    out = Writer()
    put_integers(out, matrix.codes, matrix.num_states)
    return out


def decode_matrices(
    data: bytes | memoryview,
    shapes: Sequence[tuple[int, int]],
    num_states: Sequence[int],
    budget: WorkBudget | None = None,  # of all messages of a file; None = this message is alone
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The (R, C) codes of each matrix, int16 or int32; with a trellis also the uint8 quantizers z of its levels 2k + z.
    Raises:
        ArtifactError: `data` is no such message. Matrices before the damaged one may have been yielded by then.
    """
    inp = _open(data, sum(rows * columns for rows, columns in shapes), budget)
    for shape, states in zip(shapes, num_states, strict=True):
        codes, quantizers = get_integers(inp, shape, states)
        if max(int(codes.max()), -int(codes.min())) > MAX_CODE:
            raise ArtifactError(f"entropy-coded message holds a code beyond +-{MAX_CODE}; it is damaged")
        yield codes, quantizers
    inp.finish()


def encode_floats(
    tensors: Sequence[np.ndarray],  # fp16, any shapes
) -> bytes:
    """One message with all `tensors`. Raises ArtifactError if readers would refuse it."""
    out = Writer()
    for values in tensors:
        put_floats(out, values)
    return _finish(out)


def decode_floats(
    data: bytes | memoryview, shapes: Sequence[tuple[int, ...]], budget: WorkBudget | None = None
) -> list[np.ndarray]:
    """The fp16 tensors of those shapes, every bit as it was. Raises ArtifactError if `data` is no such message."""
    inp = _open(data, sum(int(np.prod(shape)) for shape in shapes), budget)
    tensors = [get_floats(inp, shape) for shape in shapes]
    inp.finish()
    return tensors


def work_of_reading(
    written: tuple[bytes, Sequence[np.ndarray], Sequence[int] | None],  # message, its arrays, their trellises or fp16
) -> int:
    """Decode what was just encoded; the computing that it asks for. It takes a third of the time of encoding and guards
    the weights of the run."""
    message, arrays, num_states = written
    budget = WorkBudget(None)
    shapes = [array.shape for array in arrays]
    if num_states is None:
        decoded = [values.view("<u2") for values in decode_floats(message, shapes, budget)]
        arrays = [array.view("<u2") for array in arrays]
    else:
        decoded = [codes for codes, _ in decode_matrices(message, shapes, num_states, budget)]
    for before, after in zip(arrays, decoded, strict=True):
        assert np.array_equal(before, after), (
            f"the entropy coder does not give an array of {before.shape} back as it was"
        )
    return budget.used


def work_budget(num_bytes: int) -> WorkBudget:
    """The computing that messages of `num_bytes` bytes together may ask for."""
    return WorkBudget(_FREE_WORK + _WORK_PER_BYTE * num_bytes)


def require_readable(work: int, num_bytes: int) -> None:
    """Raise ArtifactError if readers would refuse messages of `num_bytes` bytes that ask for so much computing."""
    limit = work_budget(num_bytes).limit
    if limit is not None and work > limit:
        raise ArtifactError(
            f"reading {num_bytes} bytes of entropy-coded numbers would take {work} units of computing, and {limit} are "
            "allowed; choose another compressor than range, or wider steps"
        )


def _open(data: bytes | memoryview, count: int, budget: WorkBudget | None) -> Reader:
    if count > MAX_EXPANSION * (1 + len(data)):
        raise ArtifactError(f"entropy-coded message of {len(data)} bytes cannot hold {count} numbers")
    return Reader(data, budget or work_budget(len(data)))


def _finish(out: Writer) -> bytes:
    message = out.finish()
    require_readable(out.work, len(message))
    return message
