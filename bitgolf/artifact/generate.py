"""Text generation: an opened artifact continues a prompt token by token, with cached keys and values.

The prompt fills the cache in one pass, and then every token takes a step (`bitgolf.model.cached_steps`). When the
window is full, its second half fills a new cache.

Legend: V vocabulary.
"""

from __future__ import annotations

from numbers import Integral, Real
from types import NoneType

import torch
from torch import Tensor

from bitgolf.artifact.open import PackedModel
from bitgolf.errors import ConfigError, require_type
from bitgolf.model.cached_steps import CachedSteps
from bitgolf.model.small_step import SmallStep, is_small, one_blas_thread


def generate(
    packed: PackedModel,
    prompt: str,
    *,
    max_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    seed: int | None = None,
) -> str:
    """The continuation of `prompt`, without the prompt.

    Args:
        prompt: an empty prompt starts a document.
        max_tokens: tokens to add at most. Generation also ends where the model ends the document.
        temperature: 0 takes the most likely token each time.
        top_k: sample among the k most likely tokens; 0 = all.
        seed: of the sampling; None = a random one.
    Raises:
        ConfigError: a setting is out of range.
    """
    require_text("prompt", prompt)
    require_type("max_tokens", max_tokens, Integral, "a whole number")
    require_type("temperature", temperature, Real, "a number")
    require_type("top_k", top_k, Integral, "a whole number")
    require_type("seed", seed, (Integral, NoneType), "a whole number or None")
    if max_tokens < 1 or not 0 <= temperature < float("inf") or top_k < 0:
        raise ConfigError(
            f"generate needs max_tokens >= 1, a finite temperature >= 0, top_k >= 0; got {max_tokens}, "
            f"{temperature}, {top_k}"
        )
    if seed is not None and not 0 <= seed < 2**63:
        raise ConfigError(f"seed {seed} must be from 0 to 2^63 - 1")
    generator = torch.Generator()
    generator.manual_seed(seed) if seed is not None else generator.seed()
    model, tokenizer, window = packed.model, packed.tokenizer, packed.window
    steps = CachedSteps(model, window, small=SmallStep(model, 1, window) if is_small(model) else None)
    prefix = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    ids, context = list(prefix), prefix[-window:]
    with torch.no_grad(), one_blas_thread():
        logits = steps.begin(torch.tensor([context], device=packed.device))  # (1, V)
        num_cached = len(context)
        for _ in range(max_tokens):
            token = _choose(logits[0], temperature, top_k, generator)
            if token == tokenizer.bos_id:
                break
            ids.append(token)
            if num_cached < window:
                logits = steps.step(torch.tensor([[token]], device=packed.device))
                num_cached += 1
            else:
                context = ids[-max(1, window // 2) :]
                logits = steps.begin(torch.tensor([context], device=packed.device))
                num_cached = len(context)
    return tokenizer.decode(ids)[len(tokenizer.decode(prefix)) :]


def require_text(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a string."""
    decoded = "; decode it first, as in data.decode('utf-8')" if isinstance(value, bytes | bytearray) else ""
    require_type(name, value, str, f"a string{decoded}")


def _choose(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """Draw a token id from logits (V,)."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.float().cpu() / temperature
    if top_k:
        kept = scaled.topk(min(top_k, scaled.numel()))
        scaled = torch.full_like(scaled, -torch.inf).scatter(0, kept.indices, kept.values)
    return int(torch.multinomial(scaled.softmax(-1), 1, generator=generator))
