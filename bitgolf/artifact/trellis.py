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
import importlib.util
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitgolf.errors import ConfigError

logger = logging.getLogger(__name__)

RESTART_ROWS = 512  # long enough to cost nothing (0.002 bit), short enough for parallel lanes
STATE_COUNTS = (0, 8)  # 0 = no trellis
# Squared error in units of the step^2 (the distance of codes k and k + 1) where it is small against the data.
MEAN_SQUARED_ERROR = {0: 1 / 12, 8: 0.0652}
_PARITY_CHECKS = {8: (0o13, 0o04)}  # by number of states
_LANES_AT_ONCE = 256  # keeps the working set of a step in the first two caches


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


@torch.no_grad()
def trellis_quantize(
    x: Tensor,  # (..., R) float, in units of half a step; paths run along the last dimension
    num_states: int,
    weight: Tensor | None = None,  # (..., R) >= 0, broadcastable: how much the squared error of an element counts
    restart: int = RESTART_ROWS,
) -> Tensor:  # (..., R) integer-valued, of x's dtype (fp32 for half precision)
    """The levels of the path of least (weighted) squared error: Viterbi, exact up to rounding of the sums.

    `levels >> 1` are the codes. On a GPU one Triton program searches each lane; without Triton, and on every other
    device, lanes are searched together on the CPU.

    Raises:
        ConfigError: an unknown number of states or restart, or x that is not float.
    """
    trellis = trellis_of(num_states)
    if x.ndim == 0 or not x.is_floating_point() or restart < 1:
        raise ConfigError(f"a trellis quantizes float sequences, not {x.dtype} of {tuple(x.shape)}; restart {restart}")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if wide.numel() == 0:
        return wide
    sequences = wide.reshape(-1, x.shape[-1]).contiguous()  # (N, R)
    factors = None if weight is None else weight.to(wide).expand(wide.shape).reshape(sequences.shape).contiguous()
    if x.is_cuda and _has_triton():
        from bitgolf.quantize.viterbi_triton import viterbi

        return viterbi(sequences, factors, trellis, restart).reshape(wide.shape)
    levels = _search(
        sequences.cpu().numpy(), None if factors is None else factors.cpu().numpy(), trellis, min(restart, x.shape[-1])
    )
    return torch.from_numpy(levels).to(x.device).reshape(wide.shape)


@functools.cache
def _has_triton() -> bool:
    found = importlib.util.find_spec("triton") is not None
    if not found:
        logger.warning("Triton is not installed: trellises are searched on the CPU, many times slower")
    return found


def _search(
    x: np.ndarray,  # (N, R)
    weight: np.ndarray | None,  # (N, R)
    trellis: Trellis,
    num_steps: int,
) -> np.ndarray:  # (N, R)
    """Cut sequences into lanes of `num_steps` and search them, some hundred lanes at a time."""
    num_sequences, num_rows = x.shape
    segments = -(-num_rows // num_steps)
    padding = segments * num_steps - num_rows

    def lanes(values: np.ndarray) -> np.ndarray:  # (N, R) -> (T, L), zeros behind the end
        padded = np.pad(values, ((0, 0), (0, padding))) if padding else values
        return padded.reshape(-1, num_steps).T

    columns = lanes(x)
    # What lies behind the end weighs nothing: any path does there.
    factors = lanes(np.ones_like(x) if weight is None and padding else x if weight is None else weight)
    levels = np.empty((columns.shape[1], num_steps), dtype=x.dtype)
    for start in range(0, len(levels), _LANES_AT_ONCE):
        some = slice(start, start + _LANES_AT_ONCE)
        weighted = weight is not None or padding > 0
        levels[some] = _viterbi(columns[:, some], factors[:, some] if weighted else None, trellis).T
    return levels.reshape(num_sequences, -1)[:, :num_rows]


def _viterbi(
    x: np.ndarray,  # (T, L)
    weight: np.ndarray | None,  # (T, L)
    trellis: Trellis,
) -> np.ndarray:  # (T, L) levels
    """The best path of every lane from state 0 to any state; equal costs go to the lower state."""
    (num_steps, num_lanes), num_states = x.shape, trellis.num_states
    # A branch leads to one of four cosets of levels, by level mod 4 = 2 b + z; its best level is the nearest.
    residue = np.arange(4, dtype=x.dtype)[:, None]
    nearest = residue + 4 * np.floor((x[:, None] - residue) * x.dtype.type(0.25) + x.dtype.type(0.5))  # (T, 4, L)
    cost = np.square(x[:, None] - nearest)
    if weight is not None:
        cost *= weight[:, None]
    cost = cost.reshape(num_steps, 2, 1, 2, num_lanes)  # b, broadcast over s >> 1, z

    metric = np.full((num_states, num_lanes), np.inf, dtype=x.dtype)
    metric[0] = 0
    by_bit = metric.reshape(1, num_states // 2, 2, num_lanes)  # the same memory as s >> 1, z
    branch = np.empty((2, num_states // 2, 2, num_lanes), dtype=x.dtype)
    by_source = branch.reshape(2 * num_states, num_lanes)
    pairs = np.empty((num_steps, 2, num_states, num_lanes), dtype=x.dtype)  # costs of both ways into each state
    for price, pair in zip(cost, pairs, strict=True):
        np.add(by_bit, price, out=branch)
        by_source.take(trellis.incoming, axis=0, out=pair, mode="clip")
        np.minimum(pair[0], pair[1], out=metric)

    # Walk back with flat indices state * L + lane, so that a step is a single gather.
    lane = np.arange(num_lanes)
    first, second = (trellis.incoming % num_states)[:, :, None] * num_lanes + lane  # (S, L) each
    back = np.where(pairs[:, 1] < pairs[:, 0], second, first)  # (T, S, L)
    path = np.empty((num_steps + 1, num_lanes), dtype=np.int64)
    path[-1] = metric.argmin(axis=0) * num_lanes + lane
    for t in range(num_steps - 1, -1, -1):
        back[t].take(path[t + 1], out=path[t], mode="clip")
    state = path // num_lanes
    coset = trellis.coset[state[:-1], state[1:]]
    levels: Any = np.take_along_axis(nearest, coset[:, None], axis=1)[:, 0]
    return levels
