"""What a train_gpt.py made for one configuration may take for granted, and what it therefore goes without.

`SWITCHES` are the settings whose conditions are decided when the file is made (`specialize`); it refuses other values
of them. `PARTS` is code that is reached only with other values although no condition says so in one place (it is chosen
by the type of an object, or by a name in a table); were an entry wrong, the file would stop and say what it lacks
(`absent`) rather than do something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bitgolf.config import Config
from bitgolf.record.lineage import setting

# Choices: known whatever they are.
_CHOICES = (
    "train.loader", "train.choose_average", "train.table_dtype", "qat.mode",
    "pack.method", "pack.trellis", "pack.column_steps", "pack.hessian", "pack.prune_to_fit",
    "pack.compressor",
    "ttt.method", "ttt.optimizer", "ttt.lora_keep_a",
)  # fmt: skip
# Amounts: known when they are nothing.
_AMOUNTS = (
    "train.ema_decay", "train.swa_weight", "train.replay_epochs", "train.held_out_tokens", "train.fisher_tokens",
    "train.curvature_tokens", "train.checkpoint_at", "train.grad_clip", "qat.crown_lambda", "pack.prune",
    "ttt.temperature_lr", "ttt.rescore_temperature",
)  # fmt: skip
# Properties of sections that are known when the settings behind them are.
_PROPERTIES = {
    "ttt.enabled": ("ttt.method", "ttt.temperature", "ttt.temperature_lr"),
    "ttt.between_chunks": ("ttt.method", "ttt.temperature_lr"),
    "qat.enabled": ("qat.mode", "qat.crown_lambda"),
}
# What `train_gpt.main` sets itself.
_OVERRULED = {"score.float_reference": False, "score.last_reference": False, "score.compressors": False}


@dataclass(frozen=True)
class Part:
    """Code (see `trace.trace`) that a program does without when `unused` says so; `by` are the settings it asks."""

    code: tuple[str, ...]
    by: tuple[str, ...]
    unused: Callable[[Config], bool]


def _of(module: str, *names: str) -> tuple[str, ...]:
    """Names (or methods) in a module of the package; the module itself without names."""
    return tuple(f"bitgolf.{module}:{name}" for name in names) or (f"bitgolf.{module}",)


PARTS = (
    # train_gpt.py has no --branch, generates no text and makes no tokens.
    Part(_of("train.branch"), (), lambda c: True),
    Part(
        (*_of("model.cache"),
         *_of("language_model", "LanguageModel.score", "LanguageModel._score", "LanguageModel.generate"),
         *_of("data.tokenizer", "Tokenizer.encode", "Tokenizer.encode_documents", "Tokenizer.decode"),
         *_of("data.shards", "TokenShards.open", "ShardWriter")),
        (), lambda c: True,
    ),
    Part(
        (*_of("compress.coder"), *_of("compress.scale_model"), *_of("compress.frequency"), *_of("compress.message"),
         *_of("compress.parities"), *_of("compress.compressors", "_range_compress", "_range_decompress")),
        ("pack.compressor",), lambda c: c.pack.compressor != "range",
    ),
    Part(_of("compress.compressors", "_brotli", "_brotli_compress", "_brotli_decompress"), ("pack.compressor",),
         lambda c: c.pack.compressor != "brotli"),
    Part(_of("compress.compressors", "_lzma_compress", "_lzma_decompress"), ("pack.compressor",),
         lambda c: c.pack.compressor not in ("lzma", "range")),
    Part(_of("compress.compressors", "_zlib_compress", "_zlib_decompress"), ("pack.compressor",),
         lambda c: c.pack.compressor != "zlib"),
    Part(_of("compress.steps", "Steps", "StepRounder", "check_importance"), ("pack.method",),
         lambda c: c.pack.method != "rate"),
    Part(_of("compress.trellis", "trellis_of", "trellis_quantize"), ("pack.method", "pack.trellis"),
         lambda c: c.pack.method != "rate" or not c.pack.trellis),
    Part(_of("train.fisher"), ("train.fisher_tokens",), lambda c: not c.train.fisher_tokens),
    Part(_of("train.curvature"), ("train.curvature_tokens",), lambda c: not c.train.curvature_tokens),
    Part(
        _of("model.documents", "document_ids", "document_mask", "document_backend"),
        ("model.document_attention", "model.smear_document_mask"),
        lambda c: not c.model.document_attention and not c.model.smear_document_mask,
    ),
    Part(_of("model.backends", "_try_with_documents"), ("model.document_attention",),
         lambda c: not c.model.document_attention),
    Part(_of("model.embeddings", "BigramHash", "bigram_rows"), ("model.bigram_rows",),
         lambda c: not c.model.bigram_rows),
    Part(_of("model.embeddings", "Smear"), ("model.smear",), lambda c: c.model.smear == "none"),
    Part(_of("model.embeddings", "ValueEmbedding"), ("model.ve_layers",), lambda c: not c.model.ve_layers),
    Part(_of("evaluate.documents"), ("ttt.method",), lambda c: c.ttt.method != "lora"),
    Part(_of("evaluate.ttt"), ("ttt.method",), lambda c: c.ttt.method not in ("full", "last_blocks")),
    Part(_of("evaluate.temperature", "OnlineTemperature"), ("ttt.temperature_lr",), lambda c: not c.ttt.temperature_lr),
    Part(_of("evaluate.temperature", "Tempered"), ("ttt.method", "ttt.temperature", "ttt.rescore_temperature"),
         lambda c: not c.ttt.enabled and not c.ttt.rescore_temperature),
)  # fmt: skip


def known_settings(config: Config) -> dict[str, Any]:
    """Values by dotted key that a program for `config` takes for granted."""
    known = {key: setting(config, key) for key in fixed_keys(config)}
    for name, behind in _PROPERTIES.items():
        if all(key in known for key in behind):
            known[name] = setting(config, name)
    return {key: tuple(v) if isinstance(v, list) else v for key, v in known.items()} | _OVERRULED


def fixed_keys(config: Config) -> list[str]:
    """Settings that a program for `config` has no code to change."""
    keys = {key for key in _CHOICES if _exists(config, key)}
    keys |= {key for key in _AMOUNTS if _exists(config, key) and not setting(config, key)}
    if config.ttt.temperature == 1:
        keys.add("ttt.temperature")
    keys.update(key for part in PARTS if part.unused(config) for key in part.by)
    return sorted(keys)


def absent_code(config: Config) -> frozenset[str]:
    """Code that a program for `config` does without."""
    return frozenset(code for part in PARTS if part.unused(config) for code in part.code)


def _exists(config: Config, key: str) -> bool:
    section, _, name = key.partition(".")
    return name in type(getattr(config, section)).model_fields
