"""Settings of stage `train`: the loop under its clock, and training on the export grid."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bitgolf.config.section import Section


class TrainConfig(Section):
    """The training loop under its wall clock. Schedules are fractions of the run."""

    seq_len: int = Field(1024, ge=8, description="tokens in a training row")
    batch_tokens: int = Field(65_536, ge=8, description="tokens of one optimizer step over all ranks")
    micro_batch_tokens: int = Field(65_536, ge=8, description="tokens of one forward pass on one rank")
    max_steps: int = Field(0, ge=0, description="stop after this many steps even with time left; 0 = no limit")
    loader: Literal["sequential", "shuffled"] = Field("sequential", description="order of the training rows")
    compile: bool = Field(True, description="torch.compile the step (CUDA only; the CPU runs eagerly)")
    attention: Literal["auto", "fa3", "cudnn", "flex", "varlen", "flash", "efficient", "math"] = "auto"
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
    choose_average: Literal["fixed", "held_out"] = Field(
        "fixed", description="ship the configured average, or the best of all on held-out training text"
    )
    held_out_tokens: int = Field(0, ge=0, description="last tokens of the training stream, never trained on; 0 = none")
    replay_epochs: int = Field(0, ge=0, le=100, description="passes over the last batches after the warm-down; 0 = off")
    replay_batches: int = Field(100, ge=1, description="at most this many batches are replayed")
    replay_lr_scale_below: float = Field(0.2, gt=0, le=1, description="only batches seen with a lower rate multiplier")
    replay_lr: float = Field(0.1, gt=0, le=1, description="share of the base learning rates during the replay")
    table_dtype: Literal["fp32", "bf16"] = Field("fp32", description="of token, bigram and value tables in training")
    warmup_steps: int = Field(3, ge=1, description="untimed compile warm-up steps; all state is restored after them")
    calibration_tokens: int = Field(524_288, ge=8, description="training tokens the Hessians are gathered from")
    fisher_tokens: int = Field(0, ge=0, description="training tokens of the Fisher statistics (pack.hessian); 0 = none")
    curvature_tokens: int = Field(
        0, ge=0, description="held-out tokens that every tensor's curvature is measured on (pack.method rate); 0 = none"
    )
    curvature_step: float = Field(1.0, gt=0, description="step that is tried, as a share of a tensor's rms")
    calibration_reserve_seconds: float = Field(0.0, ge=0, description="kept for calibration; 0 = measured in warm-up")
    checkpoint_seconds: float = Field(120.0, ge=0, description="wall clock between checkpoints; 0 = none")
    checkpoint_at: tuple[float, ...] = Field((), description="fractions of the run whose checkpoints are kept")
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

    @model_validator(mode="after")
    def _ending_fits(self) -> Self:
        if self.replay_epochs and self.lowest_lr_scale >= self.replay_lr_scale_below:
            raise ValueError(
                f"replay_lr_scale_below {self.replay_lr_scale_below:g} is never reached: the learning-rate multiplier "
                f"falls to {self.lowest_lr_scale:g} at the lowest (warmdown {self.warmdown:g}, min_lr "
                f"{self.min_lr:g}); raise it, or set replay_epochs 0"
            )
        if 0 < self.held_out_tokens < self.seq_len:
            raise ValueError(
                f"held_out_tokens {self.held_out_tokens} does not hold one row of seq_len {self.seq_len}; use 0 for "
                "none, or more"
            )
        if self.curvature_tokens and self.curvature_tokens < self.seq_len:
            raise ValueError(
                f"curvature_tokens {self.curvature_tokens} does not hold one row of seq_len {self.seq_len}; use 0 for "
                "none, or more"
            )
        if self.curvature_tokens > self.held_out_tokens:
            raise ValueError(
                f"curvature_tokens {self.curvature_tokens} is more than the {self.held_out_tokens} held-out tokens "
                f"that curvature is measured on; set held_out_tokens {self.curvature_tokens} or more"
            )
        if self.choose_average == "held_out" and not self.held_out_tokens:
            raise ValueError("choose_average 'held_out' needs text to choose on: set held_out_tokens, e.g. 262144")
        if self.choose_average == "held_out" and not (self.ema_decay or self.swa_weight):
            raise ValueError(
                "choose_average 'held_out' has nothing to choose from but the last weights; set ema_decay or "
                "swa_weight, or choose_average 'fixed'"
            )
        if list(self.checkpoint_at) != sorted(set(self.checkpoint_at)) or not all(
            0 < f < 1 for f in self.checkpoint_at
        ):
            raise ValueError(
                f"checkpoint_at {list(self.checkpoint_at)} must be rising fractions of the run between 0 and 1"
            )
        return self

    @property
    def lowest_lr_scale(self) -> float:
        """The learning-rate multiplier at the very end of the warm-down."""
        return self.min_lr if self.warmdown else 1.0


class QATConfig(Section):
    """Quantization-aware training on the export grid, and CROWN-Q."""

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
