"""How much the loss rises when one matrix is rounded: measured with the noise that GPTQ would leave.

GPTQ with step s leaves errors e_ij, about uniform in [-s/2, s/2], in the coordinates of its feedback; in the weights
that is the noise N = (e / pivots) U with U the inverse factor of the Hessian. For one matrix after the other, +N and
-N are added to the weights and the mean cross entropy on the same held-out training rows is compared with the float
one: the average of both signs has no linear term, so what remains is curvature * s^2. `pack` divides the bytes among
the tensors by these numbers (equal slope of loss against bits). All of it happens on the training clock.
Source: WaterSIC (arXiv:2603.04956) for steps a column.

Legend: B rows of text, T time, R outputs and C inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bitgolf.measure.inverse_factor import InverseFactor, inverse_factor
from bitgolf.model.gpt import GPT
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World

_MAX_TOKENS = 65_536  # of one forward pass; bounds the memory of the logits


@dataclass(frozen=True)
class Curvature:
    """Cost of rounding one tensor.

    Attributes:
        step: distance of two levels that was tried (mean over columns if they have steps of their own).
        increase_nats: rise of the mean loss a token, both signs averaged.
        error_nats: its standard error over rows of text.
    """

    step: float
    increase_nats: float
    error_nats: float

    @property
    def nats_per_squared_step(self) -> float:
        """Loss increase divided by step^2: the number that allocation works with."""
        return self.increase_nats / self.step**2


def shaped_noise(
    shape: tuple[int, int],  # (R, C)
    factor: InverseFactor | None,
    generator: torch.Generator,
    *,
    column_steps: bool,
    device: torch.device,
) -> Tensor:  # (R, C) fp32
    """Rounding errors of unit step as GPTQ distributes them over the weights; plain uniform noise without a factor.

    With `column_steps` the step of column j is proportional to its pivot 1 / sqrt(D_j), with geometric mean 1.
    """
    errors = torch.rand(shape, generator=generator, device=device) - 0.5
    if factor is None:
        return errors
    live = ~factor.dead[factor.order]
    if not bool(live.any()):
        return torch.zeros_like(errors)
    pivots = factor.pivots.float()  # (C,) in rounding order: the steps that columns should have, up to a factor
    mean = pivots[live].log().mean().exp()
    scaled = errors / mean if column_steps else errors / pivots
    noise = (scaled * live) @ factor.upper.float()
    return torch.zeros_like(noise).index_copy_(1, factor.order, noise).masked_fill_(factor.dead, 0.0)


@torch.no_grad()
def measure_curvature(
    model: GPT,
    hessians: dict[str, Tensor | None],
    rows: Sequence[Tensor],
    *,
    relative_step: float,
    damping: float,
    column_steps: bool,
    generator: torch.Generator,
    world: World,
    keep_going: Callable[[], bool] = lambda: True,
    progress: Progress = silent,
) -> dict[str, Curvature]:
    """Measure every named parameter of `model` in turn; the weights are the same bits afterwards.

    Args:
        hessians: parameter name -> (C, C) moments of its inputs, or None for tables (unshaped noise).
        rows: this rank's held-out training rows, each (B, T + 1) int64; all ranks give equally many.
        relative_step: step tried, as a share of the root mean square of the tensor.
        damping: of the inverse factor, as in GPTQ.
        column_steps: shape the noise as steps a column would.
        generator: of the noise, on the model's device and in the same state on every rank.
        keep_going: asked before each tensor, the same answer on every rank; when it says no, the rest is left out.
    Returns:
        Curvature by parameter name, the same on every rank, in the order of `hessians`.
    """
    parameters = dict(model.named_parameters())
    base = _row_losses(model, rows)
    found: dict[str, Curvature] = {}
    for number, (name, hessian) in enumerate(hessians.items()):
        if not keep_going():
            break
        weight = parameters[name].data
        step = relative_step * float(weight.square().mean().sqrt())
        if step == 0:  # a table that was never used
            continue
        factor = None if hessian is None else inverse_factor(hessian.to(weight.device), damping, torch.float32)
        noise = step * shaped_noise(
            (weight.size(0), weight.size(1)), factor, generator, column_steps=column_steps, device=weight.device
        )
        before = weight.clone()
        weight.add_(noise)
        above = _row_losses(model, rows)
        weight.copy_(before).sub_(noise)
        below = _row_losses(model, rows)
        weight.copy_(before)
        rise = (above + below) / 2 - base  # (rows of this rank,)
        moments = torch.stack((rise.mean(), rise.square().mean()))
        world.mean_([moments])
        mean, square = moments.tolist()
        spread = max(0.0, square - mean**2) / (rise.numel() * world.size)
        found[name] = Curvature(step, mean, spread**0.5)
        if world.is_main:
            progress("curvature", number + 1, len(hessians), name)
    return found


def _row_losses(model: GPT, rows: Sequence[Tensor]) -> Tensor:
    """Mean cross entropy of every row, (total rows,) float64."""
    losses = []
    for batch in rows:
        for part in batch.split(max(1, _MAX_TOKENS // batch.size(1))):
            logits = model(part[:, :-1])  # (B, T, V)
            nll = F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none")
            losses.append(nll.view(part.size(0), -1).double().mean(1))
    return torch.cat(losses)
