"""Numbers as they are written: a value with its number of decimals, so that rounded figures are compared as such."""

import math
import re
from dataclasses import dataclass
from typing import Any, TypeGuard

from bitgolf.errors import ForeignError
from bitgolf.foreign import parse_number

_FIGURE = re.compile(r"(?<![\w.,/-])[-+\u2212]?(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![\w/,]|\.\d)")


@dataclass(frozen=True)
class Figure:
    """A number as written: its value and how many decimals it has."""

    value: float
    decimals: int

    def equals(self, exact: float, units: float = 0.5) -> bool:
        """Whether `exact` is this number, up to `units` of its last digit: 0.5 rounded, 1 rounded or cut off."""
        binary = 1e-15 * max(abs(self.value), abs(exact))  # neither is a decimal fraction in memory
        return abs(self.value - exact) <= units * 10.0**-self.decimals + binary


def figures(text: str) -> list[Figure]:
    """The numbers in a text, with or without commas between thousands."""
    numbers = []
    for match in _FIGURE.finditer(text):
        digits = match[0].replace(",", "").replace("\u2212", "-")
        try:
            value = parse_number(digits)
        except ForeignError:  # more digits than any figure has
            continue
        numbers.append(Figure(value, len(match[2]) - 1 if match[2] else 0))
    return numbers


def figure_of(value: int | float) -> Figure:
    """A number of a JSON file, with the decimals that it was given there."""
    text = repr(value)
    if "e" in text or "inf" in text or "nan" in text:
        return Figure(float(value), 12)
    return Figure(float(value), len(text.partition(".")[2]))


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a JSON value is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.8g}"
