"""The network: `GPT(config, context_length)` maps token ids to logits, or with targets to the mean loss."""

from bitgolf.model.gpt import GPT, count_parameters

__all__ = ["GPT", "count_parameters"]
