"""Trellis-coded ("dependent") quantization: two quantizers, one path, 0.18 bits per weight saved at equal error.

A code k stands for the level 2k + z, in units of half a step. The bit z is not stored: it is the last bit of a state
that the parities of the codes before it have driven, so the decoder follows along. Each quantizer alone is as coarse
as a plain one of that step and costs the same entropy; choosing the *path* (Viterbi) over both leaves 0.78 (8 states)
of its squared error. Sequences run down the columns of a matrix, across the output rows, which GPTQ
rounds together. The state starts at 0 and returns to 0 every RESTART_ROWS rows; both are part of the artifact's
format. Sources: Marcellin and Fischer 1990; ISO/IEC 15938-17 (dependent quantization); parity checks of Ungerboeck.

Legend: R rows, C columns, S states, T steps of a path, L lanes (paths that are searched side by side).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitgolf.errors import ConfigError

RESTART_ROWS = 512  # long enough to cost nothing (0.002 bit), short enough for parallel lanes
STATE_COUNTS = (0, 8)  # 0 = no trellis
# Squared error in units of the step^2 (the distance of codes k and k + 1) where it is small against the data.
MEAN_SQUARED_ERROR = {0: 1 / 12, 8: 0.0652}
_PARITY_CHECKS = {8: (0o13, 0o04)}  # by number of states


@dataclass(frozen=True)
class Trellis:
    """The state machine: after a code of parity b in state s comes state `following[s, b]`.

    Attributes:
        following: (S, 2) int64.
        incoming: (2, S) int64, the two branches into each state as b * S + s, by ascending s.
        coset: (S, S) int64, level mod 4 on the branch from one state to another (0 where there is none).
        push: what z and b exclusive-or onto s >> 1.
    """

    num_states: int
    following: np.ndarray
    incoming: np.ndarray
    coset: np.ndarray
    push: tuple[int, int]


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
    """The levels that codes stand for: 2k + z with a trellis, k itself with `num_states` 0.

    Raises:
        ConfigError: an unknown number of states, or codes that are no integer matrix.
    """
    if codes.ndim != 2 or codes.is_floating_point():
        raise ConfigError(f"a trellis decodes integer matrices (R, C), not {codes.dtype} of {tuple(codes.shape)}")
    levels = codes.to(torch.int32, copy=True)
    if num_states == 0:
        return levels
    from_z, from_parity = trellis_of(num_states).push
    num_rows, num_columns = codes.shape
    # Row t of every segment is decoded in one go; the last segment may be shorter.
    state = torch.zeros(-(-num_rows // restart), num_columns, dtype=torch.int32, device=codes.device)
    for t in range(min(num_rows, restart)):
        rows = levels[t::restart]  # a view
        state = state[: len(rows)]
        z = state & 1
        state = (state >> 1) ^ (z * from_z) ^ ((rows & 1) * from_parity)
        rows.mul_(2).add_(z)
    return levels
