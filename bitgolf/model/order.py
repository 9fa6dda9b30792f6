"""The order in which a pass runs the layers, and the skip connections between them.

Without depth recurrence every layer runs once. With it, the layers loop.first to loop.last run 1 + loop.repeats times
in a row, with the same weights (PR 1855). Its 11 layers then take 17 positions. The first half of the positions keep
their output. Each position of the second half takes the last output that is left, before its layer runs. The row of its
skip weights is its number within the second half, so a row serves other layers once the loop is on.

Training switches the loop on by the clock. Everything after training runs with it: the loop is part of the
configuration that is saved with the weights.
"""

from __future__ import annotations

from typing import NamedTuple

from bitgolf.config import ModelConfig


class Position(NamedTuple):
    """One position of the order."""

    layer: int  # the layer that runs there
    keeps: bool  # its output is kept for a skip connection
    row: int  # row of the skip weights with which it takes a kept output; -1 = it takes none


def layer_order(config: ModelConfig, looped: bool) -> tuple[Position, ...]:
    """The positions of a pass, with the loop on or off."""
    layers, loop = list(range(config.num_layers)), config.loop
    if looped and loop.repeats:
        again = layers[loop.first : loop.last + 1] * loop.repeats
        layers[loop.last + 1 : loop.last + 1] = again
    half = len(layers) // 2
    rows = half if config.skips else 0
    return tuple(
        Position(layer, place < half and bool(rows), place - half if half <= place < half + rows else -1)
        for place, layer in enumerate(layers)
    )


def num_skip_rows(config: ModelConfig) -> int:
    """Rows of the skip weights: the number of skip connections with the loop on."""
    return sum(position.row >= 0 for position in layer_order(config, looped=True))
