"""Cuts long texts into documents of limited size, at blank lines where possible.

The documents joined are the text again. The sources `dir:` and `stdlib` use it.
"""

from collections.abc import Iterable, Iterator


def cut_text(lines: Iterable[str], limit_bytes: int) -> Iterator[str]:
    """Join `lines` (with their line ends) into documents of at most `limit_bytes` UTF-8 bytes.

    A document ends after the last blank line that leaves it at least half full. If there is none, it ends after the
    last line that fits. A line above the limit is cut between characters. Empty input gives no document.
    """
    held: list[str] = []
    sizes: list[int] = []
    total = 0
    for line in lines:
        for part in _parts(line, limit_bytes):
            size = len(part.encode())
            while total + size > limit_bytes:
                count = _lines_of_next_document(held, sizes, limit_bytes)
                yield "".join(held[:count])
                total -= sum(sizes[:count])
                del held[:count], sizes[:count]
            if size:
                held.append(part)
                sizes.append(size)
                total += size
    if held:
        yield "".join(held)


def _lines_of_next_document(held: list[str], sizes: list[int], limit_bytes: int) -> int:
    kept = sum(sizes)
    for count in range(len(held), 0, -1):
        if 2 * kept < limit_bytes:
            break
        if not held[count - 1].strip():
            return count
        kept -= sizes[count - 1]
    return len(held)


def _parts(line: str, limit_bytes: int) -> Iterator[str]:
    """`line`, cut into parts of at most `limit_bytes` bytes."""
    if len(line.encode()) <= limit_bytes:
        yield line
        return
    step = max(limit_bytes // 4, 1)  # a character has at most four bytes
    for start in range(0, len(line), step):
        yield line[start : start + step]
