"""The shard format of the challenge: `ShardWriter` writes a token stream, `TokenShards` reads it as one array.

A shard is 256 little-endian int32 (20240520, 1, number of tokens, zeros), followed by the tokens as little-endian
uint16. Its size is therefore 1024 + 2n bytes. `TokenShards` maps an ordered list of shards into memory.
Source of the format: openai/parameter-golf.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bitgolf.errors import DataError, ForeignError
from bitgolf.foreign import require_regular
from bitgolf.run.atomic import atomic_path
from bitgolf.run.seal import file_digest

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 1024
_CHUNK = 1 << 24  # number of tokens checked at a time (32 MB)


def write_shard(path: str | Path, tokens: np.ndarray) -> None:
    """Write `tokens` ((N,) of any integer type, values 0..65535) as one shard, atomically.

    Raises DataError if a value does not fit uint16.
    """
    array = _as_uint16(tokens)
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        handle.write(_header(len(array)))
        handle.write(array.tobytes())


def read_header(path: str | Path) -> int:
    """The number of tokens in the shard `path`.

    Raises DataError with file and numbers if the file is missing, empty, truncated, too long, or of another version.
    """
    file = Path(path)
    try:
        require_regular(file)
        size = file.stat().st_size
        with file.open("rb") as handle:
            head = handle.read(HEADER_BYTES)
    except (OSError, ForeignError) as error:
        raise DataError(f"cannot read shard {file}: {getattr(error, 'strerror', '') or error}") from error
    if size < HEADER_BYTES:
        raise DataError(
            f"shard {file} is {'empty' if size == 0 else 'truncated'}: {size} bytes, "
            f"but its header has {HEADER_BYTES}; prepare or download it again"
        )
    magic, version, count = (int(v) for v in np.frombuffer(head, dtype="<i4", count=3))
    if magic != MAGIC:
        raise DataError(f"{file} is not a token shard: it starts with {magic}, shards with {MAGIC}")
    if version != VERSION:
        raise DataError(f"shard {file} has version {version}; this program reads version {VERSION}")
    if count < 1:
        raise DataError(f"the header of shard {file} says {count} tokens; a shard has at least 1")
    expected = HEADER_BYTES + 2 * count
    if size != expected:
        raise DataError(
            f"shard {file} is {'truncated' if size < expected else 'too long'}: {size:,} bytes, its "
            f"header says {count:,} tokens = {expected:,} bytes; prepare or download it again"
        )
    return count


def find_shards(directory: str | Path, split: str) -> list[Path]:
    """Shards of `split` ('train' or 'val') in `directory`, sorted by name: `*train_*.bin` or `*val_*.bin`.

    Byte sidecars (`_bytes_`) and the document hashes of a prepared directory are left out.
    """
    paths = Path(directory).glob(f"*{split}_*.bin")
    return sorted(p for p in paths if "_bytes_" not in p.name and not p.name.endswith("_documents.bin"))


class ShardWriter:
    """Cuts a stream of tokens into the shards `{prefix}_{number:06d}.bin` of `directory`.

    It is a context manager. A normal exit completes the last shard; an exception removes the unfinished one. A shard
    gets its name only when it is complete.
    """

    def __init__(self, directory: Path, prefix: str, shard_tokens: int) -> None:
        self._directory, self._prefix, self._capacity = directory, prefix, shard_tokens
        self.shards: list[dict[str, Any]] = []  # entries of the manifest: file, tokens, sha256
        self.num_tokens = 0
        self._stack = ExitStack()
        self._handle: BinaryIO | None = None
        self._temporary = self._target = directory
        self._fill = 0

    def append(self, tokens: np.ndarray) -> None:
        """Add `tokens` ((N,) uint16) to the stream."""
        array = _as_uint16(tokens)
        start = 0
        while start < len(array):
            handle = self._handle or self._open()
            part = array[start : start + self._capacity - self._fill]
            handle.write(part.tobytes())
            self._fill += len(part)
            start += len(part)
            if self._fill == self._capacity:
                self._finish()
        self.num_tokens += len(array)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._handle is None:
            return
        if error[0] is None:
            self._finish()
            return
        self._handle.close()
        self._stack.__exit__(*error)

    def _open(self) -> BinaryIO:
        self._target = self._directory / f"{self._prefix}_{len(self.shards):06d}.bin"
        self._temporary = self._stack.enter_context(atomic_path(self._target))
        self._handle = self._temporary.open("wb")
        self._handle.write(_header(0))
        return self._handle

    def _finish(self) -> None:
        assert self._handle is not None
        self._handle.seek(0)
        self._handle.write(_header(self._fill))
        self._handle.close()
        self._handle = None
        entry = {"file": self._target.name, "tokens": self._fill, "sha256": file_digest(self._temporary)}
        self._stack.close()
        self.shards.append(entry)
        self._fill = 0


class TokenShards:
    """An ordered list of shard files as one read-only, memory-mapped token stream."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        """Check every header. Raises DataError as `read_header` does, or if `paths` is empty."""
        if not paths:
            raise DataError("no shards given; a split needs at least one shard file")
        self.paths = [Path(p) for p in paths]  # the files, in order
        self._starts = [0]  # first token of each file, and the end
        for path in self.paths:
            self._starts.append(self._starts[-1] + read_header(path))
        self.num_tokens = self._starts[-1]  # number of tokens in all files
        self.shard_tokens = [end - start for start, end in pairwise(self._starts)]  # number of tokens per file
        self._maps = [np.memmap(p, dtype="<u2", mode="r", offset=HEADER_BYTES) for p in self.paths]

    @classmethod
    def open(cls, directory: str | Path, split: str) -> TokenShards:
        """The shards of `split` in `directory` (see `find_shards`). Raises DataError if there are none."""
        paths = find_shards(directory, split)
        if not paths:
            raise DataError(f"{directory} contains no shards named *{split}_*.bin")
        return cls(paths)

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) of the stream: (length,) uint16, read-only. The range may cross files.

        Raises DataError if the range is outside the stream.
        """
        if start < 0 or length < 0 or start + length > self.num_tokens:
            raise DataError(
                f"tokens [{start:,}, {start + length:,}) are outside the stream of "
                f"{self.num_tokens:,} tokens that begins with {self.paths[0]}"
            )
        parts = []
        index = max(bisect_right(self._starts, start) - 1, 0)
        while length > 0:
            offset = start - self._starts[index]
            part = self._maps[index][offset : offset + length]
            parts.append(part)
            start, length, index = start + len(part), length - len(part), index + 1
        joined = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint16), *parts])
        return joined.view(np.ndarray)

    def chunks(self, size: int = _CHUNK) -> Iterator[np.ndarray]:
        """The stream in order, in arrays of `size` tokens."""
        for start in range(0, self.num_tokens, size):
            yield self.read(start, min(size, self.num_tokens - start))

    def validate(self, vocab_size: int) -> None:
        """Check every id. Raises DataError with file, position and id of the first one >= `vocab_size`."""
        for path, tokens in zip(self.paths, self._maps, strict=True):
            for start in range(0, len(tokens), _CHUNK):
                chunk = tokens[start : start + _CHUNK]
                if int(chunk.max()) >= vocab_size:
                    where = int(np.argmax(chunk >= vocab_size))
                    raise DataError(
                        f"shard {path}: token {start + where:,} is id {int(chunk[where])}, beyond the "
                        f"vocabulary of {vocab_size} (ids 0..{vocab_size - 1}); the shards belong to "
                        "another tokenizer, or are damaged"
                    )


def _as_uint16(tokens: np.ndarray) -> np.ndarray:
    array = np.asarray(tokens)
    if array.dtype != np.uint16:
        if array.size and (array.min() < 0 or array.max() > 0xFFFF):
            raise DataError(f"token ids {array.min()}..{array.max()} do not fit the uint16 of a shard (0..65535)")
        array = array.astype(np.uint16)
    return array.astype("<u2", copy=False)


def _header(count: int) -> bytes:
    head = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    head[:3] = MAGIC, VERSION, count
    return head.tobytes()
