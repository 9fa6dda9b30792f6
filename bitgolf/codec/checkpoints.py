"""Checkpoints: one byte of checksum after certain steps, so that decoding of a wrong file ends early.

Damaged or forged payloads decode to random tokens, and only the digest of the whole text would notice that, after all
the work. The coder therefore stores one byte of a running CRC-32 over the tokens of all streams after 64, 128, ...,
2,048 steps, and after every further 2,048 steps. The decoder compares, and a wrong file passes one checkpoint with
probability 1/256. The bytes cost less than 0.1 % of the file.

Legend: S streams.
"""

import zlib

import numpy as np
from torch import Tensor

from bitgolf.codec.range_coder import Array, Predictor, on_host
from bitgolf.errors import ArtifactError

FIRST_STEPS = 64
_INTERVAL = 2_048


def num_checkpoints(steps: int) -> int:
    """Number of checkpoints in `steps` steps."""
    doublings = (min(steps, _INTERVAL) // FIRST_STEPS).bit_length()  # at 64, 128, ..., 2,048
    return doublings + max(0, steps - _INTERVAL) // _INTERVAL


class CheckedPredictor:
    """A `Predictor` that adds checkpoints to another one.

    Args:
        predictor: makes the predictions.
        expected: the bytes of all checkpoints, to compare with; None to collect them in `collected`.
    """

    def __init__(self, predictor: Predictor, expected: bytes | None = None) -> None:
        self.predictor, self.expected = predictor, expected
        self.collected = bytearray()
        self._steps = self._checksum = 0
        self._recent: list[Array] = []  # tokens since the last checkpoint, which a GPU sends together

    def logits(self, going: np.ndarray) -> Tensor:
        return self.predictor.logits(going)

    def accept(self, tokens: Array) -> None:
        """See `Predictor`. Raises ArtifactError when a checkpoint differs."""
        self._steps += 1
        self._recent.append(tokens)
        if num_checkpoints(self._steps) > len(self.collected):
            block = np.stack(on_host(self._recent)).astype("<u4")
            self._recent.clear()
            self._checksum = zlib.crc32(block.tobytes(), self._checksum)
            self.collected.append(self._checksum & 0xFF)
            if self.expected is not None and self.expected[: len(self.collected)] != self.collected:
                raise ArtifactError(
                    f"decoding went wrong within {self._steps} steps: the file is damaged, or was coded with other "
                    "arithmetic"
                )
        self.predictor.accept(tokens)
