"""Tiny models and adapters that the tests of evaluation and audit share: honest ones and cheats."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitgolf.evaluate.tape import TokenReader
from bitgolf.evaluate.window_scorer import Windows, WindowScorer
from bitgolf.run.ranks import World

VOCAB = 13
BOS = 1


class CausalModel(nn.Module):
    """One causal attention layer with absolute positions, so that the window of a target matters."""

    def __init__(self, vocab_size: int = VOCAB, width: int = 8, max_length: int = 256, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Parameter(torch.randn(vocab_size, width, generator=generator))
        self.position = nn.Parameter(torch.randn(max_length, width, generator=generator) * 0.5)
        self.mix = nn.Parameter(torch.randn(width, width, generator=generator) * 0.5)
        self.head = nn.Parameter(torch.randn(width, vocab_size, generator=generator))
        self.shapes: set[tuple[int, ...]] = set()

    def forward(self, tokens: Tensor) -> Tensor:
        self.shapes.add(tuple(tokens.shape))
        x = self.embed[tokens] + self.position[: tokens.shape[1]]
        scores = x @ self.mix @ x.transpose(1, 2)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        x = x + torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1) @ x
        return x @ self.head


class LeakyModel(CausalModel):
    """Adds a little of the next token's embedding: a convolution that looks one step ahead."""

    strength = 1e-3

    def forward(self, tokens: Tensor) -> Tensor:
        ahead = torch.roll(tokens, -1, dims=1)
        return super().forward(tokens) + self.strength * self.embed[ahead] @ self.head


class UnigramCache:
    """A model and an adapter: mixes the model with the token frequencies of what has been scored."""

    def __init__(self, model: CausalModel, vocab_size: int = VOCAB, weight: float = 0.4) -> None:
        self.model = model
        self.counts = torch.ones(vocab_size)
        self.weight = weight

    def __call__(self, tokens: Tensor) -> Tensor:
        p = torch.softmax(self.model(tokens), dim=-1)
        return ((1 - self.weight) * p + self.weight * self.counts / self.counts.sum()).log()

    def update(self, revealed: TokenReader, start: int, stop: int) -> None:
        self._count(revealed(start + 1, stop + 1))

    def _count(self, tokens: np.ndarray) -> None:
        self.counts += torch.bincount(torch.from_numpy(tokens.astype(np.int64)), minlength=len(self.counts))


class EagerCache(UnigramCache):
    """A cheat that asks for the chunk to come: the tape refuses."""

    def update(self, revealed: TokenReader, start: int, stop: int) -> None:
        self._count(revealed(start + 1, stop + 2))


class SmugglingCache(UnigramCache):
    """A cheat that goes around the tape with a copy of all tokens: only the flip tests can see it."""

    def __init__(self, model: CausalModel, tokens: np.ndarray) -> None:
        super().__init__(model)
        self.smuggled = tokens

    def update(self, revealed: TokenReader, start: int, stop: int) -> None:
        self._count(self.smuggled[start + 1 : 2 * stop + 1])


class Wrapped:
    """A scorer around another one; subclasses cheat."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def score(self, read: TokenReader, start: int, stop: int, tick: Any = None) -> np.ndarray:
        return -self.distributions(read, start, stop)[np.arange(stop - start), read(start + 1, stop + 1)]

    def distributions(self, read: TokenReader, start: int, stop: int) -> np.ndarray:
        shown: np.ndarray = self.inner.distributions(read, start, stop)
        return shown


class TargetPeek(Wrapped):
    """Raises its temperature for some targets: normalized, but keyed by the target."""

    def distributions(self, read: TokenReader, start: int, stop: int) -> np.ndarray:
        log_p = super().distributions(read, start, stop)
        log_p[read(start + 1, stop + 1) % 3 == 0] *= 0.5
        return _normalized(log_p)


class ChunkBias(Wrapped):
    """SLOT: a bias fitted on the very chunk that is scored."""

    def distributions(self, read: TokenReader, start: int, stop: int) -> np.ndarray:
        log_p = super().distributions(read, start, stop)
        counts = np.bincount(read(start + 1, stop + 1), minlength=log_p.shape[1]) + 1
        return _normalized(log_p + 0.3 * np.log(counts / counts.sum()).astype(np.float32))


class SecretBonus(Wrapped):
    """Shows honest distributions and commits better losses."""

    def score(self, read: TokenReader, start: int, stop: int, tick: Any = None) -> np.ndarray:
        return 0.97 * super().score(read, start, stop, tick)


def _normalized(log_p: np.ndarray) -> np.ndarray:
    return log_p - np.log(np.exp(log_p.astype(np.float64)).sum(1, keepdims=True)).astype(np.float32)


def toy_tokens(length: int, seed: int = 0) -> np.ndarray:
    """(length,) uint16 tokens: a BOS, then skewed ids with a BOS now and then."""
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.geometric(0.25, size=length) + 1, VOCAB - 1).astype(np.uint16)
    tokens[rng.random(length) < 0.05] = BOS
    tokens[0] = BOS
    return tokens


def make_scorer(
    method: str, model: object, *, window: int, stride: int, batch_tokens: int, documents: bool = False
) -> WindowScorer:
    """The scorer of a method on the CPU."""
    return Windows(method, window, stride, batch_tokens, documents).scorer(model, World(0, 1, torch.device("cpu")))
