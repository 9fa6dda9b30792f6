"""Averages of the weights over training: exponential (EMA), of snapshots (SWA), or a blend of both.

The EMA starts at the initial weights, is updated after every step and has no bias correction. SWA is the plain mean of
snapshots taken at even spacing once the learning rate has fallen below a share of its peak. Both are fp32, also where
the weights are bf16 (the published sums had the dtype of the parameters, which loses the small differences that they
average). The shipped weights are the configured average, or one chosen on held-out training text (see `choose`), never
on validation text (rule B7 in docs/rules.md).
Sources: Polyak averaging; SWA (arXiv 1803.05407).
"""

import torch
from torch import Tensor

from bitgolf.config.train import AverageConfig


class EMA:
    """Shadow of named parameters, updated as shadow = decay * shadow + (1 - decay) * parameter.

    The names in `state` begin with `label`.
    """

    def __init__(self, parameters: dict[str, Tensor], decay: float, label: str = "ema") -> None:
        self.decay, self.label = decay, label
        self.parameters = parameters
        self.shadow = {name: p.detach().float().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters after an optimizer step."""
        current = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.shadow.values()), current, 1.0 - self.decay)

    def state(self) -> dict[str, Tensor]:
        """The shadow by name, live (not copies)."""
        return {f"{self.label}.{name}": tensor for name, tensor in self.shadow.items()}


class SWA:
    """Mean of snapshots, taken when the fraction of the run passes a multiple of `spacing` while the rate is low.

    Args:
        parameters: live parameters by name.
        spacing: fraction of the run between snapshots.
        start_lr_scale: snapshots are taken while the learning-rate multiplier is below this.
    """

    def __init__(self, parameters: dict[str, Tensor], spacing: float, start_lr_scale: float) -> None:
        self.parameters, self.spacing, self.start_lr_scale = parameters, spacing, start_lr_scale
        device = next(iter(parameters.values())).device
        self.sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
        self.count = torch.zeros((), device=device)
        self.last_slot = torch.full((), -1.0, dtype=torch.float64)

    @torch.no_grad()
    def update(self, fraction: float, lr_scale: float) -> None:
        """Take a snapshot if one is due after the step that ran at `fraction` of the run."""
        slot = float(int(fraction / self.spacing + 1e-9))
        if lr_scale >= self.start_lr_scale or slot <= float(self.last_slot):
            return
        self.last_slot.fill_(slot)
        torch._foreach_add_(list(self.sums.values()), [p.detach().float() for p in self.parameters.values()])
        self.count += 1

    def mean(self) -> dict[str, Tensor] | None:
        """The mean of the snapshots, or None when none was taken."""
        if not float(self.count):
            return None
        return {name: total / self.count for name, total in self.sums.items()}

    def state(self) -> dict[str, Tensor]:
        """Sums, count and the last slot, live (not copies)."""
        state = {f"swa.{name}": tensor for name, tensor in self.sums.items()}
        return state | {"swa_count": self.count, "swa_last_slot": self.last_slot}


class Averages:
    """The averages that `config` asks for: EMA, SWA, their blend, or none; and EMAs that are only candidates."""

    def __init__(self, parameters: dict[str, Tensor], config: AverageConfig) -> None:
        self.parameters, self.swa_weight = parameters, config.swa_weight
        self.ema = EMA(parameters, config.ema_decay) if config.ema_decay else None
        self.others = [EMA(parameters, decay, candidate_label(decay)) for decay in config.ema_candidates]
        self.swa = SWA(parameters, config.swa_spacing, config.swa_start) if config.swa_weight else None

    def update(self, fraction: float, lr_scale: float, *, snapshots: bool = True) -> None:
        """Take in the parameters after the step that ran at `fraction` of the run with `lr_scale`.

        SWA is updated only if `snapshots`; the replay burst leaves it out.
        """
        for ema in self._emas():
            ema.update()
        if self.swa is not None and snapshots:
            self.swa.update(fraction, lr_scale)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that a resumed run needs, live (not copies)."""
        state = {name: tensor for ema in self._emas() for name, tensor in ema.state().items()}
        return state | (self.swa.state() if self.swa else {})

    def _emas(self) -> list[EMA]:
        return ([self.ema] if self.ema else []) + self.others

    def shipped(self) -> tuple[dict[str, Tensor], str]:
        """The weights that the configuration ships, and their description."""
        description, weights = next(iter(self.candidates().items()))
        return weights, description

    def last_weights(self) -> dict[str, Tensor]:
        """The parameters as they are, live (not copies)."""
        return {name: p.detach() for name, p in self.parameters.items()}

    def candidates(self) -> dict[str, dict[str, Tensor]]:
        """Every set of weights that training can ship, by its description; the configured one is first."""
        plain = {f"ema {ema.decay:g}": ema.shadow for ema in self._emas()}
        plain["last weights"] = self.last_weights()
        if self.swa is None:
            return plain
        mean = self.swa.mean()
        base_name, base = next(iter(plain.items()))
        if mean is None:
            rest = {name: weights for name, weights in plain.items() if name != base_name}
            return {f"{base_name} (no swa snapshot was due)": base} | rest
        swa_name = f"swa of {int(self.swa.count)}"
        if self.swa_weight == 1:
            return {swa_name: mean} | plain
        blend = {name: torch.lerp(base[name].float(), mean[name], self.swa_weight) for name in base}
        blend_name = f"{1 - self.swa_weight:g} x {base_name} + {self.swa_weight:g} x {swa_name}"
        return {blend_name: blend, swa_name: mean} | plain


def candidate_label(decay: float) -> str:
    """First part of the names of a candidate EMA's tensors, without a dot: 0.99 -> "ema-0_99"."""
    return f"ema-{decay:g}".replace(".", "_")


def num_candidates(config: AverageConfig) -> int:
    """The largest number of sets of weights that `Averages.candidates` can return."""
    swa = 0 if not config.swa_weight else 1 if config.swa_weight == 1 else 2
    return 1 + bool(config.ema_decay) + len(config.ema_candidates) + swa
