"""From an evaluation's configuration to the stepwise program that codes with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from bitgolf.artifact.open import PackedModel
from bitgolf.codec.document_program import DocumentProgram
from bitgolf.codec.window_program import WindowProgram
from bitgolf.config import Config
from bitgolf.evaluate.adapters import adapted_evaluation, preserved
from bitgolf.evaluate.lora import initial_a, lora_sites
from bitgolf.model.backends import reproducible_backend
from bitgolf.run.ranks import World


@contextmanager
def fresh_program(
    packed: PackedModel,
    config: Config,
    *,
    num_streams: int,
    longest: int,  # most tokens of a stream
    num_targets: int,  # of the whole text, for the schedule of test-time training
    first_token: int,  # before every stream
    a: list[Tensor] | None = None,  # of the adapters of documents, (num_streams, r, inputs) each; None = fresh
) -> Iterator[WindowProgram | DocumentProgram]:
    """The program of an evaluation before its first target; afterwards the model has its own weights again.

    `config.ttt` decides the kind: documents with adapters of their own, or sliding windows (plain, or with what
    learns between chunks); the windows are `config.window` and `config.score.stride`.
    """
    model, ttt = packed.model, config.ttt
    with preserved(model), _deterministic_attention(packed):
        if ttt.method == "lora":
            sites = lora_sites(model, ttt.lora.targets)
            yield DocumentProgram(
                model,
                ttt,
                sites,
                a or fresh_adapters(packed, config, num_streams),
                longest=longest,
                window=config.window,
                first_token=first_token,
            )
            return
        adapted = None
        if ttt.enabled:
            bos_id, world = packed.tokenizer.bos_id, World(0, 1, packed.device)
            adapted = adapted_evaluation(config, model, model, num_targets=num_targets, bos_id=bos_id, world=world)
        yield WindowProgram(
            model,
            num_streams=num_streams,
            longest=longest,
            window=config.window,
            stride=config.window if config.score.methods[-1] == "chunked" else config.score.stride,
            first_token=first_token,
            adapted=adapted,
        )


def fresh_adapters(packed: PackedModel, config: Config, num_documents: int) -> list[Tensor]:
    """A of every site as a document without predecessor starts from, (num_documents, r, inputs) each."""
    sites = lora_sites(packed.model, config.ttt.lora.targets)
    first = initial_a(sites, config.ttt.lora.rank, config.seed, packed.device)
    return [tensor.expand(num_documents, *tensor.shape).clone() for tensor in first]


@contextmanager
def _deterministic_attention(packed: PackedModel) -> Iterator[None]:
    """On CUDA use the attention whose gradients are reproducible. Predictions use none, they attend to caches."""
    if packed.device.type != "cuda":
        yield
        return
    model = packed.model
    model.set_attention_backend(reproducible_backend(model.config.attention.within_documents))
    try:
        yield
    finally:
        model.set_attention_backend(packed.attention)
