"""A tiny artifact with every kind of tensor."""

from typing import Any

import pytest
import surgery

from bitgolf.artifact.container import encode_artifact


@pytest.fixture
def contents() -> dict[str, Any]:
    """Arguments of `encode_artifact`, fresh for each test."""
    return surgery.tiny_contents()


@pytest.fixture
def rich_contents() -> dict[str, Any]:
    """The same with trellis codes, column scales, unbounded codes and tensors large enough for the coder's models."""
    return surgery.rich_contents()


@pytest.fixture
def artifact(contents: dict[str, Any]) -> bytes:
    """The bytes of the tiny artifact."""
    return encode_artifact(**contents)[0]
