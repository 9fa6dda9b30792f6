"""The Viterbi search as one Triton kernel: one warp per lane, path metrics in registers.

GPTQ rounds one column after the other, and the search along a column takes one step per row. Launching PyTorch
operations for every step would take minutes per model. The reference is `viterbi._viterbi`. Both choose the lower
state on ties.

Legend: N sequences, R rows, S states.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitgolf.artifact.trellis import Trellis


@triton.jit
def _viterbi_kernel(  # type: ignore[no-untyped-def]
    x_ptr,  # (N, R)
    weight_ptr,  # (N, R); read only if WEIGHTED
    levels_ptr,  # (N, R), written
    back_ptr,  # (N, R, S) int8, scratch: best predecessor of each state
    num_rows,
    restart,
    NUM_STATES: tl.constexpr,
    FROM_Z: tl.constexpr,
    FROM_PARITY: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """One lane: rows from `program_id(1) * restart` of sequence `program_id(0)`."""
    first = tl.program_id(1) * restart
    length = tl.minimum(num_rows - first, restart)
    offset = tl.program_id(0).to(tl.int64) * num_rows + first
    after = tl.arange(0, NUM_STATES)[:, None]
    before = tl.arange(0, NUM_STATES)[None, :]
    z = before & 1
    even = (before >> 1) ^ (z * FROM_Z)  # the state after a code of parity 0
    odd = even ^ FROM_PARITY
    exists = (after == even) | (after == odd)
    dtype = x_ptr.dtype.element_ty
    residue = (z + tl.where(after == odd, 2, 0)).to(dtype)  # (S after, S before): level mod 4 on the branch

    state = tl.arange(0, NUM_STATES)
    metric = tl.where(state == 0, 0.0, float("inf")).to(dtype)
    for t in range(length):
        x = tl.load(x_ptr + offset + t)
        nearest = residue + 4 * tl.floor((x - residue) * 0.25 + 0.5)
        cost = (x - nearest) * (x - nearest)
        if WEIGHTED:
            cost *= tl.load(weight_ptr + offset + t)
        total = tl.where(exists, metric[None, :] + cost, float("inf"))
        metric, source = tl.min(total, axis=1, return_indices=True)  # ties go left, to the lower state
        tl.store(back_ptr + (offset + t) * NUM_STATES + state, source.to(tl.int8))
    tl.debug_barrier()  # the loop below reads values that other threads of this program wrote

    end = tl.argmin(metric, axis=0)
    for i in range(length):
        t = length - 1 - i
        start = tl.load(back_ptr + (offset + t) * NUM_STATES + end).to(tl.int32)
        z_of_start = start & 1
        parity = tl.where(end == ((start >> 1) ^ (z_of_start * FROM_Z)), 0, 1)
        residue_taken = (z_of_start + 2 * parity).to(dtype)
        x = tl.load(x_ptr + offset + t)
        tl.store(levels_ptr + offset + t, residue_taken + 4 * tl.floor((x - residue_taken) * 0.25 + 0.5))
        end = start


def viterbi(
    x: Tensor,  # (N, R) fp32 or fp64, contiguous, on a GPU
    weight: Tensor | None,  # (N, R) like x
    trellis: Trellis,
    restart: int,
) -> Tensor:  # (N, R) integer-valued, like x
    """The levels of the best path of each lane; see `viterbi.trellis_quantize`."""
    num_sequences, num_rows = x.shape
    levels = torch.empty_like(x)
    back = torch.empty(num_sequences, num_rows, trellis.num_states, dtype=torch.int8, device=x.device)
    from_z, from_parity = trellis.push
    grid = (num_sequences, triton.cdiv(num_rows, restart))
    _viterbi_kernel[grid](
        x,
        x if weight is None else weight,
        levels,
        back,
        num_rows,
        restart,
        NUM_STATES=trellis.num_states,
        FROM_Z=from_z,
        FROM_PARITY=from_parity,
        WEIGHTED=weight is not None,
        num_warps=1,
    )
    return levels
