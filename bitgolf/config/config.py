"""The complete configuration of a run: one section per stage, the three caps, and the checks between sections."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

import tomli_w
from pydantic import Field, model_validator

from bitgolf.config.data import DataConfig
from bitgolf.config.evaluate import ScoreConfig, TTTConfig
from bitgolf.config.model import ModelConfig
from bitgolf.config.pack import PackConfig
from bitgolf.config.qat import QATConfig
from bitgolf.config.section import Section
from bitgolf.config.train import TrainConfig


class BudgetConfig(Section):
    """The three caps of a run (docs/rules.md, B1, B4 and B6)."""

    artifact_bytes: int = Field(16_000_000, ge=1, description="largest size of code and compressed model together")
    train_seconds: float = Field(600.0, gt=0, description="wall-clock time of training, calibration included")
    eval_seconds: float = Field(600.0, gt=0, description="wall-clock time of evaluation")
    min_steps: int = Field(
        0,
        ge=0,
        description="on a machine too slow for this many steps in train_seconds, both times are extended before "
        "training starts; 0 = the times are fixed",
    )


class ReportConfig(Section):
    """Text examples in the report."""

    samples: int = Field(3, ge=0, le=20, description="number of sampled continuations of validation text")
    sample_tokens: int = Field(120, ge=1, le=4_096, description="tokens per sample")
    surprisal_tokens: int = Field(
        400, ge=2, le=10_000, description="tokens in the passage that is colored by surprisal"
    )


class Config(Section):
    """The complete configuration of a run."""

    name: str = Field("custom", min_length=1, description="name of the preset or of your own configuration")
    description: str = Field("", description="one sentence about the configuration, shown in reports")
    seed: int = Field(1337, ge=0, lt=2**31, description="seed of the initial weights, the row order and sampling")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: the GPU (CUDA or ROCm) if there is one, otherwise the CPU; mps: an Apple GPU"
    )
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    qat: QATConfig = QATConfig()
    pack: PackConfig = PackConfig()
    score: ScoreConfig = ScoreConfig()
    ttt: TTTConfig = TTTConfig()
    budget: BudgetConfig = BudgetConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        window = self.window
        if self.score.stride > window:
            raise ValueError(
                f"score.stride {self.score.stride} is above the window of {window} tokens: targets would be skipped"
            )
        if self.score.batch_tokens < window:
            raise ValueError(f"score.batch_tokens {self.score.batch_tokens} does not hold one window of {window}")
        return self

    @model_validator(mode="after")
    def _late_starts_are_reached(self) -> Self:
        lowest = self.train.lowest_lr_scale
        if self.train.average.swa_weight and self.train.average.swa_start <= lowest:
            raise ValueError(
                f"train.average.swa_start {self.train.average.swa_start:g} is never reached: the lowest learning-rate "
                f"multiplier is {lowest:g}; raise swa_start, or set train.average.swa_weight 0"
            )
        if self.qat.enabled and self.qat.start_fraction == 1 and self.qat.start_lr_scale <= lowest:
            raise ValueError(
                f"qat never starts: the lowest learning-rate multiplier is {lowest:g} and qat.start_lr_scale is "
                f"{self.qat.start_lr_scale:g}; raise start_lr_scale, or set qat.start_fraction below 1"
            )
        return self

    @model_validator(mode="after")
    def _documents_stay_apart(self) -> Self:
        if self.train.loader == "documents" and not self.model.attention.within_documents:
            raise ValueError("train.loader 'documents' needs model.attention.within_documents = true")
        return self

    @model_validator(mode="after")
    def _windows_have_a_last_one(self) -> Self:
        if self.train.windows and not self.model.attention.window:
            raise ValueError(
                "train.windows needs model.attention.window, the window after training; for none, set it to the length "
                f"of a row, {self.train.seq_len}"
            )
        return self

    @model_validator(mode="after")
    def _packing_has_its_statistics(self) -> Self:
        train, pack = self.train, self.pack
        measure, plain = train.measure, pack.rate.hessian == "plain"
        if not measure.calibration_tokens and (pack.method == "gptq" or (pack.method == "rate" and plain)):
            raise ValueError(
                f"pack.method {pack.method!r} rounds with Hessians: set train.measure.calibration_tokens, for example "
                "524288"
            )
        if pack.method != "rate":
            return self
        if not measure.fisher_tokens:
            raise ValueError(
                "pack.method 'rate' divides the bytes by curvature: set train.measure.fisher_tokens, for example "
                f"{32 * train.seq_len}"
            )
        if self.qat.mode != "none":
            raise ValueError(
                f"qat.mode {self.qat.mode!r} trains on the grid that the weights are packed on, but pack.method 'rate' "
                "chooses its steps after training; use qat.mode 'none', or pack.method 'gptq'"
            )
        if pack.fit.prune:
            raise ValueError("pack.fit.prune is for fixed grids; set it false for pack.method 'rate'")
        return self

    @model_validator(mode="after")
    def _adaptation_fits(self) -> Self:
        ttt, model, window = self.ttt, self.model, self.window
        by_documents = ttt.method == "lora" and ttt.lora.global_after
        if (ttt.between_chunks or by_documents) and ttt.weights.chunk_tokens < window:
            raise ValueError(
                f"ttt.weights.chunk_tokens {ttt.weights.chunk_tokens} is below the window of {window} tokens: a chunk "
                "would not hold one row to learn from"
            )
        if ttt.method == "last_blocks" and ttt.weights.last_blocks > model.num_layers:
            raise ValueError(
                f"ttt.weights.last_blocks {ttt.weights.last_blocks} is above num_layers {model.num_layers}"
            )
        if ttt.weights.freeze_blocks > model.num_layers:
            raise ValueError(
                f"ttt.weights.freeze_blocks {ttt.weights.freeze_blocks} is above num_layers {model.num_layers}"
            )
        if ttt.method == "lora":
            widths = {"k": model.kv_dim, "v": model.kv_dim, "head": min(model.model_dim, model.vocab_size)}
            target = min(ttt.lora.targets, key=lambda name: widths.get(name, model.model_dim))
            width = widths.get(target, model.model_dim)
            if ttt.lora.rank > width:
                raise ValueError(f"ttt.lora.rank {ttt.lora.rank} is above the width {width} of target {target!r}")
            if ttt.lora.chunk_tokens > window:
                raise ValueError(
                    f"ttt.lora.chunk_tokens {ttt.lora.chunk_tokens} is above the window of {window} tokens: targets "
                    "would be skipped"
                )
        return self

    @property
    def window(self) -> int:
        """Context window of the evaluation, in tokens."""
        return self.score.seq_len or self.train.seq_len

    def digest(self) -> str:
        """SHA-256 of the resolved configuration, hexadecimal. Two runs with equal configurations have equal digests."""
        return digest_of(self.model_dump(mode="json"))

    def to_toml(self) -> str:
        """The configuration as TOML. `load_config` of that file returns an equal Config."""
        return tomli_w.dumps(self.model_dump(mode="json"))


def digest_of(values: Mapping[str, Any]) -> str:
    """The digest of a configuration, from its values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
