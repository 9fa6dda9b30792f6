"""Settings of the network."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bitgolf.config.section import Section


class ModelConfig(Section):
    """The network. Defaults are the challenge's baseline; sizes in elements."""

    vocab_size: int = Field(1024, ge=260, le=65_536)
    num_layers: int = Field(9, ge=1, le=256)
    model_dim: int = Field(512, ge=8, le=16_384, description="width D of the residual stream")
    num_heads: int = Field(8, ge=1, description="query heads H; must divide model_dim")
    num_kv_heads: int = Field(4, ge=1, description="key/value heads G; must divide num_heads")
    mlp_multiple: float = Field(2.0, gt=0, le=16, description="MLP hidden width / model_dim")
    activation: Literal["relu2", "leaky_relu2"] = "relu2"
    leaky_slope: float = Field(0.5, ge=0, lt=1, description="slope of leaky_relu2 below zero")
    rope_dims: int = Field(0, ge=0, description="rotated channels of a head (even); 0 = all of them")
    rope_base: float = Field(10_000.0, gt=1)
    rope_train_length: int = Field(0, ge=0, description="beyond it the base grows (NTK); 0 = never")
    qk_gain: float = Field(1.5, gt=0, description="initial per-head gain on normalized queries")
    logit_softcap: float = Field(30.0, gt=0)
    embed_init_std: float = Field(0.005, gt=0)
    init: Literal["uniform", "orthogonal"] = "uniform"
    skips: bool = Field(True, description="U-Net skip connections from the first half to the second")
    skip_gates: bool = Field(False, description="mix stream and skip by a learned gate a channel (starts at one half)")
    ln_scale: bool = Field(False, description="multiply normalized inputs of layer l by 1 / sqrt(l + 1)")
    xsa_layers: int = Field(0, ge=0, description="last layers that remove each token's own value from attention (XSA)")
    value_residual: bool = Field(False, description="mix the first layer's values into every later layer (VRL)")
    bigram_rows: int = Field(0, ge=0, description="rows of the hashed bigram table; 0 = none")
    bigram_dim: int = Field(128, ge=1)
    smear: Literal["none", "v1", "v2"] = Field("none", description="mix in the previous token's embedding")
    smear_document_mask: bool = Field(False, description="no smear over a document start")
    document_attention: bool = Field(False, description="attention and bigrams stay within the documents of a row")
    ve_layers: tuple[int, ...] = Field((), description="layers whose values get a shared token embedding")
    ve_dim: int = Field(128, ge=1, description="width of the value embedding table")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.model_dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide model_dim {self.model_dim}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"the head width model_dim / num_heads = {self.head_dim} must be even (rotary pairs)")
        if self.rope_dims % 2 or self.rope_dims > self.head_dim:
            raise ValueError(f"rope_dims {self.rope_dims} must be even and at most the head width {self.head_dim}")
        if self.rope_train_length and self.rotary_dims == 2:
            raise ValueError(
                "rope_dims 2 has no NTK extension (its exponent r/(r-2) is singular); "
                "set rope_train_length 0 or rope_dims >= 4"
            )
        if self.bigram_rows == 1:
            raise ValueError("bigram_rows 1 leaves no row to hash into; use 0 for none, or 2 and more")
        if self.xsa_layers > self.num_layers:
            raise ValueError(f"xsa_layers {self.xsa_layers} is more than the {self.num_layers} layers there are")
        outside = [layer for layer in self.ve_layers if not 0 <= layer < self.num_layers]
        if outside or len(set(self.ve_layers)) != len(self.ve_layers):
            raise ValueError(
                f"ve_layers {list(self.ve_layers)} must be different layers from 0 to {self.num_layers - 1}"
            )
        if self.skip_gates and not self.skips:
            raise ValueError("skip_gates need skips = true")
        if self.document_attention and self.smear != "none" and not self.smear_document_mask:
            raise ValueError(
                f"document_attention needs smear_document_mask = true: smear {self.smear} would carry a document's "
                'last token into the next document; set model.smear_document_mask true, or model.smear "none"'
            )
        return self

    @property
    def head_dim(self) -> int:
        """Head width K."""
        return self.model_dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        """Width of keys and values, G * K."""
        return self.num_kv_heads * self.head_dim

    @property
    def mlp_dim(self) -> int:
        """MLP hidden width F."""
        return int(self.mlp_multiple * self.model_dim)

    @property
    def rotary_dims(self) -> int:
        """Channels of a head that are rotated."""
        return self.rope_dims or self.head_dim
