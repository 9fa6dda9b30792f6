"""Audit of a run directory: gather the evidence, make every check, write audit.json.

Each check reads the products that it needs when it needs them. A product that is missing makes the check NOT RUN
and names the stage that would write it; a product that is damaged fails it. Tests that run the model use the
artifact itself, eagerly, with the run's own method, window and stride, on a piece of the validation data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitgolf import atomic
from bitgolf.audit import checks, distribution, flips, reproduce
from bitgolf.audit.verdict import Check, MissingEvidence, Rule, Verdict
from bitgolf.budget import Budget
from bitgolf.distributed import choose_device, device_name
from bitgolf.errors import RunError
from bitgolf.evaluate.score import scoring_model
from bitgolf.evaluate.scorers import METHODS, make_scorer
from bitgolf.evaluate.tape import Adapter, Scorer, tokens_sha256
from bitgolf.progress import Progress, silent
from bitgolf.record.code import code_bytes
from bitgolf.rundir import RunDirectory

if TYPE_CHECKING:
    from bitgolf.data.prepare import PreparedData
    from bitgolf.language_model import LanguageModel

_BLOCK_TOKENS = 1 << 22  # tokens whose bytes are counted at once
_FLIP_STRIDES = 3  # sliding windows after the first in a flip test's text
_FLIP_ROWS = 4  # windows of a forward pass in the tests that run the model
_NUM_FLIPS = {True: 3, False: 10}  # by `quick`
_NUM_BLOCKS = {True: 4, False: 16}


def audit_run(run: RunDirectory, *, quick: bool = False, progress: Progress = silent) -> Verdict:
    """Make every check on a run and write audit.json.

    Args:
        run: what it lacks becomes NOT RUN.
        quick: fewer flips and fewer rescored blocks.
        progress: called with stage "audit" and the number of checks made.
    """
    evidence = _Evidence(run, quick)
    todo: list[tuple[Rule, Callable[[], Check]]] = [
        (checks.ARTIFACT_BYTES, evidence.artifact_bytes),
        (checks.TRAIN_CLOCK, evidence.train_clock),
        (checks.EVAL_CLOCK, evidence.eval_clock),
        (checks.SEALED, evidence.sealed),
        (checks.DISJOINT, evidence.disjoint),
        (checks.SCORED_ONCE, evidence.scored_once),
        (checks.SCORE_FIRST, lambda: checks.score_first(evidence.ledger)),
        (checks.COUNTS, evidence.counts),
        (checks.IDENTITY, evidence.identity),
        (flips.FUTURE_FLIP, lambda: evidence.flip(flips.future_flip)),
        (flips.TARGET_FLIP, lambda: evidence.flip(flips.target_flip)),
        (distribution.NORMALIZED, evidence.normalization),
        (distribution.LOSSES_MATCH, evidence.losses_match),
        (reproduce.REPRODUCED, evidence.reproduction),
    ]
    made: list[Check] = []
    for done, (rule, check) in enumerate(todo):
        progress("audit", done, len(todo), rule.name)
        made.append(rule.attempt(check))
    progress("audit", len(todo), len(todo))
    verdict = Verdict(tuple(made))
    atomic.write_json(run / "audit.json", {**verdict.to_json(), "quick": quick, "device": str(evidence.device)})
    return verdict


class _Evidence:
    """The products of a run, read when first asked for."""

    def __init__(self, run: RunDirectory, quick: bool) -> None:
        self.run = run
        self.quick = quick
        self.limits = run.config.budget
        self.device = choose_device("auto" if run.config.device == "cuda" else run.config.device)

    @cached_property
    def budget(self) -> Budget:
        self._require("budget.json")
        return self.run.budget()

    @cached_property
    def pack(self) -> dict[str, Any]:
        return self._json("pack.json")

    @cached_property
    def score(self) -> dict[str, Any]:
        score = self._json("score.json")
        methods, headline = score.get("methods"), score.get("headline")
        if not isinstance(methods, dict) or not isinstance(methods.get(headline), dict):
            raise RunError(f"score.json has no method of the name of its headline {headline!r}; run "
                           f"`bitgolf score {self.run.path}` again")
        return score

    @cached_property
    def ledger(self) -> dict[str, Any]:
        return self._json("tape.json")

    @cached_property
    def nll(self) -> np.ndarray:
        """(N-1,) float32, nats."""
        path = self._require("nll.npy")
        try:
            nll = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise RunError(f"{path} is not an array of losses: {error}") from error
        if nll.ndim != 1 or nll.dtype.kind != "f" or not len(nll):
            raise RunError(f"{path} holds {nll.dtype} of shape {nll.shape}, not one float a target")
        return nll

    @cached_property
    def data(self) -> PreparedData:
        from bitgolf.data.prepare import open_data

        return open_data(self._require("data"))

    @cached_property
    def tokens(self) -> np.ndarray:
        """(N,) uint16, the validation data."""
        return self.data.val.read(0, self.data.val.num_tokens)

    @cached_property
    def byte_total(self) -> int:
        """Bytes of all N-1 targets, counted from the tokens."""
        total = 0
        for start in range(0, len(self.tokens) - 1, _BLOCK_TOKENS):
            costs = self.data.tokenizer.byte_costs(self.tokens[start:start + _BLOCK_TOKENS + 1])
            total += int(costs.sum(dtype=np.int64))
        return total

    @cached_property
    def language_model(self) -> LanguageModel:
        from bitgolf.language_model import load

        return load(self._require("model.bitgolf"), device=str(self.device))

    @cached_property
    def method(self) -> str:
        method = self.score["headline"]
        if method not in METHODS:
            raise MissingEvidence(f"the headline method {method!r} cannot be rebuilt by the audit (it knows "
                                  f"{', '.join(METHODS)})")
        return str(method)

    @property
    def stride(self) -> int:
        return self.run.config.window if self.method == "chunked" else self.run.config.score.stride

    @cached_property
    def passage(self) -> np.ndarray:
        """Validation tokens for the tests that run the model: one window and a few strides, (n,) uint16."""
        window = self.run.config.window
        length = min(window + min(_FLIP_STRIDES * self.stride, window) + 1, len(self.tokens))
        start = int(np.random.default_rng(self.run.config.seed).integers(len(self.tokens) - length + 1))
        return self.tokens[start:start + length]

    @cached_property
    def shown(self) -> flips.Trace:
        with flips.deterministic_kernels(self.device):
            return flips.trace(self.evaluation, self.passage, with_losses=True)

    def evaluation(self, tokens: np.ndarray) -> tuple[Scorer, Adapter | None]:
        """The run's headline evaluation from scratch (`flips.Evaluation`)."""
        return self.scorer(_FLIP_ROWS * self.run.config.window), None

    def scorer(self, batch_tokens: int) -> Scorer:
        return make_scorer(self.method, self.language_model.model, window=self.run.config.window, stride=self.stride,
                           batch_tokens=batch_tokens, device=self.device)

    def artifact_bytes(self) -> Check:
        return checks.artifact_bytes(self._require("model.bitgolf").stat().st_size, code_bytes(),
                                     self.limits.artifact_bytes, self.pack, self.budget.spent("artifact_bytes"))

    def train_clock(self) -> Check:
        path = self._require("train.jsonl")
        events = [self._parse(line, path) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return checks.train_clock(self.budget.spent("train_seconds"), self.limits.train_seconds, events)

    def eval_clock(self) -> Check:
        methods = {name: float(entry.get("seconds", 0)) for name, entry in self.score["methods"].items()}
        return checks.eval_clock(self.budget.spent("eval_seconds"), self.limits.eval_seconds, methods,
                                 float(self.score.get("evaluation_seconds", 0)))

    def sealed(self) -> Check:
        with self._require("model.bitgolf").open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        return checks.artifact_sealed(digest, str(self.score.get("model_sha256")))

    def disjoint(self) -> Check:
        from bitgolf.data.prepare import check_disjoint

        root = self._require("data")
        hashes = self.data.manifest.get("document_hashes", {})
        missing = [entry["file"] for entry in hashes.values() if not (root / entry["file"]).is_file()]
        if missing or not hashes:
            raise MissingEvidence(f"{root} has no document hashes ({', '.join(missing) or 'none in its manifest'})")
        return checks.disjoint_splits(*check_disjoint(root))

    def scored_once(self) -> Check:
        return checks.scored_once(self.ledger, len(self.tokens), tokens_sha256([self.tokens]), len(self.nll))

    def counts(self) -> Check:
        split = self.data.manifest["splits"]["val"]
        counted = "raw_bytes" if self.data.manifest.get("accounting") == "original" else "counted_bytes"
        manifest = {"tokens": split.get("tokens"), "documents": split.get("documents"), "bytes": split.get(counted)}
        documents = int((self.tokens == self.data.tokenizer.bos_id).sum())
        return checks.counts(len(self.tokens), documents, self.byte_total, manifest, self.score,
                             self.score["methods"][self.score["headline"]])

    def identity(self) -> Check:
        return checks.identity(self.nll, self.byte_total, self.score["methods"], self.score["headline"])

    def flip(self, check: Callable[..., Check]) -> Check:
        with flips.deterministic_kernels(self.device):
            return check(self.evaluation, self.passage, vocab_size=self.run.config.model.vocab_size,
                         bos_id=self.data.tokenizer.bos_id, num_flips=_NUM_FLIPS[self.quick], seed=self.run.config.seed)

    def normalization(self) -> Check:
        return distribution.normalization(self.shown.log_p, self.run.config.model.vocab_size)

    def losses_match(self) -> Check:
        return distribution.losses_match(self.shown, self.passage)

    def reproduction(self) -> Check:
        config = self.run.config
        rows = max(_FLIP_ROWS, config.score.batch_tokens // config.window) if self.device.type == "cuda" else _FLIP_ROWS
        blocks = reproduce.sample_blocks(len(self.tokens) - 1, rows * self.stride, _NUM_BLOCKS[self.quick],
                                         self.run.config.seed)
        scorer = make_scorer(self.method, scoring_model(self.language_model.model, config, self.device),
                             window=config.window, stride=self.stride, batch_tokens=rows * config.window,
                             device=self.device)
        return reproduce.reproduction(scorer, self.tokens, self.nll, blocks,
                                      same_kernels=self.score.get("device") == device_name(self.device))

    def _require(self, name: str) -> Path:
        try:
            return self.run.require(name)
        except RunError as error:
            raise MissingEvidence(str(error)) from error

    def _json(self, name: str) -> dict[str, Any]:
        path = self._require(name)
        return self._parse(path.read_text(encoding="utf-8", errors="replace"), path)

    def _parse(self, text: str, path: Path) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise RunError(f"{path} is damaged: {error}") from error
        if not isinstance(value, dict):
            raise RunError(f"{path} holds {type(value).__name__}, not an object")
        return value
