"""A submission's README as data: tables, the settings of its commands, its prose.

Only the Markdown of the public records is parsed: pipe tables and fenced code.
"""

import re
from dataclasses import dataclass
from functools import cached_property

_FENCE = re.compile(r"^\s*(```|~~~)")
_ASSIGNED = re.compile(r"(?:^|[\s;])(?:export\s+)?([A-Z][A-Z0-9_]{2,})=(\"[^\"]*\"|'[^']*'|[^\s\\;&|]*)")
_HEADLINE = re.compile(r"(?i)\bval_bpb\b[^\d\n|]{0,12}(\d\.\d{3,})")
_DEVIATION = re.compile(r"(?i)\b(?:std(?:ev)?|standard deviation|s\.d\.)\b[^\d\n|]{0,30}(\d\.\d{3,})")
_HEADLINE_LINES = 15  # a later mention may be of another run
_DIVIDER = re.compile(r"^:?-+:?$")
_DENIED = re.compile(
    r"(?i)\b(no|not|without|never|instead of|rather than|removed?|dropped|replac\w*|fail\w*|tried|vs\.?)\b"
)
_SECTIONS_OF_OTHERS = re.compile(
    r"(?i)^#+ .*\b(credit|lineage|reference|attribution|acknowledg|related|ablation|what didn)"
)


@dataclass(frozen=True)
class Table:
    """Header and rows of cells, without Markdown's emphasis."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Readme:
    def __init__(self, text: str) -> None:
        self._prose: list[str] = []  # lines
        self._code: list[str] = []
        inside = False
        for line in text.splitlines():
            if _FENCE.match(line):
                inside = not inside
            else:
                (self._code if inside else self._prose).append(line)

    @cached_property
    def tables(self) -> list[Table]:
        """All pipe tables outside code."""
        tables: list[Table] = []
        rows: list[tuple[str, ...]] = []
        for line in [*self._prose, ""]:
            cells = _cells(line)
            if cells:
                rows.append(cells)
            elif rows:
                if len(rows) > 2 and all(_DIVIDER.match(cell) for cell in rows[1] if cell):
                    tables.append(Table(rows[0], tuple(rows[2:])))
                rows = []
        return tables

    @cached_property
    def assigned(self) -> dict[str, str]:
        """Environment variables that its commands set, with the last value given."""
        code = "\n".join(self._code)
        return {name: value.strip("\"'") for name, value in _ASSIGNED.findall(code)}

    @cached_property
    def commands(self) -> list[str]:
        """The lines of its code, each at most 300 characters."""
        return [line[:300] for line in self._code]

    @cached_property
    def deviation(self) -> str:
        """The first standard deviation that its prose gives, as written; "" when there is none."""
        match = _DEVIATION.search("\n".join(line[:300] for line in self._prose))
        return match[1] if match else ""

    @cached_property
    def headline(self) -> str:
        """The first score that its prose gives for `val_bpb`, as written; "" when there is none."""
        match = _HEADLINE.search("\n".join(self._prose[:_HEADLINE_LINES]))
        return match[1] if match else ""

    def claims(self, pattern: str) -> str:
        """The first line of its own prose that mentions `pattern` and does not deny it; "" when there is none."""
        claim = re.compile(pattern)
        of_others = False
        for line in self._prose:
            if line.startswith("#"):
                of_others = bool(_SECTIONS_OF_OTHERS.match(line))
            if not of_others and claim.search(line) and not _DENIED.search(line):
                return line.strip()
        return ""


def _cells(line: str) -> tuple[str, ...]:
    if "|" not in line:
        return ()
    cells = line.strip().removeprefix("|").removesuffix("|").split("|")
    return tuple(re.sub(r"\*{1,3}|`|~~", "", cell).strip() for cell in cells)
