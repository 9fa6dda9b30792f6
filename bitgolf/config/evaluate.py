"""Settings of stage `score`: scoring methods, and test-time training on text that has been scored."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from bitgolf.config.section import Section


class ScoreConfig(Section):
    """How validation text is scored."""

    earlier_name: ClassVar[str] = "score"

    seq_len: int = Field(0, ge=0, description="context window in tokens; 0 = train.seq_len")
    methods: tuple[Literal["chunked", "sliding"], ...] = Field(
        ("chunked", "sliding"), description="chunked: adjacent windows; sliding: overlapping windows"
    )
    stride: int = Field(64, ge=1, description="new targets per sliding window")
    batch_tokens: int = Field(131_072, ge=8, description="tokens per scoring batch")
    canonical: bool = Field(
        False,
        description="give pairs of tokens that the tokenizer never emits almost no probability (arXiv 2506.07956)",
    )
    float_reference: bool = Field(True, description="also score the float weights (not counted as evaluation)")
    last_reference: bool = Field(False, description="also score the last weights before averaging")
    compile: bool = Field(True, description="use torch.compile for the scorer (CUDA only)")
    compressors: bool = Field(True, description="also compress the text with zstd -22 and xz -9, for comparison")

    @model_validator(mode="after")
    def _methods_are_named(self) -> Self:
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods {list(self.methods)} must name chunked, sliding or both, each once")
        return self


LoraTarget = Literal["q", "k", "v", "o", "mlp", "head"]


class WeightsTTTConfig(Section):
    """Methods full and last_blocks: the model's weights are trained on each scored chunk of the text."""

    chunk_tokens: int = Field(32_768, ge=1, description="targets that are scored between two updates")
    epochs: int = Field(3, ge=1, description="passes over each scored chunk")
    batch_rows: int = Field(32, ge=1, description="rows per step over all ranks, each one window long")
    last_blocks: int = Field(
        2, ge=1, description="number of last blocks that method last_blocks trains, with all scales"
    )
    freeze_blocks: int = Field(0, ge=0, description="number of first blocks that method full does not train")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="optimizer, whose state is kept across chunks")
    lr: float = Field(
        0.002, gt=0, description="learning rate of the first chunk, which a cosine over the chunks lowers to 0"
    )
    step_cosine_floor: float = Field(
        1.0, ge=0, le=1, description="learning rate of a chunk's last step divided by that of its first; 1 = constant"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of AdamW's first moment")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of AdamW's second moment")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of AdamW")
    grad_clip: float = Field(1.0, ge=0, description="largest global gradient norm; 0 = no clipping")


class LoraTTTConfig(Section):
    """Method lora: every document has low-rank adapters of its own (LoRA, arXiv 2106.09685; PR 1530)."""

    rank: int = Field(8, ge=1, description="rank of the adapters")
    alpha: float = Field(8.0, gt=0, description="the adapters' output is multiplied by alpha / rank")
    targets: tuple[LoraTarget, ...] = Field(("q", "v", "head"), description="matrices that get adapters")
    documents: int = Field(64, ge=1, description="documents that are adapted at the same time, over all ranks")
    chunk_tokens: int = Field(256, ge=1, description="targets of a document that are scored between two updates")
    lr: float = Field(0.01, gt=0, description="AdamW learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of AdamW's first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of AdamW's second moment")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of AdamW")
    keep_a: bool = Field(
        False, description="a document starts with the matrix A of the document before it in the same slot"
    )
    global_after: tuple[int, ...] = Field(
        (),
        description="numbers of scored documents after which the model's weights are trained on all these documents, "
        "with the settings ttt.weights (PR 1855)",
    )

    @model_validator(mode="after")
    def _targets_differ(self) -> Self:
        if sorted({0, *self.global_after}) != [0, *self.global_after]:
            raise ValueError(f"global_after {list(self.global_after)} must be rising numbers of documents, above 0")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets {list(self.targets)} must name at least one matrix, each once")
        return self


class TTTConfig(Section):
    """Test-time training (TTT) on tokens that have been scored (rule C3). The adapted pass gives the headline score."""

    earlier_name: ClassVar[str] = "ttt"

    method: Literal["none", "full", "last_blocks", "lora"] = Field(
        "none", description="what is trained on scored tokens: nothing, all weights, the last blocks, or adapters"
    )
    rescore_temperature: float = Field(
        0.0, ge=0, description="temperature of a second, diagnostic pass with the adapted weights; 0 = no such pass"
    )
    weights: WeightsTTTConfig = WeightsTTTConfig()
    lora: LoraTTTConfig = LoraTTTConfig()

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        if self.weights.freeze_blocks and self.method in ("last_blocks", "lora"):
            raise ValueError(
                f"weights.freeze_blocks {self.weights.freeze_blocks} is a setting of method full, but "
                f"method is {self.method}; set weights.freeze_blocks 0"
            )
        if self.rescore_temperature and not self.between_chunks:
            raise ValueError(
                f"rescore_temperature {self.rescore_temperature:g} needs weights that test-time training changed, but "
                f"method is {self.method}; use full or last_blocks, or set rescore_temperature 0"
            )
        return self

    @property
    def enabled(self) -> bool:
        """Whether there is an adapted pass."""
        return self.method != "none"

    @property
    def independent_documents(self) -> bool:
        """Whether documents are scored without influence on each other."""
        return self.method == "lora" and not self.lora.keep_a and not self.lora.global_after

    @property
    def between_chunks(self) -> bool:
        """Whether the model's weights are trained between chunks of the text."""
        return self.method in ("full", "last_blocks")
