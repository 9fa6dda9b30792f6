"""Settings of the network."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from bitgolf.config.section import Section


class MLPConfig(Section):
    """The MLP of a block."""

    multiple: float = Field(2.0, gt=0, le=16, description="hidden width divided by model_dim")
    activation: Literal["relu2", "leaky_relu2"] = Field(
        "relu2", description="relu2: squared ReLU; leaky_relu2: squared leaky ReLU (PR 493)"
    )
    leaky_slope: float = Field(0.5, ge=0, lt=1, description="slope of leaky_relu2 below zero")

    @property
    def slope(self) -> float:
        """Slope of the activation below zero, before squaring."""
        return self.leaky_slope if self.activation == "leaky_relu2" else 0.0


class RopeConfig(Section):
    """Rotary position embedding (arXiv 2104.09864)."""

    dims: int = Field(0, ge=0, description="rotated channels per head, an even number; 0 = all of them")
    base: float = Field(10_000.0, gt=1, description="base of the rotation frequencies")
    train_length: int = Field(
        0, ge=0, le=1 << 24, description="window length above which the base grows (NTK scaling); 0 = never"
    )


class AttentionConfig(Section):
    """Additions to attention."""

    qk_gain: float = Field(1.5, gt=0, description="initial gain per head on normalized queries")
    xsa_layers: int = Field(
        0, ge=0, description="number of last layers whose output excludes the token's own value (XSA)"
    )
    value_residual: bool = Field(
        False, description="mix the first layer's values into those of every later layer (VRL)"
    )
    within_documents: bool = Field(False, description="attention and bigrams do not cross document boundaries")
    document_tokens: int = Field(0, ge=0, description="attention cuts a document after every so many tokens; 0 = never")
    window: int = Field(
        0, ge=0, le=1 << 24, description="most tokens that a token attends to, itself included; 0 = all before it"
    )
    full_layers: tuple[int, ...] = Field((), description="indices of the layers without the window, counted from 0")
    key_offset: bool = Field(
        False,
        description="in layers without a window, the upper half of a key is that of the token before it",
    )
    gate: bool = Field(
        False,
        description="multiply each head's output by a gate that reads 12 channels of the input; initially one half",
    )

    @property
    def windows(self) -> tuple[int, int]:
        """The windows of the layers that have one, and of the others (0 = none)."""
        return self.window, 0

    def layer_window(self, layer: int) -> int:
        """The window of one layer (0 = none)."""
        return 0 if layer in self.full_layers else self.window

    @property
    def is_masked(self) -> bool:
        """Whether some layer's attention has another mask than the causal one."""
        return self.within_documents or self.window > 0


class BigramConfig(Section):
    """A table of embeddings for hashed pairs of neighboring tokens (BigramHash, PR 348)."""

    rows: int = Field(0, ge=0, le=1 << 24, description="rows of the table; 0 = no table")
    dim: int = Field(128, ge=1, le=16_384, description="width of a row before its projection to model_dim")
    every_layer: bool = Field(
        False,
        description="add the rows, with hashed signs, to the first channels before every layer; without projection",
    )


class SmearConfig(Section):
    """The previous token's embedding mixed into each token's embedding."""

    gate: Literal["none", "v1", "v2"] = Field(
        "none", description="none: no mixing; v1: one gate per channel; v2: a gate computed from the token"
    )
    document_mask: bool = Field(
        False, description="do not mix the previous document into the first token of a document"
    )


class ValueEmbeddingConfig(Section):
    """A token embedding added to the values of some layers (VE, PR 374; gated: modded-nanogpt)."""

    layers: tuple[int, ...] = Field((), description="indices of the layers, counted from 0; empty = none")
    dim: int = Field(128, ge=1, le=16_384, description="width of the table, which the layers share")
    gated: bool = Field(
        False,
        description="one table per layer, as wide as the values, and a gate per key/value head; dim has no effect",
    )


class LoopConfig(Section):
    """Depth recurrence: some layers run several times per pass, with the same weights (PR 1855)."""

    repeats: int = Field(0, ge=0, le=16, description="additional passes through the looped layers; 0 = no loop")
    first: int = Field(0, ge=0, description="first looped layer, counted from 0")
    last: int = Field(0, ge=0, description="last looped layer")


class ModelConfig(Section):
    """The network. The defaults are those of the challenge's baseline."""

    earlier_name: ClassVar[str] = "model"

    vocab_size: int = Field(1024, ge=260, le=65_536, description="number of tokens in the vocabulary")
    num_layers: int = Field(9, ge=1, le=256, description="number of transformer blocks")
    model_dim: int = Field(512, ge=8, le=16_384, description="width D of the residual stream")
    num_heads: int = Field(8, ge=1, description="number of query heads H, a divisor of model_dim")
    num_kv_heads: int = Field(4, ge=1, description="number of key/value heads G, a divisor of num_heads")
    logit_softcap: float = Field(30.0, gt=0, description="logits z become cap * tanh(z / cap)")
    embed_init_std: float = Field(0.005, gt=0, description="standard deviation of the initial token embedding")
    init: Literal["uniform", "orthogonal"] = Field("uniform", description="distribution of the initial block matrices")
    skips: bool = Field(True, description="U-Net skip connections from the first half of the layers to the second")
    skip_gates: bool = Field(False, description="mix stream and skip by a learned gate per channel, initially one half")
    ln_scale: bool = Field(False, description="multiply the normalized inputs of layer l by 1 / sqrt(l + 1)")
    lanes_from: int = Field(
        0, ge=0, description="first of the layers with two residual lanes, which all later layers have; 0 = none"
    )
    mlp: MLPConfig = MLPConfig()
    rope: RopeConfig = RopeConfig()
    attention: AttentionConfig = AttentionConfig()
    bigram: BigramConfig = BigramConfig()
    smear: SmearConfig = SmearConfig()
    value_embedding: ValueEmbeddingConfig = ValueEmbeddingConfig()
    loop: LoopConfig = LoopConfig()

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.model_dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide model_dim {self.model_dim}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"the head width model_dim / num_heads = {self.head_dim} must be even (rotary pairs)")
        if self.rope.dims % 2 or self.rope.dims > self.head_dim:
            raise ValueError(f"rope.dims {self.rope.dims} must be even and at most the head width {self.head_dim}")
        if self.rope.train_length and self.rotary_dims == 2:
            raise ValueError(
                "rope.dims 2 has no NTK scaling (its exponent r/(r-2) is singular); "
                "set rope.train_length 0 or rope.dims >= 4"
            )
        if self.bigram.rows == 1:
            raise ValueError("bigram.rows 1 leaves no row to hash into; use 0 for none, or 2 and more")
        if self.bigram.every_layer and not 0 < self.bigram.dim <= self.model_dim * bool(self.bigram.rows):
            raise ValueError(
                f"bigram.every_layer needs bigram.rows above 0 and bigram.dim {self.bigram.dim} up to model_dim "
                f"{self.model_dim}"
            )
        if self.attention.xsa_layers > self.num_layers:
            raise ValueError(f"attention.xsa_layers {self.attention.xsa_layers} is above num_layers {self.num_layers}")
        layers = self.value_embedding.layers
        outside = [layer for layer in layers if not 0 <= layer < self.num_layers]
        if outside or len(set(layers)) != len(layers):
            raise ValueError(
                f"value_embedding.layers {list(layers)} must be different layers from 0 to {self.num_layers - 1}"
            )
        if self.skip_gates and not self.skips:
            raise ValueError("skip_gates need skips = true")
        if self.attention.within_documents and self.smear.gate != "none" and not self.smear.document_mask:
            raise ValueError(
                f"attention.within_documents needs smear.document_mask = true: smear.gate {self.smear.gate!r} would "
                "carry a document's last token into the next document; set model.smear.document_mask true, or "
                'model.smear.gate "none"'
            )
        if self.attention.document_tokens and not self.attention.within_documents:
            raise ValueError("attention.document_tokens cuts documents, so it needs attention.within_documents = true")
        if self.attention.key_offset and 2 * self.rotary_dims > self.head_dim:
            raise ValueError(
                f"attention.key_offset moves the upper half of each head's {self.head_dim} channels, which must not be "
                f"rotated; set rope.dims to an even number up to {self.head_dim // 2}"
            )
        full = self.attention.full_layers
        if full and not self.attention.window:
            raise ValueError("attention.full_layers are the layers without a window, so they need attention.window")
        if len(set(full)) != len(full) or not set(full) <= set(range(self.num_layers)):
            raise ValueError(
                f"attention.full_layers {list(full)} must be different layers from 0 to {self.num_layers - 1}"
            )
        return self

    @model_validator(mode="after")
    def _loop_and_lanes_fit(self) -> Self:
        loop, half = self.loop, self.num_layers // 2
        if not loop.repeats and (loop.first or loop.last):
            raise ValueError("loop.first and loop.last need loop.repeats of 1 or more")
        if not loop.first <= loop.last < self.num_layers:
            raise ValueError(
                f"loop.first {loop.first} and loop.last {loop.last} must be layers from 0 to {self.num_layers - 1}, "
                "in this order"
            )
        if self.lanes_from and not max(loop.last + 1, half) <= self.lanes_from < self.num_layers:
            raise ValueError(
                f"lanes_from {self.lanes_from} must be one of the layers {max(loop.last + 1, half)} to "
                f"{self.num_layers - 1}: in the second half, and after the looped layers"
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
        return int(self.mlp.multiple * self.model_dim)

    @property
    def rotary_dims(self) -> int:
        """Rotated channels per head."""
        return self.rope.dims or self.head_dim
