"""The search for the best path through a trellis (Viterbi), on the CPU for many sequences at once.

`column_steps` calls it with weights in units of half a step. `artifact.trellis` defines the code. On a GPU with
Triton the kernel in `viterbi_triton` searches instead; this file is its reference. Sources: Viterbi 1967; Marcellin
and Fischer 1990.

Legend: N sequences, R rows, S states, T steps of a path, L lanes (paths that are searched side by side).
"""

import functools
import importlib.util
import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitgolf.artifact.trellis import RESTART_ROWS, Trellis, trellis_of
from bitgolf.errors import ConfigError

logger = logging.getLogger(__name__)

_LANES_AT_ONCE = 256  # so that the working set of a step stays in the first two caches


@torch.no_grad()
def trellis_quantize(
    x: Tensor,  # (..., R) float, in units of half a step; paths run along the last dimension
    num_states: int,
    weight: Tensor | None = None,  # (..., R) >= 0, broadcastable: factor of an element's squared error
    restart: int = RESTART_ROWS,
) -> Tensor:  # (..., R) integer-valued, of x's dtype (fp32 for half precision)
    """The levels of the path of least weighted squared error, exact up to rounding of the sums.

    `levels >> 1` are the codes. On a GPU one Triton program searches each lane. Without Triton, and on every other
    device, the CPU searches.

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
    installed = importlib.util.find_spec("triton") is not None
    if not installed:
        logger.warning("Triton is not installed: trellises are searched on the CPU, many times slower")
    return installed


def _search(
    x: np.ndarray,  # (N, R)
    weight: np.ndarray | None,  # (N, R)
    trellis: Trellis,
    num_steps: int,
) -> np.ndarray:  # (N, R)
    """Cut sequences into lanes of `num_steps` and search them, 256 lanes at a time."""
    num_sequences, num_rows = x.shape
    segments = -(-num_rows // num_steps)
    padding = segments * num_steps - num_rows

    def lanes(values: np.ndarray) -> np.ndarray:  # (N, R) -> (T, L), zeros behind the end
        padded = np.pad(values, ((0, 0), (0, padding))) if padding else values
        return padded.reshape(-1, num_steps).T

    columns = lanes(x)
    # Elements behind the end have weight 0, so any path is good there.
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

    # Follow the best predecessors back, with flat indices state * L + lane, so that a step is a single gather.
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
