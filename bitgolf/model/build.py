"""A model on a device, with its dtype and attention backend, from a configuration; and weights copied into it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bitgolf.config import ModelConfig
from bitgolf.errors import ArtifactError
from bitgolf.model.backends import AttentionCase, choose_backend
from bitgolf.model.gpt import GPT
from bitgolf.run.ranks import has_bf16


def compute_dtype(device: torch.device) -> torch.dtype:
    """bf16 on GPUs that have it. fp32 on older GPUs (T4, V100, P100), on Apple GPUs and on CPUs.

    fp16 would need loss scaling and its small gradients would be lost. On CPUs results must be bit-exact.
    """
    return torch.bfloat16 if has_bf16(device) else torch.float32


def build_model(
    config: ModelConfig, context_length: int, device: torch.device, attention: str = "auto"
) -> tuple[GPT, str]:
    """An uninitialized model on `device`, and the name of its attention backend.

    Args:
        config: sizes and components.
        context_length: tokens per full window.
        attention: a backend name or `auto`.
    Raises:
        ConfigError: the named backend does not work on this device.
    """
    dtype = compute_dtype(device)
    case = AttentionCase(
        device,
        dtype,
        config.head_dim,
        config.num_heads,
        config.num_kv_heads,
        config.attention.within_documents,
        config.attention.window,
    )
    backend = choose_backend(attention, case)
    model = GPT(config, context_length, compute_dtype=dtype).to(device)
    model.set_attention_backend(backend)
    return model, backend


def check_tensors(config: ModelConfig, window: int, tensors: dict[str, Tensor], origin: str) -> None:
    """Raise ArtifactError unless `tensors` have the names and shapes of the model that `config` describes."""
    with torch.device("meta"):  # no memory is allocated for the sizes in a damaged header
        _check_tensors(dict(GPT(config, window).named_parameters()), tensors, origin)


@torch.no_grad()
def load_weights_(model: GPT, tensors: dict[str, Tensor], origin: str) -> None:
    """Copy named tensors into a model's parameters. Raises ArtifactError if names or shapes do not match."""
    parameters = dict(model.named_parameters())
    _check_tensors(parameters, tensors, origin)
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _check_tensors(parameters: Mapping[str, Tensor], tensors: dict[str, Tensor], origin: str) -> None:
    if set(parameters) != set(tensors):
        unmatched = sorted(set(parameters) ^ set(tensors))
        raise ArtifactError(f"{origin}: tensors do not match the model, first differing name {unmatched[0]!r}")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ArtifactError(
                f"{origin}: tensor {name!r} is {tuple(tensors[name].shape)}, the model needs {tuple(parameter.shape)}"
            )
