"""Settings of stage `pack`: grids, quantizers and the container."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from bitgolf.config.section import Section


class GridConfig(Section):
    """The fixed grids of methods gptq and rtn. Bits are those of one code."""

    matrix_bits: int = Field(8, ge=2, le=12, description="bits of block matrices and other projections")
    attention_bits: int = Field(0, ge=0, le=12, description="bits of attention matrices; 0 = matrix_bits")
    mlp_bits: int = Field(0, ge=0, le=12, description="bits of MLP matrices; 0 = matrix_bits")
    embed_bits: int = Field(8, ge=2, le=12, description="bits of the token embedding and other tables")
    clip_sigmas: float = Field(
        0.0, ge=0, description="clip block matrices at this many standard deviations; 0 = percentiles"
    )
    embed_clip_sigmas: float = Field(0.0, ge=0, description="the same for the embedding and other tables")
    scale_floor: bool = Field(False, description="no row step of a block matrix below 1 / qmax, as published")
    percentiles: tuple[float, ...] = Field(
        (0.999, 0.9995, 0.9999, 0.99999, 1.0), description="row clips tried; the least squared error wins"
    )

    @model_validator(mode="after")
    def _grids_exist(self) -> Self:
        for key in ("attention_bits", "mlp_bits"):
            if getattr(self, key) == 1:
                raise ValueError(f"{key} 1: a grid has 2 to 12 bits; 0 takes matrix_bits")
        if not self.percentiles or not all(0 < share <= 1 for share in self.percentiles):
            raise ValueError(f"percentiles {list(self.percentiles)} must be one or more numbers above 0, at most 1")
        return self


class GPTQConfig(Section):
    """GPTQ (arXiv 2210.17323): rounding that feeds each column's error back into the columns after it."""

    damping: float = Field(0.01, gt=0, le=1, description="share of the mean diagonal added to the Hessian")
    block_size: int = Field(128, ge=1, description="columns between two lazy updates")


class RateConfig(Section):
    """Method rate: steps chosen by curvature, so that the file fills the cap."""

    trellis: Literal[0, 8] = Field(8, description="states of trellis-coded quantization; 0 = no trellis")
    column_steps: bool = Field(True, description="a step per column, from the Hessian")
    hessian: Literal["plain", "fisher"] = Field(
        "plain", description="plain: input moments; fisher: weighted by the gradient, with row importances"
    )


class FitConfig(Section):
    """Pruning of codes until the file fits the cap (PR 693), for fixed grids."""

    prune: bool = Field(False, description="zero the cheapest codes of +-1 in GPTQ matrices until all fits")
    margin_bytes: int = Field(50_000, ge=0, description="bytes of the cap that fit.prune leaves free")


class PackConfig(Section):
    """From float weights to the artifact."""

    earlier_name: ClassVar[str] = "pack"

    method: Literal["gptq", "rtn", "rate", "lossless"] = Field(
        "gptq",
        description="gptq, rtn: fixed grids with error feedback or to the nearest level; rate: steps by curvature "
        "that fill the cap; lossless: fp32",
    )
    prune: float = Field(0.0, ge=0, lt=1, description="share of smallest weights zeroed in each large matrix")
    passthrough: tuple[str, ...] = Field((), description="names or patterns (*, ?, []) of tensors that stay fp16")
    small_tensor: int = Field(8_192, ge=0, description="tensors up to this many elements stay fp16")
    compressor: Literal["zstd", "lzma", "zlib", "brotli", "range"] = Field(
        "zstd", description="range: the entropy coder for weights; the others compress bytes"
    )
    grid: GridConfig = GridConfig()
    gptq: GPTQConfig = GPTQConfig()
    rate: RateConfig = RateConfig()
    fit: FitConfig = FitConfig()

    @model_validator(mode="after")
    def _patterns_name_something(self) -> Self:
        if not all(pattern.strip() for pattern in self.passthrough) or len(set(self.passthrough)) < len(
            self.passthrough
        ):
            raise ValueError(f"passthrough {list(self.passthrough)} must be different, non-empty names or patterns")
        return self
