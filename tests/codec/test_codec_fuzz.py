"""Damaged and hostile files end in an error or the exact text. benchmarks/fuzz.py makes the damage."""

import random

import fuzz

from bitgolf.codec import CodecModel, compress_bytes


def test_damaged_files_end_in_an_error_or_the_exact_text(model: CodecModel) -> None:
    text = fuzz.TEXT.encode()[:60]
    coded = compress_bytes(text, model, streams=2)
    rng = random.Random(3)
    ends: dict[str, set[str]] = {}
    for _ in range(160):
        kind, bad = fuzz.damaged(coded.data, coded.text, rng)
        ends.setdefault(kind.split(" (")[0], set()).add(fuzz.outcome(bad, model, text))
    assert set(ends) == {"bytes", "bytes resealed", "header text", "header values", "payload"}
    assert ends["payload"] - {"the exact text"}
    assert "the exact text" in ends["header values"] | ends["header text"] | ends["payload"]
    assert len(set().union(*ends.values())) > 15, "the cases are too much alike"
