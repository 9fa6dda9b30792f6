"""Codes of a trellis, first half: their parities, which alone say from which of its two quantizers each code comes.

The state that picks the quantizer of a code follows from the parities of the codes above it in its column. Parities
are therefore coded first; then every code's quantizer is known, and the rest of all codes can be coded at once, given
both. That this loses nothing rests on a fact: above 2 bits a weight even codes are as likely as odd ones in either
quantizer. Below, 0 prevails in one of them, and parities are coded row after row as the quantizers become known.

Legend: R rows, C columns; z is the quantizer, the last bit of the level 2k + z that a code k stands for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bitgolf.artifact.frequency import PRECISION
from bitgolf.artifact.message import Reader, Writer
from bitgolf.artifact.trellis import RESTART_ROWS, trellis_of
from bitgolf.errors import ArtifactError

_WORTH_ROWS = 0.0005  # bits a weight that coding parities row after row must save: it takes longer


def put_parities(out: Writer, parities: np.ndarray, halves: np.ndarray, num_states: int) -> None:
    """Append (R, C) parities, given the bits z that follow from them."""
    alone, driven = Writer(dry=True), Writer(dry=True)
    shares = [_even_share(parities), _even_share(parities[halves == 0]), _even_share(parities[halves == 1])]
    alone.symbols(parities.reshape(-1), _parity_table(shares[0]))
    for half in (0, 1):
        driven.symbols(parities[halves == half], _parity_table(shares[1 + half]))
    in_rows = alone.bits - driven.bits > _WORTH_ROWS * parities.size
    out.plain(np.array([in_rows]), 1)
    out.plain(np.array(shares[1:] if in_rows else shares[:1]), 16)
    if not in_rows:
        out.symbols(parities.reshape(-1), _parity_table(shares[0]))
        return

    def put(rows: slice, z: np.ndarray) -> np.ndarray:
        for half in (0, 1):
            out.symbols(parities[rows][z == half], _parity_table(shares[1 + half]))
        return parities[rows]

    _walk(parities.shape, num_states, put)


def get_parities(inp: Reader, shape: tuple[int, int], num_states: int) -> tuple[np.ndarray, np.ndarray]:
    """(R, C) uint8 parities and the bits z that follow from them."""
    in_rows = bool(inp.plain(1, 1)[0])
    shares = inp.plain(1 + in_rows, 16).tolist()
    if min(shares) == 0:
        raise ArtifactError("entropy-coded message gives a parity no probability; it is damaged")
    if not in_rows:
        parities = inp.symbols(shape[0] * shape[1], _parity_table(shares[0])).astype(np.uint8).reshape(shape)
        return parities, quantizer_bits(parities, num_states)

    def get(rows: slice, z: np.ndarray) -> np.ndarray:
        parity = np.empty_like(z)
        for half in (0, 1):
            parity[z == half] = inp.symbols(int(np.count_nonzero(z == half)), _parity_table(shares[half]))
        return parity

    return _walk(shape, num_states, get)


def quantizer_bits(
    parities: np.ndarray,  # (R, C) integers 0 and 1: codes & 1
    num_states: int,
) -> np.ndarray:  # (R, C) uint8
    """Bit z of the levels 2k + z that codes of these parities stand for; what `trellis_levels` computes, faster."""
    parities = parities.astype(np.uint8)
    return _walk(parities.shape, num_states, lambda rows, z: parities[rows])[1]


def _walk(
    shape: tuple[int, ...],
    num_states: int,
    parities_of: Callable[[slice, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """(R, C) uint8 parities and bits z; `parities_of(rows, z)` are those of `rows` (one of each segment), given z."""
    following = trellis_of(num_states).following.astype(np.uint8).reshape(-1)  # by 2 * state + parity
    num_rows, num_columns = shape
    parities, halves = np.empty(shape, dtype=np.uint8), np.empty(shape, dtype=np.uint8)
    states = np.zeros((-(-num_rows // RESTART_ROWS), num_columns), dtype=np.uint8)
    for first in range(min(num_rows, RESTART_ROWS)):
        rows = slice(first, num_rows, RESTART_ROWS)
        states = states[: len(range(num_rows)[rows])]
        halves[rows] = z = states & 1
        parities[rows] = parity = parities_of(rows, z)
        states = following[2 * states + parity]
    return parities, halves


def _even_share(parities: np.ndarray) -> int:
    """Share of zeros in 2^-16, neither none nor all."""
    evens = 1 - float(parities.mean()) if parities.size else 0.5
    return min(max(round(evens * 2**16), 1), 2**16 - 1)


def _parity_table(even: int) -> np.ndarray:
    """(2,) frequencies of even and odd symbols, from the share of the even ones in 2^-16."""
    return np.array([even, (1 << 16) - even], dtype=np.int64) << PRECISION - 16
