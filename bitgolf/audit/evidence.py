"""What an audit of a run looks at: the products of the run directory, read when a check first asks for them.

A product that is missing raises `MissingEvidence`, which names the stage that would write it. A damaged one raises
RunError. `headline` rebuilds the run's evaluation for the checks that run the model; `again` scores the artifact once
more in a sealed process. All random choices of an audit (passages, flips, blocks) are drawn from `entropy`, which comes
from the operating system, so that nobody can know before the audit which targets it will look at.
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from tokenize import TokenError  # of NumPy, for some headers
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from bitgolf.artifact.container import read_artifact
from bitgolf.audit.headline import Headline
from bitgolf.audit.registry import Registry
from bitgolf.audit.sandbox.process_limits import Limits
from bitgolf.audit.sealed_run import SealedRun
from bitgolf.audit.verdict import MissingEvidence
from bitgolf.data.prepared import PreparedData, open_data
from bitgolf.data.sources import FILE_KINDS, all_sources, parse_source, source_files
from bitgolf.errors import DataError, ForeignError, RunError
from bitgolf.foreign import as_object, parse_json_lines, printable, read_bytes, read_json, require_regular
from bitgolf.run.budget import Budget
from bitgolf.run.directory import RunDirectory
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import choose_device
from bitgolf.run.seal import file_digest

_BLOCK_TOKENS = 1 << 22  # tokens whose bytes are counted at once


@dataclass(eq=False)
class Evidence:
    """The products of a run, and how thoroughly they are audited."""

    run: RunDirectory
    _: KW_ONLY
    quick: bool = False  # shorter texts, fewer flips and fewer blocks for the checks that run the model
    everything: bool = False  # the sealed process scores all targets again, not a sample of them
    codec_bytes: int = 0  # validation text to code and decode; 0 = none
    # seeds the random choices; by default it comes from the operating system
    entropy: int = field(default_factory=lambda: secrets.randbits(64))
    # limits of the sealed process, as keywords of `Limits.of`
    sealed_limits: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = silent  # for checks that take long

    def __post_init__(self) -> None:
        self.config = self.run.config
        self.device = choose_device("auto" if self.config.device == "cuda" else self.config.device)

    def rng(self, what: str) -> np.random.Generator:
        """The random numbers of one check, e.g. `rng("blocks")`: independent of those of others."""
        return np.random.default_rng([self.entropy, int.from_bytes(what.encode(), "big")])

    @cached_property
    def budget(self) -> Budget:
        self.require("budget.json")
        return self.run.budget()

    @cached_property
    def pack(self) -> dict[str, Any]:
        return self._json("pack.json")

    @cached_property
    def score(self) -> dict[str, Any]:
        """score.json, with an entry for its headline."""
        score = self._json("score.json")
        methods, headline = score.get("methods"), score.get("headline")
        entry = methods.get(headline) if isinstance(methods, dict) and isinstance(headline, str) else None
        if not isinstance(entry, dict):
            raise RunError(
                f"score.json has no method of the name of its headline {headline!r}; run "
                f"`bitgolf score {self.run.path}` again"
            )
        return score

    @cached_property
    def event_log(self) -> dict[str, Any]:
        return self._json("tape.json")

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """Lines of train.jsonl."""
        path = self.require("train.jsonl")
        try:
            return [as_object(value, "a line") for value in parse_json_lines(read_bytes(path))]
        except ForeignError as error:
            raise RunError(f"{path} is damaged: {error}") from error

    @cached_property
    def nll(self) -> np.ndarray:
        """(N-1,) float32, nats: the losses of the headline."""
        return self.losses("nll.npy")

    def losses(self, name: str) -> np.ndarray:
        """The losses in a file of the run, (n,) floats, nats."""
        path = self.require(name)
        try:
            nll = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError, SyntaxError, TokenError) as error:
            raise RunError(f"{path} is not an array of losses: {error}") from error
        if nll.ndim != 1 or nll.dtype.kind != "f" or not len(nll):
            raise RunError(f"{path} holds {nll.dtype} of shape {nll.shape}, not one float per target")
        return nll

    @cached_property
    def data(self) -> PreparedData:
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
        return file_digest(self.require("model.bitgolf"))

    @cached_property
    def artifact_facts(self) -> tuple[dict[str, Any], dict[str, Any], str]:
        """What the artifact says of itself: `meta`, the configuration of its model, the SHA-256 of its tokenizer."""
        artifact = read_artifact(self.require("model.bitgolf"))
        return artifact.meta, artifact.model_config, hashlib.sha256(artifact.tokenizer).hexdigest()

    @cached_property
    def calibration_tokens(self) -> int | None:
        """Tokens that the stored statistics were gathered from, as their file says; None without statistics."""
        path = self.run / "calibration" / "hessians.safetensors"
        if not path.exists():
            return None
        try:
            require_regular(path)
            with safe_open(path, "pt") as file:
                return int((file.metadata() or {}).get("tokens", "-1"))
        except (SafetensorError, ValueError, OSError) as error:
            raise RunError(f"{path} cannot be read ({error}); run `bitgolf train {self.run.path}` again") from error

    @cached_property
    def headline(self) -> Headline:
        """The run's evaluation, for checks that run the model."""
        return Headline(
            self.score["headline"],
            self.config,
            self.require("model.bitgolf"),
            self.tokens,
            self.data.tokenizer.bos_id,
            self.quick,
            self.rng("passage"),
        )

    @cached_property
    def again(self) -> SealedRun:
        """The artifact scored again in a sealed process."""
        limits = Limits.of(
            self.require("model.bitgolf").stat().st_size,
            torch.get_num_threads(),
            self.device.type == "cuda",
            **self.sealed_limits,
        )
        return SealedRun(self.headline, self.text_sources, self.everything, self.rng("blocks"), limits)

    def close(self) -> None:
        if "again" in self.__dict__:
            self.again.close()

    def text_sources(self) -> list[Path]:
        """Where the run's text and tokens lie: the data directory, its shards, the corpus it was made from."""
        places = [self.run.path, self.run / "data"]
        if (self.run / "data").exists():
            places += [*self.data.train.paths, *self.data.val.paths]
        for source in all_sources(self.config.data):
            kind, argument = parse_source(source)
            if kind == "shards":
                places.append(Path(argument))
            elif kind in FILE_KINDS:
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
        try:
            return as_object(read_json(path), "the document")
        except ForeignError as error:
            raise RunError(f"{path} is damaged: {error}") from error


run_checks: Registry[Evidence] = Registry()


def number(values: Mapping[str, Any], key: str, where: str) -> int | float:
    """A number of a record. Raises DataError when it is none."""
    value = values.get(key) if isinstance(values, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where} has no number {key!r} (it has {printable(repr(value))})")
    return value
