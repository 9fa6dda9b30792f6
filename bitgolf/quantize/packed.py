"""An encoded artifact, and the encoder that makes one from quantized tensors.

Every pipeline of `pack` (see `fixed_grids` and `fill_cap`) returns a `Packed`. The pipelines that search for a size
call the encoder once for each file that they try.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bitgolf.artifact.container import EncodedStreams, encode_artifact
from bitgolf.artifact.entropy_coder import Map
from bitgolf.artifact.sizes import ArtifactSizes
from bitgolf.artifact.stored import StoredTensor
from bitgolf.errors import ArtifactError
from bitgolf.quantize.tensors import QuantizedTensor


@dataclass(frozen=True)
class Packed:
    """An encoded artifact and what it was made from. Its `len` is the size of the artifact in bytes."""

    artifact: bytes  # the file
    sizes: ArtifactSizes  # the bytes of its parts
    quantized: dict[str, QuantizedTensor]  # the tensors that were rounded, by name
    stored: dict[str, StoredTensor]  # all tensors as the artifact holds them, by name
    pruned_to_fit: dict[str, float] | None = None  # the record of `fixed_grids.pack_pruned_to_fit`, for pack.json
    allocation: dict[str, Any] | None = None  # how `fill_cap` divided the bytes among the tensors, for pack.json

    def __len__(self) -> int:
        return len(self.artifact)


Encode = Callable[[Iterable[QuantizedTensor]], Packed]


@dataclass(frozen=True)
class ArtifactEncoder:
    """Everything of an artifact except the quantized tensors. Call it with those."""

    # all tensors of the model, in float. Those that were not quantized are stored in this form.
    weights: dict[str, Tensor]
    exact: bool  # store them as fp32 instead of fp16
    # model_config, tokenizer, tokenizer_meta, meta, compressor, apply: see `encode_artifact`.
    model_config: dict[str, Any]
    tokenizer: bytes
    tokenizer_meta: dict[str, Any]
    meta: dict[str, Any]
    compressor: str
    apply: Map = map
    # streams, stored: of earlier calls. A tensor that is the same object is not encoded again.
    streams: EncodedStreams = field(default_factory=dict)
    stored: dict[str, tuple[QuantizedTensor | None, StoredTensor]] = field(default_factory=dict)

    def __call__(self, quantized: Iterable[QuantizedTensor]) -> Packed:
        """Encode the artifact. Raises ArtifactError that names the tensor if values do not fit their format."""
        by_name = {tensor.name: tensor for tensor in quantized}
        stored = {name: self._stored(name, by_name.get(name)) for name in self.weights}
        artifact, sizes = encode_artifact(
            model_config=self.model_config,
            tokenizer=self.tokenizer,
            tokenizer_meta=self.tokenizer_meta,
            tensors=stored,
            meta=self.meta,
            compressor=self.compressor,
            earlier=self.streams,
            apply=self.apply,
        )
        return Packed(artifact, sizes, by_name, stored)

    def _stored(self, name: str, quantized: QuantizedTensor | None) -> StoredTensor:
        """The tensor as the artifact holds it: the same object as before if it was rounded no more."""
        if name not in self.stored or self.stored[name][0] is not quantized:
            made = self._in_float(name, self.weights[name]) if quantized is None else quantized.stored()
            self.stored[name] = quantized, made
        return self.stored[name][1]

    def _in_float(self, name: str, weight: Tensor) -> StoredTensor:
        try:
            return StoredTensor.fp32(weight) if self.exact else StoredTensor.fp16(weight)
        except ArtifactError as error:
            raise ArtifactError(f"{name}: {error}") from error
