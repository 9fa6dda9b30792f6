"""An artifact as a library object: log-probabilities, bits per byte and generation.

    model = bitgolf.load("model.bitgolf")
    model.bits_per_byte("some text"), model.logprobs("some text"), model.generate("Once")

The file is all that `load` needs: it holds the weights, the configuration of the model and the tokenizer.

Legend: n tokens of a text, without the BOS before it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bitgolf.artifact.generate import Sampling, generate, require_text
from bitgolf.artifact.open import PackedModel, open_model
from bitgolf.errors import ConfigError
from bitgolf.evaluate.bits import BitsPerByte, bits_per_byte
from bitgolf.evaluate.tape import ScoreTape, evaluate
from bitgolf.evaluate.window_scorer import Windows, WindowScorer
from bitgolf.run.ranks import World

# Tokens per forward pass. On a CPU larger batches are not faster and take more memory than the text.
_BATCH_TOKENS = {"cuda": 65_536, "cpu": 8_192}


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of one text as a document of its own.

    Attributes:
        tokens: (n) ids.
        pieces: the bytes of each token.
        logprobs: (n,) float32, nats; `logprobs[i]` is that of `tokens[i]` given the BOS and all tokens before it.
    """

    tokens: list[int]
    pieces: list[bytes]
    logprobs: np.ndarray


class LanguageModel(PackedModel):
    """A packed model that scores and continues text; `load` returns one."""

    def logprobs(self, text: str) -> LogProbs:
        """Log-probabilities of every token of `text` as a document of its own.

        A text longer than the window is scored by sliding windows, each token once, from at least `window - stride`
        tokens before it. Raises ConfigError for an empty text.
        """
        ids, nll = self._score(text)
        tokens = [int(i) for i in ids[1:]]
        return LogProbs(tokens, self.tokenizer.spell(tokens), -nll)

    def bits_per_byte(self, text: str) -> float:
        """Bits per UTF-8 byte of `text`. Raises ConfigError for an empty text."""
        return self.score(text).bpb

    def score(self, text: str) -> BitsPerByte:
        """Bits per byte of `text`, with its loss and counts."""
        ids, nll = self._score(text)
        return bits_per_byte(nll, self.tokenizer.byte_costs(ids))

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        each: Callable[[str], None] = lambda text: None,
    ) -> str:
        """The continuation of `prompt`, without the prompt.

        Args:
            prompt: an empty prompt starts a document.
            max_tokens: tokens to add at most. Generation also ends where the model ends the document.
            temperature: 0 takes the most likely token each time.
            top_k: sample among the k most likely tokens; 0 = all.
            top_p: sample among the fewest most likely tokens whose probabilities add up to this; 1 = all.
            stop: texts that end the generation; they are not part of the result.
            seed: of the sampling; None = a random one.
            each: called with the parts of the text, as soon as they are certain.
        Raises:
            ConfigError: a value is out of range.
        """
        return generate(self, prompt, Sampling(max_tokens, temperature, top_k, top_p, stop, seed), each).text

    def _score(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        require_text("text", text)
        if not text:
            raise ConfigError("cannot score an empty text: there is no token to predict")
        ids = np.append(np.uint16(self.tokenizer.bos_id), self.tokenizer.encode_documents([text])[0])
        tape = ScoreTape(ids)
        evaluate(tape, self.scorer(len(ids)))
        return ids, np.asarray(tape.nll)

    def scorer(self, num_tokens: int) -> WindowScorer:
        """The scorer of a text of so many tokens: sliding windows."""
        most = _BATCH_TOKENS["cuda" if self.device.type == "cuda" else "cpu"]
        batch = max(self.window, min(most, self.window * (1 + num_tokens // self.stride)))
        documents = self.model.config.attention.within_documents
        windows = Windows("sliding", self.window, min(self.stride, self.window), batch, documents)
        return windows.scorer(self.model, World(0, 1, self.device))


def load(path: str | Path, device: str | torch.device = "auto", attention: str = "auto") -> LanguageModel:
    """Read an artifact and put its model on a device.

    Args:
        path: a `.bitgolf` file.
        device: auto, cpu, cuda, or a torch.device.
        attention: name of an attention backend, or auto.
    Raises:
        ArtifactError: the file is missing, damaged, or written by a newer version.
    """
    return LanguageModel(**vars(open_model(path, device, attention)))
