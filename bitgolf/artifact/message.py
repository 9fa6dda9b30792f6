"""One entropy-coded message: numbers, plain bits and symbols, pushed on an ANS stack and popped again.

`Writer` collects what is to be coded and counts its ideal length. `finish` gives it to the ANS coder (`ans`), and
`Reader` pops it in the same order. Symbols are coded with integer tables of sum 2^24. A damaged message pops arbitrary
values, never an error, so the caller checks their meaning. That a message ends where it should is checked here.
"""

from __future__ import annotations

import threading

import numpy as np

from bitgolf.artifact import ans
from bitgolf.artifact.frequency import PRECISION
from bitgolf.errors import ArtifactError

MAX_PREFIX = 32  # bits that tell the length of a number; more are damage


class Writer:
    """Collects a message. With `dry` it keeps only the length."""

    def __init__(self, *, dry: bool = False) -> None:
        self.dry = dry
        self.bits = 0.0  # ideal length so far
        self.work = 0  # units of computing that a reader will need (see `WorkBudget`)
        self._pieces: list[tuple[np.ndarray, ans.Table]] = []

    def count_work(self, units: int) -> None:
        """Count computing that a reader of this message will have to do."""
        self.work += units

    def plain(
        self,
        values: np.ndarray,  # (n,) integers in [0, 2^num_bits)
        num_bits: int,  # 0 to 16
    ) -> None:
        """Append values that are all equally likely."""
        self.bits += len(values) * num_bits
        if num_bits and len(values) and not self.dry:
            self._pieces.append((values.astype(np.int32), 1 << num_bits))

    def number(self, value: int, low_bits: int = 0) -> None:
        """Append one number >= 0 in the exponential Golomb code, its lowest `low_bits` bits as they are."""
        above = (value >> low_bits) + 1
        length = above.bit_length() - 1
        prefix = [0] * length + [1]
        rest = [above >> i & 1 for i in reversed(range(length))] + [value >> i & 1 for i in reversed(range(low_bits))]
        self.plain(np.array(prefix + rest), 1)

    def signed(self, value: int, low_bits: int = 0) -> None:
        """Append one integer."""
        self.number(2 * value if value >= 0 else -2 * value - 1, low_bits)

    def symbols(
        self,
        values: np.ndarray,  # (n,) integers in [0, m)
        table: np.ndarray,  # (m,) int64 frequencies >= 1 with sum 2^24
    ) -> None:
        """Append symbols coded with `table`."""
        if len(table) > 1 and len(values):
            self.bits += float(np.bincount(values, minlength=len(table)) @ (PRECISION - np.log2(table)))
            if not self.dry:
                narrow = np.int16 if len(table) <= 1 << 15 else np.int32  # less to send between processes
                self._pieces.append((values.astype(narrow), table))

    def append(self, other: Writer) -> None:
        """Append what another writer has collected."""
        self.bits += other.bits
        self.work += other.work
        self._pieces += other._pieces

    def finish(self) -> bytes:
        """The message: little-endian 32-bit words, the last one without its zero high bytes."""
        return bytes(ans.encode(self._pieces).astype("<u4").tobytes().rstrip(b"\0"))


class WorkBudget:
    """Counts the computing that the messages of one file ask for, and limits it. Threads may share it.

    The unit is the time that one entry of a frequency table takes, about 0.1 us. Popping symbols is not counted: their
    number is limited by the size of the file already.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit  # the most units; None = any number
        self.used = 0  # units so far
        self._lock = threading.Lock()

    def take(self, units: int) -> None:
        """Raise ArtifactError if the messages have now asked for too much."""
        with self._lock:
            self.used += units
            if self.limit is not None and self.used > self.limit:
                raise ArtifactError("entropy-coded message asks for more computing than its size allows; it is damaged")


class Reader:
    """Pops a message that `Writer.finish` returned; every method mirrors one of `Writer`.

    Raises ArtifactError if the bytes are no message, or ask for more computing than `budget` allows.
    """

    def __init__(self, data: bytes | memoryview, budget: WorkBudget) -> None:
        raw = bytes(data)
        if raw.endswith(b"\0"):
            raise ArtifactError("entropy-coded message ends in a zero byte; it is damaged")
        words = np.frombuffer(raw + bytes(-len(raw) % 4), dtype="<u4").astype(np.uint32)
        self._decoder = ans.decoder(words)
        self._budget = budget

    def count_work(self, units: int) -> None:
        """Raise ArtifactError if the messages of the file have now asked for too much computing."""
        self._budget.take(units)

    def plain(self, count: int, num_bits: int) -> np.ndarray:  # (count,) int32
        """`count` values of `num_bits` bits each."""
        if not num_bits or not count:
            return np.zeros(count, dtype=np.int32)
        return self._decoder.pop(1 << num_bits, count)

    def number(self, low_bits: int = 0) -> int:
        """One number."""
        length = 0
        while not self._decoder.pop(2, 1)[0]:
            length += 1
            if length > MAX_PREFIX:
                raise ArtifactError("entropy-coded message holds an endless number; it is damaged")
        value = 1
        for bit in self.plain(length, 1):
            value = 2 * value + int(bit)
        value -= 1
        for bit in self.plain(low_bits, 1):
            value = 2 * value + int(bit)
        return value

    def signed(self, low_bits: int = 0) -> int:
        """One integer."""
        folded = self.number(low_bits)
        return -(folded + 1) // 2 if folded & 1 else folded // 2

    def symbols(
        self,
        count: int,
        table: np.ndarray,  # (m,) int64 frequencies
    ) -> np.ndarray:  # (count,) int32
        """`count` symbols coded with `table`."""
        if len(table) == 1 or not count:
            return np.zeros(count, dtype=np.int32)
        return self._decoder.pop(table, count)

    def finish(self) -> None:
        """Raise ArtifactError unless all of the message has been popped."""
        if not self._decoder.is_empty():
            raise ArtifactError("entropy-coded message is longer than its contents; it is damaged")
