"""A coded text as a file: the header that decoding needs, then one range-coder payload per stream.

    offset  bytes  field
    0       4      magic
    4       1      format version
    5       2      bytes of the header in the file, little-endian as all that follows
    7       4      CRC-32 of all other bytes of the file
    11      8      first bytes of the model's SHA-256
    19      16     first bytes of the text's SHA-256
    35      ...    header (JSON, raw deflate with the preset dictionary of the version), then the payloads,
                   the bytes of the checkpoints (`checkpoints`), and zeros

The header is small, because a short text is coded in a few hundred bytes. Reading treats every field as hostile. The
work of decoding is bounded by the size of the file: streams x steps is at most 16 per byte, and the zeros at the end
lengthen a file of fewer bytes. Version 1 has another dictionary, no checkpoints and no zeros.
"""

import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bitgolf.codec.checkpoints import num_checkpoints
from bitgolf.codec.range_coder import WORD_BYTES
from bitgolf.config import TTTConfig
from bitgolf.errors import ArtifactError, ForeignError
from bitgolf.foreign import parse_json

MAGIC = b"\x93bgt"
FORMAT_VERSION = 2
MODEL_DIGEST_BYTES, TEXT_DIGEST_BYTES = 8, 16
MAX_STREAMS = 4096
MAX_THREADS = 256  # so that a hostile file cannot start thousands
MAX_TEXT_BYTES = 1 << 31  # default bound on what decoding may produce
MAX_EPOCHS = 100  # of test-time training, which repeats work without more bytes; PR 672 used 30
# A step predicts one token of every stream. Half a bit per token is less than the most repetitive texts take here.
STEPS_PER_BYTE = 16
_UNCHECKED_STEPS = 1_024  # of files of version 1, which have no checkpoints

_PREAMBLE = struct.Struct(f"<4sBHI{MODEL_DIGEST_BYTES}s{TEXT_DIGEST_BYTES}s")
_CRC_AT = 7
_MAX_JSON_BYTES = 1 << 18
_KEYS = {"bytes", "platform", "streams", "stride", "threads", "ttt"}
# Text that headers have in common, the most common last. The dictionary of a version must never change.
_PLATFORMS = (
    b'"AVX2","cudnn":"91900","device":"NVIDIA H100 80GB HBM3","NVIDIA H200","dtype":"bfloat16","torch":"2.11.0+cu130"}'
    b'"AMD EPYC 64-Core Processor","Intel(R) Core(TM) CPU @ 2.","Intel(R) Xeon(R) Platinum Processor @ 2.60GHz",'
    b'"dtype":"float32","simd":"AVX512","torch":"2.13.0+cpu"},"streams":[[1,0],[0,"stride":64,"threads":1,"ttt":null}'
    b'{"bytes":,"platform":{"bitgolf":"0.1.0","device":"'
)
_DICTIONARY_1 = (
    b'{"beta1":0.9,"beta2":0.999,"method":"lora","method":"last_blocks","optimizer":"adamw","ttt":{"batch_rows":32,'
    b'"beta1":0.9,"beta2":0.999,"chunk_tokens":32768,"epochs":3,"freeze_blocks":0,"grad_clip":1.0,"last_blocks":2,'
    b'"lora_alpha":8.0,"lora_beta1":0.9,"lora_beta2":0.95,"lora_chunk_tokens":256,"lora_documents":64,"lora_keep_a":false,'
    b'"lora_lr":0.01,"lora_rank":8,"lora_targets":["q","v","head"],"lora_weight_decay":0.0,"lr":0.002,'
    b'"method":"full","momentum":0.9,"optimizer":"sgd","rescore_temperature":0.0,"step_cosine_floor":1.0,'
    b'"temperature":1.0,"temperature_lr":0.0,"weight_decay":0.0}}' + _PLATFORMS
)
_DICTIONARY_2 = (
    b'"method":"lora","method":"last_blocks","optimizer":"adamw",'
    b'"ttt":{"lora":{"alpha":8.0,"beta1":0.9,"beta2":0.95,"chunk_tokens":256,"documents":64,"keep_a":false,"lr":0.01,'
    b'"rank":8,"targets":["q","v","head"],"weight_decay":0.0},"method":"full","rescore_temperature":0.0,"weights":{'
    b'"batch_rows":32,"beta1":0.9,"beta2":0.999,"chunk_tokens":32768,"epochs":3,"freeze_blocks":0,"grad_clip":1.0,'
    b'"last_blocks":2,"lr":0.002,"momentum":0.9,"optimizer":"sgd","step_cosine_floor":1.0,"weight_decay":0.0}}}'
    b'Haswell"Zen"' + _PLATFORMS + b'blas":"openblas 0.3.31.188.0 SkylakeX","device":"'
)
_DICTIONARIES = {1: _DICTIONARY_1, 2: _DICTIONARY_2}  # by format version


@dataclass(frozen=True)
class CodedStream:
    """One stream: the number of its tokens, its payload, and whether it is joined (see `CodedTokens`)."""

    num_tokens: int
    payload: bytes
    joined: bool


@dataclass(frozen=True)
class CodedText:
    num_bytes: int  # length of the text
    text_digest: bytes  # first 16 bytes of its SHA-256
    model_digest: bytes  # first 8 bytes of the SHA-256 of the artifact
    platform: dict[str, str]  # fingerprint of the coder's platform
    threads: int  # of the arithmetic
    stride: int  # of the sliding windows
    ttt: TTTConfig | None  # test-time training, or None
    streams: tuple[CodedStream, ...]  # in the order of the text
    checkpoints: bytes | None  # one byte per checkpoint; None in a file of version 1

    @property
    def payload_bytes(self) -> int:
        return sum(len(stream.payload) for stream in self.streams)


def write(coded: CodedText) -> bytes:
    """The bytes of a file of the latest version. Raises ArtifactError when the header is too large to be read back."""
    value = {
        "bytes": coded.num_bytes,
        "platform": coded.platform,
        "streams": [[s.num_tokens, len(s.payload) // WORD_BYTES, int(s.joined)] for s in coded.streams],
        "stride": coded.stride,
        "threads": coded.threads,
        # No coded text has phases of global training, and the compressor's dictionary does not know them.
        "ttt": None if coded.ttt is None else coded.ttt.model_dump(mode="json", exclude={"lora": {"global_after"}}),
    }
    raw = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=_DICTIONARIES[FORMAT_VERSION])
    header = deflate.compress(raw) + deflate.flush()
    if len(raw) > _MAX_JSON_BYTES or len(header) >= 1 << 16:
        raise ArtifactError(
            f"the header of {len(coded.streams)} streams takes {len(header):,} bytes; use fewer streams"
        )
    start = _PREAMBLE.pack(MAGIC, FORMAT_VERSION, len(header), 0, coded.model_digest, coded.text_digest) + header
    data = start + b"".join(stream.payload for stream in coded.streams) + (coded.checkpoints or b"")
    lengths = [stream.num_tokens for stream in coded.streams]
    data += bytes(_num_zeros(lengths, len(data)))
    return data[:_CRC_AT] + struct.pack("<I", _checksum(data)) + data[_CRC_AT + 4 :]


def read(data: bytes, *, max_text_bytes: int = MAX_TEXT_BYTES, allow_unchecked: bool = False) -> CodedText:
    """Parse and verify a coded file.

    Args:
        max_text_bytes: the longest text that may be declared.
        allow_unchecked: accept files of version 1 of any length; they decode to the end although they are wrong.
    Raises:
        ArtifactError: another kind of file, or truncated, damaged, hostile or of a newer version.
    """
    version, header_bytes, model_digest, text_digest = _preamble(data)
    end = _PREAMBLE.size + header_bytes
    if end > len(data):
        raise ArtifactError(f"the coded text is truncated in its header: {len(data)} of {end} bytes")
    value = _header(_inflate(data[_PREAMBLE.size : end], _DICTIONARIES[version]))
    num_bytes = _count(value["bytes"], "bytes", 0, max_text_bytes)
    platform, rows = value["platform"], value["streams"]
    if not isinstance(platform, dict) or not all(map(_is_label, [*platform, *platform.values()])):
        raise ArtifactError(f"header: platform must be an object of short printable texts, not {_short(platform)}")
    if not isinstance(rows, list) or len(rows) > MAX_STREAMS or bool(rows) != bool(num_bytes):
        raise ArtifactError(f"header: {_short(rows)} cannot be the streams of {num_bytes} bytes")
    streams, position = _streams(rows, data, end)
    lengths = [stream.num_tokens for stream in streams]
    if version == 1:
        checkpoints = None
        _check_unchecked_work(lengths, allow_unchecked)
    else:
        _check_work(lengths, len(data))
        checkpoints = data[position : position + num_checkpoints(max(lengths, default=0))]
        position += len(checkpoints)
        zeros = _num_zeros(lengths, position)
        if data[position : position + zeros] == bytes(zeros):
            position += zeros
    if position != len(data):
        raise ArtifactError(f"the header declares a file of {position:,} bytes, there are {len(data):,}")
    return CodedText(
        num_bytes,
        text_digest,
        model_digest,
        platform,
        _count(value["threads"], "threads", 1, MAX_THREADS),
        _count(value["stride"], "stride", 1, 1 << 24),
        _ttt(value["ttt"]),
        tuple(streams),
        checkpoints,
    )


def _preamble(data: bytes) -> tuple[int, int, bytes, bytes]:
    """Format version, bytes of the header, digests of model and text, after the checksum is verified."""
    if data[: len(MAGIC)] != MAGIC:
        begins = f"it begins with {data[: len(MAGIC)]!r}" if data else "it is empty"
        raise ArtifactError(f"not a text coded by bitgolf: {begins}")
    if len(data) < _PREAMBLE.size:
        raise ArtifactError(f"the coded text is truncated: {len(data)} of {_PREAMBLE.size} preamble bytes")
    _, version, header_bytes, checksum, model_digest, text_digest = _PREAMBLE.unpack_from(data)
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"coded by a newer bitgolf (format v{version}), this one reads up to v{FORMAT_VERSION}: upgrade bitgolf"
        )
    if version not in _DICTIONARIES:
        raise ArtifactError(f"format version {version} does not exist; the coded text is damaged")
    if _checksum(data) != checksum:
        raise ArtifactError(f"checksum mismatch over {len(data):,} bytes; the coded text is truncated or damaged")
    return version, header_bytes, model_digest, text_digest


def _checksum(data: bytes) -> int:
    """CRC-32 of everything but its own four bytes."""
    return zlib.crc32(data[_CRC_AT + 4 :], zlib.crc32(data[:_CRC_AT]))


def _inflate(packed: bytes, dictionary: bytes) -> bytes:
    inflate = zlib.decompressobj(-15, zdict=dictionary)
    try:
        raw = inflate.decompress(packed, _MAX_JSON_BYTES + 1)
    except zlib.error as error:
        raise ArtifactError(f"the header does not inflate: {error}") from error
    if len(raw) > _MAX_JSON_BYTES:
        raise ArtifactError(f"the header is above the limit of {_MAX_JSON_BYTES:,} bytes")
    if not inflate.eof or inflate.unused_data:
        raise ArtifactError("the header is cut off or followed by other bytes")
    return raw


def _header(raw: bytes) -> dict[str, Any]:
    try:
        value = parse_json(raw)
    except ForeignError as error:
        raise ArtifactError(f"the header is not valid JSON ({error})") from error
    if not isinstance(value, dict) or set(value) != _KEYS:
        raise ArtifactError(f"the header must be an object with the keys {sorted(_KEYS)}, not {_short(value)}")
    return value


def _streams(rows: list[Any], data: bytes, position: int) -> tuple[list[CodedStream], int]:
    """The streams whose payloads begin at `position`, and where the last payload ends."""
    streams = []
    for index, row in enumerate(rows):
        where = f"stream {index}"
        if not isinstance(row, list) or len(row) != 3:
            raise ArtifactError(f"header: {where} must be [tokens, words, joined], not {_short(row)}")
        num_tokens = _count(row[0], f"{where}: tokens", 1, MAX_TEXT_BYTES)
        size = WORD_BYTES * _count(row[1], f"{where}: words", 0, (len(data) - position) // WORD_BYTES)
        joined = _count(row[2], f"{where}: joined", 0, 1)
        streams.append(CodedStream(num_tokens, data[position : position + size], bool(joined)))
        position += size
    return streams, position


def _num_zeros(lengths: list[int], num_bytes: int) -> int:
    """Zeros that lengthen a file of `num_bytes` bytes to the least size for its work."""
    return max(0, -(-len(lengths) * max(lengths, default=0) // STEPS_PER_BYTE) - num_bytes)


def _check_work(lengths: list[int], num_bytes: int) -> None:
    if _num_zeros(lengths, num_bytes):
        raise ArtifactError(
            f"header: {len(lengths)} streams of up to {max(lengths):,} tokens are more than a file of {num_bytes:,} "
            f"bytes may hold ({STEPS_PER_BYTE} steps of all streams per byte)"
        )


def _check_unchecked_work(lengths: list[int], allow_unchecked: bool) -> None:
    if len(lengths) * max(lengths, default=0) > _UNCHECKED_STEPS and not allow_unchecked:
        raise ArtifactError(
            f"a file of format version 1 with {sum(lengths):,} tokens decodes to the end although it is damaged; give "
            "--allow-unchecked if you trust it"
        )


def _ttt(value: Any) -> TTTConfig | None:
    if value is None:
        return None
    try:
        ttt = TTTConfig.model_validate(value)
    except ValidationError as error:
        raise ArtifactError(f"header: {_short(value)} are not settings of test-time training") from error
    if ttt.weights.epochs > MAX_EPOCHS:
        raise ArtifactError(f"header: ttt.weights.epochs {ttt.weights.epochs} is above the limit of {MAX_EPOCHS}")
    return ttt


def _is_label(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 200 and value.isprintable()


def _count(value: Any, where: str, lowest: int, highest: int) -> int:
    if type(value) is not int or not lowest <= value <= highest:
        raise ArtifactError(f"header: {where} {_short(value)} must be a whole number from {lowest:,} to {highest:,}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
