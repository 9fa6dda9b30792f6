"""Audit of a run directory: gather the evidence, make every check, write audit.json.

Each check reads the products that it needs when it needs them. A product that is missing makes the check NOT RUN
and names the stage that would write it; a product that is damaged fails it. Tests that run the model use the
artifact itself, eagerly, with the run's own method, window and stride, on a piece of the validation data. A run
that adapts while scoring is tested with its adapter; so that a short text has several updates, the flip tests
shorten its chunks to one window. Its reproduction runs the beginning of the text, from the first target on.
"""

from __future__ import annotations

import copy
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
from bitgolf.code_size import code_bytes
from bitgolf.config import Config
from bitgolf.distributed import World, choose_device, device_name
from bitgolf.errors import RunError
from bitgolf.evaluate.adapters import AdaptedEvaluation, adapted_evaluation, adapted_name
from bitgolf.evaluate.documents import DocumentScorer
from bitgolf.evaluate.score import scoring_model
from bitgolf.evaluate.scorers import METHODS, make_scorer
from bitgolf.evaluate.tape import Adapter, Scorer, tokens_sha256
from bitgolf.progress import Progress, silent
from bitgolf.rundir import RunDirectory

if TYPE_CHECKING:
    from bitgolf.data.prepare import PreparedData
    from bitgolf.language_model import LanguageModel

_BLOCK_TOKENS = 1 << 22  # tokens whose bytes are counted at once
_FLIP_STRIDES = 3  # sliding windows after the first in a flip test's text
_FLIP_UPDATES = {True: 1, False: 2}  # chunks that an adapter learns from in a flip test, by `quick`
_REPRODUCED_UPDATES = {True: 1, False: 3}  # chunks that it learns from in the reproduction
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
            raise RunError(
                f"score.json has no method of the name of its headline {headline!r}; run "
                f"`bitgolf score {self.run.path}` again"
            )
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
            costs = self.data.tokenizer.byte_costs(self.tokens[start : start + _BLOCK_TOKENS + 1])
            total += int(costs.sum(dtype=np.int64))
        return total

    @cached_property
    def language_model(self) -> LanguageModel:
        from bitgolf.language_model import load

        return load(self._require("model.bitgolf"), device=str(self.device))

    @cached_property
    def method(self) -> str:
        """How windows are scored: the headline method, or what it adapts."""
        method = self.score["headline"]
        if self.adapted:
            return str(self.run.config.score.methods[-1])
        if method not in METHODS:
            raise MissingEvidence(
                f"the headline method {method!r} cannot be rebuilt by the audit (it knows {', '.join(METHODS)})"
            )
        return str(method)

    @property
    def adapted(self) -> bool:
        """Whether the headline is the configuration's adapted pass."""
        return bool(self.score["headline"] == adapted_name(self.run.config))

    @property
    def stride(self) -> int:
        return self.run.config.window if self.method == "chunked" else self.run.config.score.stride

    @cached_property
    def passage(self) -> np.ndarray:
        """Validation tokens for the tests that run the model: one window (as many as there are updates, with an
        adapter) and a few strides, (n,) uint16."""
        window, ttt = self.run.config.window, self.run.config.ttt
        first = window * (_FLIP_UPDATES[self.quick] if self.adapted and ttt.between_chunks else 1)
        length = min(first + min(_FLIP_STRIDES * self.stride, window) + 1, len(self.tokens))
        start = int(np.random.default_rng(self.run.config.seed).integers(len(self.tokens) - length + 1))
        return self.tokens[start : start + length]

    @cached_property
    def shown(self) -> flips.Trace:
        with flips.deterministic_kernels(self.device):
            return flips.trace(self.evaluation, self.passage, self.flip_chunk, with_losses=True)

    def evaluation(self, tokens: np.ndarray) -> tuple[Scorer, Adapter | None]:
        """The run's headline evaluation from scratch (`flips.Evaluation`)."""
        batch_tokens = _FLIP_ROWS * self.run.config.window
        if not self.adapted:
            return self.scorer(batch_tokens), None
        config = self.run.config
        if self.flip_chunk:
            config = config.model_copy(update={"ttt": config.ttt.model_copy(update={"chunk_tokens": self.flip_chunk})})
        found = self.adapted_evaluation(config, len(tokens) - 1, batch_tokens, compiled=False)
        return found.scorer, found.adapter

    @property
    def flip_chunk(self) -> int:
        """Targets between two updates in the tests that run the model; 0 when there are none."""
        return self.run.config.window if self.adapted and self.run.config.ttt.between_chunks else 0

    def adapted_evaluation(
        self, config: Config, num_targets: int, batch_tokens: int, *, compiled: bool
    ) -> AdaptedEvaluation:
        """The adapted pass of `config` on a copy of the artifact's model."""
        model = copy.deepcopy(self.language_model.model)
        return adapted_evaluation(
            config,
            model,
            scoring_model(model, config, self.device) if compiled else model,
            num_targets=num_targets,
            bos_id=self.data.tokenizer.bos_id,
            world=World(0, 1, self.device),
            batch_tokens=batch_tokens,
        )

    def scorer(self, batch_tokens: int) -> Scorer:
        return make_scorer(
            self.method,
            self.language_model.model,
            window=self.run.config.window,
            stride=self.stride,
            batch_tokens=batch_tokens,
            device=self.device,
        )

    def artifact_bytes(self) -> Check:
        return checks.artifact_bytes(
            self._require("model.bitgolf").stat().st_size,
            code_bytes(),
            self.limits.artifact_bytes,
            self.pack,
            self.budget.spent("artifact_bytes"),
        )

    def train_clock(self) -> Check:
        path = self._require("train.jsonl")
        events = [self._parse(line, path) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return checks.train_clock(self.budget.spent("train_seconds"), self.limits.train_seconds, events)

    def eval_clock(self) -> Check:
        methods = {name: float(entry.get("seconds", 0)) for name, entry in self.score["methods"].items()}
        return checks.eval_clock(
            self.budget.spent("eval_seconds"),
            self.limits.eval_seconds,
            methods,
            float(self.score.get("evaluation_seconds", 0)),
        )

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
        return checks.counts(
            len(self.tokens),
            documents,
            self.byte_total,
            manifest,
            self.score,
            self.score["methods"][self.score["headline"]],
        )

    def identity(self) -> Check:
        return checks.identity(self.nll, self.byte_total, self.score["methods"], self.score["headline"])

    def flip(self, check: Callable[..., Check]) -> Check:
        with flips.deterministic_kernels(self.device):
            return check(
                self.evaluation,
                self.passage,
                vocab_size=self.run.config.model.vocab_size,
                bos_id=self.data.tokenizer.bos_id,
                num_flips=_NUM_FLIPS[self.quick],
                seed=self.run.config.seed,
                chunk_targets=self.flip_chunk,
            )

    def normalization(self) -> Check:
        return distribution.normalization(self.shown.log_p, self.run.config.model.vocab_size)

    def losses_match(self) -> Check:
        return distribution.losses_match(self.shown, self.passage)

    def reproduction(self) -> Check:
        if self.adapted:
            return self.adapted_reproduction()
        config = self.run.config
        rows = max(_FLIP_ROWS, config.score.batch_tokens // config.window) if self.device.type == "cuda" else _FLIP_ROWS
        blocks = reproduce.sample_blocks(
            len(self.tokens) - 1, rows * self.stride, _NUM_BLOCKS[self.quick], self.run.config.seed
        )
        scorer = make_scorer(
            self.method,
            scoring_model(self.language_model.model, config, self.device),
            window=config.window,
            stride=self.stride,
            batch_tokens=rows * config.window,
            device=self.device,
        )
        return reproduce.reproduction(
            scorer, self.tokens, self.nll, blocks, same_kernels=self.score.get("device") == device_name(self.device)
        )

    def adapted_reproduction(self) -> Check:
        """The adapted pass again from the first target, through a few updates.

        Losses agree one by one where the arithmetic is the same: on the same CPU, scored by one process. The
        gradients of GPU kernels, and sums over ranks, round differently, and updates carry that along.
        """
        config, updates = self.run.config, _REPRODUCED_UPDATES[self.quick]
        num_targets = len(self.tokens) - 1
        adapted = self.adapted_evaluation(config, num_targets, config.score.batch_tokens, compiled=True)
        same_kernels = (
            self.device.type == "cpu"
            and self.score.get("device") == device_name(self.device)
            and self.score.get("world_size") == 1
        )
        if isinstance(adapted.scorer, DocumentScorer):
            stop = adapted.scorer.end_of_batch(self.tokens, updates)
        else:
            rows = config.score.batch_tokens // config.window
            stop = min(num_targets, updates * adapted.chunk_targets + rows * self.stride)
        return reproduce.reproduction_of_prefix(
            adapted.run, self.tokens[: stop + 1], self.nll[:stop], same_kernels=same_kernels
        )

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
