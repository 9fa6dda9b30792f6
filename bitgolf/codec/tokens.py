"""Any bytes as token streams and back.

A file is cut into streams of about equal length, near each cut at the end of a line or word if there is one. A lossless
tokenizer defines the bytes of each token, so its streams may mix text with byte pieces for bytes that are not UTF-8. A
tokenizer that is not lossless restores only some texts; a stream that it would change consists of byte pieces alone.
Each stream is decoded again as a check before it is coded.

Legend: n tokens of a stream.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import ArtifactError, ConfigError

_NOT_UTF8 = re.compile("([\udc80-\udcff]+)")  # how `surrogateescape` decodes bytes that are not UTF-8
_BytePieces = Callable[[bytes], np.ndarray]
_SEARCH_SHARE = 16  # a cut is moved back by at most a sixteenth of a stream


@dataclass(frozen=True)
class CodedTokens:
    """Tokens without the BOS before them, (n,) int64.

    `joined` means that the stream holds byte pieces: its bytes are the bytes of its tokens, joined, and not what the
    tokenizer's own decoding gives.
    """

    tokens: np.ndarray
    joined: bool


def split_bytes(data: bytes, num_streams: int) -> list[bytes]:
    """Cut `data` into `num_streams` parts, none empty, whose concatenation is `data`.

    `num_streams` is at most len(data). A cut moves back from the even position, by at most a sixteenth of a stream, to
    the last end of a line there; else to the last space; else to the beginning of a character.
    """
    cuts = [0]
    for index in range(1, num_streams):
        even = len(data) * index // num_streams
        lowest = even - len(data) // num_streams // _SEARCH_SHARE  # above the cut before
        cuts.append(_cut(data, lowest, even))
    return [data[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(data)], strict=True)]


def _cut(data: bytes, lowest: int, even: int) -> int:
    after_line = data.rfind(b"\n", lowest - 1, even) + 1
    if after_line:
        return after_line
    before_space = data.rfind(b" ", lowest, even)
    if before_space >= 0:
        return before_space
    inside = even
    while inside > max(lowest, even - 3) and data[inside] & 0xC0 == 0x80:  # continues a character
        inside -= 1
    return inside


def tokenize(parts: list[bytes], tokenizer: Tokenizer) -> list[CodedTokens]:
    """Tokens that decode to each part; decoding them is tried here.

    Raises ConfigError when a part needs byte pieces and the vocabulary has none.
    """
    ids: dict[bytes, int] = {}  # bytes -> the first token with exactly these bytes
    for token in range(tokenizer.vocab_size):
        ids.setdefault(tokenizer.token_text_bytes(token), token)

    def byte_pieces(data: bytes) -> np.ndarray:
        missing = next((byte for byte in sorted(set(data)) if bytes([byte]) not in ids), None)
        if missing is not None:
            raise ConfigError(
                f"the file needs a token for the byte 0x{missing:02x}, which tokenizer {tokenizer.name} does not have; "
                "use a model whose tokenizer has byte fallback"
            )
        return np.array([ids[bytes([byte])] for byte in data], dtype=np.int64)

    return [(_tokenize_lossless if tokenizer.lossless else _tokenize)(part, tokenizer, byte_pieces) for part in parts]


def detokenize(stream: CodedTokens, tokenizer: Tokenizer) -> bytes:
    """The bytes of a stream.

    Raises ArtifactError for tokens that `tokenize` never uses (controls, ids outside the vocabulary).
    """
    for position, token in enumerate(stream.tokens.tolist()):
        if not 0 <= token < tokenizer.vocab_size or not tokenizer.token_text_bytes(token):
            raise ArtifactError(f"token {token} at position {position} of a stream stands for no text; it is damaged")
    if stream.joined or tokenizer.lossless:
        return b"".join(tokenizer.spell(stream.tokens))
    return tokenizer.decode(stream.tokens).encode()


def _tokenize_lossless(part: bytes, tokenizer: Tokenizer, byte_pieces: _BytePieces) -> CodedTokens:
    pieces = _NOT_UTF8.split(part.decode("utf-8", "surrogateescape"))  # text, not UTF-8, text, ..., text
    texts = iter(tokenizer.encode_documents(pieces[::2]))
    tokens: list[np.ndarray] = []
    for index, piece in enumerate(pieces):
        ids = byte_pieces(piece.encode("utf-8", "surrogateescape")) if index % 2 else next(texts)
        tokens.append(ids.astype(np.int64))
    stream = CodedTokens(np.concatenate(tokens), len(pieces) > 1)
    if detokenize(stream, tokenizer) != part:
        raise ConfigError(
            f"tokenizer {tokenizer.name} is declared lossless but changes the part of the file that begins "
            f"{part[:40]!r}; the artifact is damaged"
        )
    return stream


def _tokenize(part: bytes, tokenizer: Tokenizer, byte_pieces: _BytePieces) -> CodedTokens:
    try:
        stream = CodedTokens(tokenizer.encode_documents([part.decode()])[0].astype(np.int64), False)
        if detokenize(stream, tokenizer) == part:
            return stream
    except (UnicodeDecodeError, ArtifactError):  # not UTF-8, or with pieces without bytes
        pass
    return CodedTokens(byte_pieces(part), True)
