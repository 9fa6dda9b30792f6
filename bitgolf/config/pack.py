"""Settings of stage `pack`: grids, quantizers and the container."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bitgolf.config.section import Section


class PackConfig(Section):
    """Quantization grids and the container (techniques.md sections 6-7). Bits are those of one code."""

    matrix_bits: int = Field(8, ge=2, le=12, description="block matrices and other projections")
    attention_bits: int = Field(0, ge=0, le=12, description="attention matrices; 0 = matrix_bits")
    mlp_bits: int = Field(0, ge=0, le=12, description="MLP matrices; 0 = matrix_bits")
    embed_bits: int = Field(8, ge=2, le=12, description="token embedding and other tables")
    method: Literal["gptq", "rtn", "lossless"] = Field("gptq", description="lossless keeps fp32")
    clip_sigmas: float = Field(0.0, ge=0, description="clip block matrices at k standard deviations; 0 = percentiles")
    embed_clip_sigmas: float = Field(0.0, ge=0, description="the same for embedding and tables")
    scale_floor: bool = Field(False, description="no row step of a block matrix below 1 / qmax, as published")
    prune: float = Field(0.0, ge=0, lt=1, description="share of smallest weights zeroed in each large matrix")
    percentiles: tuple[float, ...] = Field(
        (0.999, 0.9995, 0.9999, 0.99999, 1.0), description="row clips tried; the least squared error wins"
    )
    damping: float = Field(0.01, gt=0, le=1, description="share of the mean diagonal added to the Hessian")
    block_size: int = Field(128, ge=1, description="columns between two lazy updates")
    small_tensor: int = Field(8_192, ge=0, description="tensors up to this many elements stay fp16")
    compressor: Literal["zstd", "lzma", "zlib", "brotli"] = "zstd"

    @model_validator(mode="after")
    def _grids_exist(self) -> Self:
        for key in ("attention_bits", "mlp_bits"):
            if getattr(self, key) == 1:
                raise ValueError(f"{key} 1: a grid has 2 to 12 bits; 0 takes matrix_bits")
        return self
