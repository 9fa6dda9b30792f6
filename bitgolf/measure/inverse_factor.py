"""The ordered, damped inverse factor of a Hessian: the matrix with which GPTQ feeds rounding errors back.

`quantize` rounds with it, and `measure.curvature` predicts the errors with it. Inputs are ordered by descending
diagonal of the Hessian. The factor takes one Cholesky factorization of the reversed Hessian and one triangular solve,
as in challenge PR 1948.

Legend: C columns (inputs).
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from bitgolf.errors import ConfigError

logger = logging.getLogger(__name__)

_ASYMMETRY = 1e-3  # tolerated |H - H^T| as a share of the largest diagonal element
_MAX_DAMPING = 1.0  # a matrix that needs more than its mean diagonal is far from positive semi-definite


@dataclass(frozen=True)
class InverseFactor:
    """Upper U with U^T U = (H + damping)^-1, rows and columns in rounding order."""

    upper: Tensor  # (C, C)
    order: Tensor  # (C,) int64; column order[j] of the weight is rounded j-th
    dead: Tensor  # (C,) bool, in the weight's own order: inputs that were always zero

    @property
    def pivots(self) -> Tensor:
        """(C,) diagonal of U in rounding order: 1 / sqrt(D_j), D_j the variance of input j given the later ones."""
        return self.upper.diagonal()


def inverse_factor(
    hessian: Tensor,  # (C, C)
    damping: float,
    dtype: torch.dtype,
) -> InverseFactor:
    """Factor of one Hessian, to which `damping` times the mean diagonal of its nonzero columns is added.

    If the sum is not positive definite, the damping is raised tenfold with a warning, up to one mean diagonal.

    Raises:
        ConfigError: the Hessian holds NaN or infinity, or is not symmetric positive semi-definite.
    """
    hessian = hessian.to(dtype)
    if not bool(torch.isfinite(hessian).all()):
        raise ConfigError("the Hessian holds NaN or infinite values; did the model diverge?")
    diagonal = hessian.diagonal().clone()
    largest = float(diagonal.abs().max())
    if float((hessian - hessian.T).abs().max()) > _ASYMMETRY * largest:
        raise ConfigError("the Hessian is not symmetric; it must be a sum of x x^T over the layer's inputs x")
    if float(diagonal.min()) < 0:
        raise ConfigError(
            "the Hessian is not positive semi-definite: diagonal element "
            f"{int(diagonal.argmin())} is {float(diagonal.min()):.6g}; it must be a sum of "
            "x x^T over the layer's inputs x"
        )
    dead = diagonal == 0
    num_dead = int(dead.sum())
    if num_dead == dead.numel():
        logger.warning("the Hessian is zero: calibration fed this layer only zeros, so its weights become 0")
    mean = float(diagonal[~dead].mean()) if num_dead < dead.numel() else 1.0
    hessian = (hessian + hessian.T) / 2
    hessian.diagonal()[dead] = 1.0
    order = torch.argsort(diagonal, descending=True, stable=True)
    # H reversed = L L^T makes H = M M^T with M = reversed L, upper triangular; so H^-1 = U^T U with U = M^-1.
    backwards = order.flip(0)
    reversed_hessian = hessian[backwards][:, backwards]
    identity = torch.eye(len(order), dtype=dtype, device=hessian.device)
    share = damping
    while True:
        lower, failed_at = torch.linalg.cholesky_ex(reversed_hessian + share * mean * identity)
        if int(failed_at) == 0:
            inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
            if bool(torch.isfinite(inverse).all()):
                return InverseFactor(inverse.flip(0, 1).contiguous(), order, dead)
        if share * 10 > max(_MAX_DAMPING, damping) * (1 + 1e-9):
            raise ConfigError(
                f"the Hessian is not positive semi-definite, even with {share:g} of its mean "
                "diagonal added; it must be a sum of x x^T over the layer's inputs x"
            )
        logger.warning("Cholesky factorization failed with damping %g; trying %g", share, share * 10)
        share *= 10
