"""Settings of stage `train`: optimizers, schedules, averages, statistics, checkpoints."""

import math
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from bitgolf.config.section import Section


class MuonConfig(Section):
    """Muon, the optimizer of block matrices (github.com/KellerJordan/Muon)."""

    momentum: float = Field(0.95, ge=0, lt=1, description="momentum after the momentum warm-up")
    momentum_start: float = Field(0.85, ge=0, lt=1, description="momentum at the first step")
    momentum_warmup: float = Field(0.036, ge=0, le=1, description="fraction of the run over which momentum rises")
    steps: int = Field(5, ge=1, le=20, description="Newton-Schulz iterations per step")
    polynomial: Literal["quintic", "polar_express"] = Field(
        "quintic",
        description="quintic: one polynomial for all iterations; polar_express: one per iteration (arXiv 2505.16932)",
    )
    row_norm: bool = Field(False, description="divide each row of an update by its norm before the iterations")
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="dtype of Muon's gradients and momentum")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay, multiplied by the learning rate")
    cautious_decay: bool = Field(
        False, description="decay only where update and weight have one sign (arXiv 2411.16085; modded-nanogpt)"
    )
    decay_falls: bool = Field(False, description="weight decay falls linearly to 0 over the run")
    two_rails_from: float = Field(
        1.0,
        ge=0,
        le=1,
        description="fraction of the run from which the momentum is the mean of a fast and a slow average "
        "(modded-nanogpt PR 340); 1 = never",
    )

    @model_validator(mode="after")
    def _momentum_rises(self) -> Self:
        if self.momentum_start > self.momentum:
            raise ValueError(f"momentum_start {self.momentum_start} is above momentum {self.momentum}")
        return self


class ExtraTargetsConfig(Section):
    """More targets on the same logits in the first part of the run (modded-nanogpt)."""

    next_tokens: tuple[float, ...] = Field(
        (), description="first weights of the tokens after the next one, nearest first; empty = none"
    )
    prefix: float = Field(
        0.0, ge=0, description="first weight of the longest token that begins the next one (PR 337 there); 0 = none"
    )
    until: float = Field(0.5, gt=0, le=1, description="fraction of the run at which all weights have fallen to 0")

    @model_validator(mode="after")
    def _weights_are_positive(self) -> Self:
        if any(weight <= 0 for weight in self.next_tokens):
            raise ValueError(f"next_tokens {list(self.next_tokens)} must be weights above 0")
        return self

    @property
    def enabled(self) -> bool:
        """Whether there are such targets."""
        return bool(self.next_tokens or self.prefix)


class AdamConfig(Section):
    """AdamW, the optimizer of all parameters that are not block matrices."""

    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the second moment")
    eps: float = Field(1e-8, gt=0, description="constant added to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay, multiplied by the learning rate")
    table_weight_decay: float = Field(
        -1.0, ge=-1, description="weight decay of token, bigram and value tables; -1 = weight_decay"
    )


class AverageConfig(Section):
    """The average of the weights that is packed."""

    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay per step of the moving average (EMA); 0 = no average")
    ema_candidates: tuple[float, ...] = Field(
        (), description="decays of more moving averages, from which choose 'held_out' may take the best"
    )
    swa_weight: float = Field(
        0.0, ge=0, le=1, description="share of the mean of snapshots (SWA) in the packed weights; 0 = none"
    )
    swa_start: float = Field(0.2, gt=0, le=1, description="learning-rate multiplier below which snapshots are taken")
    swa_spacing: float = Field(0.0075, gt=0, lt=1, description="fraction of the run between two snapshots")
    choose: Literal["fixed", "held_out"] = Field(
        "fixed",
        description="fixed: pack the configured average; held_out: pack the best average on held-out training text",
    )

    @model_validator(mode="after")
    def _decays_differ(self) -> Self:
        decays = [self.ema_decay, *self.ema_candidates]
        if self.ema_candidates and (len(set(decays)) < len(decays) or not all(0 < decay < 1 for decay in decays)):
            raise ValueError(
                f"ema_candidates {list(self.ema_candidates)} must be different decays between 0 and 1, beside an "
                f"ema_decay above 0, which is {self.ema_decay:g}"
            )
        return self


class ReplayConfig(Section):
    """The replay burst: after the warm-down, training repeats the last batches (PR 693)."""

    epochs: int = Field(0, ge=0, le=100, description="passes over the replayed batches; 0 = no replay")
    batches: int = Field(100, ge=1, description="largest number of batches that are replayed")
    lr_scale_below: float = Field(
        0.2, gt=0, le=1, description="batches trained below this learning-rate multiplier are replayed"
    )
    lr: float = Field(0.1, gt=0, le=1, description="learning-rate multiplier during the replay")


class MeasureConfig(Section):
    """Statistics that `pack` needs, gathered on the final weights and on the training clock."""

    calibration_tokens: int = Field(
        524_288,
        ge=0,
        description="training tokens from which the Hessians are computed; 0 = none, for pack.rate.hessian fisher",
    )
    fisher_tokens: int = Field(
        0,
        ge=0,
        description="training tokens for the Fisher statistics and the curvature, which pack.method rate needs; 0 = "
        "none",
    )
    reserve_seconds: float = Field(
        0.0, ge=0, description="training time kept for calibration; 0 = measured in the warm-up"
    )


class CheckpointConfig(Section):
    """When training writes checkpoints."""

    seconds: float = Field(120.0, ge=0, description="wall-clock time between two checkpoints; 0 = none")
    at: tuple[float, ...] = Field((), description="increasing fractions of the run at which a checkpoint is kept")

    @model_validator(mode="after")
    def _fractions_rise(self) -> Self:
        if list(self.at) != sorted(set(self.at)) or not all(0 < f < 1 for f in self.at):
            raise ValueError(f"at {list(self.at)} must be increasing fractions of the run between 0 and 1")
        return self


class WatchConfig(Section):
    """What is measured and shown while the model trains, on the training clock."""

    seconds: float = Field(0.0, ge=0, description="time between two losses on held-out training text; 0 = none")
    tokens: int = Field(16_384, ge=8, description="held-out tokens of one loss, at most train.held_out_tokens")
    sample_tokens: int = Field(0, ge=0, le=512, description="tokens of a text that is sampled with each loss; 0 = none")
    sinks: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = Field(
        (), description="where the metrics are sent besides train.jsonl"
    )


def _require_rising(key: str, parts: tuple[tuple[float, float, float], ...]) -> None:
    """Raise ValueError unless each part of the run begins after the one before."""
    fractions = [part[0] for part in parts]
    if fractions != sorted(set(fractions)) or not all(0 <= fraction < 1 for fraction in fractions):
        raise ValueError(f"{key} {_as_lists(parts)} must begin at increasing fractions of the run from 0 to below 1")


def _as_lists(parts: tuple[tuple[float, float, float], ...]) -> str:
    return str([list(part) for part in parts])


class TrainConfig(Section):
    """The training loop under its wall clock. Schedules are fractions of the run."""

    earlier_name: ClassVar[str] = "train"

    seq_len: int = Field(1024, ge=8, description="tokens in a training row")
    batch_tokens: int = Field(65_536, ge=8, description="tokens per optimizer step over all ranks")
    micro_batch_tokens: int = Field(
        65_536, ge=0, description="tokens per forward pass on one rank; auto (0) = as many as the device's memory holds"
    )
    batch_ramp: tuple[tuple[float, int, float], ...] = Field(
        (),
        description="other batches in parts of the run: the fraction from which they hold, tokens per optimizer step, "
        "and multiplier of all learning rates",
    )
    max_steps: int = Field(0, ge=0, description="largest number of steps; 0 = no limit but the clock")
    loader: Literal["sequential", "shuffled", "documents"] = Field(
        "sequential",
        description="order of the training text: as it is, rows in a new order in each epoch, or documents in a new "
        "order in each epoch, cut at model.attention.document_tokens",
    )
    compile: bool = Field(True, description="use torch.compile for the training step (CUDA only)")
    attention: Literal["auto", "fa3", "fa4", "cudnn", "flex", "varlen", "flash", "efficient", "math"] = Field(
        "auto", description="attention backend; auto: the fastest on this device"
    )
    kernels: Literal["compiler", "triton"] = Field(
        "compiler",
        description="norm, rotary positions, XSA, gate of attention, and loss: torch.compile, or Triton (CUDA only); "
        "triton with bitgolf[hopper] on a Hopper GPU: the MLP too",
    )
    matrix_lr: float = Field(0.04, gt=0, description="Muon learning rate of block matrices")
    embed_lr: float = Field(0.05, gt=0, description="AdamW learning rate of the tied embedding and other tables")
    scalar_lr: float = Field(0.04, gt=0, description="AdamW learning rate of gains, scales and mixers")
    warmdown: float = Field(0.087, ge=0, le=1, description="last fraction of the run, in which the learning rate falls")
    min_lr: float = Field(0.0, ge=0, lt=1, description="learning-rate multiplier at the end of the warm-down")
    loop_start: float = Field(
        0.0, ge=0, le=1, description="fraction of the run from which the layers of model.loop run several times"
    )
    windows: tuple[tuple[float, int, int], ...] = Field(
        (),
        description="attention windows in parts of the run: the fraction from which they hold, model.attention.window, "
        "and the window of the full layers (0 = none); empty = as after training",
    )
    grad_clip: float = Field(0.0, ge=0, description="largest global gradient norm; 0 = no clipping")
    table_dtype: Literal["fp32", "bf16"] = Field(
        "fp32", description="dtype of token, bigram and value tables in training"
    )
    held_out_tokens: int = Field(
        0, ge=0, description="number of last training tokens that the optimizer never sees; 0 = none"
    )
    warmup_steps: int = Field(3, ge=1, description="untimed steps for compilation, after which all state is restored")
    log_every: int = Field(50, ge=1, description="steps between two lines of train.jsonl")
    extra_targets: ExtraTargetsConfig = ExtraTargetsConfig()
    muon: MuonConfig = MuonConfig()
    adam: AdamConfig = AdamConfig()
    average: AverageConfig = AverageConfig()
    replay: ReplayConfig = ReplayConfig()
    measure: MeasureConfig = MeasureConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    watch: WatchConfig = WatchConfig()

    @field_validator("micro_batch_tokens", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return 0 if value == "auto" else value

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        for key in ("batch_tokens", "micro_batch_tokens"):
            if getattr(self, key) % self.seq_len:
                raise ValueError(f"{key} {getattr(self, key)} is not a multiple of seq_len {self.seq_len}")
        _require_rising("batch_ramp", self.batch_ramp)
        if any(tokens < 1 or tokens % self.seq_len or rate <= 0 for _, tokens, rate in self.batch_ramp):
            raise ValueError(
                f"batch_ramp {_as_lists(self.batch_ramp)} must have multiples of seq_len {self.seq_len} as tokens, and "
                "multipliers above 0"
            )
        return self

    @model_validator(mode="after")
    def _windows_follow_each_other(self) -> Self:
        _require_rising("windows", self.windows)
        if any(window < 1 or full < 0 for _, window, full in self.windows):
            raise ValueError(
                f"windows {_as_lists(self.windows)} must have windows of 1 token and more (0 = none for full)"
            )
        return self

    @model_validator(mode="after")
    def _ending_fits(self) -> Self:
        replay, average = self.replay, self.average
        if replay.epochs and self.lowest_lr_scale >= replay.lr_scale_below:
            raise ValueError(
                f"replay.lr_scale_below {replay.lr_scale_below:g} is never reached: the lowest learning-rate "
                f"multiplier is {self.lowest_lr_scale:g} (warmdown {self.warmdown:g}, min_lr {self.min_lr:g}); raise "
                "lr_scale_below, or set replay.epochs 0"
            )
        if 0 < self.held_out_tokens < self.seq_len:
            raise ValueError(
                f"held_out_tokens {self.held_out_tokens} is less than one row of seq_len {self.seq_len}; use 0 for "
                f"none, or at least {self.seq_len}"
            )
        if self.watch.seconds and min(self.watch.tokens, self.held_out_tokens) < self.seq_len:
            raise ValueError(
                f"watch.seconds {self.watch.seconds:g} measures the loss on held-out text: set held_out_tokens and "
                f"watch.tokens to at least one row of seq_len {self.seq_len}, for example 16384"
            )
        if average.choose == "held_out" and not self.held_out_tokens:
            raise ValueError("average.choose 'held_out' needs held-out text: set held_out_tokens, for example 262144")
        if average.choose == "held_out" and not (average.ema_decay or average.swa_weight):
            raise ValueError(
                "average.choose 'held_out' needs an average to choose: set average.ema_decay or average.swa_weight, or "
                "average.choose 'fixed'"
            )
        return self

    @property
    def batch_parts(self) -> tuple[tuple[float, int, float], ...]:
        """Parts of the run: the fraction from which it holds, tokens per step, multiplier of the learning rates."""
        first = ((0.0, self.batch_tokens, 1.0),)
        return self.batch_ramp if self.batch_ramp and self.batch_ramp[0][0] == 0 else first + self.batch_ramp

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Tokens per optimizer step in the parts of the run."""
        return tuple(tokens for _, tokens, _ in self.batch_parts)

    @property
    def block_tokens(self) -> int:
        """The largest number of tokens that divides the batches of all parts; the batch if all are equal."""
        return math.gcd(*self.batch_sizes)

    @property
    def mean_batch_tokens(self) -> int:
        """Tokens per step over the whole run, if the time of a step is proportional to its tokens."""
        ends = [start for start, _, _ in self.batch_parts[1:]] + [1.0]
        shares = [(end - start) / tokens for (start, tokens, _), end in zip(self.batch_parts, ends, strict=True)]
        return round(1 / sum(shares))

    @property
    def lowest_lr_scale(self) -> float:
        """The learning-rate multiplier at the end of the warm-down."""
        return self.min_lr if self.warmdown else 1.0
