"""Settings of stage `prepare`: the source of the text, its tokenizer, and the sizes of the splits."""

from __future__ import annotations

from pydantic import Field

from bitgolf.config.section import Section


class DataConfig(Section):
    """The source of the text, its tokenizer, and the sizes of the splits."""

    source: str = Field(
        "stdlib", description="stdlib, jsonl:PATH, dir:PATH, shards:PATH, fineweb[:VARIANT] or fineweb-docs"
    )
    val_source: str = Field("", description="source of the validation text; empty: a share of `source`")
    val_fraction: float = Field(
        0.05, gt=0, lt=1, description="share of the documents used for validation when val_source is empty"
    )
    val_bytes: int = Field(0, ge=0, description="raw bytes after which the validation split ends; 0 = no limit")
    train_bytes: int = Field(0, ge=0, description="raw bytes after which the training split ends; 0 = no limit")
    tokenizer: str = Field("lossless", description="lossless, challenge (lossy), or the path of a SentencePiece model")
    tokenizer_bytes: int = Field(16_000_000, ge=1_000, description="raw bytes that a new tokenizer is trained on")
    shard_tokens: int = Field(100_000_000, ge=1_024, description="tokens in a full shard file")
    train_shards: int = Field(
        0, ge=0, description="largest number of training shards, for the sources fineweb and shards; 0 = all"
    )
    workers: int = Field(0, ge=0, description="processes that tokenize; 0 = one per core, at most 8")
