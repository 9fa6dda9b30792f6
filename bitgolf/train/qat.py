"""Quantization-aware training: fake quantization on the grid of the artifact, and the CROWN-Q penalty.

Each linear layer gets a `WeightFaker` that knows the grid of its weight. A training step is traced twice, with fake
quantization off and on. The switch is an *argument* of the traced function. Published scripts used a flag, which the
compiler removed, so they trained for months without the quantization that they describe (see PR 315).

`ste` rounds in the forward pass and passes gradients straight through. `soft_round` is the differentiable
s_a(y) = floor(y) + 1/2 + tanh(a r) / (2 tanh(a / 2)), r = y - floor(y) - 1/2, with a rising sharpness a (PR 606;
arXiv 2006.09952). The steps follow the row clips that `pack` would choose; they are searched again from time to time.

Legend: R rows (outputs), C columns (inputs).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bitgolf.grids.grid import Grid
from bitgolf.model.layers import Linear


class WeightFaker(nn.Module):
    """Fake quantization of one weight.

    Args:
        grid: of the artifact.
        rows: R.
        percentiles: row clips that `pack` will try.
        soft: soft rounding instead of straight-through.
    """

    def __init__(self, grid: Grid, rows: int, percentiles: Sequence[float], *, soft: bool) -> None:
        super().__init__()
        self.grid, self.percentiles, self.soft = grid, tuple(percentiles), soft
        self.ratio: Tensor
        self.register_buffer("ratio", torch.ones(rows), persistent=False)

    def forward(self, weight: Tensor, sharpness: Tensor) -> Tensor:
        """The weight (R, C) as the artifact would give it back; `sharpness` is a scalar, the a of soft rounding."""
        scales = self.grid.round_scales(weight.detach().abs().amax(dim=1) * self.ratio)
        if not self.soft:
            return self.grid.fake_quantize(weight, scales)
        steps = scales[:, None]
        y = (weight / steps).clamp(-self.grid.qmax, self.grid.qmax)
        return soft_round(y, sharpness) * steps

    @torch.no_grad()
    def refresh_(self, weight: Tensor) -> None:
        """Search the row clips again, as `pack` will."""
        if self.percentiles == (1.0,):
            return
        clip = self.grid.search_clip(weight, self.percentiles)
        self.ratio.copy_(clip / weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny))


def soft_round(y: Tensor, sharpness: Tensor) -> Tensor:
    """s_a(y) for any shape: nearly the identity for small a, nearly rounding for large a."""
    floor = y.detach().floor()
    inside = torch.tanh(sharpness * (y - floor - 0.5)) / torch.tanh(sharpness / 2)
    return floor + 0.5 + 0.5 * inside


def attach_fakers(
    model: nn.Module, grid_of: Callable[[str], Grid | None], percentiles: Sequence[float], *, soft: bool
) -> dict[str, tuple[Linear, WeightFaker]]:
    """Give a faker to every linear layer whose weight has a grid; returns the layers with fakers, by parameter name.

    `grid_of`: parameter name -> grid of the artifact, or None for weights that stay in float.
    """
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear) and (grid := grid_of(f"{name}.weight")) is not None:
            faker = WeightFaker(grid, module.out_features, percentiles, soft=soft).to(module.weight.device)
            module.faker = faker
            layers[f"{name}.weight"] = module, faker
    return layers


def crown_penalty(weights: Sequence[Tensor], levels: int = 15) -> Tensor:
    """CROWN-Q: sum over matrices and rows of mean_j(w_rj^2) * delta_r^2 / 12, delta_r = max_j |w_rj| / levels (PR 693).

    The penalty is the variance that rounding adds to the outputs. Its gradient flows through the maximum too.
    """
    total = torch.zeros((), device=weights[0].device)
    for weight in weights:
        step = weight.abs().amax(dim=1) / levels
        total = total + (weight.square().mean(dim=1) * step.square() / 12).sum()
    return total
