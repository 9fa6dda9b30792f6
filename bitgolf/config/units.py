"""Sizes and durations with units: `300KB`, `16MiB`, `90s`, `5min`, `1h30min`.

Every setting whose name ends in `bytes` or `seconds` takes such a text, on the command line, in TOML and in Python.
KB, MB and GB are powers of 1,000, as in the cap of the challenge; KiB, MiB and GiB are powers of 1,024.
"""

import re
from typing import Any

BYTES = {"": 1, "B": 1} | {
    f"{letter}{middle}B": base**power
    for power, letter in enumerate("KMG", 1)
    for middle, base in (("", 1000), ("i", 1024))
}
SECONDS = {"": 1, "ms": 0.001, "s": 1, "min": 60, "h": 3600}
_NUMBER = r"(\d[\d_,]*\.?\d*|\.\d+)"


def read_quantity(key: str, value: Any) -> Any:
    """The number of bytes or seconds of a text such as `300KB`. Other values and keys are returned as they are.

    Raises ValueError for a text without a meaning; the message has an example.
    """
    if not isinstance(value, str):
        return value
    read = read_bytes_text if key.endswith("bytes") else read_seconds_text if key.endswith("seconds") else None
    try:
        return value if read is None else read(value)
    except ValueError as error:
        raise ValueError(f"{key} {error}") from error


def read_bytes_text(text: str) -> int:
    """`300KB` -> 300000. Raises ValueError."""
    units = {name.lower(): factor for name, factor in BYTES.items()}
    match = re.fullmatch(rf"\s*{_NUMBER}\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in units:
        raise ValueError(f"{text!r} is not a size; write bytes, or a unit as in 300KB, 16MB or 1GiB")
    size = float(match[1].replace(",", "").replace("_", "")) * units[match[2].lower()]
    if size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size)


def read_seconds_text(text: str) -> float:
    """`1h30min` -> 5400.0. Raises ValueError."""
    part = rf"\s*{_NUMBER}\s*([a-z]*)\s*"
    parts = re.findall(part, text)
    units = [unit for _, unit in parts]
    if not re.fullmatch(f"(?:{part})+", text) or not set(units) <= SECONDS.keys() or len(set(units)) < len(units):
        raise ValueError(f"{text!r} is not a duration; write seconds, or a unit as in 90s, 5min or 1h30min")
    return float(sum(float(number.replace(",", "").replace("_", "")) * SECONDS[unit] for number, unit in parts))
