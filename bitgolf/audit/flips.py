"""Flip tests (C1): predictions may not move when a token that they must not depend on is replaced.

Future-flip replaces every token after position t. Target-flip replaces the target of t alone. Both demand that the
whole vectors p_0..p_t (V probabilities each) stay bit-identical. The evaluation under test is the real one: scorer,
adapter and tape, rebuilt for every run, so leaks through attention, batching, adaptation schedules or hints show as
much as leaks in the model. BOS stays BOS and other tokens stay other tokens, so shapes and document borders do not
change. Source: docs/rules.md, condition C1 and test 1 (issue 1017 of openai/parameter-golf).

Legend: N tokens, N-1 targets, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bitgolf.audit.evidence import Evidence, run_checks
from bitgolf.audit.traces import Passage, largest_difference
from bitgolf.audit.verdict import Finding, failed, not_run, passed

# A difference this many times the noise between identical runs is a leak, not noise.
_NOISE_FACTOR = 10.0
_NUM_FLIPS = {True: 3, False: 10}  # by `quick`

Span = Callable[[np.ndarray, int], slice]


def all_after(tokens: np.ndarray, target: int) -> slice:
    """The span of the future-flip: every token after `target`'s context."""
    return slice(target + 1, len(tokens))


def only_target(tokens: np.ndarray, target: int) -> slice:
    """The span of the target-flip: the target's token."""
    return slice(target + 1, target + 2)


@run_checks.register("future-flip", "C1", "no prediction moves when later tokens change")
def future_flip(evidence: Evidence) -> Finding:
    """C1: replace all tokens after t; p_0..p_t must not move."""
    return flip_test(evidence.headline.passage, all_after, _NUM_FLIPS[evidence.quick], evidence.rng("future-flip"))


@run_checks.register("target-flip", "C1", "no prediction moves when its own target changes")
def target_flip(evidence: Evidence) -> Finding:
    """C1: replace the target of t alone; p_0..p_t must not move."""
    return flip_test(evidence.headline.passage, only_target, _NUM_FLIPS[evidence.quick], evidence.rng("target-flip"))


def flip_test(
    passage: Passage,
    span: Span,
    num_flips: int,  # positions t, chunk borders among them
    rng: np.random.Generator,  # draws positions and replacements
) -> Finding:
    """PASS when all predictions stay bit-identical; FAIL with the first one that moved.

    NOT RUN when two identical runs differ by as much as the flips do (kernels that are not deterministic), or when
    flips change no later prediction either.
    """
    tokens = passage.tokens
    positions = _positions(passage, num_flips, rng)
    if not positions:
        return not_run(f"the {len(tokens)} tokens have no target that can be flipped")
    base = passage.log_p(tokens)
    noise = largest_difference(base, passage.log_p(tokens))
    leaks, moved_later = [], 0
    for target in positions:
        log_p = passage.log_p(passage.flipped(span(tokens, target), rng))
        moved = np.flatnonzero((base != log_p).any(axis=1))
        moved_later += int((moved > target).sum())
        early = moved[moved <= target]
        if len(early):
            worst = largest_difference(base[: target + 1], log_p[: target + 1])
            leak = {"flipped_target": target, "moved_target": int(early[0]), "moved": len(early)}
            leaks.append({**leak, "difference_nats": worst})
    evidence: dict[str, Any] = {
        "flipped_targets": positions,
        "distributions_compared": int(sum(t + 1 for t in positions)),
        "vocab_size": base.shape[1],
        "moved_later": moved_later,
        "noise_nats": noise,
        "leaks": leaks,
    }
    return _judge(leaks, evidence)


def _judge(leaks: list[dict[str, Any]], evidence: dict[str, Any]) -> Finding:
    noise, num_flips = evidence["noise_nats"], len(evidence["flipped_targets"])
    worst = max((leak["difference_nats"] for leak in leaks), default=0.0)
    if leaks and not worst <= _NOISE_FACTOR * noise:
        leak = leaks[0]
        return failed(
            f"flipping from target {leak['flipped_target']} moved the prediction of target "
            f"{leak['moved_target']} (largest change {worst:.3g} nats, {len(leaks)} of {num_flips} flips leak)",
            **evidence,
        )
    if noise > 0:
        return not_run(
            f"two identical runs differ by {noise:.3g} nats on this device, so nothing can be proven "
            "bit-exactly; audit on the CPU",
            **evidence,
        )
    if evidence["moved_later"] == 0:
        return not_run("no later prediction moved either: the flips had no effect, so they prove nothing", **evidence)
    reason = f"{evidence['distributions_compared']:,} distributions bit-identical under {num_flips} flips"
    return passed(reason, **evidence)


def _positions(passage: Passage, num_flips: int, rng: np.random.Generator) -> list[int]:
    """Targets to flip, sorted: the first, those on either side of chunk borders, and random ones."""
    candidates = np.flatnonzero(passage.tokens[1:-1] != passage.bos_id)  # a target with one more after it
    chosen, chunk = candidates[:1].tolist(), passage.chunk_targets
    if chunk:
        borders = {chunk - 1, chunk, 2 * chunk - 1}
        chosen += [int(t) for t in candidates if int(t) in borders]
    rest = np.setdiff1d(candidates, chosen)
    count = max(0, min(num_flips - len(chosen), len(rest)))
    return sorted({*chosen, *rng.choice(rest, count, replace=False).tolist()}) if len(candidates) else []
