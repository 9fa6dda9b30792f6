"""Curvature: how much the loss rises when one matrix is rounded, measured with the noise that GPTQ would leave.

GPTQ with step s leaves errors e_ij, about uniform in [-s/2, s/2], in the coordinates of its error feedback. In the
weights this is the noise N = (e / pivots) U, with U the inverse factor of the Hessian. For one matrix after the other,
+N and -N are added to the weights, and the mean cross entropy on held-out training rows is compared with that of the
float weights. The average of both signs has no linear term, so the increase is curvature * s^2. `pack` divides the
bytes among the tensors by these numbers, so that one more bit lowers the loss equally in each. The trials happen on the
training clock and take two forward passes per matrix. `curvature_from_gradient` needs none: it computes the expected
increase from the gradients of the Fisher passes, for the noise of a small step.
Source: WaterSIC (arXiv 2603.04956) for one step per column.

Legend: B rows of text, T time, R outputs and C inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bitgolf.config import Config
from bitgolf.measure.inverse_factor import InverseFactor, inverse_factor
from bitgolf.model.gpt import GPT
from bitgolf.run.clock import SAFETY, seconds_of_second_run
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World

_MAX_TOKENS = 65_536  # tokens per forward pass; bounds the memory of the logits


@dataclass(frozen=True)
class TrialNoise:
    """How the noise of a measurement is made."""

    relative_step: float  # rounding step, as a share of the tensor's root mean square
    damping: float  # of the inverse factor, as in GPTQ
    column_steps: bool  # one step per column instead of one per tensor

    @classmethod
    def of(cls, config: Config) -> TrialNoise:
        """The noise of the rounding that `config` will pack with."""
        return cls(config.train.measure.curvature_step, config.pack.gptq.damping, config.pack.rate.column_steps)


@dataclass(frozen=True)
class Curvature:
    """Cost of rounding one tensor."""

    step: float  # rounding step of the trial (the geometric mean over columns with one step per column)
    increase_nats: float  # increase of the mean loss per token, averaged over both signs
    error_nats: float  # its standard error over rows of text; 0 if it was computed from gradients

    @property
    def nats_per_squared_step(self) -> float:
        """Increase of the loss divided by step^2, from which the allocation predicts other steps."""
        return self.increase_nats / self.step**2


def shaped_noise(
    shape: tuple[int, int],  # (R, C)
    factor: InverseFactor | None,
    generator: torch.Generator,
    *,
    column_steps: bool,
    device: torch.device,
) -> Tensor:  # (R, C) fp32
    """Rounding errors of step 1 as GPTQ distributes them over the weights; plain uniform noise without a factor.

    With `column_steps` the step of column j is proportional to its pivot 1 / sqrt(D_j), with geometric mean 1.
    """
    errors = torch.rand(shape, generator=generator, device=device) - 0.5
    if factor is None:
        return errors
    live = ~factor.dead[factor.order]
    if not bool(live.any()):
        return torch.zeros_like(errors)
    pivots = factor.pivots.float()  # (C,) in rounding order, proportional to the step per column
    mean = pivots[live].log().mean().exp()
    scaled = errors / mean if column_steps else errors / pivots
    noise = (scaled * live) @ factor.upper.float()
    return torch.zeros_like(noise).index_copy_(1, factor.order, noise).masked_fill_(factor.dead, 0.0)


@torch.no_grad()
def curvature_from_gradient(
    weight: Tensor,  # (R, C)
    gradient: Tensor,  # (R, C) fp32, summed over tokens as in `fisher`
    hessian: Tensor | None,  # (C, C) that shapes the error; None = not shaped
    noise: TrialNoise,
) -> Curvature:
    """The curvature to second order in the loss, without trials.

    Noise N of step 1 costs 1/2 E<G, N>^2 nats per token. With N = S U, where the elements of S are independent and have
    the variances of `shaped_noise`, this is the sum of the squares of G U^T times those variances, divided by 2.
    """
    gradient = gradient.to(weight.device)
    if hessian is not None:
        factor = inverse_factor(hessian.to(weight.device), noise.damping, torch.float32)
        live, pivots = ~factor.dead[factor.order], factor.pivots
        if not bool(live.any()):
            return Curvature(1.0, 0.0, 0.0)
        mean = pivots[live].log().mean().exp()
        gradient = gradient.index_select(1, factor.order) @ factor.upper.mT
        gradient = gradient * live / (mean if noise.column_steps else pivots)
    step = noise.relative_step * float(weight.square().mean().sqrt())
    # An error uniform in [-1/2, 1/2] has the variance 1 / 12. The sum over all weights hardly varies with the labels.
    return Curvature(step, float(gradient.double().square().sum()) * step**2 / 24, 0.0)


@torch.no_grad()
def measure_curvature(
    model: GPT,
    # parameter name -> (C, C) moments of its inputs, or None for tables (noise that is not shaped).
    hessians: Mapping[str, Tensor | None],
    rows: Tensor,  # this rank's held-out training rows, (B, T + 1) int64; all ranks have equally many
    noise: TrialNoise,
    *,
    seed: int,  # of the noise; the same on every rank
    world: World,
    # asked before each parameter but the first; the first False ends the measurement. Its answer is the same on every
    # rank.
    another_fits: Callable[[], bool] = lambda: True,
    progress: Progress = silent,
) -> dict[str, Curvature]:
    """Curvature of the named parameters, measured one after the other, in the order of `hessians`; equal on all ranks.

    The weights are the same bits afterwards.
    """
    parameters = dict(model.named_parameters())
    generator = torch.Generator(device=world.device).manual_seed(seed)
    float_losses = _row_losses(model, rows)
    curvature: dict[str, Curvature] = {}
    for number, (name, hessian) in enumerate(hessians.items()):
        if number and not another_fits():
            break
        weight = parameters[name].data
        step = noise.relative_step * float(weight.square().mean().sqrt())
        if step == 0:  # a table that was never used
            continue
        factor = None if hessian is None else inverse_factor(hessian.to(weight.device), noise.damping, torch.float32)
        errors = step * shaped_noise(
            (weight.size(0), weight.size(1)), factor, generator, column_steps=noise.column_steps, device=weight.device
        )
        increases = _increases(model, weight, errors, rows, float_losses)
        curvature[name] = Curvature(step, *_mean_and_error(increases, world))
        if world.is_main:
            progress("curvature", number + 1, len(hessians), name)
    return curvature


def _increases(model: GPT, weight: Tensor, errors: Tensor, rows: Tensor, float_losses: Tensor) -> Tensor:
    """Increase of every row's loss with `weight` + and - `errors`, averaged over both signs, (B,) float64."""
    before = weight.clone()
    weight.add_(errors)
    above = _row_losses(model, rows)
    weight.copy_(before).sub_(errors)
    below = _row_losses(model, rows)
    weight.copy_(before)
    return (above + below) / 2 - float_losses


def _mean_and_error(increases: Tensor, world: World) -> tuple[float, float]:
    """Mean over the rows of all ranks, and its standard error."""
    moments = torch.stack((increases.mean(), increases.square().mean()))
    world.mean_([moments])
    mean, square = moments.tolist()
    variance = max(0.0, square - mean**2) / (increases.numel() * world.size)
    return mean, variance**0.5


def _row_losses(model: GPT, rows: Tensor) -> Tensor:
    """Mean cross entropy of every row of (B, T + 1), (B,) float64."""
    losses = []
    for part in rows.split(max(1, _MAX_TOKENS // rows.size(1))):
        logits = model(part[:, :-1])  # (B, T, V)
        nll = F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none")
        losses.append(nll.view(part.size(0), -1).double().mean(1))
    return torch.cat(losses)


def curvature_seconds(model: GPT, names: Sequence[str], rows: Tensor, noise: TrialNoise, world: World) -> float:
    """Seconds to reserve for the curvature of the parameters `names`, measured on the widest of them.

    `rows` are as many as will be used, (B, T + 1) int64. Returns 0 when `names` is empty.
    """
    parameters = dict(model.named_parameters())
    widest = max(names, key=lambda name: parameters[name].size(1), default="")
    if not widest:
        return 0.0
    hessians = {widest: torch.eye(parameters[widest].size(1), device=world.device)}
    tensor_seconds = seconds_of_second_run(
        lambda: measure_curvature(model, hessians, rows, noise, seed=0, world=world), world
    )
    # On an H200 a tensor took 1.7 times as long after 300 s of training as in the warm-up.
    return 2 * SAFETY * (len(names) + 1) * tensor_seconds
