"""The parities of trellis codes, which are coded before the rest of the codes.

Under a trellis a code k belongs to one of two quantizers, numbered by the last bit z of its level 2k + z (see
`trellis`). The quantizers of a column follow from the parities of the codes above. So the parities come first; then
the quantizer of every code is known, and what is left of the codes, k >> 1, can be coded all at once, given quantizer
and parity.

Above 2 bits per weight even codes are as likely as odd ones in either quantizer, so one table serves all parities.
Below, 0 is frequent in one of the quantizers. The parities are then coded row by row, as the quantizers become known,
with one table per quantizer.

Legend: R rows, C columns.
"""

from collections.abc import Callable

import numpy as np

from bitgolf.artifact.frequency import PRECISION
from bitgolf.artifact.message import Reader, Writer
from bitgolf.artifact.trellis import RESTART_ROWS, trellis_of
from bitgolf.errors import ArtifactError

_ROW_BY_ROW_GAIN = 0.0005  # bits per weight that coding row by row must save, because it takes longer
_ROW_WORK = 500  # units of computing (see `message.WorkBudget`) that coding row by row takes per row
_SHARE_BITS = 16  # the share of even codes is stored in units of 2^-16


def put_parities(out: Writer, parities: np.ndarray, quantizers: np.ndarray, num_states: int) -> None:
    """Append (R, C) parities; `quantizers` (R, C) are those that follow from them."""
    even_share = _even_share(parities)
    shares = [_even_share(parities[quantizers == z]) for z in (0, 1)]
    at_once, row_by_row = Writer(dry=True), Writer(dry=True)
    at_once.symbols(parities.reshape(-1), _parity_table(even_share))
    for z in (0, 1):
        row_by_row.symbols(parities[quantizers == z], _parity_table(shares[z]))
    in_rows = at_once.bits - row_by_row.bits > _ROW_BY_ROW_GAIN * parities.size
    out.plain(np.array([in_rows]), 1)
    out.plain(np.array(shares if in_rows else [even_share]), _SHARE_BITS)
    if not in_rows:
        out.symbols(parities.reshape(-1), _parity_table(even_share))
        return

    def put(rows: slice, z_of_rows: np.ndarray) -> np.ndarray:
        out.count_work(_ROW_WORK)
        for z in (0, 1):
            out.symbols(parities[rows][z_of_rows == z], _parity_table(shares[z]))
        return parities[rows]

    _follow(parities.shape, num_states, put)


def get_parities(inp: Reader, shape: tuple[int, int], num_states: int) -> tuple[np.ndarray, np.ndarray]:
    """(R, C) uint8 parities, and the quantizers that follow from them."""
    in_rows = bool(inp.plain(1, 1)[0])
    shares = inp.plain(1 + in_rows, _SHARE_BITS).tolist()
    if min(shares) == 0:
        raise ArtifactError("entropy-coded message gives a parity no probability; it is damaged")
    if not in_rows:
        parities = inp.symbols(shape[0] * shape[1], _parity_table(shares[0])).astype(np.uint8).reshape(shape)
        return parities, quantizers_of(parities, num_states)

    def get(rows: slice, z_of_rows: np.ndarray) -> np.ndarray:
        inp.count_work(_ROW_WORK)
        parities = np.empty_like(z_of_rows)
        for z in (0, 1):
            inside = z_of_rows == z
            parities[inside] = inp.symbols(int(np.count_nonzero(inside)), _parity_table(shares[z]))
        return parities

    return _follow(shape, num_states, get)


def quantizers_of(
    parities: np.ndarray,  # (R, C) integers 0 and 1: codes & 1
    num_states: int,
) -> np.ndarray:  # (R, C) uint8
    """The quantizer z of each code with these parities: what `trellis_levels` computes, faster."""
    parities = parities.astype(np.uint8)
    return _follow(parities.shape, num_states, lambda rows, z: parities[rows])[1]


def _follow(
    shape: tuple[int, ...],
    num_states: int,
    # gives the parities of some rows (one of each segment), given their quantizers
    parities_of: Callable[[slice, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """(R, C) uint8 parities and quantizers: all columns go through their states row by row, all segments at once."""
    following = trellis_of(num_states).following.astype(np.uint8).reshape(-1)  # by 2 * state + parity
    num_rows, num_columns = shape
    parities, quantizers = np.empty(shape, dtype=np.uint8), np.empty(shape, dtype=np.uint8)
    states = np.zeros((-(-num_rows // RESTART_ROWS), num_columns), dtype=np.uint8)
    for first in range(min(num_rows, RESTART_ROWS)):
        rows = slice(first, num_rows, RESTART_ROWS)
        states = states[: len(range(num_rows)[rows])]
        quantizers[rows] = z = states & 1
        parities[rows] = parity = parities_of(rows, z)
        states = following[2 * states + parity]
    return parities, quantizers


def _even_share(parities: np.ndarray) -> int:
    """Share of even codes in units of 2^-16, neither none nor all."""
    share = 1 - float(parities.mean()) if parities.size else 0.5
    return min(max(round(share * 2**_SHARE_BITS), 1), 2**_SHARE_BITS - 1)


def _parity_table(even: int) -> np.ndarray:
    """(2,) frequencies of even and odd codes, from the share of the even ones in units of 2^-16."""
    return np.array([even, (1 << _SHARE_BITS) - even], dtype=np.int64) << PRECISION - _SHARE_BITS
