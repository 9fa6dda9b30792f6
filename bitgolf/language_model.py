"""An artifact as a library object: log-probabilities, bits per byte and generation.

`bitgolf.load("model.bitgolf")` needs nothing but the file: it carries the weights, the sizes and the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitgolf.compress.container import read_artifact
from bitgolf.config import ModelConfig
from bitgolf.config.removed import drop_removed_
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.distributed import choose_device
from bitgolf.errors import ArtifactError, ConfigError, DataError
from bitgolf.evaluate.bits import BitsPerByte, bits_per_byte
from bitgolf.evaluate.scorers import make_scorer
from bitgolf.evaluate.tape import ScoreTape, evaluate
from bitgolf.model.build import build_model
from bitgolf.model.cache import GenerationCache
from bitgolf.model.gpt import GPT

_LARGEST_WINDOW = 1 << 24  # tokens; an artifact that asks for more is damaged


@dataclass(frozen=True)
class LogProbs:
    """Score of one text: `tokens[i]` got `logprobs[i]` nats given everything before it (and a document start)."""

    tokens: list[int]
    pieces: list[bytes]
    logprobs: np.ndarray


class LanguageModel:
    """A model with its tokenizer.

    Args:
        model: weights in place, on its device.
        tokenizer: of the same vocabulary.
        window: context in tokens that the model was trained for.
        stride: targets a sliding window newly scores.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, window: int, stride: int, attention: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.window, self.stride, self.attention = tokenizer, window, stride, attention

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embedding.device

    def logprobs(self, text: str) -> LogProbs:
        """Log-probability in nats of every token of `text` as a document of its own.

        Texts longer than the window are scored by sliding windows, each token once with at least
        `window - stride` tokens before it. Raises ConfigError for an empty text.
        """
        ids, nll = self._score(text)
        tokens = [int(i) for i in ids[1:]]
        return LogProbs(tokens, [self.tokenizer.token_text_bytes(i) for i in tokens], -nll)

    def bits_per_byte(self, text: str) -> float:
        """Bits that the model spends on a UTF-8 byte of `text`. Raises ConfigError for an empty text."""
        return self.score(text).bpb

    def score(self, text: str) -> BitsPerByte:
        """Bits per byte of `text` with the counts it is made of."""
        ids, nll = self._score(text)
        return bits_per_byte(nll, self.tokenizer.byte_costs(ids))

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
            prompt: may be empty (a document is started).
            max_tokens: tokens to add; generation also ends when the model ends the document.
            temperature: 0 takes the most likely token each time.
            top_k: sample among the k most likely tokens; 0 = all.
            seed: of the sampling; None draws a fresh one.
        Returns:
            The continuation without the prompt.
        """
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
        cache = GenerationCache(len(self.model.blocks))
        tokens = torch.tensor([ids[-self.window :]], device=self.device)
        return cache, self.model.logits(self.model.hidden(tokens, cache)[:, -1:])[0, -1]

    def _score(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        if not text:
            raise ConfigError("cannot score an empty text: there is no token to predict")
        ids = np.array([self.tokenizer.bos_id, *self.tokenizer.encode(text)], dtype=np.uint16)
        tape = ScoreTape(ids)
        batch = max(self.window, min(65_536, self.window * (1 + len(ids) // self.stride)))
        scorer = make_scorer(
            "sliding",
            self.model,
            window=self.window,
            stride=min(self.stride, self.window),
            batch_tokens=batch,
            device=self.device,
        )
        evaluate(tape, scorer)
        return ids, np.asarray(tape.nll)


def _choose(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """Draw a token id from logits (V,)."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.float().cpu() / temperature
    if top_k:
        kept = scaled.topk(min(top_k, scaled.numel()))
        scaled = torch.full_like(scaled, -torch.inf).scatter(0, kept.indices, kept.values)
    return int(torch.multinomial(scaled.softmax(-1), 1, generator=generator))


def load(path: str | Path, device: str | torch.device = "auto", attention: str = "auto") -> LanguageModel:
    """Read an artifact and put its model on a device.

    Args:
        path: a `.bitgolf` file.
        device: auto, cpu, cuda, or a device.
        attention: backend name or auto.
    Raises:
        ArtifactError: the file is missing, damaged, or made by a newer version.
    """
    try:
        artifact = read_artifact(Path(path))
    except OSError as error:
        raise ArtifactError(f"cannot read artifact {path}: {error.strerror or error}") from error
    try:
        settings = dict(artifact.model_config)
        drop_removed_({"model": settings}, "model_config")
        config = ModelConfig(**settings)
        window, stride = int(artifact.meta["window"]), int(artifact.meta["stride"])
        lossless = bool(artifact.tokenizer_meta["lossless"])
    except (TypeError, ValueError, KeyError, ConfigError) as error:
        raise ArtifactError(
            f"{path}: the header does not describe a model that this version can build ({error})"
        ) from error
    if not 1 <= stride <= window <= _LARGEST_WINDOW:
        raise ArtifactError(f"{path}: a window of {window} tokens with stride {stride} cannot be scored")
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
    return LanguageModel(model, tokenizer, window, stride, backend)


def check_tensors(config: ModelConfig, window: int, tensors: dict[str, Tensor], origin: str) -> None:
    """Raise ArtifactError unless `tensors` have the names and shapes of the model that `config` describes."""
    with torch.device("meta"):  # sizes first: a damaged header must not make this process allocate them
        _check_tensors(dict(GPT(config, window).named_parameters()), tensors, origin)


@torch.no_grad()
def load_weights_(model: GPT, tensors: dict[str, Tensor], origin: str) -> None:
    """Copy named tensors into a model's parameters. Raises ArtifactError when names or shapes do not match."""
    parameters = dict(model.named_parameters())
    _check_tensors(parameters, tensors, origin)
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _check_tensors(parameters: Mapping[str, Tensor], tensors: dict[str, Tensor], origin: str) -> None:
    if set(parameters) != set(tensors):
        odd = sorted(set(parameters) ^ set(tensors))
        raise ArtifactError(f"{origin}: tensors do not match the model, first differing name {odd[0]!r}")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ArtifactError(
                f"{origin}: tensor {name!r} is {tuple(tensors[name].shape)}, the model needs {tuple(parameter.shape)}"
            )
