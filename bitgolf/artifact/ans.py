"""The ANS stack of an entropy-coded message: constriction where it is installed, plain Python for reading elsewhere.

constriction has no wheel for some platforms, such as Linux on Arm. A message can be read there all the same
(`plain_ans`).
Sources: Bamler 2022, arXiv 2201.01741 (constriction); Duda et al. 2015 (ANS, asymmetric numeral systems).
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import numpy as np

from bitgolf.artifact.plain_ans import PlainDecoder
from bitgolf.errors import ArtifactError, ConfigError

try:
    import constriction
except ImportError:
    constriction = None

Table = np.ndarray | int
"""Frequencies (m,) int64 with sum 2^24, or the number of equally likely values, a power of two."""

_MAX_PLAIN = 16  # bits of one equally likely value
T = TypeVar("T")


class Decoder(Protocol):
    """Pops values."""

    def pop(self, table: Table, count: int) -> np.ndarray:
        """The next `count` values, (count,) int32."""
        ...

    def is_empty(self) -> bool: ...


def encode(pieces: Iterable[tuple[np.ndarray, Table]]) -> np.ndarray:
    """The words (n,) uint32 from which a decoder pops the pieces in this order. Needs constriction."""
    if constriction is None:
        raise ConfigError("entropy-coded files are written with constriction, which is not installed")
    coder = constriction.stream.stack.AnsCoder()
    for values, table in reversed(list(pieces)):
        coder.encode_reverse(values.astype(np.int32, copy=False), _model(table))
    return np.asarray(coder.get_compressed())


def decoder(words: np.ndarray) -> Decoder:
    """Pops the pieces that `encode` pushed. `words` (n,) uint32; the last one is not zero."""
    return PlainDecoder(words) if constriction is None else _Constriction(words)


class _Constriction:
    """Pops values with constriction. Its failures are raised as ArtifactError."""

    def __init__(self, words: np.ndarray) -> None:
        self._coder = _guarded(lambda: constriction.stream.stack.AnsCoder(words))

    def pop(self, table: Table, count: int) -> np.ndarray:
        model = _model(table)
        return _guarded(lambda: self._coder.decode(model, count))

    def is_empty(self) -> bool:
        return bool(self._coder.is_empty())


def _model(table: Table) -> Any:
    """The model of a table. With weights of frequency - 1, constriction's own rounding has nothing to change."""
    if isinstance(table, int):
        return _UNIFORM[table.bit_length() - 2]
    return constriction.stream.model.Categorical((table - 1).astype(np.float32), perfect=False)


_UNIFORM = [] if constriction is None else [constriction.stream.model.Uniform(2 << i) for i in range(_MAX_PLAIN)]


def _guarded(use: Callable[[], T]) -> T:
    """`use()`; any failure of constriction is raised as ArtifactError. Its panics are not instances of `Exception`."""
    try:
        return use()
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ArtifactError(f"entropy-coded message is damaged ({error})") from error
        raise
