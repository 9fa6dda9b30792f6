"""Settings of stage `pack`: grids, quantizers and compression."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from bitgolf.config.section import Section


class GridConfig(Section):
    """The fixed grids of methods gptq and rtn."""

    matrix_bits: int = Field(8, ge=2, le=12, description="bits per code of block matrices and other projections")
    attention_bits: int = Field(0, ge=0, le=12, description="bits per code of attention matrices; 0 = matrix_bits")
    mlp_bits: int = Field(0, ge=0, le=12, description="bits per code of MLP matrices; 0 = matrix_bits")
    embed_bits: int = Field(8, ge=2, le=12, description="bits per code of the token embedding and other tables")
    clip_sigmas: float = Field(
        0.0, ge=0, description="standard deviations at which block matrices are clipped; 0 = use percentiles"
    )
    embed_clip_sigmas: float = Field(
        0.0,
        ge=0,
        description="standard deviations at which the embedding and other tables are clipped; 0 = use percentiles",
    )
    scale_floor: bool = Field(
        False, description="row steps of block matrices are at least 1 / qmax, as in published int5 systems"
    )
    percentiles: tuple[float, ...] = Field(
        (0.999, 0.9995, 0.9999, 0.99999, 1.0),
        description="row clips to try; the least squared error decides",
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
    """GPTQ (arXiv 2210.17323): rounding that adds each column's error to the columns after it."""

    damping: float = Field(
        0.01, gt=0, le=1, description="share of the Hessian's mean diagonal that is added to its diagonal"
    )
    block_size: int = Field(128, ge=1, description="number of columns between two updates of the remaining matrix")


class RateConfig(Section):
    """Method rate: step sizes are chosen by curvature so that the file fills the cap."""

    trellis: Literal[0, 8] = Field(8, description="number of states of trellis-coded quantization; 0 = no trellis")
    column_steps: bool = Field(True, description="one step size per column, computed from the Hessian")
    hessian: Literal["plain", "fisher"] = Field(
        "plain",
        description="plain: input moments; fisher: input moments weighted by the gradient, with row importances",
    )


class FitConfig(Section):
    """Pruning of codes until the file fits the cap (PR 693), for fixed grids."""

    prune: bool = Field(
        False, description="set codes of +-1 in GPTQ matrices to zero, cheapest first, until the file fits"
    )
    margin_bytes: int = Field(50_000, ge=0, description="bytes below the cap at which fit.prune stops")


class PackConfig(Section):
    """Quantization and compression of the weights."""

    earlier_name: ClassVar[str] = "pack"

    method: Literal["gptq", "rtn", "rate", "lossless"] = Field(
        "gptq",
        description="gptq: fixed grids with error feedback; rtn: fixed grids, nearest level; rate: step sizes by "
        "curvature that fill the cap; lossless: fp32",
    )
    prune: float = Field(
        0.0, ge=0, lt=1, description="share of each large matrix that is set to zero, smallest weights first"
    )
    passthrough: tuple[str, ...] = Field((), description="names or patterns (*, ?, []) of tensors that stay fp16")
    small_tensor: int = Field(8_192, ge=0, description="largest number of elements of a tensor that stays fp16")
    compressor: Literal["zstd", "lzma", "zlib", "brotli", "range"] = Field(
        "zstd", description="range: entropy coder for weights; the others: general-purpose compressors"
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
