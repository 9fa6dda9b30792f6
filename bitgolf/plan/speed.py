"""Seconds on this machine: estimated from one matrix product, or measured on a few steps with random tokens.

The estimate divides the floating-point operations of a step by the speed of a matrix product; it takes a fraction of a
second and is right within a factor of two. The measurement runs the real model: micro-batches of one row where a whole
step would take long.
"""

import functools
from dataclasses import dataclass

import torch

from bitgolf.config import Config
from bitgolf.data.loader import BatchShape
from bitgolf.model.build import build_model, compute_dtype
from bitgolf.model.flops import flops_per_token
from bitgolf.plan.memory import micro_batch_tokens
from bitgolf.run.clock import SAFETY, seconds_of_second_run
from bitgolf.run.ranks import World
from bitgolf.train.schedule import StepSettings
from bitgolf.train.trainer import Trainer

# Speed of training divided by that of the matrix product below: demo, baseline and seed-693 on one and two CPU cores.
_EFFICIENCY = 0.4
_LONG_SECONDS = 5.0  # a longer step is measured in part


@dataclass(frozen=True)
class Speed:
    """Seconds per optimizer step, and per token of a forward pass without gradients."""

    step_seconds: float
    forward_token_seconds: float


def estimated_step_seconds(config: Config, world: World) -> float:
    """Seconds per optimizer step, from the speed of one matrix product on this device."""
    flops = flops_per_token(config.model, config.train.seq_len) * config.train.mean_batch_tokens / world.size
    return flops / (_EFFICIENCY * _flops_of_matrix_product(world))


@functools.cache
def _flops_of_matrix_product(world: World) -> float:
    """Floating-point operations per second. Measured once, so that all estimates of a process agree."""
    size = 512 if world.device.type == "cpu" else 4096
    left = torch.ones(size, size, device=world.device, dtype=compute_dtype(world.device))
    seconds = min(seconds_of_second_run(lambda: left @ left, world) for _ in range(3))
    return 2 * size**3 / max(seconds, 1e-9)


def measured_speed(config: Config, world: World) -> Speed:
    """Times steps of the real model on random tokens. It needs the memory of one micro-batch.

    A step that would take long is measured as one row of a micro-batch, and the update apart from it.
    """
    train = config.train
    rank_rows = max(1, train.mean_batch_tokens // train.seq_len // world.size)
    is_long = estimated_step_seconds(config, world) > _LONG_SECONDS
    micro_rows = 1 if is_long else max(1, micro_batch_tokens(config, world.size) // train.seq_len)
    model, _ = build_model(config.model, train.seq_len, world.device, train.attention)
    model.initialize_(torch.Generator().manual_seed(0))
    trainer = Trainer(model, train, BatchShape(micro_rows, micro_rows, micro_rows), world)
    tokens = torch.randint(config.model.vocab_size, (micro_rows, train.seq_len + 1), device=world.device)

    def step() -> None:
        trainer.step(tokens[:, :-1], tokens[:, 1:], StepSettings(1.0, train.muon.momentum))

    def update() -> None:
        for parameter in trainer.optimizer.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        trainer.optimizer.step(1.0, train.muon.momentum)

    with torch.inference_mode():
        model.eval()
        forward = seconds_of_second_run(lambda: model(tokens[:, :-1]), world) / tokens[:, :-1].numel()
    model.train()
    accumulation = rank_rows / micro_rows
    whole = seconds_of_second_run(step, world)
    if accumulation > 1:
        updating = min(whole, seconds_of_second_run(update, world))
        whole = updating + accumulation * (whole - updating)
    return Speed(whole, forward)


def after_steps_seconds(config: Config, speed: Speed) -> float:
    """Seconds of the training clock after the last step: replay is not counted, as it trains."""
    measure = config.train.measure
    token = 3 * speed.forward_token_seconds  # forward and backward
    calibration = measure.reserve_seconds or measure.calibration_tokens * speed.forward_token_seconds
    return SAFETY * (calibration + measure.fisher_tokens * token)


def evaluation_seconds(config: Config, speed: Speed, val_tokens: int) -> float:
    """Seconds of all passes over `val_tokens` tokens of validation text."""
    window = config.window
    passes = sum(1.0 if method == "chunked" else window / config.score.stride for method in config.score.methods)
    ttt = config.ttt
    if ttt.method == "lora":  # each chunk is run in a window, forward for its score and both ways for the update
        passes += 4.0 * max(1.0, window / ttt.lora.chunk_tokens / 2)
    elif ttt.enabled:
        passes += window / config.score.stride + 3.0 * ttt.weights.epochs
    return passes * val_tokens * speed.forward_token_seconds
