"""Settings of stage `pack`: grids, quantizers and the container."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bitgolf.config.section import Section


class PackConfig(Section):
    """Quantization grids and the container. Bits are those of one code."""

    matrix_bits: int = Field(8, ge=2, le=12, description="block matrices and other projections")
    attention_bits: int = Field(0, ge=0, le=12, description="attention matrices; 0 = matrix_bits")
    mlp_bits: int = Field(0, ge=0, le=12, description="MLP matrices; 0 = matrix_bits")
    embed_bits: int = Field(8, ge=2, le=12, description="token embedding and other tables")
    method: Literal["gptq", "rtn", "rate", "lossless"] = Field(
        "gptq", description="rate: no fixed grids, steps by curvature that fill the cap; lossless keeps fp32"
    )
    trellis: Literal[0, 8] = Field(8, description="states of trellis-coded quantization with method rate; 0 = none")
    column_steps: bool = Field(True, description="method rate: steps by column, from the Hessian")
    hessian: Literal["plain", "fisher"] = Field(
        "plain", description="method rate: input moments alone, or weighted by the gradient, with row importances"
    )
    clip_sigmas: float = Field(0.0, ge=0, description="clip block matrices at k standard deviations; 0 = percentiles")
    embed_clip_sigmas: float = Field(0.0, ge=0, description="the same for embedding and tables")
    scale_floor: bool = Field(False, description="no row step of a block matrix below 1 / qmax, as published")
    prune: float = Field(0.0, ge=0, lt=1, description="share of smallest weights zeroed in each large matrix")
    passthrough: tuple[str, ...] = Field((), description="names or patterns (*, ?, []) of tensors that stay fp16")
    prune_to_fit: bool = Field(False, description="zero the cheapest +-1 codes of GPTQ matrices until all fits")
    fit_margin_bytes: int = Field(50_000, ge=0, description="prune_to_fit leaves this much of the cap free")
    percentiles: tuple[float, ...] = Field(
        (0.999, 0.9995, 0.9999, 0.99999, 1.0), description="row clips tried; the least squared error wins"
    )
    damping: float = Field(0.01, gt=0, le=1, description="share of the mean diagonal added to the Hessian")
    block_size: int = Field(128, ge=1, description="columns between two lazy updates")
    small_tensor: int = Field(8_192, ge=0, description="tensors up to this many elements stay fp16")
    compressor: Literal["zstd", "lzma", "zlib", "brotli", "range"] = Field(
        "zstd", description="range: an entropy coder for weights; the others compress bytes"
    )

    @model_validator(mode="after")
    def _grids_exist(self) -> Self:
        for key in ("attention_bits", "mlp_bits"):
            if getattr(self, key) == 1:
                raise ValueError(f"{key} 1: a grid has 2 to 12 bits; 0 takes matrix_bits")
        return self

    @model_validator(mode="after")
    def _percentiles_are_shares(self) -> Self:
        if not self.percentiles or not all(0 < share <= 1 for share in self.percentiles):
            raise ValueError(f"percentiles {list(self.percentiles)} must be one or more numbers above 0, at most 1")
        return self

    @model_validator(mode="after")
    def _patterns_name_something(self) -> Self:
        if not all(pattern.strip() for pattern in self.passthrough) or len(set(self.passthrough)) < len(
            self.passthrough
        ):
            raise ValueError(f"passthrough {list(self.passthrough)} must be different, non-empty names or patterns")
        return self
