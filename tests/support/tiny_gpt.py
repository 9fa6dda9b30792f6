"""A tiny GPT with every component that adapts, and texts for it; shared by the tests of adaptation."""

import socket
from typing import Any

import numpy as np
import torch

from bitgolf.config import Config, ModelConfig, resolve
from bitgolf.config.earlier import translate
from bitgolf.evaluate.adapted_pass import AdaptedPass, adapted_pass
from bitgolf.evaluate.window_scorer import Windows
from bitgolf.model.gpt import GPT
from bitgolf.run.ranks import World

VOCAB = 260
BOS = 1
WINDOW = 16
ALONE = World(0, 1, torch.device("cpu"))


def config(**ttt: Any) -> Config:
    """A configuration of the tiny model: window 16, stride 4, chunks of 40 (two rows and a remainder).

    `ttt` are settings of the section [ttt], such as `method="lora", lora={"rank": 4}`.
    """
    return resolve(
        {
            "name": "toy",
            "device": "cpu",
            "model": {
                "vocab_size": VOCAB,
                "num_layers": 3,
                "model_dim": 32,
                "num_heads": 4,
                "num_kv_heads": 2,
                "bigram_rows": 32,
                "bigram_dim": 8,
                "ve_layers": [1, 2],
                "ve_dim": 8,
                "smear": "v1",
                "value_residual": True,
                "xsa_layers": 1,
            },
            "train": {"seq_len": WINDOW, "batch_tokens": 64, "micro_batch_tokens": 64},
            "score": {"stride": 4, "batch_tokens": 48},
            "ttt": _with_lengths(ttt),
        },
        {},
    )


def _with_lengths(ttt: dict[str, Any]) -> dict[str, Any]:
    """Settings [ttt] with chunks and ranks that fit the tiny model; keys of earlier versions become today's."""
    small: dict[str, Any] = {
        "weights": {"chunk_tokens": 40},
        "lora": {"chunk_tokens": 6, "rank": 3, "alpha": 4.5},
    }
    for key, value in translate("ttt", ttt).items():
        small[key] = {**small.get(key, {}), **value} if isinstance(value, dict) else value
    return small


def tiny_gpt(model_config: ModelConfig | None = None, seed: int = 0) -> GPT:
    """A model no part of which is zero, without gradients, as an artifact's model is."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT(model_config or config().model, WINDOW).initialize_(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, 0.1, generator=generator)
        model.embedding.mul_(20)
    return model.eval().requires_grad_(False)


def adapted(
    settings: Config,
    model: GPT,
    num_targets: int,
    *,
    forward: Any = None,  # the model in another form
    batch_tokens: int = 0,
    world: World = ALONE,
) -> AdaptedPass:
    """The adapted pass of a configuration over a text of BOS-separated documents."""
    windows = Windows.of(settings, batch_tokens=batch_tokens)
    forward = model if forward is None else forward
    return adapted_pass(
        settings.ttt, windows, model, forward, num_targets=num_targets, bos_id=BOS, seed=settings.seed, world=world
    )


def text(length: int, seed: int = 0, period: int = 0) -> np.ndarray:
    """(length,) uint16 tokens in documents of different lengths; with `period` the same words over and over."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 40, size=length).astype(np.uint16)
    if period:
        tokens = np.resize(tokens[:period], length)
    tokens[rng.random(length) < 0.06] = BOS
    tokens[0] = BOS
    return tokens


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
