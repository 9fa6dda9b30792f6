"""bitgolf: train the best language model that fits in N bytes, in T seconds, and prove its score.

import bitgolf

model = bitgolf.load("model.bitgolf")
model.bits_per_byte("some text"), model.generate("Once"), model.logprobs("some text")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitgolf.version import __version__

if TYPE_CHECKING:
    from bitgolf.codec import CodecModel, compress_bytes, decompress_bytes
    from bitgolf.language_model import LanguageModel, load

__all__ = ["CodecModel", "LanguageModel", "__version__", "compress_bytes", "decompress_bytes", "load"]


def __getattr__(name: str) -> Any:
    """Import PyTorch only when a model is used, so that `bitgolf --help` is fast."""
    if name in ("LanguageModel", "load"):
        from bitgolf import language_model

        return getattr(language_model, name)
    if name in ("CodecModel", "compress_bytes", "decompress_bytes"):
        from bitgolf import codec

        return getattr(codec, name)
    raise AttributeError(f"module 'bitgolf' has no attribute {name!r}")
