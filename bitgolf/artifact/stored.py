"""The forms in which the artifact keeps a tensor: integer codes with row and column scales, or plain fp16 or fp32.

`quantize` makes a `StoredTensor`, and the container writes and reads it. Tensors of one `group`, such as all query
matrices, lie together in the file, so that a compressor sees similar values side by side.

Legend: R rows, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitgolf.artifact.sizes import entropy_bits
from bitgolf.artifact.trellis import STATE_COUNTS, trellis_levels
from bitgolf.errors import ArtifactError
from bitgolf.grids.grid import MAX_BITS, Grid, scale_levels

UNBOUNDED_BITS = 16  # of codes without a grid: any integer up to +-32,767

FLOAT_KINDS: dict[str, np.dtype[Any]] = {"fp16": np.dtype("<f2"), "fp32": np.dtype("<f4")}
CODE_KINDS = {f"int{bits}": bits for bits in (*range(2, MAX_BITS + 1), UNBOUNDED_BITS)}
KINDS = (*CODE_KINDS, *FLOAT_KINDS)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the artifact keeps it. Build it with `quantized`, `fp16` or `fp32`, which check it."""

    kind: str  # "int2" ... "int12" on a grid, "int16" for unbounded codes, "fp16" or "fp32".
    # tensors of one group are stored together; None = the role of the tensor's name (`grids.roles.role`)
    group: str | None
    # (R, C) int8 or int16 codes of a quantized kind, else float values of any shape up to 4 dimensions; CPU
    values: Tensor
    scales: Tensor | None = None  # (R,) fp32 row scales, each an fp16 number > 0; None for float kinds
    column_scales: Tensor | None = None  # (C,) fp32 column scales, each an fp16 number > 0; None = all 1
    trellis: int = 0  # states of the trellis that the codes are a path of; 0 = none, the codes are the levels

    @classmethod
    def quantized(
        cls,
        codes: Tensor,  # (R, C) of Grid(bits).code_dtype; int16 when bits is 16
        scales: Tensor,  # (R,) fp32
        bits: int,  # width of the grid, or 16 for codes without a grid, up to +-32,767
        group: str | None = None,
        *,
        column_scales: Tensor | None = None,  # (C,) fp32
        trellis: int = 0,  # 0 (the level is the code) or 8 (see `trellis_levels`)
    ) -> StoredTensor:
        """A quantized matrix; its weights are row scale * column scale * level.
        Raises:
            ArtifactError: codes leave the grid, scales are not fp16 numbers > 0, or there is no such trellis.
            ConfigError: there is no such grid.
        """
        dtype = torch.int16 if bits == UNBOUNDED_BITS else Grid(bits).code_dtype
        codes, scales = codes.detach().cpu(), scales.detach().cpu().float()
        if codes.ndim != 2 or codes.dtype != dtype or 0 in codes.shape:
            raise ArtifactError(
                f"codes of {bits} bits must be a non-empty {dtype} matrix, not {codes.dtype} of {tuple(codes.shape)}"
            )
        if scales.shape != codes.shape[:1]:
            raise ArtifactError(f"{len(codes)} rows of codes came with scales of shape {tuple(scales.shape)}")
        limit = largest_code(f"int{bits}")
        if int(codes.max()) > limit or int(codes.min()) < -limit:
            raise ArtifactError(
                f"codes reach from {int(codes.min())} to {int(codes.max())}, outside the int{bits} grid of +-{limit}"
            )
        _require_scales(scales, "scales")
        if column_scales is not None:
            column_scales = column_scales.detach().cpu().float().contiguous()
            if column_scales.shape != codes.shape[1:]:
                raise ArtifactError(
                    f"{codes.shape[1]} columns of codes came with column scales of shape {tuple(column_scales.shape)}"
                )
            _require_scales(column_scales, "column scales")
        if trellis not in STATE_COUNTS:
            raise ArtifactError(f"a trellis of {trellis!r} states cannot be stored; choose from {STATE_COUNTS}")
        return cls(f"int{bits}", group, codes.contiguous(), scales.contiguous(), column_scales, trellis)

    @classmethod
    def fp16(cls, tensor: Tensor, group: str | None = None) -> StoredTensor:
        """`tensor` rounded to fp16. Raises ArtifactError on NaN, infinity or values beyond fp16 (65504)."""
        return cls("fp16", group, _finite(tensor, torch.float16))

    @classmethod
    def fp32(cls, tensor: Tensor, group: str | None = None) -> StoredTensor:
        """`tensor` in fp32, exact for fp32 and narrower. Raises ArtifactError on NaN or infinity."""
        return cls("fp32", group, _finite(tensor, torch.float32))

    @cached_property
    def entropy_bits(self) -> float:
        """Order-0 entropy of the values, in bits."""
        return entropy_bits(self.values.numpy())

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def restore(self) -> Tensor:
        """The fp32 tensor that a reader of the artifact gets."""
        if self.scales is None:
            return self.values.float()
        return scale_levels(trellis_levels(self.values, self.trellis), self.scales, self.column_scales)


def largest_code(kind: str) -> int:
    """Largest code of a quantized kind; the smallest is its negative."""
    return 2 ** (CODE_KINDS[kind] - 1) - 1


def _require_scales(scales: Tensor, what: str) -> None:
    if not bool((torch.isfinite(scales) & (scales > 0) & (scales.half().float() == scales)).all()):
        raise ArtifactError(f"{what} must be finite fp16 numbers > 0; take them from Grid.scales")


def _finite(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    values = tensor.detach().cpu().to(dtype).contiguous()
    if values.numel() == 0 or values.ndim > 4 or not tensor.is_floating_point():
        raise ArtifactError(
            f"cannot store a tensor of {tensor.dtype} and shape {tuple(tensor.shape)}: "
            "float, 1 or more elements and at most 4 dimensions are needed"
        )
    if not bool(torch.isfinite(values).all()):
        hint = "; keep it in fp32" if bool(torch.isfinite(tensor).all()) else ""
        raise ArtifactError(
            f"a tensor of shape {tuple(tensor.shape)} holds NaN, infinite or too large "
            f"values for {str(dtype).removeprefix('torch.')}{hint}"
        )
    return values
