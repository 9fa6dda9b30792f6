"""Stage `score`: artifact and validation tokens -> bits per byte by each method, under the evaluation clock.

The clock runs from opening the artifact to the last score. It covers reading, decompressing, compiling and every pass
(rule B6, docs/rules.md#b6). A configuration that adapts while scoring has one more pass, whose score is the headline.
Reference figures are no part of the evaluation: the float weights, general-purpose compressors on the same text, and a
second pass with the adapted weights. They are computed after the clock has stopped and labeled as such.

Legend: N tokens, T window, B rows, V vocabulary.
"""

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bitgolf.artifact.open import open_model
from bitgolf.config import TTTConfig
from bitgolf.data.prepare import PreparedData, open_data
from bitgolf.errors import ConfigError
from bitgolf.evaluate.adapted_pass import adapted_pass, adapted_pass_name
from bitgolf.evaluate.bits import BitsPerByte, bits_per_byte
from bitgolf.evaluate.chunk_training import preserved
from bitgolf.evaluate.references import (
    FLOAT_WEIGHTS,
    float_model,
    float_weights,
    general_purpose,
    rescored,
    validation_text,
)
from bitgolf.evaluate.split_model import Model, scoring_model
from bitgolf.evaluate.tape import ScoreTape, evaluate
from bitgolf.evaluate.window_scorer import Windows
from bitgolf.model.gpt import GPT
from bitgolf.run import atomic
from bitgolf.run.budget import Budget
from bitgolf.run.directory import RunDirectory, writes_run
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World, device_name
from bitgolf.run.seal import SCORE_SETTINGS, code_digest, data_seal, file_digest, record_seal, seal_of, settings_of

_logger = logging.getLogger(__name__)


@writes_run
def score(run: RunDirectory, world: World, *, progress: Progress = silent) -> None:
    """Score the artifact on all validation tokens and write score.json, tape.json, and the losses of each pass.

    No file is written before everything is scored. Raises RunError when a product is missing, ArtifactError when the
    artifact is damaged, ConfigError when the tokenizer of the artifact is not that of the data.
    """
    config, budget = run.config, run.budget()
    data, path = open_data(run.require("data")), run.require("model.bitgolf")
    passes = _Passes(*_validation_text(data, config.model.vocab_size), Windows.of(config), world, progress)
    is_scored = {"float": config.score.float_reference, "last": config.score.last_reference}
    references = float_weights(run.path, [key for key in is_scored if is_scored[key]], config.model, config.window)

    world.barrier()
    begin = time.perf_counter()
    packed = open_model(path, world.device, config.train.attention, config.score.canonical)
    if packed.tokenizer.model_bytes != data.tokenizer.model_bytes:
        raise ConfigError(f"the tokenizer in {path} is not the one that {data.path} was prepared with; pack again")
    load_seconds = time.perf_counter() - begin
    forward = scoring_model(packed.model, compiled=config.score.compile)
    scored = [passes.plain(method, forward) for method in config.score.methods]
    with preserved(packed.model):
        if config.ttt.enabled:
            scored.append(passes.adapted(config.ttt, packed.model, forward, data.tokenizer.bos_id, config.seed))
        evaluation_seconds = time.perf_counter() - begin
        diagnostic = rescored(passes.plain, forward, passes.windows.method, config.ttt.rescore_temperature)

    first = config.score.methods[0]
    float_scores = {
        key: passes.plain(
            first, float_model(tensors, config, data.tokenizer, world), f"score float {FLOAT_WEIGHTS[key]}"
        ).score
        for key, tensors in references.items()
    }
    if not world.is_main:
        return
    compressors = general_purpose(validation_text(data, passes.tokens), progress) if config.score.compressors else {}
    losses = _save_losses(run, scored)
    atomic.write_json(run / "tape.json", scored[-1].tape.event_log)
    _charge(budget, load_seconds, scored)
    record = _scores(scored, first, float_scores, diagnostic) | {
        "accounting": data.manifest["accounting"],
        "val_tokens": data.val.num_tokens,
        "val_bytes": scored[-1].score.bytes,
        "val_documents": data.manifest["splits"]["val"]["documents"],
        "model_sha256": file_digest(path),
        "window": config.window,
        "stride": config.score.stride,
        "evaluation_seconds": evaluation_seconds,
        "device": device_name(world.device),
        "attention": packed.attention,
        "world_size": world.size,
        "compressors": compressors,
        "data_seal": data_seal(data.path),
        "losses": losses,
        "tape_sha256": file_digest(run / "tape.json"),
        "code_sha256": code_digest(),
        "settings": settings_of(config, SCORE_SETTINGS),
    }
    record["seal"] = seal_of(record, record_seal(run / "pack.json"))
    atomic.write_json(run / "score.json", record)
    run.mark_report_outdated("score")


def nll_file(name: str, headline: str) -> str:
    """The file of the losses of a pass: nll.npy for the headline, nll-NAME.npy for the others."""
    return "nll.npy" if name == headline else f"nll-{name}.npy"


@dataclass(frozen=True)
class _ScoredPass:
    """One pass over the text: its tape, its score, its seconds, and what else score.json says about it."""

    name: str
    tape: ScoreTape
    score: BitsPerByte
    seconds: float
    details: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.score.to_json() | {"seconds": self.seconds, **self.details}


@dataclass(frozen=True)
class _Passes:
    """Passes over one text: `tokens` (N,) uint16 and `byte_costs` (N-1,), the bytes of text per target."""

    tokens: np.ndarray
    byte_costs: np.ndarray
    windows: Windows
    world: World
    progress: Progress

    def plain(self, method: str, forward: Model, label: str = "score") -> _ScoredPass:
        """A pass without adaptation. `label` stands before the method in progress reports."""
        begin, tape = time.perf_counter(), ScoreTape(self.tokens)
        scorer = replace(self.windows, method=method).scorer(forward, self.world)
        evaluate(tape, scorer, progress=self._reporter(f"{label} {method}"))
        return self._scored(method, tape, begin)

    def adapted(self, ttt: TTTConfig, model: GPT, forward: Model, bos_id: int, seed: int) -> _ScoredPass:
        """The adapted pass; it changes the weights of `model`, which `forward` runs."""
        begin, tape = time.perf_counter(), ScoreTape(self.tokens)
        if ttt.between_chunks and ttt.weights.chunk_tokens >= tape.num_targets:
            _logger.warning(
                "ttt.weights.chunk_tokens %d holds all %d targets: nothing is learned before the text ends",
                ttt.weights.chunk_tokens,
                tape.num_targets,
            )
        name = adapted_pass_name(ttt, self.windows.method)
        adapted = adapted_pass(
            ttt,
            self.windows,
            model,
            forward,
            num_targets=tape.num_targets,
            bos_id=bos_id,
            seed=seed,
            world=self.world,
        )
        adapted.run(tape, self._reporter(f"score {name}"))
        return self._scored(name, tape, begin, updates=tape.state)

    def _scored(self, name: str, tape: ScoreTape, begin: float, **details: Any) -> _ScoredPass:
        score = bits_per_byte(tape.nll, self.byte_costs)
        return _ScoredPass(name, tape, score, time.perf_counter() - begin, details)

    def _reporter(self, label: str) -> Progress:
        def report(stage: str, done: float, total: float, note: str = "") -> None:
            self.progress(label, done, total, note)

        return report


def _validation_text(data: PreparedData, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All validation tokens (N,), checked, and the bytes of text per target (N-1,)."""
    data.val.validate(vocab_size)
    tokens = data.val.read(0, data.val.num_tokens)
    return tokens, data.tokenizer.byte_costs(tokens)


def _charge(budget: Budget, load_seconds: float, scored: list[_ScoredPass]) -> None:
    """Replace the evaluation seconds of an earlier `score` in the budget ledger."""
    budget.forget("score")
    budget.charge("eval_seconds", "score", "read and decompress", load_seconds)
    for each in scored:
        budget.charge("eval_seconds", "score", each.name, each.seconds)


def _scores(
    scored: list[_ScoredPass], first: str, float_scores: dict[str, BitsPerByte], diagnostic: dict[str, Any]
) -> dict[str, Any]:
    """The scores in score.json. The last pass is the headline; float weights are scored by the method `first`."""
    headline = scored[-1]
    methods = {each.name: each.to_json() for each in scored}
    references = {key: {first: score.to_json()} for key, score in float_scores.items()}
    tax = methods[first]["bpb"] - float_scores["float"].bpb if "float" in float_scores else None
    return {
        "methods": methods,
        "headline": headline.name,
        "headline_bpb": headline.score.bpb,
        "diagnostic": diagnostic,
        "last": references.get("last", {}),
        "float": references.get("float", {}),
        "quantization_tax": tax,
    }


def _save_losses(run: RunDirectory, scored: list[_ScoredPass]) -> dict[str, dict[str, str]]:
    """Write the losses of every pass; returns the file of each and its digest."""
    files = {}
    for each in scored:
        path = run / nll_file(each.name, scored[-1].name)
        with atomic.atomic_path(path) as temporary, temporary.open("wb") as handle:
            np.save(handle, each.tape.nll)
        files[each.name] = {"file": path.name, "sha256": file_digest(path)}
    return files
