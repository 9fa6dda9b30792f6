"""Small corpora and tokenizers trained on them."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from bitgolf.data.tokenizer import Tokenizer
from bitgolf.data.train_tokenizer import train_tokenizer

_SENTENCES = """
the quick brown fox jumps over lazy dogs while seven wizards brew potions under a pale moon and nobody
returns before morning because every road leads home again through fields of barley and clover
def return import class self value None True False
"""
WORDS = _SENTENCES.split()


def make_documents(count: int, seed: int = 0) -> list[str]:
    """`count` different documents of a few hundred bytes, with newlines, indentation, accents and emoji."""
    rng = random.Random(seed)
    documents = []
    for number in range(count):
        lines = [f"Document {seed}-{number}"]
        for _ in range(rng.randint(2, 8)):
            indent = " " * rng.choice((0, 0, 4, 8))
            lines.append(indent + " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 12))))
        lines.append(rng.choice(("café naïve", "日本語", "😀 fin", "plain\ttab", "")))
        documents.append("\n".join(lines))
    return documents


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return make_documents(300)


@pytest.fixture(scope="session")
def lossless(documents: list[str]) -> Tokenizer:
    return train_tokenizer(documents, 400, lossless=True)


@pytest.fixture(scope="session")
def challenge(documents: list[str]) -> Tokenizer:
    return train_tokenizer(documents, 400, lossless=False)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., str]:
    """Write documents as JSON lines. The result is the source string that reads them."""

    def write(texts: list[str], name: str = "corpus.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        return f"jsonl:{path}"

    return write
