"""Curvature: how much the loss rises when one matrix is rounded, computed for the errors that GPTQ would leave.

GPTQ with step s leaves errors e_ij, about uniform in [-s/2, s/2], in the coordinates of its error feedback. In the
weights this is the noise N = (e / pivots) U, with U the inverse factor of the Hessian. Its expected cost is curvature *
s^2, to second order in the loss, and follows from the gradients of the Fisher passes. `pack` divides the bytes among
the tensors by these numbers, so that one more bit lowers the loss equally in each.
Source: WaterSIC (arXiv 2603.04956) for one step per column.

Legend: R outputs and C inputs of a matrix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitgolf.measure.inverse_factor import inverse_factor


@dataclass(frozen=True)
class Curvature:
    """Cost of rounding one tensor. A step s raises the loss by increase_nats * (s / step)^2 per token."""

    step: float  # the root mean square of the weights (the geometric mean over columns with one step per column)
    increase_nats: float


@torch.no_grad()
def curvature_from_gradient(
    weight: Tensor,  # (R, C)
    gradient: Tensor,  # (R, C) fp32, summed over tokens as in `fisher`
    hessian: Tensor | None,  # (C, C) that shapes the error; None = not shaped
    damping: float,  # of the inverse factor, as in GPTQ
    *,
    column_steps: bool,  # whether the step of column j is in proportion to its pivot 1 / sqrt(D_j)
) -> Curvature:
    """The curvature to second order in the loss.

    Noise N of step 1 costs 1/2 E<G, N>^2 nats per token. With N = S U, where the elements of S are independent errors
    of known variances, this is the sum of the squares of G U^T times those variances, divided by 2.
    """
    gradient = gradient.to(weight.device)
    if hessian is not None:
        factor = inverse_factor(hessian.to(weight.device), damping, torch.float32)
        live, pivots = ~factor.dead[factor.order], factor.pivots
        if not bool(live.any()):
            return Curvature(1.0, 0.0)
        mean = pivots[live].log().mean().exp()
        gradient = gradient.index_select(1, factor.order) @ factor.upper.mT
        gradient = gradient * live / (mean if column_steps else pivots)
    step = float(weight.square().mean().sqrt())
    # An error uniform in [-1/2, 1/2] has the variance 1 / 12. The sum over all weights hardly varies with the labels.
    return Curvature(step, float(gradient.double().square().sum()) * step**2 / 24)
