"""The text codec: lossless compression with the packed model, and the proof that its predictions are causal.

    bytes -> token streams -> stepwise program (logits) -> integer counts -> range coder -> file

`tokens`, `program` (`windows`, `documents`), `counts`, `coder` and `file_format` are the steps; `text` puts them
together; `exactness` says what both sides must share.
"""

from bitgolf.codec.text import CodecModel, Coded, compress_bytes, decompress_bytes

__all__ = ["CodecModel", "Coded", "compress_bytes", "decompress_bytes"]
