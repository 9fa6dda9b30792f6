"""Lossless compression of any bytes with a packed model.

    model = CodecModel.load("model.bitgolf")
    coded = compress_bytes(b"...", model)
    assert decompress_bytes(coded.data, model) == b"..."

The text is cut into streams, which are coded side by side, each without context from the others. Decoding repeats
what coding did, so it needs the same model and the same arithmetic; what cannot be guaranteed is refused, and a
digest of the text decides in the end.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from bitgolf.artifact.open import PackedModel, open_model
from bitgolf.codec import file_format
from bitgolf.codec.document_program import DocumentProgram
from bitgolf.codec.exactness import describe, exact_arithmetic, fingerprint
from bitgolf.codec.file_format import MODEL_DIGEST_BYTES, TEXT_DIGEST_BYTES, CodedStream, CodedText
from bitgolf.codec.program import fresh_program
from bitgolf.codec.range_coder import decode_streams, encode_streams
from bitgolf.codec.tokens import TokenStream, detokenize, split_bytes, tokenize
from bitgolf.codec.window_program import WindowProgram
from bitgolf.config import Config, TTTConfig, resolve
from bitgolf.errors import ArtifactError, ConfigError
from bitgolf.run.progress import Progress, silent

_logger = logging.getLogger(__name__)

# A stream loses what its first window lacks in context: 0.14 % of the score at 8 windows, measured with a baseline
# model. docs/codec.md has more.
_WINDOWS_A_STREAM = 8
_BYTES_A_TOKEN = 3  # about; vocabularies of 1,024 to 8,192 pieces have 2.4 to 3.7
_AUTOMATIC_STREAMS = 128
# Of the adapters' forward passes. Part of the format: sums are rounded in the order of their pieces.
_BATCH_TOKENS = 65_536


@dataclass(frozen=True)
class CodecModel:
    """A model on a device and the SHA-256 (32 bytes) of the artifact that it came from."""

    packed: PackedModel
    sha256: bytes

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "auto") -> CodecModel:
        """Read an artifact. Raises ArtifactError (see `bitgolf.load`)."""
        packed = open_model(path, device)
        return cls(packed, hashlib.sha256(Path(path).read_bytes()).digest())


@dataclass(frozen=True)
class Coded:
    """A coded text: the bytes of its file and what they are made of."""

    data: bytes
    text: CodedText

    @property
    def num_tokens(self) -> int:
        """Tokens of all streams."""
        return sum(stream.num_tokens for stream in self.text.streams)

    @property
    def bpb(self) -> float:
        """Bits of the whole file a byte of text; 0 for an empty text."""
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
    """Code `data` so that `decompress_bytes` gives exactly it back.

    Args:
        data: anything; UTF-8 text of the model's kind is what it shrinks.
        streams: parts coded side by side, at most a byte each and 4,096; 0 = by size.
        stride: targets of a sliding window, 1 to the window; 0 = the artifact's. Small ones code smaller and slower.
        ttt: score-first adaptation; None, or settings that change nothing, for none.
        progress: called with stage "compress" and the number of tokens done.
    Raises:
        ConfigError: more than 2 GiB, settings out of range, or bytes that the tokenizer has no tokens for.
    """
    if len(data) > file_format.MAX_TEXT_BYTES:
        raise ConfigError(f"{len(data):,} bytes are more than the {file_format.MAX_TEXT_BYTES:,} a coded file may hold")
    packed = model.packed
    config = codec_configuration(packed, stride, ttt)
    parts = split_bytes(data, _num_streams(streams, len(data), config.window)) if data else []
    found = tokenize(parts, packed.tokenizer)
    lengths = [len(stream.tokens) for stream in found]
    if config.ttt.between_chunks and lengths and config.ttt.weights.chunk_tokens >= max(lengths):
        _logger.warning(
            "ttt.weights.chunk_tokens %d holds the longest stream of %d tokens: nothing is learned before it ends; "
            "use smaller "
            "chunks or fewer streams",
            config.ttt.weights.chunk_tokens,
            max(lengths),
        )
    threads = min(torch.get_num_threads(), file_format.MAX_THREADS)
    payloads: list[bytes] = []
    if found:
        total = sum(lengths)
        with exact_arithmetic(packed.device, threads), _program(packed, config, lengths) as program:
            tokens = [stream.tokens for stream in found]
            payloads = encode_streams(program, tokens, lambda done: progress("compress", done, total))
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
            for stream, payload in zip(found, payloads, strict=True)
        ),
    )
    return Coded(file_format.write(text), text)


def decompress_bytes(
    data: bytes,
    model: CodecModel,
    *,
    allow_platform_mismatch: bool = False,
    max_text_bytes: int = file_format.MAX_TEXT_BYTES,
    progress: Progress = silent,
) -> bytes:
    """The bytes that `compress_bytes` was given.

    Args:
        data: the coded file.
        model: the one that coded it.
        allow_platform_mismatch: try although the arithmetic may differ; the digest of the text still decides.
        max_text_bytes: the longest text that is accepted.
        progress: called with stage "decompress" and the number of tokens done.
    Raises:
        ArtifactError: damaged, hostile, coded with another model or elsewhere, or decoded to another text.
    """
    text = file_format.read(data, max_text_bytes=max_text_bytes)
    packed = model.packed
    if text.model_digest != model.sha256[:MODEL_DIGEST_BYTES]:
        raise ArtifactError(
            f"coded with the model whose SHA-256 begins {text.model_digest.hex()}; this one is {model.sha256.hex()}"
        )
    here = fingerprint(packed.device)
    if text.platform != here and not allow_platform_mismatch:
        raise ArtifactError(
            f"coded on another platform ({describe(text.platform)}); here is {describe(here)}. Predictions may differ "
            "in their last bits, and then everything after that is lost. Decode where it was coded, or try with "
            "--allow-platform-mismatch: a digest tells whether the text is right"
        )
    try:
        config = codec_configuration(packed, text.stride, text.ttt)
    except ConfigError as error:
        raise ArtifactError(f"the header asks for what the model cannot do: {error}") from error
    lengths = [stream.num_tokens for stream in text.streams]
    pieces: list[bytes] = []
    if lengths:
        total = sum(lengths)
        arithmetic = exact_arithmetic(packed.device, text.threads)
        with arithmetic, _program(packed, config, lengths) as program:
            payloads = [stream.payload for stream in text.streams]
            found = decode_streams(program, payloads, lengths, tick=lambda done: progress("decompress", done, total))
        for tokens, stream in zip(found, text.streams, strict=True):
            pieces.append(detokenize(TokenStream(tokens, stream.joined), packed.tokenizer))
    decoded = b"".join(pieces)
    if len(decoded) != text.num_bytes or _digest(decoded) != text.text_digest:
        why = "the arithmetic here is not that of the coder" if text.platform != here else "the file is damaged"
        raise ArtifactError(f"what was decoded is not the text that was coded (its SHA-256 differs): {why}")
    return decoded


def codec_configuration(
    packed: PackedModel,
    stride: int = 0,  # 0 = the artifact's
    ttt: TTTConfig | None = None,
    overrides: Mapping[str, str] | None = None,  # as in `load_config`
) -> Config:
    """The evaluation that codes: sliding windows of the model's length, and what adapts.

    Raises ConfigError when the settings do not fit the model.
    """
    window = packed.window
    return resolve(
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


def _program(
    packed: PackedModel, config: Config, lengths: list[int]
) -> AbstractContextManager[WindowProgram | DocumentProgram]:
    longest = max(lengths)
    return fresh_program(
        packed,
        config,
        num_streams=len(lengths),
        longest=longest,
        num_targets=longest,
        first_token=packed.tokenizer.bos_id,
    )


def _num_streams(asked: int, num_bytes: int, window: int) -> int:
    if asked:
        highest = min(num_bytes, file_format.MAX_STREAMS)
        if not 1 <= asked <= highest:
            raise ConfigError(f"{asked} streams of {num_bytes:,} bytes are not possible; choose from 1 to {highest:,}")
        return asked
    return max(1, min(_AUTOMATIC_STREAMS, num_bytes // (_WINDOWS_A_STREAM * window * _BYTES_A_TOKEN)))


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:TEXT_DIGEST_BYTES]
