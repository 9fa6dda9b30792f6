"""The text codec: lossless compression with a packed model, and the proof that the model's predictions are causal.

    bytes -> token streams -> predictor (logits) -> integer counts -> range coder -> file

`text` runs the whole path. `tokens`, `predictors`, `counts`, `range_coder` and `file_format` are its steps, and
`exactness` lists what the coder and the decoder must share.
"""

from bitgolf.codec.text import CodecModel, Coded, compress_bytes, decompress_bytes

__all__ = ["CodecModel", "Coded", "compress_bytes", "decompress_bytes"]
