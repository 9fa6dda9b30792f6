"""The choice of the average that is shipped, by its loss on training text that training never reads.

The published systems chose between last weights, EMA and SWA by their score on the validation set, which no run may
do (rule B7 in docs/rules.md). Here the last rows of the training stream are held out (`train.held_out_tokens`), every
candidate is scored on them, each row by itself, and the one with the least loss is shipped. The ranks share the rows.
If the clock ends the scoring early, all candidates have been scored on the same rows.

Legend: B rows, T time.
"""

import math

import torch
from torch import Tensor
from torch.func import functional_call

from bitgolf.config.train import AverageConfig
from bitgolf.data.row_order import HeldOut, TokenStream
from bitgolf.model.gpt import GPT
from bitgolf.run.clock import SAFETY, Deadline, seconds_of_second_run
from bitgolf.run.ranks import World, sums_dtype
from bitgolf.train.average import num_candidates

Weights = dict[str, Tensor]


@torch.no_grad()
def held_out_losses(
    model: GPT,
    candidates: dict[str, Weights],  # named sets of weights, each complete
    held_out: HeldOut,
    stream: TokenStream,
    micro_rows: int,  # rows per forward pass on one rank
    world: World,
    deadline: Deadline,  # asked after each round of `micro_rows` rows per rank
) -> tuple[dict[str, float], int]:
    """Mean cross entropy of each candidate on the held-out rows, in nats per token; the same on every rank.

    Returns the loss by candidate, and the number of held-out targets that were scored.
    """
    rounds = range(0, held_out.num_rows, micro_rows * world.size)
    sums = torch.zeros(len(candidates) + 1, dtype=sums_dtype(world.device), device=world.device)
    for start in rounds:
        mine = start + world.rank * micro_rows
        count = min(micro_rows, held_out.num_rows - mine)
        if count > 0:
            rows = held_out.rows(stream, mine, count).to(world.device)
            for index, weights in enumerate(candidates.values()):
                loss = functional_call(model, weights, (rows[:, :-1], rows[:, 1:]))
                sums[index] += loss.to(sums.dtype) * count
            sums[-1] += count
        if not deadline.another_fits():
            break
    world.mean_([sums])
    *totals, rows_scored = (sums * world.size).tolist()
    losses = {name: total / rows_scored for name, total in zip(candidates, totals, strict=True)}
    return losses, round(rows_scored) * held_out.seq_len


def best(losses: dict[str, float], world: World) -> str:
    """The candidate with the least finite loss on rank 0 (the first of equals; the first of all if none is finite)."""
    names = list(losses)
    finite = [loss if math.isfinite(loss) else math.inf for loss in losses.values()]
    return names[int(world.from_main(float(finite.index(min(finite)))))]


def choice_seconds(model: GPT, config: AverageConfig, held_out: HeldOut, tokens: Tensor, world: World) -> float:
    """Seconds to reserve for the choice, measured on `tokens` (B, T + 1) that are one round on one rank."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    @torch.no_grad()
    def score() -> Tensor:
        loss: Tensor = functional_call(model, weights, (tokens[:, :-1], tokens[:, 1:]))
        return loss

    seconds = seconds_of_second_run(score, world)
    rounds = -(-held_out.num_rows // (tokens.size(0) * world.size))
    return SAFETY * seconds * num_candidates(config) * rounds
