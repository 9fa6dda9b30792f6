"""Opens an artifact: the model on a device with its tokenizer, ready to score or to continue a text.

Scoring, the codec, the audit and the report work on a `PackedModel`. `bitgolf.language_model` is the public object
around it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType

import torch
from torch import Tensor

from bitgolf.artifact.container import read_artifact
from bitgolf.config import ModelConfig
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import ArtifactError, ConfigError, DataError, ForeignError, require_type
from bitgolf.foreign import as_bool, as_integer, field, printable
from bitgolf.model.build import build_model, check_tensors, load_weights_
from bitgolf.model.cache import GenerationCache
from bitgolf.model.gpt import GPT
from bitgolf.run.ranks import choose_device

_LARGEST_WINDOW = 1 << 24  # tokens


@dataclass(frozen=True)
class PackedModel:
    """A model with its tokenizer.

    Attributes:
        model: weights in place, on its device, in evaluation mode.
        tokenizer: of the same vocabulary.
        window: context in tokens that the model was trained for.
        stride: number of targets that each step of a sliding window scores.
        attention: name of the attention backend.
    """

    model: GPT
    tokenizer: Tokenizer
    window: int
    stride: int
    attention: str

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.embedding.device

    @torch.no_grad()
    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 0,
        seed: int | None = None,
    ) -> str:
        """Continue `prompt` token by token, with cached keys and values.

        Args:
            prompt: an empty prompt starts a document.
            max_tokens: tokens to add at most. Generation also ends where the model ends the document.
            temperature: 0 takes the most likely token each time.
            top_k: sample among the k most likely tokens; 0 = all.
            seed: of the sampling; None = a fresh one.
        Returns:
            The continuation without the prompt.
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
        bos = self.tokenizer.bos_id
        prefix = [bos, *self.tokenizer.encode(prompt)]
        ids = list(prefix)
        cache, logits = self._prefill(ids)
        for _ in range(max_tokens):
            token = _choose(logits, temperature, top_k, generator)
            if token == bos:
                break
            ids.append(token)
            if cache.length >= self.window:  # the window is full: start again from its second half
                cache, logits = self._prefill(ids[-(self.window // 2) :])
                continue
            step = torch.tensor([[token]], device=self.device)
            logits = self.model.logits(self.model.hidden(step, cache))[0, -1]
        return self.tokenizer.decode(ids)[len(self.tokenizer.decode(prefix)) :]

    @torch.no_grad()
    def _prefill(self, ids: list[int]) -> tuple[GenerationCache, Tensor]:
        cache = GenerationCache(self.model.num_positions)
        tokens = torch.tensor([ids[-self.window :]], device=self.device)
        return cache, self.model.logits(self.model.hidden(tokens, cache)[:, -1:])[0, -1]


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


def open_model(path: str | Path, device: str | torch.device = "auto", attention: str = "auto") -> PackedModel:
    """Read an artifact and put its model on a device.

    Args:
        path: a `.bitgolf` file.
        device: auto, cpu, cuda, or a device.
        attention: backend name or auto.
    Raises:
        ArtifactError: the file is missing, damaged, or made by a newer version.
    """
    require_type("path", path, (str, os.PathLike), "a string or a path")
    require_type("device", device, (str, torch.device), "auto, cpu, cuda or a torch.device")
    require_type("attention", attention, str, "auto or the name of a backend")
    artifact = read_artifact(Path(path))
    try:
        config = ModelConfig(**artifact.model_config)
        window = as_integer(field(artifact.meta, "window"), "window", 1, _LARGEST_WINDOW)
        stride = as_integer(field(artifact.meta, "stride"), "stride", 1, window)
        lossless = as_bool(field(artifact.tokenizer_meta, "lossless"), "lossless")
    except (TypeError, ValueError, ForeignError) as error:
        raise ArtifactError(
            f"{path}: the header does not describe a model that this version can build ({printable(str(error))})"
        ) from error
    try:
        tokenizer = Tokenizer.load(artifact.tokenizer, lossless=lossless)
    except DataError as error:
        raise ArtifactError(f"{path}: the tokenizer inside is unusable: {error}") from error
    if tokenizer.vocab_size != config.vocab_size:
        raise ArtifactError(
            f"{path}: the tokenizer inside has {tokenizer.vocab_size} pieces, the model {config.vocab_size}"
        )
    check_tensors(config, window, artifact.tensors, str(path))
    place = choose_device(device) if isinstance(device, str) else device
    model, backend = build_model(config, window, place, attention)
    load_weights_(model, artifact.tensors, str(path))
    return PackedModel(model.eval().requires_grad_(False), tokenizer, window, stride, backend)
