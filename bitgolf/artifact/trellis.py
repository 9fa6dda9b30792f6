"""Trellis-coded ("dependent") quantization: two quantizers and one path, 0.18 bits per weight saved at equal error.

A code k stands for the level 2k + z, in units of half a step. The bit z says which of two quantizers the code belongs
to: quantizer 0 has the even levels, quantizer 1 the odd ones. z is not stored. It is the last bit of a state that the
parities of the earlier codes have set, so the decoder computes it too. Each quantizer alone is as coarse as a plain
one of that step, and its codes have the same entropy. Choosing the *path* through both (see `quantize.viterbi`)
leaves 0.78 of the squared error with 8 states. A path runs down a column of a matrix, because GPTQ rounds all rows of
a column together. The state is 0 at the first row and again every RESTART_ROWS rows. Both are part of the artifact's
format.
Sources: Marcellin and Fischer 1990; ISO/IEC 15938-17 (dependent quantization); parity checks of Ungerboeck 1982.

Legend: R rows, C columns, S states.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bitgolf.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

RESTART_ROWS = 512  # a restart takes 0.002 bits per weight, and segments are decoded in parallel
STATE_COUNTS = (0, 8)  # 0 = no trellis
MEAN_SQUARED_ERROR = {0: 1 / 12, 8: 0.0652}  # in units of step^2, at fine steps; 8 states: measured on Gaussian noise
_PARITY_CHECKS = {8: (0o13, 0o04)}  # by number of states (Ungerboeck 1982)


@dataclass(frozen=True)
class Trellis:
    """The state machine: a code of parity b in state s leads to state `following[s, b]`."""

    num_states: int
    following: np.ndarray  # (S, 2) int64
    incoming: np.ndarray  # (2, S) int64, the two branches into each state as b * S + s, by ascending s
    coset: np.ndarray  # (S, S) int64, level mod 4 on the branch from one state to another; 0 where there is no branch
    push: tuple[int, int]  # the next state is s >> 1, exclusive-or push[0] if z is 1, exclusive-or push[1] if b is 1


@functools.cache
def trellis_of(num_states: int) -> Trellis:
    """The trellis of 8 states. Raises ConfigError for other numbers."""
    if num_states not in _PARITY_CHECKS:
        raise ConfigError(f"a trellis of {num_states!r} states does not exist; choose 8 (0 = no trellis)")
    first, second = (check >> 1 for check in _PARITY_CHECKS[num_states])
    following = np.zeros((num_states, 2), dtype=np.int64)
    coset = np.zeros((num_states, num_states), dtype=np.int64)
    into: list[list[int]] = [[] for _ in range(num_states)]
    for state in range(num_states):
        for parity in (0, 1):
            z = state & 1
            after = (state >> 1) ^ (z * first) ^ (parity * second)
            following[state, parity] = after
            coset[state, after] = 2 * parity + z
            into[after].append(parity * num_states + state)
    return Trellis(num_states, following, np.array(into).T.copy(), coset, (first, second))


def trellis_levels(
    codes: Tensor,  # (R, C) integers k
    num_states: int,
    restart: int = RESTART_ROWS,
) -> Tensor:  # (R, C) int32
    """The levels of codes: 2k + z with a trellis, k itself with `num_states` 0.

    Raises:
        ConfigError: an unknown number of states, or codes that are no integer matrix.
    """
    import torch  # the processes that encode do without it

    if codes.ndim != 2 or codes.is_floating_point():
        raise ConfigError(f"a trellis decodes integer matrices (R, C), not {codes.dtype} of {tuple(codes.shape)}")
    levels = codes.to(torch.int32, copy=True)
    if num_states == 0:
        return levels
    from_z, from_parity = trellis_of(num_states).push
    num_rows, num_columns = codes.shape
    # Row t of all segments is decoded at once; the last segment may be shorter.
    state = torch.zeros(-(-num_rows // restart), num_columns, dtype=torch.int32, device=codes.device)
    for t in range(min(num_rows, restart)):
        rows = levels[t::restart]  # a view
        state = state[: len(rows)]
        z = state & 1
        state = (state >> 1) ^ (z * from_z) ^ ((rows & 1) * from_parity)
        rows.mul_(2).add_(z)
    return levels
