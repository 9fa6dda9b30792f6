"""Cut long texts into documents of bounded size, at blank lines where there are any.

Joined, the documents are the text again: nothing is stripped or added. Used by `dir:` and `stdlib`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def split_text(lines: Iterable[str], limit_bytes: int) -> Iterator[str]:
    """Join `lines` (with their line ends) into documents of at most `limit_bytes` UTF-8 bytes.

    A document ends after the last blank line that leaves it at least half full; failing that after the last
    line that fits; a line longer than the limit is cut between characters. Empty input gives no document.
    """
    held: list[str] = []
    sizes: list[int] = []
    total = 0
    for line in lines:
        for part in _short(line, limit_bytes):
            size = len(part.encode())
            while total + size > limit_bytes:
                cut = _cut(held, sizes, limit_bytes)
                yield "".join(held[:cut])
                total -= sum(sizes[:cut])
                del held[:cut], sizes[:cut]
            if size:
                held.append(part)
                sizes.append(size)
                total += size
    if held:
        yield "".join(held)


def _cut(held: list[str], sizes: list[int], limit_bytes: int) -> int:
    """Number of lines of the next document."""
    kept = sum(sizes)
    for count in range(len(held), 0, -1):
        if 2 * kept < limit_bytes:
            break
        if not held[count - 1].strip():
            return count
        kept -= sizes[count - 1]
    return len(held)


def _short(line: str, limit_bytes: int) -> Iterator[str]:
    """`line`, cut into parts of at most `limit_bytes` bytes when it is longer."""
    if len(line.encode()) <= limit_bytes:
        yield line
        return
    step = max(limit_bytes // 4, 1)  # a character has at most four bytes
    for start in range(0, len(line), step):
        yield line[start : start + step]
