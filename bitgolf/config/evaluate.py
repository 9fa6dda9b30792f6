"""Settings of stage `score`: how text is scored, and what learns from it once it is."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bitgolf.config.section import Section


class ScoreConfig(Section):
    """How validation text is scored."""

    seq_len: int = Field(0, ge=0, description="context window in tokens; 0 = train.seq_len")
    methods: tuple[Literal["chunked", "sliding"], ...] = ("chunked", "sliding")
    stride: int = Field(64, ge=1, description="targets newly scored by each sliding window")
    batch_tokens: int = Field(131_072, ge=8, description="tokens of one scoring batch")
    float_reference: bool = Field(True, description="also score the float weights (not counted as evaluation)")
    last_reference: bool = Field(False, description="also score the last weights, as they were before averaging")
    compile: bool = Field(True, description="torch.compile the scorer (CUDA only)")
    compressors: bool = Field(True, description="also compress the text with zstd-22 and xz-9, for comparison")

    @model_validator(mode="after")
    def _methods_are_named(self) -> Self:
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods {list(self.methods)} must name chunked, sliding or both, each once")
        return self


LoraTarget = Literal["q", "k", "v", "o", "mlp", "head"]


class TTTConfig(Section):
    """Adaptation while scoring, score-first; the adapted pass is the headline."""

    method: Literal["none", "full", "last_blocks", "lora"] = Field(
        "none", description="what learns from scored tokens: all weights, the last blocks, or adapters a document"
    )
    chunk_tokens: int = Field(32_768, ge=1, description="targets scored between two updates (not lora)")
    last_blocks: int = Field(2, ge=1, description="blocks that learn with last_blocks, besides all scales")
    freeze_blocks: int = Field(0, ge=0, description="first blocks that do not learn with full; all else does")
    epochs: int = Field(3, ge=1, description="passes over each scored chunk")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="its state is kept across chunks")
    lr: float = Field(0.002, gt=0, description="learning rate of the first chunk; falls by a cosine over the chunks")
    step_cosine_floor: float = Field(
        1.0, ge=0, le=1, description="rate of a chunk's last step over its first, by a second cosine; 1 = constant"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    beta1: float = Field(0.9, ge=0, lt=1, description="of adamw")
    beta2: float = Field(0.999, ge=0, lt=1, description="of adamw")
    weight_decay: float = Field(0.0, ge=0, description="of adamw")
    grad_clip: float = Field(1.0, ge=0, description="global gradient norm; 0 = no clipping")
    batch_rows: int = Field(32, ge=1, description="rows of one window in a step, over all ranks")
    lora_rank: int = Field(8, ge=1)
    lora_alpha: float = Field(8.0, gt=0, description="the adapters' output is scaled by alpha / rank")
    lora_targets: tuple[LoraTarget, ...] = Field(("q", "v", "head"), description="where adapters are added")
    lora_documents: int = Field(64, ge=1, description="documents adapted side by side, over all ranks")
    lora_chunk_tokens: int = Field(256, ge=1, description="targets of a document scored between two updates")
    lora_lr: float = Field(0.01, gt=0)
    lora_beta1: float = Field(0.9, ge=0, lt=1)
    lora_beta2: float = Field(0.95, ge=0, lt=1)
    lora_weight_decay: float = Field(0.0, ge=0)
    lora_keep_a: bool = Field(False, description="a document starts from the A that its predecessor in the slot left")
    rescore_temperature: float = Field(
        0.0, ge=0, description="after the pass, score all again at this temperature as a diagnostic; 0 = do not"
    )

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        if not self.lora_targets or len(set(self.lora_targets)) != len(self.lora_targets):
            raise ValueError(f"lora_targets {list(self.lora_targets)} must name at least one place, each once")
        if self.freeze_blocks and self.method in ("last_blocks", "lora"):
            raise ValueError(
                f"freeze_blocks {self.freeze_blocks} says what does not learn with method full, but method is "
                f"{self.method}, which says itself what learns; set freeze_blocks 0"
            )
        if self.rescore_temperature and self.method not in ("full", "last_blocks"):
            raise ValueError(
                f"rescore_temperature {self.rescore_temperature:g} scores with the weights that test-time training "
                f"left, but method is {self.method}; use full or last_blocks, or set it to 0"
            )
        return self

    @property
    def enabled(self) -> bool:
        """Whether there is an adapted pass."""
        return self.method != "none"

    @property
    def between_chunks(self) -> bool:
        """Whether something learns between chunks of the text."""
        return self.method in ("full", "last_blocks")
