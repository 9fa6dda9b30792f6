"""The tensors of a model as `remote/network.py` takes them."""

import torch
from torch import Tensor

from bitgolf.export.remote.network import Network
from bitgolf.model.embeddings import SignedBigrams
from bitgolf.model.gpt import GPT


def tensors_of(model: GPT) -> dict[str, Tensor]:
    """Parameters by name, and `forbidden` if the model has such pairs of tokens; on the CPU."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    if isinstance(model.bigram, SignedBigrams):
        tensors["bigram.signs"] = model.bigram.signs.to(torch.int8)
    if model.forbidden is not None:
        tensors["forbidden"] = model.forbidden
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    """The shape of every tensor, for the configuration."""
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def network_of(model: GPT) -> Network:
    """The model in plain PyTorch, on the CPU."""
    tensors = tensors_of(model)
    network = Network(model.config.model_dump(mode="json"), model.context_length, shapes_of(tensors))
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)
