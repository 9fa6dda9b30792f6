"""Flip tests: predictions may not move when a token that they must not depend on is replaced.

Future-flip replaces every token after position t; target-flip replaces the target of t alone. Both demand that the
whole vectors p_0..p_t (V probabilities each) stay bit-identical. The evaluation under test is the real one:
scorer, adapter and tape, rebuilt for every run, so that leaks through attention, batching, adaptation schedules or
hints show as much as leaks in the model. BOS stays BOS and other tokens stay other tokens, so shapes and document
borders do not change. Source: condition C1 and test 1 of the challenge's audit rules (issue 1017).

Legend: N tokens, N-1 targets, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from bitgolf.audit.verdict import Check, Rule
from bitgolf.evaluate.tape import Adapter, Scorer, ScoreTape, TokenReader, evaluate
from bitgolf.run.progress import Progress, silent

FUTURE_FLIP = Rule("future-flip", "C1", "no prediction moves when later tokens change")
TARGET_FLIP = Rule("target-flip", "C1", "no prediction moves when its own target changes")

# A difference this many times the noise between identical runs is a leak, not noise.
_NOISE_FACTOR = 10.0


class Evaluation(Protocol):
    """Makes the scorer and adapter of an evaluation from scratch, as they are before the first target."""

    def __call__(self, tokens: np.ndarray) -> tuple[Scorer, Adapter | None]:
        """`tokens` (N,) are what will be on the tape; an honest evaluation has no use for them."""
        ...


@dataclass(frozen=True)
class Trace:
    """What an evaluation predicted: log_p (N-1, V) float32, and the losses it would commit, (N-1,) float32."""

    log_p: np.ndarray
    nll: np.ndarray


class _Recorder:
    """A scorer that shows the distributions of another one before it commits its losses."""

    def __init__(self, inner: Scorer, with_losses: bool) -> None:
        self.inner, self.with_losses = inner, with_losses
        self.log_p: list[np.ndarray] = []

    def score(self, read: TokenReader, start: int, stop: int, tick: Callable[[int], None] | None = None) -> np.ndarray:
        self.log_p.append(self.inner.distributions(read, start, stop))
        if self.with_losses:
            return self.inner.score(read, start, stop, tick)
        targets = read(start + 1, stop + 1).astype(np.int64)
        return -self.log_p[-1][np.arange(stop - start), targets]

    def distributions(self, read: TokenReader, start: int, stop: int) -> np.ndarray:
        return self.inner.distributions(read, start, stop)


def trace(
    evaluation: Evaluation,
    tokens: np.ndarray,  # (N,) integers
    chunk_targets: int = 0,  # of `evaluate`
    with_losses: bool = False,  # commit the scorer's own losses instead of reading them off the distributions
) -> Trace:
    """Run an evaluation over `tokens` and keep every distribution."""
    scorer, adapter = evaluation(tokens)
    recorder = _Recorder(scorer, with_losses)
    nll = evaluate(ScoreTape(tokens), recorder, adapter, chunk_targets=chunk_targets)
    return Trace(np.concatenate(recorder.log_p), nll)


def future_flip(evaluation: Evaluation, tokens: np.ndarray, **options: Any) -> Check:
    """C1: replace all tokens after t; p_0..p_t must not move. Arguments as `target_flip`."""
    return _flip_check(FUTURE_FLIP, _all_after, evaluation, tokens, **options)


def target_flip(evaluation: Evaluation, tokens: np.ndarray, **options: Any) -> Check:
    """C1: replace the target of t alone; p_0..p_t must not move.

    Args:
        evaluation: builds a fresh scorer and adapter for each run.
        tokens: (N,) integers, a piece of text that spans several windows and chunks.
        vocab_size, bos_id: flipped tokens stay below the one and keep away from the other.
        num_flips: positions t tried, chunk borders among them.
        seed: of positions and replacements.
        chunk_targets: as in `evaluate`.
        progress: called with the number of flips done.
    Returns:
        PASS when all are bit-identical; FAIL with the first prediction that moved. NOT RUN when two identical runs
        differ by as much as the flips do (kernels that are not deterministic), or when flips move nothing at all.
    """
    return _flip_check(TARGET_FLIP, _only_target, evaluation, tokens, **options)


def _all_after(tokens: np.ndarray, target: int) -> slice:
    return slice(target + 1, len(tokens))


def _only_target(tokens: np.ndarray, target: int) -> slice:
    return slice(target + 1, target + 2)


def _flip_check(
    rule: Rule,
    span: Callable[[np.ndarray, int], slice],
    evaluation: Evaluation,
    tokens: np.ndarray,
    *,
    vocab_size: int,
    bos_id: int,
    num_flips: int = 8,
    seed: int = 0,
    chunk_targets: int = 0,
    progress: Progress = silent,
) -> Check:
    rng = np.random.default_rng(seed)
    positions = _positions(tokens, bos_id, num_flips, chunk_targets, rng)
    if not positions:
        return rule.not_run(f"the {len(tokens)} tokens have no target that can be flipped")
    base = trace(evaluation, tokens, chunk_targets).log_p
    noise = largest_difference(base, trace(evaluation, tokens, chunk_targets).log_p)
    leaks, moved_later = [], 0
    for done, target in enumerate(positions):
        progress(rule.name, done, len(positions))
        flipped = flip_tokens(tokens, span(tokens, target), vocab_size, bos_id, rng)
        log_p = trace(evaluation, flipped, chunk_targets).log_p
        moved = np.flatnonzero((base != log_p).any(axis=1))
        moved_later += int((moved > target).sum())
        early = moved[moved <= target]
        if len(early):
            first = int(early[0])
            leaks.append(
                {
                    "flipped_target": target,
                    "moved_target": first,
                    "moved": len(early),
                    "difference_nats": largest_difference(base[: target + 1], log_p[: target + 1]),
                }
            )
    progress(rule.name, len(positions), len(positions))
    evidence: dict[str, Any] = {
        "flipped_targets": positions,
        "distributions_compared": int(sum(t + 1 for t in positions)),
        "vocab_size": base.shape[1],
        "moved_later": moved_later,
        "noise_nats": noise,
        "leaks": leaks,
    }
    worst = max((leak["difference_nats"] for leak in leaks), default=0.0)
    if leaks and not worst <= _NOISE_FACTOR * noise:
        leak = leaks[0]
        return rule.failed(
            f"flipping from target {leak['flipped_target']} moved the prediction of target "
            f"{leak['moved_target']} (largest change {worst:.3g} nats, {len(leaks)} of {len(positions)} "
            "flips leak)",
            **evidence,
        )
    if noise > 0:
        return rule.not_run(
            f"two identical runs differ by {noise:.3g} nats on this device, so nothing can be proven "
            "bit-exactly; audit on the CPU",
            **evidence,
        )
    if moved_later == 0:
        return rule.not_run(
            "no later prediction moved either: the flips had no effect, so they prove nothing", **evidence
        )
    return rule.passed(
        f"{evidence['distributions_compared']:,} distributions bit-identical under {len(positions)} flips", **evidence
    )


def flip_tokens(tokens: np.ndarray, where: slice, vocab_size: int, bos_id: int, rng: np.random.Generator) -> np.ndarray:
    """A copy of `tokens` (N,) with every token in `where` that is not BOS replaced by another that is not."""
    flipped = tokens.copy()
    others = np.array([token for token in range(vocab_size) if token != bos_id])
    part = flipped[where]
    order = np.searchsorted(others, part)
    shift = rng.integers(1, len(others), size=len(part))
    flipped[where] = np.where(part == bos_id, part, others[(order + shift) % len(others)])
    return flipped


def _positions(
    tokens: np.ndarray, bos_id: int, num_flips: int, chunk_targets: int, rng: np.random.Generator
) -> list[int]:
    """Targets to flip, sorted: the first, those on either side of chunk borders, and random ones."""
    candidates = np.flatnonzero(tokens[1:-1] != bos_id)  # a target with one more after it
    chosen = candidates[:1].tolist()
    if chunk_targets:
        borders = {chunk_targets - 1, chunk_targets, 2 * chunk_targets - 1}
        chosen += [int(t) for t in candidates if int(t) in borders]
    rest = np.setdiff1d(candidates, chosen)
    count = max(0, min(num_flips - len(chosen), len(rest)))
    return sorted({*chosen, *rng.choice(rest, count, replace=False).tolist()}) if len(candidates) else []


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest absolute difference; equal infinities count as equal, NaN as infinite."""
    if np.array_equal(a, b):
        return 0.0
    with np.errstate(invalid="ignore"):
        gap = np.where(a == b, 0.0, np.abs(a.astype(np.float64) - b))
    largest = float(gap.max())
    return largest if np.isfinite(largest) else float(np.finfo(np.float64).max)


@contextmanager
def deterministic_kernels(device: torch.device) -> Iterator[None]:
    """Ask PyTorch for deterministic kernels inside the block (on CUDA; CPU kernels are). What has no deterministic
    kernel still runs; the repeated run of the flip tests shows whether it made a difference."""
    if device.type == "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
