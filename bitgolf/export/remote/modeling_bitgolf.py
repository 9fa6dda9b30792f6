"""A bitgolf model for Hugging Face Transformers. It needs this folder and no bitgolf.

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
    print(tokenizer.decode(model.generate(**tokenizer("The ", return_tensors="pt"), do_sample=True)[0]))

There is no cache of keys and values: `generate` computes the window anew for each token. Rows of a batch may be padded
on the right; those that `generate` continues must have one length.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_bitgolf import BitgolfConfig
from .network import Network


class BitgolfForCausalLM(PreTrainedModel, GenerationMixin):
    """The network with the interface of Transformers."""

    config_class = BitgolfConfig
    base_model_prefix = "network"

    def __init__(self, config: BitgolfConfig) -> None:
        super().__init__(config)
        self.network = Network(config.network, config.window, config.shapes)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """The embedding is a tensor of the network, not a module."""

    def get_output_embeddings(self) -> Any:
        """The embedding is a tensor of the network, not a module."""

    def _init_weights(self, module: Any) -> None:
        """All weights are loaded."""

    def forward(
        self,
        input_ids: Tensor,  # (B, T) int64
        attention_mask: Tensor | None = None,  # (B, T)
        labels: Tensor | None = None,  # (B, T); -100 = not scored
        **_: Any,
    ) -> CausalLMOutput:
        """Logits (B, T, V), and with `labels` the mean loss of the next token."""
        if attention_mask is not None and not bool(attention_mask[:, 0].all()):
            raise ValueError("the model does not support padding on the left; pad on the right, or use one row")
        logits = self.network(input_ids)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """The last tokens. When the window is full, its second half begins the next one, as in `bitgolf sample`."""
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("the model cannot continue padded rows; give prompts of one length, or one at a time")
        window, length = self.config.window, input_ids.size(1)
        start = 0
        if length > window:
            half = max(1, window // 2)
            period = window - half + 1
            start = window + 1 + (length - window - 1) // period * period - half
        return {"input_ids": input_ids[:, start:]}
