"""Lossless compression of any bytes with a packed model.

    model = CodecModel.load("model.bitgolf")
    coded = compress_bytes(b"...", model)
    assert decompress_bytes(coded.data, model) == b"..."

The text is cut into streams that are coded side by side, each without context from the others. Decoding repeats the
coder's predictions, so it needs the same model and the same arithmetic. A file from another model or platform is
refused, and a digest of the text decides in the end.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from types import NoneType

import numpy as np
import torch

from bitgolf.artifact.open import PackedModel, open_model
from bitgolf.codec import file_format
from bitgolf.codec.checkpoints import FIRST_STEPS, CheckedPredictor
from bitgolf.codec.document_predictor import DocumentPredictor
from bitgolf.codec.exactness import describe, exact_arithmetic, fingerprint
from bitgolf.codec.file_format import MODEL_DIGEST_BYTES, TEXT_DIGEST_BYTES, CodedStream, CodedText
from bitgolf.codec.predictors import fresh_predictor
from bitgolf.codec.range_coder import Streams, decode_streams, encode_streams
from bitgolf.codec.tokens import CodedTokens, detokenize, split_bytes, tokenize
from bitgolf.codec.window_predictor import WindowPredictor
from bitgolf.config import Config, TTTConfig, resolve
from bitgolf.errors import ArtifactError, ConfigError, require_type
from bitgolf.evaluate.window_scorer import Windows
from bitgolf.model.small_step import is_small
from bitgolf.run.progress import Progress, silent

_logger = logging.getLogger(__name__)

# The first window of each stream has less context than later ones. With 8 windows per stream this costs 0.14 % of the
# score, measured with a baseline model; docs/codec.md has the figures.
_WINDOWS_PER_STREAM = 8
_BYTES_PER_TOKEN = 3  # rounded; vocabularies of 1,024 to 8,192 pieces have 2.4 to 3.7
_AUTOMATIC_STREAMS = 128
_AUTOMATIC_STREAMS_CUDA = 512  # one step has about a thousand kernels, most of them too small for a GPU
_MAX_CACHE_BYTES = 1 << 28  # keys and values of all streams at the first checkpoint
# Of the adapters' forward passes. It is part of the format, because sums are rounded in the order of their pieces.
_BATCH_TOKENS = 65_536


@dataclass(frozen=True)
class CodecModel:
    """A model on a device and the SHA-256 (32 bytes) of its artifact."""

    packed: PackedModel
    sha256: bytes

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "auto") -> CodecModel:
        """Read an artifact. Raises ArtifactError (see `bitgolf.load`)."""
        packed = open_model(path, device)
        return cls(packed, hashlib.sha256(Path(path).read_bytes()).digest())


@dataclass(frozen=True)
class Coded:
    """A coded text: the bytes of its file, and the fields in it."""

    data: bytes
    text: CodedText

    @property
    def num_tokens(self) -> int:
        return sum(stream.num_tokens for stream in self.text.streams)

    @property
    def bpb(self) -> float:
        """Bits of the whole file per byte of text; 0 for an empty text."""
        return 8 * len(self.data) / self.text.num_bytes if self.text.num_bytes else 0.0


def compress_bytes(
    data: bytes,
    model: CodecModel,
    *,
    streams: int = 0,
    stride: int = 0,
    ttt: TTTConfig | None = None,
    progress: Progress = silent,
) -> Coded:
    """Code `data`; `decompress_bytes` restores it exactly.

    Args:
        data: any bytes. Text of the kind that the model was trained on becomes small.
        streams: parts coded side by side, at most 4,096 and one per byte; 0 = by size.
        stride: targets per sliding window, 1 to the window; 0 = the artifact's. Small strides code smaller and slower.
        ttt: score-first adaptation; None, or method "none", for none.
        progress: called with stage "compress" and the number of tokens done.
    Raises:
        ConfigError: more than 2 GiB, settings out of range, or bytes that the tokenizer has no tokens for.
    """
    data = _as_bytes(data)
    _check_model(model)
    require_type("streams", streams, Integral, "a whole number")
    require_type("stride", stride, Integral, "a whole number")
    require_type("ttt", ttt, (TTTConfig, NoneType), "a TTTConfig or None")
    if len(data) > file_format.MAX_TEXT_BYTES:
        raise ConfigError(f"{len(data):,} bytes are more than the {file_format.MAX_TEXT_BYTES:,} a coded file may hold")
    packed = model.packed
    config = codec_configuration(packed, stride, ttt)
    most = min(_AUTOMATIC_STREAMS_CUDA, _most_streams(packed)) if packed.device.type == "cuda" else _AUTOMATIC_STREAMS
    parts = split_bytes(data, _num_streams(streams, len(data), config.window, most)) if data else []
    _check_memory(packed, len(parts))
    token_streams = tokenize(parts, packed.tokenizer)
    _warn_of_long_chunks(config.ttt, token_streams)
    # Threads of small products wait for each other longer than they work.
    threads = 1 if is_small(packed.model, len(parts)) else min(torch.get_num_threads(), file_format.MAX_THREADS)
    payloads, checkpoints = _encode(packed, config, [stream.tokens for stream in token_streams], threads, progress)
    text = CodedText(
        num_bytes=len(data),
        text_digest=_digest(data),
        model_digest=model.sha256[:MODEL_DIGEST_BYTES],
        platform=fingerprint(packed.device),
        threads=threads,
        stride=config.score.stride,
        ttt=config.ttt if config.ttt.enabled else None,
        streams=tuple(
            CodedStream(len(stream.tokens), payload, stream.joined)
            for stream, payload in zip(token_streams, payloads, strict=True)
        ),
        checkpoints=checkpoints,
    )
    return Coded(file_format.write(text), text)


def decompress_bytes(
    data: bytes,
    model: CodecModel,
    *,
    allow_platform_mismatch: bool = False,
    allow_unchecked: bool = False,
    max_text_bytes: int = file_format.MAX_TEXT_BYTES,
    progress: Progress = silent,
) -> bytes:
    """The bytes that `compress_bytes` coded.

    Args:
        data: the coded file.
        model: the model that coded it.
        allow_platform_mismatch: decode although the arithmetic may differ; the digest of the text still decides.
        allow_unchecked: accept long files of format version 1, which decode to the end although they are damaged.
        max_text_bytes: the longest text that is accepted.
        progress: called with stage "decompress" and the number of tokens done.
    Raises:
        ArtifactError: the file is damaged or hostile, was coded with another model or on another platform, or decodes
            to another text.
    """
    data = _as_bytes(data)
    _check_model(model)
    require_type("max_text_bytes", max_text_bytes, Integral, "a whole number")
    text = file_format.read(data, max_text_bytes=max_text_bytes, allow_unchecked=allow_unchecked)
    packed = model.packed
    if text.model_digest != model.sha256[:MODEL_DIGEST_BYTES]:
        raise ArtifactError(
            f"coded with the model whose SHA-256 begins {text.model_digest.hex()}; this one is {model.sha256.hex()}"
        )
    here = fingerprint(packed.device)
    if earlier := _is_earlier(text, packed.device):  # its steps do not depend on these
        here.pop("blas", None)
        here.pop("steps", None)
    if text.platform != here and not allow_platform_mismatch:
        raise ArtifactError(
            f"coded on another platform ({describe(text.platform)}); this one is {describe(here)}. Predictions may "
            "differ in their last bits, and a single difference makes the rest of the text wrong. Decode it on the "
            "platform of the coder, or try --allow-platform-mismatch: a digest decides whether the text is right"
        )
    most = max(16, 4 * (os.cpu_count() or 1))
    if text.threads > most:
        raise ArtifactError(f"the file needs {text.threads} threads; on this machine at most {most} are reasonable")
    try:
        config = codec_configuration(packed, text.stride, text.ttt)
        _check_memory(packed, len(text.streams))
    except ConfigError as error:
        raise ArtifactError(f"the header asks for what the model cannot do: {error}") from error
    tokens = _decode(packed, config, text, earlier, progress)
    decoded = b"".join(
        detokenize(CodedTokens(each, stream.joined), packed.tokenizer)
        for each, stream in zip(tokens, text.streams, strict=True)
    )
    if len(decoded) != text.num_bytes or _digest(decoded) != text.text_digest:
        why = "the arithmetic here is not that of the coder" if text.platform != here else "the file is damaged"
        raise ArtifactError(f"the decoded text is not the text that was coded (its SHA-256 differs): {why}")
    return decoded


def codec_configuration(
    packed: PackedModel,
    stride: int = 0,  # 0 = the artifact's
    ttt: TTTConfig | None = None,
    overrides: Mapping[str, str] | None = None,  # as in `load_config`
) -> Config:
    """The configuration of the evaluation whose predictions are coded: sliding windows and test-time training.

    Raises ConfigError when the settings do not fit the model.
    """
    window = packed.window
    config = resolve(
        {
            "model": packed.model.config.model_dump(mode="json"),
            "score": {
                "seq_len": window,
                "stride": stride or packed.stride,
                "methods": ["sliding"],
                "batch_tokens": max(window, _BATCH_TOKENS),
            },
            "ttt": {} if ttt is None else ttt.model_dump(mode="json"),
        },
        overrides or {},
        "the codec",
    )
    epochs = config.ttt.weights.epochs
    if config.ttt.between_chunks and epochs > file_format.MAX_EPOCHS:
        raise ConfigError(f"ttt.weights.epochs {epochs} is above the codec's limit of {file_format.MAX_EPOCHS}")
    return config


def _encode(
    packed: PackedModel, config: Config, streams: list[np.ndarray], threads: int, progress: Progress
) -> tuple[list[bytes], bytes]:
    """One payload per stream of tokens, and the bytes of the checkpoints."""
    if not streams:
        return [], b""
    lengths = [len(stream) for stream in streams]
    total = sum(lengths)
    with exact_arithmetic(packed.device, threads), _predictor(packed, config, lengths) as predictor:
        checked = CheckedPredictor(predictor)
        payloads = encode_streams(checked, streams, lambda done: progress("compress", done, total))
    return payloads, bytes(checked.collected)


def _decode(
    packed: PackedModel, config: Config, text: CodedText, earlier: bool, progress: Progress
) -> list[np.ndarray]:
    if not text.streams:
        return []
    lengths = [stream.num_tokens for stream in text.streams]
    total = sum(lengths)
    payloads = [stream.payload for stream in text.streams]
    with exact_arithmetic(packed.device, text.threads), _predictor(packed, config, lengths, earlier) as predictor:
        checked = predictor if text.checkpoints is None else CheckedPredictor(predictor, text.checkpoints)
        return decode_streams(checked, payloads, lengths, tick=lambda done: progress("decompress", done, total))


def _is_earlier(text: CodedText, device: torch.device) -> bool:
    """Whether the file needs the arithmetic of earlier files on this device, see `exactness`."""
    return "steps" not in text.platform if device.type == "cuda" else text.checkpoints is None


def _predictor(
    packed: PackedModel, config: Config, lengths: list[int], earlier: bool = False
) -> AbstractContextManager[WindowPredictor | DocumentPredictor]:
    longest = max(lengths)
    return fresh_predictor(
        packed,
        config.ttt,
        Windows.of(config),
        Streams(len(lengths), longest, longest, packed.tokenizer.bos_id),
        seed=config.seed,
        earlier=earlier,
    )


def _check_memory(packed: PackedModel, num_streams: int) -> None:
    """Raise ConfigError when the caches of so many streams would be too large, see `_most_streams`."""
    if num_streams > (most := _most_streams(packed)):
        raise ConfigError(f"{num_streams} streams take too much memory with this model; use {most} or fewer")


def _most_streams(packed: PackedModel) -> int:
    """Streams whose caches are small when the first checkpoint is reached, or together fill half of a GPU's memory."""
    model = packed.model
    position_bytes = 2 * model.num_positions * model.config.kv_dim * model.compute_dtype.itemsize
    most = _MAX_CACHE_BYTES // (position_bytes * min(FIRST_STEPS, packed.window))
    if packed.device.type == "cuda":  # caches of recorded steps have all their positions at once
        memory_bytes = torch.cuda.get_device_properties(packed.device).total_memory
        most = max(most, memory_bytes // 2 // (position_bytes * packed.window))
    return max(most, _AUTOMATIC_STREAMS)


def _warn_of_long_chunks(ttt: TTTConfig, streams: list[CodedTokens]) -> None:
    longest = max((len(stream.tokens) for stream in streams), default=0)
    if ttt.between_chunks and streams and ttt.weights.chunk_tokens >= longest:
        _logger.warning(
            "ttt.weights.chunk_tokens %d holds the longest stream of %d tokens: nothing is learned before it ends; "
            "use smaller chunks or fewer streams",
            ttt.weights.chunk_tokens,
            longest,
        )


def _num_streams(streams: int, num_bytes: int, window: int, most_automatic: int) -> int:
    if streams:
        highest = min(num_bytes, file_format.MAX_STREAMS)
        if not 1 <= streams <= highest:
            raise ConfigError(
                f"{streams} streams of {num_bytes:,} bytes are not possible; choose from 1 to {highest:,}"
            )
        return streams
    return max(1, min(most_automatic, num_bytes // (_WINDOWS_PER_STREAM * window * _BYTES_PER_TOKEN)))


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:TEXT_DIGEST_BYTES]


def _as_bytes(data: bytes) -> bytes:
    encode = "; encode it first, as in text.encode('utf-8')" if isinstance(data, str) else ""
    require_type("data", data, (bytes, bytearray, memoryview), f"bytes{encode}")
    return bytes(data)


def _check_model(model: CodecModel) -> None:
    require_type("model", model, CodecModel, "a CodecModel; CodecModel.load(path) reads one")
