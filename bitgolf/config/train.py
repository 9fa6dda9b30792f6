"""Settings of stage `train`: the loop under its clock, and training on the export grid."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from bitgolf.config.section import Section


class MuonConfig(Section):
    """Muon, the optimizer of block matrices (github.com/KellerJordan/Muon)."""

    momentum: float = Field(0.95, ge=0, lt=1, description="momentum after its warm-up")
    momentum_start: float = Field(0.85, ge=0, lt=1, description="momentum at the first step")
    momentum_warmup: float = Field(0.036, ge=0, le=1, description="fraction of the run over which momentum rises")
    steps: int = Field(5, ge=1, le=20, description="Newton-Schulz iterations per step")
    weight_decay: float = Field(0.0, ge=0, description="decoupled decay, multiplied by the learning rate")

    @model_validator(mode="after")
    def _momentum_rises(self) -> Self:
        if self.momentum_start > self.momentum:
            raise ValueError(f"momentum_start {self.momentum_start} is above momentum {self.momentum}")
        return self


class AdamConfig(Section):
    """AdamW, the optimizer of everything that is no block matrix."""

    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the second moment")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="decoupled decay, multiplied by the learning rate")


class AverageConfig(Section):
    """Which average of the weights is shipped."""

    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay per step of the moving average (EMA); 0 = no average")
    swa_weight: float = Field(
        0.0, ge=0, le=1, description="share of the mean of snapshots (SWA) in the shipped weights; 0 = none"
    )
    swa_start: float = Field(
        0.2, gt=0, le=1, description="snapshots are taken while the learning-rate multiplier is below this"
    )
    swa_spacing: float = Field(0.0075, gt=0, lt=1, description="fraction of the run between two snapshots")
    choose: Literal["fixed", "held_out"] = Field(
        "fixed", description="fixed: ship the configured average; held_out: the best of all on held-out training text"
    )


class ReplayConfig(Section):
    """The replay burst: the last batches trained on again after the warm-down (PR 693)."""

    epochs: int = Field(0, ge=0, le=100, description="passes over the replayed batches; 0 = no replay")
    batches: int = Field(100, ge=1, description="at most this many batches are replayed")
    lr_scale_below: float = Field(
        0.2, gt=0, le=1, description="only batches seen with a lower learning-rate multiplier are replayed"
    )
    lr: float = Field(0.1, gt=0, le=1, description="share of the base learning rates during the replay")


class MeasureConfig(Section):
    """Statistics that `pack` needs, gathered on the final weights and on the training clock."""

    calibration_tokens: int = Field(524_288, ge=8, description="training tokens of the Hessians")
    fisher_tokens: int = Field(
        0, ge=0, description="training tokens of the Fisher statistics (pack.rate.hessian fisher); 0 = none"
    )
    curvature_tokens: int = Field(
        0, ge=0, description="held-out tokens of the curvature of every tensor (pack.method rate); 0 = none"
    )
    curvature_step: float = Field(1.0, gt=0, description="step that is tried, as a share of a tensor's rms")
    reserve_seconds: float = Field(0.0, ge=0, description="kept for calibration; 0 = measured in the warm-up")


class CheckpointConfig(Section):
    """When training writes its state."""

    seconds: float = Field(120.0, ge=0, description="wall clock between checkpoints; 0 = none")
    at: tuple[float, ...] = Field((), description="rising fractions of the run whose checkpoints are kept")

    @model_validator(mode="after")
    def _fractions_rise(self) -> Self:
        if list(self.at) != sorted(set(self.at)) or not all(0 < f < 1 for f in self.at):
            raise ValueError(f"at {list(self.at)} must be rising fractions of the run between 0 and 1")
        return self


class TrainConfig(Section):
    """The training loop under its wall clock. Schedules are fractions of the run."""

    earlier_name: ClassVar[str] = "train"

    seq_len: int = Field(1024, ge=8, description="tokens in a training row")
    batch_tokens: int = Field(65_536, ge=8, description="tokens per optimizer step over all ranks")
    micro_batch_tokens: int = Field(65_536, ge=8, description="tokens per forward pass on one rank")
    max_steps: int = Field(0, ge=0, description="stop after this many steps even with time left; 0 = no limit")
    loader: Literal["sequential", "shuffled"] = Field("sequential", description="order of the training rows")
    compile: bool = Field(True, description="torch.compile the step (CUDA only; the CPU runs eagerly)")
    attention: Literal["auto", "fa3", "cudnn", "flex", "varlen", "flash", "efficient", "math"] = Field(
        "auto", description="attention backend; auto takes the fastest that this device has"
    )
    matrix_lr: float = Field(0.04, gt=0, description="Muon learning rate of block matrices")
    embed_lr: float = Field(0.05, gt=0, description="AdamW learning rate of the tied embedding and other tables")
    scalar_lr: float = Field(0.04, gt=0, description="AdamW learning rate of gains, scales and mixers")
    warmdown: float = Field(0.087, ge=0, le=1, description="last fraction of the budget, in which the rate falls")
    min_lr: float = Field(0.0, ge=0, lt=1, description="learning-rate multiplier at the end of the warm-down")
    grad_clip: float = Field(0.0, ge=0, description="largest global gradient norm; 0 = no clipping")
    table_dtype: Literal["fp32", "bf16"] = Field("fp32", description="of token, bigram and value tables in training")
    held_out_tokens: int = Field(
        0, ge=0, description="last tokens of the training stream, which training never reads; 0 = none"
    )
    warmup_steps: int = Field(3, ge=1, description="untimed compile warm-up steps; all state is restored after them")
    log_every: int = Field(50, ge=1, description="steps between lines of train.jsonl")
    muon: MuonConfig = MuonConfig()
    adam: AdamConfig = AdamConfig()
    average: AverageConfig = AverageConfig()
    replay: ReplayConfig = ReplayConfig()
    measure: MeasureConfig = MeasureConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        for key in ("batch_tokens", "micro_batch_tokens"):
            if getattr(self, key) % self.seq_len:
                raise ValueError(f"{key} {getattr(self, key)} is not a multiple of seq_len {self.seq_len}")
        return self

    @model_validator(mode="after")
    def _ending_fits(self) -> Self:
        replay, average, measure = self.replay, self.average, self.measure
        if replay.epochs and self.lowest_lr_scale >= replay.lr_scale_below:
            raise ValueError(
                f"replay.lr_scale_below {replay.lr_scale_below:g} is never reached: the learning-rate multiplier "
                f"falls to {self.lowest_lr_scale:g} at the lowest (warmdown {self.warmdown:g}, min_lr "
                f"{self.min_lr:g}); raise it, or set replay.epochs 0"
            )
        if 0 < self.held_out_tokens < self.seq_len:
            raise ValueError(
                f"held_out_tokens {self.held_out_tokens} does not hold one row of seq_len {self.seq_len}; use 0 for "
                "none, or more"
            )
        if measure.curvature_tokens and measure.curvature_tokens < self.seq_len:
            raise ValueError(
                f"measure.curvature_tokens {measure.curvature_tokens} does not hold one row of seq_len "
                f"{self.seq_len}; use 0 for none, or more"
            )
        if measure.curvature_tokens > self.held_out_tokens:
            raise ValueError(
                f"measure.curvature_tokens {measure.curvature_tokens} is more than the {self.held_out_tokens} "
                f"held-out tokens that curvature is measured on; set held_out_tokens {measure.curvature_tokens} or more"
            )
        if average.choose == "held_out" and not self.held_out_tokens:
            raise ValueError("average.choose 'held_out' needs text to choose on: set held_out_tokens, e.g. 262144")
        if average.choose == "held_out" and not (average.ema_decay or average.swa_weight):
            raise ValueError(
                "average.choose 'held_out' has nothing to choose from but the last weights; set average.ema_decay or "
                "average.swa_weight, or average.choose 'fixed'"
            )
        return self

    @property
    def lowest_lr_scale(self) -> float:
        """The learning-rate multiplier at the very end of the warm-down."""
        return self.min_lr if self.warmdown else 1.0


class SoftRoundConfig(Section):
    """Soft rounding, a differentiable rounding that sharpens during the run (arXiv 2006.09952; PR 606)."""

    sharpness_start: float = Field(1.0, gt=0, description="sharpness when quantized training begins")
    sharpness_end: float = Field(16.0, gt=0, description="sharpness at the end of the run")


class CrownConfig(Section):
    """CROWN-Q, a penalty on the variance that rounding adds to the outputs (PR 693)."""

    weight: float = Field(0.0, ge=0, description="weight of the penalty while training is quantized; 0 = none")
    levels: int = Field(15, ge=1, description="levels of the grid whose step the penalty is computed from")


class QATConfig(Section):
    """Quantization-aware training (QAT) on the grid that `pack` uses, and CROWN-Q."""

    earlier_name: ClassVar[str] = "qat"

    mode: Literal["none", "ste", "soft_round"] = Field(
        "none", description="how the forward pass rounds: not at all, straight-through (STE), or by soft rounding"
    )
    start_lr_scale: float = Field(
        0.0, ge=0, le=1, description="quantized once the learning-rate multiplier is below this; 0 = never"
    )
    start_fraction: float = Field(1.0, ge=0, le=1, description="quantized from this fraction of the run; 1 = never")
    refresh_steps: int = Field(50, ge=1, description="steps between two searches of the row clips")
    soft_round: SoftRoundConfig = SoftRoundConfig()
    crown: CrownConfig = CrownConfig()

    @property
    def enabled(self) -> bool:
        """Whether anything changes when the start is reached."""
        return self.mode != "none" or self.crown.weight > 0

    def is_on(self, fraction: float, lr_scale: float) -> bool:
        """Whether a step at `fraction` of the run with this rate multiplier is quantized or penalized."""
        return self.enabled and (lr_scale < self.start_lr_scale or fraction >= self.start_fraction)
