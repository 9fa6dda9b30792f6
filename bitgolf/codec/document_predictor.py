"""The document evaluation token by token: every stream is a document with low-rank adapters of its own.

It predicts what `evaluate.document_scorer` predicts by whole chunks (LoRA per document, PR 1530). Inside a chunk the
keys and values are cached and the adapters do not change. At the end of a chunk every document that continues takes one
AdamW step on the chunk's mean loss. A chunk's window ends C targets after its start, wherever the document ends. A
document that has ended leaves the batch at the next chunk border. Its A matrices can start the next document in its
slot.

Legend: N documents (streams), C targets of a chunk, T window, V vocabulary, r rank.
"""

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitgolf.codec.range_coder import Array, Streams
from bitgolf.config.evaluate import LoraTTTConfig
from bitgolf.evaluate.lora import DocumentAdapters, Site, adapted_logits
from bitgolf.model.cache import Cache
from bitgolf.model.cached_steps import CachedSteps, recorder_for
from bitgolf.model.gpt import GPT


class DocumentPredictor:
    """A `Predictor` of documents with adapters that learn; the model does not change."""

    def __init__(
        self,
        model: GPT,  # on its device
        config: LoraTTTConfig,  # adapters and chunks
        sites: list[Site],  # places of the adapters, see `lora_sites`
        a: list[Tensor],  # initial A of every site, (N, r, inputs) fp32
        streams: Streams,  # the N documents
        window: int,  # T
        earlier: bool = False,  # the arithmetic of earlier files, see `codec.exactness`
    ) -> None:
        self.model, self.config, self.window, self.earlier = model, config, window, earlier
        self.positions = window if earlier else streams.positions(window)
        self.device = model.embedding.device
        self.tokens = torch.zeros(streams.number, streams.longest + 1, dtype=torch.int64, device=self.device)
        self.tokens[:, 0] = streams.first_token
        self.adapters = DocumentAdapters(sites, a, config)
        self.active = np.arange(streams.number)  # documents whose adapters are in `adapters`, in this order
        self.rows = torch.arange(streams.number, device=self.device)  # the same on the device
        self.places = self.rows  # of each document in `active`; 0 for those that have ended
        self.handed = [tensor.clone() for tensor in a]
        self.position = 0
        self.steps = self._fresh_steps()

    def logits(self, going: np.ndarray) -> Tensor:
        size, position = self.config.chunk_tokens, self.position
        border = position % size == 0
        if border and position:
            self._leave(going)
            self._learn(position - size, position)
        if border:
            logits = self.steps.begin(self.tokens[self.rows, max(0, position + size - self.window) : position + 1])
        else:
            logits = self.steps.step(self.tokens[self.rows, position : position + 1])
        return logits[self.places]

    def accept(self, tokens: Array) -> None:
        self.position += 1
        self.tokens[:, self.position] = torch.as_tensor(tokens, device=self.device)

    def hand_down(self) -> list[Tensor]:
        """A of every site as each document left it, (N, r, inputs)."""
        self._leave(np.zeros(len(self.tokens), dtype=bool))
        return self.handed

    def _leave(self, going: np.ndarray) -> None:
        """Drop the documents that have ended, keeping their A."""
        stays = going[self.active]
        if stays.all():
            return
        ended = torch.from_numpy(np.flatnonzero(~stays)).to(self.device)
        slots = torch.from_numpy(self.active[~stays]).to(self.device)
        for handed, a in zip(self.handed, self.adapters.a, strict=True):
            handed[slots] = a[ended]
        self.adapters.drop_others(torch.from_numpy(np.flatnonzero(stays)).to(self.device))
        self.active = self.active[stays]
        self.rows = torch.from_numpy(self.active).to(self.device)
        self.places = torch.zeros_like(self.places).index_copy_(
            0, self.rows, torch.arange(len(self.rows), device=self.device)
        )
        self.steps = self._fresh_steps()  # for the smaller batch

    def _fresh_steps(self) -> CachedSteps:
        recorder = recorder_for(self.model)
        return CachedSteps(self.model, self.positions, predict=self._predict, recorder=recorder, whole=self.earlier)

    def _predict(self, tokens: Tensor, cache: Cache) -> Tensor:
        view = cast(GPT, _Continued(self.model, cache))
        return adapted_logits(view, self.adapters, tokens, 1)[:, 0]

    def _learn(self, start: int, stop: int) -> None:
        """One step of every active document on its targets start..stop-1."""
        inputs = self.tokens[self.rows, max(0, stop - self.window) : stop]
        targets = self.tokens[self.rows, start + 1 : stop + 1]
        for tensor in self.adapters.parameters:
            tensor.requires_grad_(True)
        with torch.enable_grad():
            logits = adapted_logits(self.model, self.adapters, inputs, stop - start)
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            loss = losses.view(targets.shape).mean(1).sum()
        gradients = list(torch.autograd.grad(loss, self.adapters.parameters))
        for tensor in self.adapters.parameters:
            tensor.requires_grad_(False)
        self.adapters.step(gradients)


class _Continued:
    """A model whose `hidden` continues a cache, for functions that are written for whole windows."""

    def __init__(self, model: GPT, cache: Cache) -> None:
        self._model, self._cache = model, cache

    def hidden(self, tokens: Tensor, **options: Any) -> Tensor:
        return self._model.hidden(tokens, self._cache, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
