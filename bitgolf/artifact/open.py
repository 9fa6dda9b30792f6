"""Opens an artifact: the model on a device with its tokenizer, ready to score or to continue a text (`generate`).

Scoring, the codec, the audit and the report work on a `PackedModel`. `bitgolf.language_model` is the public object
around it.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from bitgolf.artifact.container import read_artifact
from bitgolf.config import ModelConfig
from bitgolf.data.canonical import forbidden_pairs
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import ArtifactError, DataError, ForeignError, require_type
from bitgolf.foreign import as_bool, as_integer, field, printable
from bitgolf.model.build import build_model, check_tensors, load_weights_
from bitgolf.model.gpt import GPT
from bitgolf.run.ranks import choose_device

_logger = logging.getLogger(__name__)

_LARGEST_WINDOW = 1 << 24  # tokens


@dataclass(frozen=True)
class PackedModel:
    """A model with its tokenizer."""

    model: GPT  # weights in place, on its device, in evaluation mode
    tokenizer: Tokenizer  # of the same vocabulary
    window: int  # context in tokens that the model was trained for
    stride: int  # number of targets that each step of a sliding window scores
    attention: str  # name of the attention backend

    @property
    def device(self) -> torch.device:
        return self.model.embedding.device


def open_model(
    path: str | Path, device: str | torch.device = "auto", attention: str = "auto", canonical: bool | None = None
) -> PackedModel:
    """Read an artifact and put its model on a device.

    Args:
        path: a `.bitgolf` file.
        device: auto, cpu, cuda, or a device.
        attention: backend name or auto.
        canonical: see `forbid_impossible_`; None = as the artifact says.
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
        canonical = as_bool(artifact.meta.get("canonical", False), "canonical") if canonical is None else canonical
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
    if canonical:
        forbid_impossible_(model, tokenizer)
    return PackedModel(model.eval().requires_grad_(False), tokenizer, window, stride, backend)


def forbid_impossible_(model: GPT, tokenizer: Tokenizer) -> None:
    """Give pairs of tokens that the tokenizer never emits almost no probability; warn if they are not known."""
    try:
        model.forbid_(forbidden_pairs(tokenizer.model_bytes))
    except DataError as error:
        _logger.warning("score.canonical has no effect: %s", error)
