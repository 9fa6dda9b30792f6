"""Which average is shipped, decided on training text that training has never read, on the training clock.

The published systems chose between last weights, EMA and SWA by their score on the validation set, which no run may
do (rule B7). Here the last rows of the training stream are held out (`train.held_out_tokens`), every candidate is
scored on them row by row (chunked loss), and the least loss is shipped. The ranks share the rows; when the clock ends
the scoring early, all candidates have been scored on the same rows.

Legend: B rows, T time.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from bitgolf.config import TrainConfig
from bitgolf.data.held_out import HeldOut
from bitgolf.data.loader import TokenStream
from bitgolf.model.gpt import GPT
from bitgolf.run.clock import SAFETY, Deadline
from bitgolf.run.ranks import World
from bitgolf.train.average import num_candidates

Weights = dict[str, Tensor]


@torch.no_grad()
def held_out_losses(
    model: GPT,
    candidates: dict[str, Weights],
    held_out: HeldOut,
    stream: TokenStream,
    micro_rows: int,
    world: World,
    deadline: Deadline,
) -> tuple[dict[str, float], int]:
    """Mean cross entropy of each candidate on the held-out rows, in nats a token; the same on every rank.

    Args:
        candidates: named sets of weights, each complete.
        micro_rows: rows of one forward pass on one rank.
        deadline: asked after each round of `micro_rows` rows a rank.
    Returns:
        (loss by candidate, held-out targets that were scored).
    """
    rounds = range(0, held_out.num_rows, micro_rows * world.size)
    sums = torch.zeros(len(candidates) + 1, dtype=torch.float64, device=world.device)
    for start in rounds:
        mine = start + world.rank * micro_rows
        count = min(micro_rows, held_out.num_rows - mine)
        if count > 0:
            rows = held_out.rows(stream, mine, count).to(world.device)
            for index, weights in enumerate(candidates.values()):
                loss = functional_call(model, weights, (rows[:, :-1], rows[:, 1:]))
                sums[index] += loss.double() * count
            sums[-1] += count
        if not deadline.another_fits():
            break
    world.mean_([sums])
    *totals, rows_scored = (sums * world.size).tolist()
    losses = {name: total / rows_scored for name, total in zip(candidates, totals, strict=True)}
    return losses, round(rows_scored) * held_out.seq_len


def best(losses: dict[str, float], world: World) -> str:
    """The candidate of least loss (the first of equals; one without a finite loss never wins), agreed on by all."""
    names = list(losses)
    order = sorted(range(len(names)), key=lambda i: losses[names[i]] if np.isfinite(losses[names[i]]) else np.inf)
    return names[int(world.from_main(float(order[0])))]


def choice_seconds(model: GPT, config: TrainConfig, held_out: HeldOut, micro_rows: int, world: World) -> float:
    """Seconds to reserve for the choice, from two passes over random tokens (the first one warms up)."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    seconds = 0.0
    for _ in range(2):
        shape = (micro_rows, config.seq_len + 1)
        tokens = torch.randint(model.config.vocab_size, shape, device=world.device)
        world.synchronize()
        begin = time.perf_counter()
        with torch.no_grad():
            functional_call(model, weights, (tokens[:, :-1], tokens[:, 1:]))
        world.synchronize()
        seconds = time.perf_counter() - begin
    rounds = -(-held_out.num_rows // (micro_rows * world.size))
    # One round more: the deadline stops when a round of the longest kind might not fit.
    return SAFETY * seconds * num_candidates(config) * (rounds + 1)
