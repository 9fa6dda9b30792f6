"""Audit of a run directory: gather the evidence, make every check, write audit.json.

Each check reads the products that it needs when it needs them (`evidence`). A product that is missing makes the check
NOT RUN and names the stage that would write it; a product that is damaged fails it. The artifact is scored again in a
sealed process, which is started first, so that it loads while the other checks are made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitgolf.audit import borders, checks, distribution, flips, records, reproduce, rerun, sealed
from bitgolf.audit import validation_documents as documents
from bitgolf.audit.evidence import FLIP_ROWS, Evidence
from bitgolf.audit.sandbox.client import SealedAdapter, SealedFailure, SealedProcess, SealedScorer
from bitgolf.audit.verdict import Check, MissingEvidence, Rule, Verdict
from bitgolf.bundle.single_file import code_bytes
from bitgolf.errors import BitgolfError, ConfigError, RuleViolation
from bitgolf.evaluate.tape import ScoreTape, evaluate, tokens_sha256
from bitgolf.evaluate.window_scorer import window_plan
from bitgolf.run import atomic
from bitgolf.run.directory import RunDirectory
from bitgolf.run.lock import writes_run
from bitgolf.run.progress import Progress, silent

_REPRODUCED_UPDATES = {True: 1, False: 3}  # chunks that an adapter learns from in the reproduction, by `quick`
_NUM_FLIPS = {True: 3, False: 10}
_NUM_MOVES = {True: 1, False: 3}
_NUM_BLOCKS = {True: 4, False: 16}
_SHARED_ROWS = 3  # rows of a chunk that two ranks learn from: an odd number, so that one of them has more


@writes_run
def audit_run(
    run: RunDirectory,
    *,
    quick: bool = False,
    everything: bool = False,
    codec_bytes: int = 0,
    only: Collection[str] = (),
    progress: Progress = silent,
) -> Verdict:
    """Make every check on a run and write audit.json.

    Args:
        run: what it lacks becomes NOT RUN.
        quick: fewer flips and fewer rescored blocks.
        everything: the sealed process scores all targets again, not a sample of them.
        codec_bytes: validation text to code and decode (see `codec.codec_check`); 0 = no such check.
        only: names of the checks to make; audit.json is then left as it is.
        progress: called with stage "audit" and the number of checks made.
    """
    evidence = Evidence(run, quick)
    again = _SealedRun(evidence, everything)
    made: list[Check] = []
    with again:
        todo = [*_of_records(evidence), *_of_the_evaluation(evidence, again)]
        if codec_bytes:
            from bitgolf.audit import codec

            todo.append(
                (codec.CODEC, lambda: codec.codec_check(run, codec_bytes, device=evidence.device, progress=progress))
            )
        if unknown := set(only) - {rule.name for rule, _ in todo}:
            raise ConfigError(
                f"there are no checks {', '.join(sorted(unknown))}; this run's are "
                f"{', '.join(rule.name for rule, _ in todo)}"
            )
        todo = [(rule, check) for rule, check in todo if not only or rule.name in only]
        again.start_early({rule.name for rule, _ in todo})
        for done, (rule, check) in enumerate(todo):
            progress("audit", done, len(todo), rule.name)
            made.append(rule.attempt(check))
        progress("audit", len(todo), len(todo))
    verdict = Verdict(tuple(made))
    if not only:
        stored = {**verdict.to_json(), "quick": quick, "everything": everything, "device": str(evidence.device)}
        atomic.write_json(run / "audit.json", stored)
    return verdict


_Todo = list[tuple[Rule, Callable[[], Check]]]


def _of_records(evidence: Evidence) -> _Todo:
    """Checks of what the run wrote down."""
    return [
        (checks.ARTIFACT_BYTES, lambda: _artifact_bytes(evidence)),
        (checks.TRAIN_CLOCK, lambda: _train_clock(evidence)),
        (checks.EVAL_CLOCK, lambda: _eval_clock(evidence)),
        (
            checks.SEALED,
            lambda: checks.artifact_sealed(evidence.artifact_sha256, str(evidence.score.get("model_sha256"))),
        ),
        (records.ONE_CONFIGURATION, lambda: _one_configuration(evidence)),
        (records.TRAIN_LOG, lambda: _train_log(evidence)),
        (checks.DISJOINT, lambda: _disjoint(evidence)),
        (documents.ONE_ORDER, lambda: _one_order(evidence)),
        (documents.BYTES, lambda: documents.byte_accounting(evidence.tokens, evidence.data.tokenizer)),
        (checks.SCORED_ONCE, lambda: _scored_once(evidence)),
        (checks.SCORE_FIRST, lambda: checks.score_first(evidence.event_log)),
        (checks.COUNTS, lambda: _counts(evidence)),
        (checks.IDENTITY, lambda: _identity(evidence)),
        (records.HEADLINE, lambda: records.headline_pass(evidence.score, evidence.config)),
        (records.NUMBERS_AGREE, lambda: _numbers_agree(evidence)),
    ]


def _of_the_evaluation(evidence: Evidence, again: _SealedRun) -> _Todo:
    """Checks that run the model."""
    todo: _Todo = [
        (flips.FUTURE_FLIP, lambda: _flip(evidence, flips.future_flip)),
        (flips.TARGET_FLIP, lambda: _flip(evidence, flips.target_flip)),
        (borders.LENGTH_BLIND, lambda: _length_blind(evidence)),
        (distribution.NORMALIZED, lambda: _normalization(evidence)),
        (distribution.LOSSES_MATCH, lambda: distribution.losses_match(evidence.shown, evidence.passage)),
        (rerun.OTHER_SHAPES, lambda: _other_shapes(evidence)),
        (reproduce.REPRODUCED, again.reproduction),
        (sealed.SEALED_EVALUATION, again.walls),
    ]
    ttt = evidence.config.ttt
    if ttt.method == "lora" and not ttt.lora.keep_a:  # the method whose documents know nothing of each other
        todo.insert(3, (borders.ISOLATED, lambda: _isolated(evidence)))
    return todo


class _SealedRun:
    """The run's headline scored again by a sealed process, which is started when it is first needed, or before."""

    def __init__(self, evidence: Evidence, everything: bool) -> None:
        self.evidence, self.everything = evidence, everything
        self.num_targets = 0
        self.unwalled = ""  # why it runs without walls
        self._stack = ExitStack()

    def __enter__(self) -> _SealedRun:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def start_early(self, wanted: Collection[str]) -> None:
        """Start the process when one of the `wanted` checks needs it; what stands in its way, they will say."""
        if {reproduce.REPRODUCED.name, sealed.SEALED_EVALUATION.name} & set(wanted):
            with suppress(BitgolfError, MissingEvidence):
                _ = self.process

    @cached_property
    def process(self) -> SealedProcess:
        """The process, started."""
        evidence, config = self.evidence, self.evidence.config
        settings = {
            "config": config.model_dump(mode="json"),
            "device": str(evidence.device),
            "method": "" if evidence.adapted else evidence.method,
            "stride": evidence.stride,
            "batch_tokens": self.rows * config.window,
            "num_targets": len(evidence.tokens) - 1,
        }
        return self._stack.enter_context(
            SealedProcess(
                evidence.require("model.bitgolf"),
                settings,
                evidence.text_sources(),
                num_threads=torch.get_num_threads(),
                walled=not self.unwalled,
            )
        )

    @property
    def rows(self) -> int:
        """Windows of a batch: those of the score where kernels depend on them, or all is scored again."""
        configured = self.evidence.config.score.batch_tokens // self.evidence.config.window
        return max(FLIP_ROWS, configured) if self.everything or self.evidence.device.type == "cuda" else FLIP_ROWS

    def reproduction(self) -> Check:
        """Blocks of targets, or the beginning of an adapted pass, against the losses on record.

        An evaluation that cannot run behind walls is run once more without them, and `walls` says so.
        """
        score = self._adapted_reproduction if self.evidence.adapted else self._plain_reproduction
        try:
            return score()
        except (SealedFailure, RuleViolation) as failure:
            on_gpu = self.evidence.device.type == "cuda"  # whose driver may want files at any time
            if not isinstance(failure, SealedFailure) and (not on_gpu or self.process.attempts()):
                raise
            self.unwalled = str(failure)
            self._stack.close()
            del self.process
            return score()

    def _plain_reproduction(self) -> Check:
        evidence, config = self.evidence, self.evidence.config
        num_targets, block = len(evidence.tokens) - 1, self.rows * evidence.stride
        number = -(-num_targets // block) if self.everything else _NUM_BLOCKS[evidence.quick]
        blocks = reproduce.sample_blocks(num_targets, block, number, config.seed)

        def first_token(target: int) -> int:
            return int(window_plan(target, target + 1, config.window, evidence.stride)[0, 0])

        found = reproduce.reproduction(
            SealedScorer(self.process, first_token),
            evidence.tokens,
            evidence.nll,
            blocks,
            same_kernels=evidence.same_device,
        )
        self.num_targets = sum(stop - start for start, stop in blocks)
        return found

    def _adapted_reproduction(self) -> Check:
        """The adapted pass again from the first target, through a few updates, with the tape on this side.

        Losses agree one by one where the arithmetic is the same: on the same CPU, scored by one process. The
        gradients of GPU kernels, and sums over ranks, round differently, and updates carry that along.
        """
        evidence, config = self.evidence, self.evidence.config
        # Continued from chunk to chunk: the token of the last target before `start` has gone over already.
        scorer = SealedScorer(self.process, lambda start: start + 1 if start else 0)
        adapter = SealedAdapter(self.process) if config.ttt.between_chunks else None

        def run(tape: ScoreTape) -> np.ndarray:
            if evidence.by_documents:
                tape.commit(0, tape.num_targets, scorer.score(tape.chunk(tape.num_targets), 0, tape.num_targets))
                return tape.nll
            return evaluate(tape, scorer, adapter, chunk_targets=config.ttt.weights.chunk_tokens if adapter else 0)

        stop, on_cpu = self._end_of_prefix(), evidence.device.type == "cpu"
        found = reproduce.reproduction_of_prefix(
            run,
            evidence.tokens[: stop + 1],
            evidence.nll[:stop],
            same_kernels=on_cpu and evidence.same_device and evidence.score.get("world_size") == 1,
        )
        self.num_targets = stop
        return found

    def _end_of_prefix(self) -> int:
        """One past the last target that an adapted pass is scored again to."""
        evidence, config = self.evidence, self.evidence.config
        num_targets, updates = len(evidence.tokens) - 1, _REPRODUCED_UPDATES[evidence.quick]
        if self.everything:
            return num_targets
        if evidence.by_documents:
            after = np.flatnonzero(evidence.tokens[1:-1] == evidence.data.tokenizer.bos_id) + 1
            last = updates * config.ttt.lora.documents - 1
            return int(after[last]) if last < len(after) else num_targets
        chunks = updates * config.ttt.weights.chunk_tokens if config.ttt.between_chunks else 0
        return min(num_targets, chunks + config.score.batch_tokens // config.window * evidence.stride)

    def walls(self) -> Check:
        """What stood around the process while it scored."""
        if not self.num_targets:
            raise MissingEvidence("the sealed process scored nothing: see the reproduction")
        sources = (self.evidence.config.data.source, self.evidence.config.data.val_source)
        walls = self.process.walls | ({"refused": [f"behind walls, {self.unwalled}"]} if self.unwalled else {})
        return sealed.sealed_evaluation(
            walls, self.process.attempts(), self.num_targets, text_in_libraries="stdlib" in sources
        )


def _artifact_bytes(evidence: Evidence) -> Check:
    return checks.artifact_bytes(
        evidence.require("model.bitgolf").stat().st_size,
        code_bytes(evidence.config),
        evidence.limits.artifact_bytes,
        evidence.pack,
        evidence.budget.spent("artifact_bytes"),
    )


def _artifact_sealed(evidence: Evidence) -> Check:
    return checks.artifact_sealed(evidence.artifact_sha256, str(evidence.score.get("model_sha256")))


def _train_clock(evidence: Evidence) -> Check:
    return checks.train_clock(evidence.budget.spent("train_seconds"), evidence.limits.train_seconds, evidence.events)


def _eval_clock(evidence: Evidence) -> Check:
    return checks.eval_clock(
        evidence.budget.spent("eval_seconds"),
        evidence.limits.eval_seconds,
        {name: float(entry.get("seconds", 0)) for name, entry in evidence.score["methods"].items()},
        float(evidence.score.get("evaluation_seconds", 0)),
        evidence.budget.spent("untimed_seconds", "score"),
    )


def _one_configuration(evidence: Evidence) -> Check:
    return records.one_configuration(evidence.config, evidence.events, *evidence.artifact_facts)


def _train_log(evidence: Evidence) -> Check:
    return records.train_log(
        evidence.events, evidence.config, evidence.data.train.num_tokens, evidence.calibration_tokens
    )


def _disjoint(evidence: Evidence) -> Check:
    from bitgolf.data.prepare import check_disjoint
    from bitgolf.data.shards import file_sha256

    root = evidence.require("data")
    hashes = evidence.data.manifest.get("document_hashes", {})
    missing = [entry["file"] for entry in hashes.values() if not (root / entry["file"]).is_file()]
    if missing or not hashes:
        raise MissingEvidence(f"{root} has no document hashes ({', '.join(missing) or 'none in its manifest'})")
    changed = [entry["file"] for entry in hashes.values() if file_sha256(root / entry["file"]) != entry["sha256"]]
    in_shards = documents.shard_overlap(evidence.data.train, evidence.tokens, evidence.data.tokenizer.bos_id)
    return checks.disjoint_splits(*check_disjoint(root), changed, in_shards)


def _one_order(evidence: Evidence) -> Check:
    from bitgolf.data.split import read_hashes

    about = evidence.data.manifest.get("document_hashes", {}).get("val")
    root = evidence.require("data")
    if not about or not (root / about["file"]).is_file():
        raise MissingEvidence(f"{root} has no hashes of its validation documents")
    shards = [Path(shard["file"]).name for shard in evidence.data.manifest["splits"]["val"]["shards"]]
    return documents.one_order(
        evidence.tokens, evidence.data.tokenizer, read_hashes(root / about["file"]), about.get("of", ""), shards
    )


def _scored_once(evidence: Evidence) -> Check:
    return checks.scored_once(
        evidence.event_log, len(evidence.tokens), tokens_sha256([evidence.tokens]), len(evidence.nll)
    )


def _counts(evidence: Evidence) -> Check:
    manifest = evidence.data.manifest
    split = manifest["splits"]["val"]
    counted = "raw_bytes" if manifest.get("accounting") == "original" else "counted_bytes"
    return checks.counts(
        len(evidence.tokens),
        int((evidence.tokens == evidence.data.tokenizer.bos_id).sum()),
        evidence.byte_total,
        {"tokens": split.get("tokens"), "documents": split.get("documents"), "bytes": split.get(counted)},
        evidence.score,
        evidence.score["methods"][evidence.score["headline"]],
    )


def _identity(evidence: Evidence) -> Check:
    return checks.identity(evidence.nll, evidence.byte_total, evidence.score["methods"], evidence.score["headline"])


def _numbers_agree(evidence: Evidence) -> Check:
    text = evidence.require("train.log").read_text(encoding="utf-8", errors="replace")
    return records.numbers_agree(evidence.score, evidence.pack, evidence.budget.charges, evidence.events, text)


def _flip(evidence: Evidence, check: Callable[..., Check]) -> Check:
    with flips.deterministic_kernels(evidence.device):
        return check(
            evidence.evaluation,
            evidence.passage,
            **_alphabet(evidence),
            num_flips=_NUM_FLIPS[evidence.quick],
            seed=evidence.config.seed,
            chunk_targets=evidence.flip_chunk,
        )


def _alphabet(evidence: Evidence) -> dict[str, Any]:
    return {"vocab_size": evidence.config.model.vocab_size, "bos_id": evidence.data.tokenizer.bos_id}


def _length_blind(evidence: Evidence) -> Check:
    with flips.deterministic_kernels(evidence.device):
        return borders.length_blind(
            evidence.evaluation,
            evidence.passage,
            **_alphabet(evidence),
            num_moves=_NUM_MOVES[evidence.quick],
            seed=evidence.config.seed,
            chunk_targets=evidence.flip_chunk,
            exact_shapes=evidence.device.type == "cpu",
        )


def _isolated(evidence: Evidence) -> Check:
    if not evidence.by_documents:
        raise MissingEvidence("the headline is not the pass with adapters; run `bitgolf score` again")
    tokens, bos_id, length = evidence.tokens, evidence.data.tokenizer.bos_id, len(evidence.passage)
    inner = np.flatnonzero(tokens[1:-1] == bos_id) + 1
    if not len(inner):
        raise MissingEvidence("the validation text is a single document")
    border = int(np.random.default_rng(evidence.config.seed).choice(inner))
    start = max(0, border - length // 2)
    with flips.deterministic_kernels(evidence.device):
        return borders.document_isolation(
            evidence.evaluation, tokens[start : start + length], **_alphabet(evidence), seed=evidence.config.seed
        )


def _normalization(evidence: Evidence) -> Check:
    return distribution.normalization(evidence.shown.log_p, evidence.config.model.vocab_size)


def _other_shapes(evidence: Evidence) -> Check:
    if evidence.adapted:
        chunk = min(_SHARED_ROWS * evidence.config.window, evidence.config.ttt.weights.chunk_tokens)
        length = min(chunk + evidence.config.window + 1, len(evidence.tokens))
        start = int(np.random.default_rng(evidence.config.seed).integers(len(evidence.tokens) - length + 1))
        text = evidence.tokens[start : start + length]
        return rerun.adapted_shapes(evidence.require("model.bitgolf"), evidence.with_chunks(chunk), text)
    return rerun.plain_shapes(
        evidence.packed.model,
        evidence.passage,
        evidence.shown.nll,
        window=evidence.config.window,
        stride=evidence.stride,
        device=evidence.device,
        same_kernels=evidence.device.type == "cpu",
    )
