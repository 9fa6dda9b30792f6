"""Reads the pieces and the normalizer settings of a serialized SentencePiece model.

The tokenizer needs them to decide whether a model is lossless. This module reads the protobuf wire format
(sentencepiece_model.proto of google/sentencepiece) itself, so the protobuf package is not needed.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from bitgolf.data.case_markers import MARKERS
from bitgolf.errors import DataError

SPACE = "\u2581"  # a space inside a piece of SentencePiece
MAX_PIECES = 65_536  # ids are uint16
MAX_MODEL_BYTES = 16 * 1024 * 1024  # several times the size of the largest models with so many pieces
MAX_PIECE_BYTES = 4_096
# Wire types of the fields that are read here (0: number, 2: text or message), by message. A field of another type is
# none for protobuf, and the value before it counts.
_MODEL = {1: 2, 2: 2, 3: 2, 5: 2}
_PIECE = {1: 2, 3: 0}
_TRAINER = {3: 0, 24: 0}
_NORMALIZER = {2: 2, 3: 0, 4: 0, 5: 0}
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
# Appended to a serialized model, it replaces the normalizer: field 3 (normalizer_spec) with name "identity", an empty
# precompiled_charsmap, add_dummy_prefix false, remove_extra_whitespaces false, escape_whitespaces true. In the wire
# format, the last value of a field counts.
IDENTITY_NORMALIZER = b"\x1a\x12\x0a\x08identity\x12\x00\x18\x00\x20\x00\x28\x01"


class PieceKind(IntEnum):
    """ModelProto.SentencePiece.Type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class ModelSettings:
    """Pieces by id, and the settings of the normalizer with the defaults of sentencepiece_model.proto."""

    pieces: tuple[tuple[str, PieceKind], ...]
    identity: bool  # no normalization table: code points are kept as they are
    normalizer_sha256: str  # of the normalization table; that of no bytes for none
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    space_as_suffix: bool
    is_bpe: bool

    @property
    def lossless(self) -> bool:
        """Whether every text is equal to itself after encoding and decoding.

        This needs identity normalization, no added or removed white space, all 256 byte pieces, a piece for the space
        and one for the newline.
        """
        texts = {text for text, _ in self.pieces}
        num_bytes = len({text for text, kind in self.pieces if kind is PieceKind.BYTE})
        return (
            self.identity
            and not self.add_dummy_prefix
            and not self.remove_extra_whitespaces
            and self.escape_whitespaces
            and not self.space_as_suffix
            and num_bytes == 256
            and SPACE in texts
            and "\n" in texts
        )

    @property
    def marks_capitals(self) -> bool:
        """Whether the text is in lower case with marks before capitals (`case_markers`)."""
        symbols = {text for text, kind in self.pieces if kind is PieceKind.USER_DEFINED}
        return symbols.issuperset(MARKERS)

    @property
    def words_are_independent(self) -> bool:
        """Whether words, each with the spaces before it, can be encoded one by one with the same result.

        This holds if no piece contains a newline and other characters, or a space after another character.
        """
        return all(
            "\n" not in text[1:] and (not text.startswith("\n") or text == "\n") and SPACE not in text.lstrip(SPACE)
            for text, kind in self.pieces
            if kind in (PieceKind.NORMAL, PieceKind.USER_DEFINED)
        )


def read_model(data: bytes) -> ModelSettings:
    """Read `data`, a serialized ModelProto.

    Raises DataError if it is not one, or above the limits of bytes, pieces or bytes per piece. The work is proportional
    to the bytes that are read until the first violation.
    """
    if len(data) > MAX_MODEL_BYTES:
        raise DataError(f"the SentencePiece model has {len(data):,} bytes, at most {MAX_MODEL_BYTES:,} are allowed")
    pieces: list[tuple[str, PieceKind]] = []
    normalizer: dict[int, int | bytes] = {}
    trainer: dict[int, int | bytes] = {}
    try:
        for number, value in _fields(data, _MODEL):
            if number == 1 and isinstance(value, bytes):
                if len(pieces) == MAX_PIECES:
                    raise ValueError(f"it has more than {MAX_PIECES:,} pieces, the most that shards can hold")
                if len(value) > MAX_PIECE_BYTES:
                    raise ValueError(
                        f"piece {len(pieces)} has {len(value):,} bytes, at most {MAX_PIECE_BYTES:,} are allowed"
                    )
                piece = dict(_fields(value, _PIECE))
                text, kind = piece.get(1, b""), piece.get(3, PieceKind.NORMAL)
                if not isinstance(text, bytes) or not isinstance(kind, int):
                    raise ValueError(f"piece {len(pieces)} is malformed")
                pieces.append((text.decode("utf-8"), PieceKind(kind)))
                if kind == PieceKind.BYTE and not _BYTE_PIECE.fullmatch(pieces[-1][0]):
                    raise ValueError(f"the byte piece {len(pieces) - 1} is not written as <0xHH>")
            elif number == 2 and isinstance(value, bytes):
                trainer |= dict(_fields(value, _TRAINER))  # a message given twice is merged, as in protobuf
            elif number == 3 and isinstance(value, bytes):
                normalizer |= dict(_fields(value, _NORMALIZER))
            elif number == 5 and isinstance(value, bytes) and dict(_fields(value, _NORMALIZER)).get(2):
                raise ValueError("it rewrites the text that it decodes (denormalizer_spec)")
        if not pieces:
            raise ValueError("it contains no pieces")
    except (ValueError, IndexError) as error:
        raise DataError(f"not a SentencePiece model ({len(data):,} bytes): {error}") from error
    return ModelSettings(
        pieces=tuple(pieces),
        identity=not normalizer.get(2, b""),
        normalizer_sha256=hashlib.sha256(_as_bytes(normalizer.get(2, b""))).hexdigest(),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
        space_as_suffix=bool(trainer.get(24, 0)),
        is_bpe=trainer.get(3) == 2,  # TrainerSpec.ModelType
    )


def _as_bytes(value: int | bytes) -> bytes:
    return value if isinstance(value, bytes) else b"%d" % value


def _fields(data: bytes, wires: dict[int, int]) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of one message. The value is an int for varints, otherwise bytes.

    Raises ValueError for a field of `wires` with another wire type, and for a key of more than 32 bits, of which
    protobuf would read the last 32.
    """
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if key >> 32 or wires.get(number, wire) != wire:
            raise ValueError(f"field {number} before byte {position} is not written as SentencePiece writes it")
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire} at byte {position}")
        if position + size > len(data):
            raise ValueError(
                f"field {number} at byte {position} has {size} bytes, but only {len(data) - position} are left"
            )
        yield number, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
        if shift > 63:
            raise ValueError(f"varint longer than 64 bits at byte {position}")
