"""The language model: `GPT(config, context_length)` maps token ids to logits or to the mean loss."""

from bitgolf.model.gpt import GPT, count_parameters

__all__ = ["GPT", "count_parameters"]
