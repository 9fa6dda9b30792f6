"""Text generation: an opened artifact continues a prompt token by token, with cached keys and values.

The prompt fills the cache in one pass, and then every token takes a step (`bitgolf.model.cached_steps`). When the
window is full, its second half fills a new cache.

Legend: V vocabulary.
"""

import codecs
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType

import torch
from torch import Tensor

from bitgolf.artifact.open import PackedModel
from bitgolf.data.case_markers import Speller
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import ConfigError, require_type
from bitgolf.model.cached_steps import CachedSteps
from bitgolf.model.small_step import SmallStep, is_small, one_blas_thread


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    max_tokens: int = 200  # tokens to add at most. Generation also ends where the model ends the document.
    temperature: float = 0.8  # 0 takes the most likely token each time
    top_k: int = 0  # sample among the k most likely tokens; 0 = all
    top_p: float = 1.0  # sample among the fewest most likely tokens whose probabilities add up to this; 1 = all
    stop: Sequence[str] = ()  # texts that end the generation; they are not part of the result
    seed: int | None = None  # of the sampling; None = a random one

    def __post_init__(self) -> None:
        """Raise TypeError or ConfigError for an impossible value."""
        require_type("max_tokens", self.max_tokens, Integral, "a whole number")
        require_type("temperature", self.temperature, Real, "a number")
        require_type("top_k", self.top_k, Integral, "a whole number")
        require_type("top_p", self.top_p, Real, "a number")
        require_type("seed", self.seed, (Integral, NoneType), "a whole number or None")
        require_type("stop", self.stop, (list, tuple), "a list of strings")
        if (
            self.max_tokens < 1
            or not 0 <= self.temperature <= sys.float_info.max
            or self.top_k < 0
            or not 0 < self.top_p <= 1
        ):
            raise ConfigError(
                f"generate needs max_tokens >= 1, a finite temperature >= 0, top_k >= 0, 0 < top_p <= 1; got "
                f"{self.max_tokens}, {self.temperature}, {self.top_k}, {self.top_p}"
            )
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed {self.seed} must be from 0 to 2^63 - 1")
        for text in self.stop:
            require_text("stop", text)
            if not text:
                raise ConfigError("a text of stop is empty; leave it out")


@dataclass(frozen=True)
class Continuation:
    """What was generated: the text, its tokens (the BOS that ended the document included), and whether it ended."""

    text: str
    tokens: list[int]
    ended: bool  # by the end of the document or by a stop text; False = by max_tokens


def generate(
    packed: PackedModel, prompt: str, sampling: Sampling, each: Callable[[str], None] = lambda text: None
) -> Continuation:
    """The continuation of `prompt`, without the prompt.

    Args:
        prompt: an empty prompt starts a document.
        each: called with the parts of the text, as soon as they are certain.
    """
    require_text("prompt", prompt)
    require_type("each", each, Callable, "a function of a text")  # type: ignore[arg-type]
    return continue_tokens(packed, packed.tokenizer.encode(prompt), sampling, each)


def continue_tokens(
    packed: PackedModel, prompt: Sequence[int], sampling: Sampling, each: Callable[[str], None] = lambda text: None
) -> Continuation:
    """`generate` after the tokens of a prompt, without the BOS before it."""
    generator = torch.Generator()
    generator.manual_seed(int(sampling.seed)) if sampling.seed is not None else generator.seed()
    model, tokenizer, window = packed.model, packed.tokenizer, packed.window
    steps = CachedSteps(model, window, small=SmallStep(model, 1, window) if is_small(model) else None)
    ids = [tokenizer.bos_id, *prompt]
    first, context = len(ids), ids[-window:]
    text = _StoppedText(_Spelling(tokenizer, ids), sampling.stop, each)
    with torch.no_grad(), one_blas_thread():
        logits = steps.begin(torch.tensor([context], device=packed.device))  # (1, V)
        num_cached = len(context)
        while True:
            token = _choose(logits[0], sampling, generator)
            ids.append(token)
            ended = token == tokenizer.bos_id or text.add(token)
            if ended or len(ids) - first == sampling.max_tokens:
                break
            if num_cached < window:
                logits = steps.step(torch.tensor([[token]], device=packed.device))
                num_cached += 1
            else:
                context = ids[-max(1, window // 2) :]
                logits = steps.begin(torch.tensor([context], device=packed.device))
                num_cached = len(context)
    return Continuation(text.finish(), ids[first:], ended)


class _Spelling:
    """Text of tokens one by one: only whole characters, so that the parts add up to the text of all tokens."""

    def __init__(self, tokenizer: Tokenizer, ids: list[int]) -> None:
        self._tokenizer, self._ids = tokenizer, ids
        self._spell: Callable[[bytes], bytes] = Speller().add if tokenizer.marks_capitals else bytes
        for token in ids:  # the last of them may be a mark
            self._spell(tokenizer.token_text_bytes(token))
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0 if tokenizer.lossless else len(tokenizer.decode(ids))

    def add(self, token: int) -> str:
        """The text that the token completes; `ids` hold it already."""
        if self._tokenizer.lossless:
            return self._utf8.decode(self._spell(self._tokenizer.token_text_bytes(token)))
        text = self._tokenizer.decode(self._ids)[self._length :].rstrip("\ufffd")
        self._length += len(text)
        return text

    def finish(self) -> str:
        """What is left at the end."""
        if self._tokenizer.lossless:
            return self._utf8.decode(b"", final=True)
        return self._tokenizer.decode(self._ids)[self._length :]


class _StoppedText:
    """Collects the text until one of the stop texts; passes on what cannot be the beginning of a stop text."""

    def __init__(self, spelling: _Spelling, stop: Sequence[str], each: Callable[[str], None]) -> None:
        self._spelling, self._stop, self._each = spelling, stop, each
        self._longest = max(map(len, stop), default=1)
        self._text, self._passed, self._ended = "", 0, False

    def add(self, token: int) -> bool:
        """Add a token; True when a stop text is complete."""
        return self._take(self._spelling.add(token), self._longest - 1)

    def finish(self) -> str:
        """The whole text."""
        if not self._ended:
            self._take(self._spelling.finish(), 0)
        return self._text

    def _take(self, text: str, held: int) -> bool:
        """Append `text`, and pass all but the last `held` characters on."""
        self._text += text
        places = [place for stop in self._stop if (place := self._text.find(stop, self._passed)) >= 0]
        if places:
            self._text, held, self._ended = self._text[: min(places)], 0, True
        certain = max(self._passed, len(self._text) - held)
        if certain > self._passed:
            self._each(self._text[self._passed : certain])
            self._passed = certain
        return self._ended


def require_text(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a string."""
    decoded = "; decode it first, as in data.decode('utf-8')" if isinstance(value, bytes | bytearray) else ""
    require_type(name, value, str, f"a string{decoded}")


def _choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw a token id from logits (V,)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = logits.float().cpu() / float(sampling.temperature)
    if sampling.top_k:
        kept = scaled.topk(min(sampling.top_k, scaled.numel()))
        scaled = torch.full_like(scaled, -torch.inf).scatter(0, kept.indices, kept.values)
    if sampling.top_p < 1:
        ordered, indices = scaled.sort(descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # of the tokens that are more likely
        scaled = scaled.index_fill(0, indices[before >= sampling.top_p], -torch.inf)
    # As `torch.multinomial` draws, without its checks: the exponential variables are the same.
    waiting = torch.empty_like(scaled).exponential_(1, generator=generator)
    return int((scaled.softmax(-1) / waiting).argmax())
