"""Settings of stage `prepare`: where text comes from and how it becomes tokens."""

from __future__ import annotations

from pydantic import Field

from bitgolf.config.section import Section


class DataConfig(Section):
    """Where the text comes from and how it becomes tokens (stage `prepare`)."""

    source: str = Field("stdlib", description="stdlib | jsonl:PATH | dir:PATH | shards:PATH | fineweb[:VARIANT]")
    val_source: str = Field("", description="a source of its own for validation; empty: split `source` by document")
    val_fraction: float = Field(0.05, gt=0, lt=1, description="share of documents held out when there is no val_source")
    val_bytes: int = Field(0, ge=0, description="stop the validation split after this many raw bytes; 0 = all of it")
    train_bytes: int = Field(0, ge=0, description="stop the training split after this many raw bytes; 0 = all of it")
    tokenizer: str = Field("lossless", description="lossless | challenge (lossy) | path of a SentencePiece .model")
    tokenizer_bytes: int = Field(16_000_000, ge=1_000, description="raw bytes that a new tokenizer is trained on")
    shard_tokens: int = Field(100_000_000, ge=1_024, description="tokens in a full shard file")
    train_shards: int = Field(0, ge=0, description="at most this many training shards (fineweb, shards); 0 = all")
    workers: int = Field(0, ge=0, description="processes that tokenize; 0 = one a core, at most 8")
