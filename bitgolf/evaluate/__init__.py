"""Evaluation: the losses of a text, by windows or with a model that learns while it is scored, and bits per byte.

    tokens -> ScoreTape -> scorer (and adapter) -> one loss per target -> bits_per_byte

Stage `score` (`score.py`) runs it on an artifact. The codec runs the same predictions with a range coder, and the audit
repeats them. Every pass goes through a score tape, which reveals tokens only after their losses are committed.
"""

from bitgolf.evaluate.bits import BitsPerByte, bits_per_byte
from bitgolf.evaluate.tape import Adapter, Scorer, ScoreTape, TokenReader, evaluate
from bitgolf.evaluate.window_scorer import window_plan

__all__ = [
    "Adapter",
    "BitsPerByte",
    "ScoreTape",
    "Scorer",
    "TokenReader",
    "bits_per_byte",
    "evaluate",
    "window_plan",
]
