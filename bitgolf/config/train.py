"""Settings of stage `train`: the loop under its clock, and training on the export grid."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bitgolf.config.section import Section


class TrainConfig(Section):
    """The training loop under its wall clock. Schedules are fractions of the run (techniques.md section 3)."""

    seq_len: int = Field(1024, ge=8, description="tokens in a training row")
    batch_tokens: int = Field(65_536, ge=8, description="tokens of one optimizer step over all ranks")
    micro_batch_tokens: int = Field(65_536, ge=8, description="tokens of one forward pass on one rank")
    max_steps: int = Field(0, ge=0, description="stop after this many steps even with time left; 0 = no limit")
    loader: Literal["sequential", "shuffled"] = Field("sequential", description="order of the training rows")
    compile: bool = Field(True, description="torch.compile the step (CUDA only; the CPU runs eagerly)")
    attention: Literal["auto", "fa3", "cudnn", "flash", "efficient", "math"] = "auto"
    matrix_lr: float = Field(0.04, gt=0, description="Muon learning rate")
    embed_lr: float = Field(0.05, gt=0, description="AdamW learning rate of the tied embedding and other tables")
    scalar_lr: float = Field(0.04, gt=0, description="AdamW learning rate of gains, scales and mixers")
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    muon_momentum_start: float = Field(0.85, ge=0, lt=1)
    muon_momentum_warmup: float = Field(0.036, ge=0, le=1, description="fraction of the run over which it rises")
    muon_steps: int = Field(5, ge=1, le=20, description="Newton-Schulz iterations")
    muon_weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    adam_eps: float = Field(1e-8, gt=0)
    adam_weight_decay: float = Field(0.0, ge=0)
    grad_clip: float = Field(0.0, ge=0, description="global gradient norm; 0 = no clipping")
    warmdown: float = Field(0.087, ge=0, le=1, description="last fraction of the budget with a falling rate")
    min_lr: float = Field(0.0, ge=0, lt=1, description="multiplier at the end of the warm-down")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay a step of the averaged weights; 0 = no average")
    swa_weight: float = Field(0.0, ge=0, le=1, description="share of the snapshot mean in what is shipped; 0 = none")
    swa_start: float = Field(0.2, gt=0, le=1, description="snapshots while the learning-rate multiplier is below this")
    swa_spacing: float = Field(0.0075, gt=0, lt=1, description="fraction of the run between two snapshots")
    warmup_steps: int = Field(3, ge=1, description="untimed compile warm-up steps; all state is restored after them")
    calibration_tokens: int = Field(524_288, ge=8, description="training tokens the Hessians are gathered from")
    calibration_reserve_seconds: float = Field(0.0, ge=0, description="kept for calibration; 0 = measured in warm-up")
    checkpoint_seconds: float = Field(120.0, ge=0, description="wall clock between checkpoints; 0 = none")
    log_every: int = Field(50, ge=1, description="steps between lines of train.jsonl")

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        for key in ("batch_tokens", "micro_batch_tokens"):
            if getattr(self, key) % self.seq_len:
                raise ValueError(f"{key} {getattr(self, key)} is not a multiple of seq_len {self.seq_len}")
        if self.muon_momentum_start > self.muon_momentum:
            raise ValueError(
                f"muon_momentum_start {self.muon_momentum_start} is above muon_momentum {self.muon_momentum}"
            )
        return self


class QATConfig(Section):
    """Quantization-aware training on the export grid, and CROWN-Q (techniques.md section 5)."""

    mode: Literal["none", "ste", "soft_round"] = Field("none", description="how the forward pass rounds")
    start_lr_scale: float = Field(0.0, ge=0, le=1, description="on once the rate multiplier is below this; 0 = never")
    start_fraction: float = Field(1.0, ge=0, le=1, description="on from this fraction of the run; 1 = never")
    sharpness_start: float = Field(1.0, gt=0, description="of soft rounding when it begins")
    sharpness_end: float = Field(16.0, gt=0, description="of soft rounding at the end of the run")
    refresh_steps: int = Field(50, ge=1, description="steps between two searches of the row clips")
    crown_lambda: float = Field(0.0, ge=0, description="weight of the CROWN-Q penalty while training is quantized")
    crown_levels: int = Field(15, ge=1, description="levels of the grid that CROWN-Q prices")

    @property
    def enabled(self) -> bool:
        """Whether anything changes when the start is reached."""
        return self.mode != "none" or self.crown_lambda > 0

    def is_on(self, fraction: float, lr_scale: float) -> bool:
        """Whether a step at `fraction` of the run with this rate multiplier is quantized or penalized."""
        return self.enabled and (lr_scale < self.start_lr_scale or fraction >= self.start_fraction)
