"""The predictor of an evaluation: sliding windows, plain or learning between chunks, or documents with adapters.

A predictor (`range_coder.Predictor`) computes token by token what the evaluation's scorer computes by whole windows.
The codec and the audit's check *codec* run it on both sides of the range coder.

Legend: S streams, r rank of the adapters.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from bitgolf.artifact.open import PackedModel
from bitgolf.codec.document_predictor import DocumentPredictor
from bitgolf.codec.range_coder import Streams
from bitgolf.codec.window_predictor import WindowPredictor
from bitgolf.config import TTTConfig
from bitgolf.config.evaluate import LoraTTTConfig
from bitgolf.errors import ConfigError
from bitgolf.evaluate.adapted_pass import adapted_pass
from bitgolf.evaluate.chunk_training import preserved
from bitgolf.evaluate.lora import initial_a, lora_sites
from bitgolf.evaluate.window_scorer import Windows
from bitgolf.model.backends import reproducible_backend
from bitgolf.run.ranks import World


@contextmanager
def fresh_predictor(
    packed: PackedModel,
    ttt: TTTConfig,
    windows: Windows,
    streams: Streams,
    *,
    seed: int,
    a: list[Tensor] | None = None,  # initial A of document adapters, (S, r, inputs) each; None = fresh
    earlier: bool = False,  # the arithmetic of earlier files, see `codec.exactness`
) -> Iterator[WindowPredictor | DocumentPredictor]:
    """The predictor of an evaluation before its first target; afterwards the model has its own weights again.

    `ttt.method` decides the kind: documents with adapters of their own, or windows (plain, or with weights that learn
    between chunks).
    """
    model = packed.model
    if ttt.method == "lora" and ttt.lora.global_after:
        raise ConfigError(
            "ttt.lora.global_after trains the model's weights between documents, and the codec codes documents side by "
            "side; set ttt.lora.global_after []"
        )
    with preserved(model), _deterministic_attention(packed):
        if ttt.method == "lora":
            yield DocumentPredictor(
                model,
                ttt.lora,
                lora_sites(model, ttt.lora.targets),
                a or fresh_adapters(packed, ttt.lora, seed, streams.number),
                streams,
                windows.length,
                earlier,
            )
            return
        adapted = None
        if ttt.enabled:
            adapted = adapted_pass(
                ttt,
                windows,
                model,
                model,
                num_targets=streams.num_targets,
                bos_id=packed.tokenizer.bos_id,
                seed=seed,
                world=World(0, 1, packed.device),
            )
        yield WindowPredictor(
            model,
            streams,
            window=windows.length,
            stride=windows.length if windows.method == "chunked" else windows.stride,
            adapted=adapted,
            earlier=earlier,
        )


def fresh_adapters(packed: PackedModel, config: LoraTTTConfig, seed: int, num_documents: int) -> list[Tensor]:
    """Initial A of every site for documents without predecessor, (num_documents, r, inputs) each."""
    sites = lora_sites(packed.model, config.targets)
    return [
        tensor.expand(num_documents, *tensor.shape).clone()
        for tensor in initial_a(sites, config.rank, seed, packed.device)
    ]


@contextmanager
def _deterministic_attention(packed: PackedModel) -> Iterator[None]:
    """On CUDA train with the attention whose gradients are reproducible; predictions attend to caches instead."""
    if packed.device.type != "cuda":
        yield
        return
    model = packed.model
    model.set_attention_backend(reproducible_backend(model.config.attention.is_masked))
    try:
        yield
    finally:
        model.set_attention_backend(packed.attention)
