"""The configuration of a bitgolf model for Hugging Face Transformers."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class BitgolfConfig(PretrainedConfig):
    """Settings of the network.

    Attributes:
        network: the nested settings of `[model]` of a bitgolf configuration.
        window: tokens of context that the model was trained for.
        shapes: shape of every tensor by name.
    """

    model_type = "bitgolf"

    def __init__(
        self,
        network: dict[str, Any] | None = None,
        window: int = 0,
        shapes: dict[str, list[int]] | None = None,
        **kwargs: Any,
    ) -> None:
        self.network, self.window, self.shapes = network or {}, window, shapes or {}
        super().__init__(**kwargs)
