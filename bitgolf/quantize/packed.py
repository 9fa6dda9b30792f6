"""An encoded artifact, and the encoder that makes one from quantized tensors.

Every pipeline of `pack` (see `fixed_grids` and `fill_cap`) returns a `Packed`. The pipelines that search for a size
call the encoder once for each file that they try.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bitgolf.artifact.container import encode_artifact
from bitgolf.artifact.sizes import ArtifactSizes
from bitgolf.artifact.stored import StoredTensor
from bitgolf.errors import ArtifactError
from bitgolf.quantize.tensors import QuantizedTensor


@dataclass(frozen=True)
class Packed:
    """An encoded artifact and what it was made from. Its `len` is the size of the artifact in bytes.

    Attributes:
        artifact: the file.
        sizes: the bytes of its parts.
        quantized: the tensors that were rounded, by name.
        stored: all tensors as the artifact holds them, by name.
        pruned_to_fit: the record of `fixed_grids.pack_pruned_to_fit`, for pack.json.
        allocation: how `fill_cap` divided the bytes among the tensors, for pack.json.
    """

    artifact: bytes
    sizes: ArtifactSizes
    quantized: dict[str, QuantizedTensor]
    stored: dict[str, StoredTensor]
    pruned_to_fit: dict[str, float] | None = None
    allocation: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.artifact)


Encode = Callable[[Iterable[QuantizedTensor]], Packed]


@dataclass(frozen=True)
class Encoder:
    """Everything of an artifact except the quantized tensors. Call it with those.

    Attributes:
        weights: all tensors of the model, in float. Those that were not quantized are stored in this form.
        exact: store them as fp32 instead of fp16.
        model_config, tokenizer, tokenizer_meta, meta, compressor: see `encode_artifact`.
    """

    weights: dict[str, Tensor]
    exact: bool
    model_config: dict[str, Any]
    tokenizer: bytes
    tokenizer_meta: dict[str, Any]
    meta: dict[str, Any]
    compressor: str

    def __call__(self, quantized: Iterable[QuantizedTensor]) -> Packed:
        """Encode the artifact. Raises ArtifactError that names the tensor if values do not fit their format."""
        by_name = {tensor.name: tensor for tensor in quantized}
        stored = {
            name: by_name[name].stored() if name in by_name else self._in_float(name, weight)
            for name, weight in self.weights.items()
        }
        artifact, sizes = encode_artifact(
            model_config=self.model_config,
            tokenizer=self.tokenizer,
            tokenizer_meta=self.tokenizer_meta,
            tensors=stored,
            meta=self.meta,
            compressor=self.compressor,
        )
        return Packed(artifact, sizes, by_name, stored)

    def _in_float(self, name: str, weight: Tensor) -> StoredTensor:
        try:
            return StoredTensor.fp32(weight) if self.exact else StoredTensor.fp16(weight)
        except ArtifactError as error:
            raise ArtifactError(f"{name}: {error}") from error
