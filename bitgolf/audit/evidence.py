"""What an audit of a run looks at: the products of the run directory, read when first asked for, and its evaluation.

A product that is missing raises `MissingEvidence` and names the stage that would write it; a damaged one raises
RunError. The evaluation is rebuilt from the artifact itself: eagerly for the tests that look at distributions, with
the run's own method, window and stride, on a piece of the validation data; a run that adapts while scoring is tested
with its adapter, its chunks shortened to one window so that a short text has several updates.
"""

from __future__ import annotations

import copy
import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitgolf.audit import flips
from bitgolf.audit.verdict import MissingEvidence
from bitgolf.config import Config
from bitgolf.errors import DataError, RunError
from bitgolf.evaluate.adapted_pass import AdaptedPass, adapted_pass, adapted_pass_name
from bitgolf.evaluate.tape import Adapter, Scorer
from bitgolf.evaluate.window_scorer import METHODS, Windows, make_scorer
from bitgolf.model.backends import reproducible_backend
from bitgolf.run.budget import Budget
from bitgolf.run.directory import RunDirectory
from bitgolf.run.ranks import World, choose_device, device_name

if TYPE_CHECKING:
    from bitgolf.artifact.open import PackedModel
    from bitgolf.data.prepare import PreparedData

_BLOCK_TOKENS = 1 << 22  # tokens whose bytes are counted at once
_FLIP_STRIDES = 3  # sliding windows after the first in a flip test's text
_FLIP_UPDATES = {True: 1, False: 2}  # chunks that an adapter learns from in a flip test, by `quick`
FLIP_ROWS = 4  # windows of a forward pass in the tests that run the model


class Evidence:
    """The products of a run and its headline evaluation.

    Args:
        run: the run directory.
        quick: shorter texts for the tests that run the model.
    """

    def __init__(self, run: RunDirectory, quick: bool) -> None:
        self.run, self.quick, self.config = run, quick, run.config
        self.limits = run.config.budget
        self.device = choose_device("auto" if run.config.device == "cuda" else run.config.device)

    @cached_property
    def budget(self) -> Budget:
        """The ledger of charges."""
        self.require("budget.json")
        return self.run.budget()

    @cached_property
    def pack(self) -> dict[str, Any]:
        """pack.json."""
        return self._json("pack.json")

    @cached_property
    def score(self) -> dict[str, Any]:
        """score.json, with an entry for its headline."""
        score = self._json("score.json")
        methods, headline = score.get("methods"), score.get("headline")
        if not isinstance(methods, dict) or not isinstance(methods.get(headline), dict):
            raise RunError(
                f"score.json has no method of the name of its headline {headline!r}; run "
                f"`bitgolf score {self.run.path}` again"
            )
        return score

    @cached_property
    def event_log(self) -> dict[str, Any]:
        """tape.json."""
        return self._json("tape.json")

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """Lines of train.jsonl."""
        path = self.require("train.jsonl")
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [_parse(line, path) for line in lines if line.strip()]

    @cached_property
    def nll(self) -> np.ndarray:
        """(N-1,) float32, nats."""
        path = self.require("nll.npy")
        try:
            nll = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise RunError(f"{path} is not an array of losses: {error}") from error
        if nll.ndim != 1 or nll.dtype.kind != "f" or not len(nll):
            raise RunError(f"{path} holds {nll.dtype} of shape {nll.shape}, not one float a target")
        return nll

    @cached_property
    def data(self) -> PreparedData:
        """The prepared data."""
        from bitgolf.data.prepare import open_data

        return open_data(self.require("data"))

    @cached_property
    def tokens(self) -> np.ndarray:
        """(N,) uint16, the validation data."""
        return self.data.val.read(0, self.data.val.num_tokens)

    @cached_property
    def byte_total(self) -> int:
        """Bytes of all N-1 targets, counted from the tokens."""
        total = 0
        for start in range(0, len(self.tokens) - 1, _BLOCK_TOKENS):
            costs = self.data.tokenizer.byte_costs(self.tokens[start : start + _BLOCK_TOKENS + 1])
            total += int(costs.sum(dtype=np.int64))
        return total

    @cached_property
    def artifact_sha256(self) -> str:
        """Of model.bitgolf as it is now."""
        with self.require("model.bitgolf").open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()

    @cached_property
    def artifact_facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the artifact says of itself: its `meta` and the configuration of its model."""
        from bitgolf.artifact.container import read_artifact

        artifact = read_artifact(self.require("model.bitgolf"))
        return artifact.meta, artifact.model_config

    @cached_property
    def calibration_tokens(self) -> int | None:
        """Tokens that the stored statistics were gathered from, as their file says; None without statistics."""
        from safetensors import SafetensorError, safe_open

        path = self.run / "calibration" / "hessians.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                return int((file.metadata() or {}).get("tokens", "-1"))
        except (SafetensorError, ValueError, OSError) as error:
            raise RunError(f"{path} cannot be read ({error}); run `bitgolf train {self.run.path}` again") from error

    @cached_property
    def packed(self) -> PackedModel:
        """The artifact, loaded."""
        from bitgolf.artifact.open import open_model

        return open_model(self.require("model.bitgolf"), device=str(self.device))

    @cached_property
    def method(self) -> str:
        """How windows are scored: the headline method, or what it adapts."""
        method = self.score["headline"]
        if self.adapted:
            return str(self.config.score.methods[-1])
        if method not in METHODS:
            raise MissingEvidence(
                f"the headline method {method!r} cannot be rebuilt by the audit (it knows {', '.join(METHODS)})"
            )
        return str(method)

    @property
    def adapted(self) -> bool:
        """Whether the headline is the configuration's adapted pass."""
        return bool(self.score["headline"] == adapted_pass_name(self.config.ttt, self.config.score.methods[-1]))

    @property
    def by_documents(self) -> bool:
        """Whether the headline scores document by document."""
        return self.adapted and self.config.ttt.method == "lora"

    @property
    def stride(self) -> int:
        """Targets newly scored by a window."""
        return self.config.window if self.method == "chunked" else self.config.score.stride

    @property
    def same_device(self) -> bool:
        """Whether this machine's device is the one that the scores come from."""
        return bool(self.score.get("device") == device_name(self.device))

    @cached_property
    def passage(self) -> np.ndarray:
        """Validation tokens for the tests that run the model: one window (as many as there are updates, with an
        adapter) and a few strides, (n,) uint16."""
        window, ttt = self.config.window, self.config.ttt
        first = window * (_FLIP_UPDATES[self.quick] if self.adapted and ttt.between_chunks else 1)
        length = min(first + min(_FLIP_STRIDES * self.stride, window) + 1, len(self.tokens))
        start = int(np.random.default_rng(self.config.seed).integers(len(self.tokens) - length + 1))
        return self.tokens[start : start + length]

    @cached_property
    def shown(self) -> flips.Trace:
        """The distributions and losses of the passage."""
        with flips.deterministic_kernels(self.device):
            return flips.trace(self.evaluation, self.passage, self.flip_chunk, with_losses=True)

    def evaluation(self, tokens: np.ndarray) -> tuple[Scorer, Adapter | None]:
        """The run's headline evaluation from scratch (`flips.Evaluation`)."""
        batch_tokens = FLIP_ROWS * self.config.window
        if not self.adapted:
            return self.scorer(batch_tokens), None
        found = self.adapted_evaluation(self.with_chunks(self.flip_chunk), len(tokens) - 1, batch_tokens)
        return found.scorer, found.adapter

    @property
    def flip_chunk(self) -> int:
        """Targets between two updates in the tests that run the model; 0 when there are none."""
        return self.config.window if self.adapted and self.config.ttt.between_chunks else 0

    def with_chunks(self, chunk_tokens: int) -> Config:
        """The configuration with other chunks, where something is learned between chunks."""
        if not self.config.ttt.between_chunks:
            return self.config
        return self.config.updated({"ttt.weights.chunk_tokens": chunk_tokens})

    def adapted_evaluation(self, config: Config, num_targets: int, batch_tokens: int) -> AdaptedPass:
        """The adapted pass of `config`, eagerly, on a copy of the artifact's model (with reproducible gradients)."""
        model = copy.deepcopy(self.packed.model)
        if self.device.type == "cuda":
            model.set_attention_backend(reproducible_backend(model.config.attention.within_documents))
        return adapted_pass(
            config.ttt,
            Windows.of(config, batch_tokens=batch_tokens),
            model,
            model,
            num_targets=num_targets,
            bos_id=self.data.tokenizer.bos_id,
            seed=config.seed,
            world=World(0, 1, self.device),
        )

    def scorer(self, batch_tokens: int, rank: int = 0, world_size: int = 1) -> Scorer:
        """The plain method that the headline uses, eagerly."""
        return make_scorer(
            self.method,
            self.packed.model,
            window=self.config.window,
            stride=self.stride,
            batch_tokens=batch_tokens,
            device=self.device,
            rank=rank,
            world_size=world_size,
        )

    def text_sources(self) -> list[Path]:
        """Where the run's text and tokens lie: the data directory, its shards, the corpus it was made from."""
        from bitgolf.data.sources import parse_source, source_files

        places = [self.run.path, self.run / "data"]
        if (self.run / "data").exists():
            places += [*self.data.train.paths, *self.data.val.paths]
        for source in (self.config.data.source, self.config.data.val_source):
            kind, argument = parse_source(source) if source else ("", "")
            if kind == "shards":
                places.append(Path(argument))
            elif kind in ("jsonl", "dir"):
                try:
                    places += source_files(source)
                except DataError:  # the corpus is not on this machine
                    continue
        return places

    def require(self, name: str) -> Path:
        """Path of a product. Raises MissingEvidence when it is not there."""
        try:
            return self.run.require(name)
        except RunError as error:
            raise MissingEvidence(str(error)) from error

    def _json(self, name: str) -> dict[str, Any]:
        path = self.require(name)
        return _parse(path.read_text(encoding="utf-8", errors="replace"), path)


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} holds {type(value).__name__}, not an object")
    return value
