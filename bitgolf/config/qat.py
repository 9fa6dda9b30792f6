"""Settings of quantization-aware training (QAT), the section `qat`."""

from typing import ClassVar, Literal

from pydantic import Field

from bitgolf.config.section import Section


class SoftRoundConfig(Section):
    """Soft rounding, a differentiable rounding that becomes sharper during the run (arXiv 2006.09952; PR 606)."""

    sharpness_start: float = Field(1.0, gt=0, description="sharpness when quantized training begins")
    sharpness_end: float = Field(16.0, gt=0, description="sharpness at the end of the run")


class CrownConfig(Section):
    """CROWN-Q, a penalty on the variance that rounding adds to the outputs (PR 693)."""

    weight: float = Field(0.0, ge=0, description="weight of the penalty; 0 = no penalty")
    levels: int = Field(15, ge=1, description="number of levels of the grid whose step enters the penalty")


class QATConfig(Section):
    """Quantization-aware training (QAT) on the grid that `pack` uses, and CROWN-Q."""

    earlier_name: ClassVar[str] = "qat"

    mode: Literal["none", "ste", "soft_round"] = Field(
        "none", description="rounding in the forward pass: none, straight-through (STE), or soft rounding"
    )
    start_lr_scale: float = Field(
        0.0, ge=0, le=1, description="learning-rate multiplier below which quantization is on; 0 = never"
    )
    start_fraction: float = Field(
        1.0, ge=0, le=1, description="fraction of the run from which quantization is on; 1 = never"
    )
    refresh_steps: int = Field(50, ge=1, description="steps between two searches of the row clips")
    soft_round: SoftRoundConfig = SoftRoundConfig()
    crown: CrownConfig = CrownConfig()

    @property
    def enabled(self) -> bool:
        """Whether quantization or the CROWN-Q penalty is configured."""
        return self.mode != "none" or self.crown.weight > 0

    def is_on(self, fraction: float, lr_scale: float) -> bool:
        """Whether quantization is on at `fraction` of the run with this learning-rate multiplier."""
        return self.enabled and (lr_scale < self.start_lr_scale or fraction >= self.start_fraction)
