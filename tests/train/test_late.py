"""The late phase: its loss, its annealing, its searches of the row clips, and its restart."""

import pytest
import torch
import torch.nn.functional as F
from tiny_trainer import MODEL, batch

from bitgolf.config import PackConfig, QATConfig
from bitgolf.model import GPT
from bitgolf.model.layers import Linear
from bitgolf.train.late import LatePhase
from bitgolf.train.qat import WeightFaker

PACK = PackConfig().updated({"small_tensor": 1, "grid.matrix_bits": 3, "grid.percentiles": (0.8, 1.0)})
SOFT = {
    "mode": "soft_round",
    "start_fraction": 0.5,
    "soft_round.sharpness_start": 2.0,
    "soft_round.sharpness_end": 10.0,
}


def make(**changes: object) -> LatePhase:
    model = GPT(MODEL, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return LatePhase.of(model, QATConfig().updated(SOFT | changes), PACK)


def test_the_sharpness_rises_linearly_from_the_beginning_of_the_phase_to_the_end_of_the_run() -> None:
    late = make()
    late.begin(0.6)
    sharpness = []
    for fraction in (0.6, 0.7, 0.8, 1.0):
        late.prepare(fraction)
        sharpness.append(float(late.sharpness))
    assert sharpness == pytest.approx([2.0, 4.0, 6.0, 10.0])


def test_before_the_phase_the_sharpness_stays_at_its_start() -> None:
    late = make()
    late.prepare(0.9)
    assert float(late.sharpness) == 2.0


def test_a_restart_inside_the_phase_keeps_its_beginning() -> None:
    late, resumed = make(), make()
    late.begin(0.6)
    for name, tensor in resumed.state().items():
        tensor.copy_(late.state()[name])
    resumed.begin(0.9)
    assert float(resumed.began_at) == 0.6


def test_row_clips_are_searched_when_they_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    late, searches = make(refresh_steps=3), []
    monkeypatch.setattr(WeightFaker, "refresh_", lambda self, weight: searches.append(int(late.steps)))
    for _ in range(7):
        late.prepare(0.5)
    assert sorted(set(searches)) == [0, 3, 6]


@pytest.mark.parametrize("mode", ["none", "ste", "soft_round"])
def test_the_loss_is_that_of_the_rounded_weights_plus_the_penalty(mode: str) -> None:
    """Against a model whose weights are rounded by hand: 3 bits give the codes -3 .. 3."""
    late = make(**{"mode": mode, "crown.weight": 100.0, "crown.levels": 7})
    late.begin(0.5)
    late.prepare(0.75)
    inputs, targets = batch(0)
    reference = GPT(MODEL, 8)
    reference.load_state_dict(late.model.state_dict(), strict=False)
    penalty = 0.0
    with torch.no_grad():
        for name, module in reference.named_modules():
            if not isinstance(module, Linear):
                continue
            weight = module.weight
            penalty += float((weight.square().mean(1) * (weight.abs().amax(1) / 7).square() / 12).sum())
            if mode == "none":
                continue
            _, faker = late.layers[f"{name}.weight"]
            steps = (weight.abs().amax(1, keepdim=True) * faker.ratio[:, None] / 3).half().float()
            y = (weight / steps).clamp(-3, 3)
            if mode == "ste":
                rounded = y.round()
            else:
                floor, a = y.floor(), 6.0
                inside = torch.tanh(a * (y - floor - 0.5)) / (2 * torch.tanh(torch.tensor(a / 2)))
                rounded = floor + 0.5 + inside
            module.weight.copy_(rounded * steps)
        expected = F.cross_entropy(reference(inputs).flatten(0, 1), targets.flatten()) + 100.0 * penalty
        loss = late.loss(inputs, targets, late.sharpness)
    assert float(loss) == pytest.approx(float(expected), rel=2e-3)


def test_the_beginning_reports_the_relative_change_of_the_weights() -> None:
    late = make(mode="ste")
    change = late.begin(0.5)
    squares = [
        ((faker(layer.weight, late.sharpness) - layer.weight).square().sum(), layer.weight.square().sum())
        for layer, faker in late.layers.values()
    ]
    assert change == pytest.approx(float(sum(a for a, _ in squares) / sum(b for _, b in squares)), rel=1e-4)
    assert 0.005 < change < 0.2
    assert make(mode="none", **{"crown.weight": 0.1}).begin(0.5) == 0.0
