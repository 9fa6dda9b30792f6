"""Tiny codec models (the tiny GPT with small tokenizers)."""

import hashlib
from collections.abc import Callable

import pytest
from tiny_gpt import WINDOW, config, tiny_gpt
from tiny_run import documents

from bitgolf.codec import CodecModel
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.data.train_tokenizer import train_tokenizer
from bitgolf.language_model import LanguageModel


@pytest.fixture(scope="session")
def lossless() -> Tokenizer:
    return train_tokenizer(documents()[:60], 360, lossless=True)


@pytest.fixture(scope="session")
def lossy() -> Tokenizer:
    """A tokenizer of the challenge's kind: it normalizes and collapses white space."""
    return train_tokenizer(documents()[:60], 360, lossless=False)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., CodecModel]:
    """Makes a codec model (window 16, stride 4) with a tokenizer; the seed decides the weights."""

    def make(tokenizer: Tokenizer, seed: int = 0) -> CodecModel:
        gpt = tiny_gpt(config().model.model_copy(update={"vocab_size": tokenizer.vocab_size}), seed)
        sha256 = hashlib.sha256(b"".join(p.numpy().tobytes() for p in gpt.parameters())).digest()
        return CodecModel(LanguageModel(gpt, tokenizer, WINDOW, 4, "math"), sha256)

    return make


@pytest.fixture(scope="session")
def model(make_model: Callable[..., CodecModel], lossless: Tokenizer) -> CodecModel:
    return make_model(lossless)


@pytest.fixture(scope="session")
def letters() -> bytes:
    """A few documents of the tests' corpus as one text."""
    return "\n".join(documents()[60:63]).encode()
