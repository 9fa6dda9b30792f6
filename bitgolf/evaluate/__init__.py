"""Evaluation: the score tape, window scorers and bits per byte.

`evaluate(ScoreTape(tokens), make_scorer(...))` gives one loss a target; `bits_per_byte` turns losses and byte
counts into the score; the tape's `ledger` is the evidence that the audit reads.
"""

from bitgolf.evaluate.bits import BitsPerByte, bits_per_byte
from bitgolf.evaluate.scorers import make_scorer, window_plan
from bitgolf.evaluate.tape import Adapter, Scorer, ScoreTape, TokenReader, evaluate

__all__ = [
    "Adapter",
    "BitsPerByte",
    "ScoreTape",
    "Scorer",
    "TokenReader",
    "bits_per_byte",
    "evaluate",
    "make_scorer",
    "window_plan",
]
