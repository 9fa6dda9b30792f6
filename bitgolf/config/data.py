"""Settings of stage `prepare`: the source of the text, its tokenizer, and the sizes of the splits."""

from pydantic import Field

from bitgolf.config.section import Section


class DataConfig(Section):
    """The source of the text, its tokenizer, and the sizes of the splits."""

    source: str = Field(
        "stdlib",
        description="a path, or stdlib, file:, dir:, jsonl:, parquet: or shards:PATH, hf:NAME[:CONFIG][@SPLIT], "
        "fineweb[:VARIANT], fineweb-docs",
    )
    mix: tuple[str, ...] = Field(
        (), description="several sources with their shares of the bytes, as dir:notes=0.7, instead of source"
    )
    text_field: str = Field("text", min_length=1, description="field of JSON lines and tables that holds the text")
    val_source: str = Field("", description="source of the validation text; empty: a share of `source`")
    val_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the documents used for validation when val_source is empty; 0 = 0.05, and up to 0.2 for "
        "files of less than 2 MB",
    )
    val_bytes: int = Field(0, ge=0, description="raw bytes after which the validation split ends; 0 = no limit")
    train_bytes: int = Field(0, ge=0, description="raw bytes after which the training split ends; 0 = no limit")
    tokenizer: str = Field(
        "lossless",
        description="lossless, lossless-case (capitals become marks before lower-case words), challenge (lossy), or "
        "the path of a SentencePiece model",
    )
    tokenizer_bytes: int = Field(16_000_000, ge=1_000, description="raw bytes that a new tokenizer is trained on")
    shard_tokens: int = Field(100_000_000, ge=1_024, description="tokens in a full shard file")
    train_shards: int = Field(
        0, ge=0, description="largest number of training shards, for the sources fineweb and shards; 0 = all"
    )
    workers: int = Field(0, ge=0, description="processes that tokenize; 0 = one per core, at most 8")

    @property
    def source_text(self) -> str:
        """The source of the training text in words: `source`, or the sources of `mix` with their shares."""
        return " + ".join(self.mix) or self.source
