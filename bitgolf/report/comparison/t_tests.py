"""Statistics over seeds: mean and deviation of a system, and tests whether it beats a baseline.

A `Sample` has one score per seed, in bits per byte. The scores come from runs (`scored_runs.sample`) or from a
publication. The question is one-sided: is the candidate's mean below the baseline's by more than a margin? The bar of
the challenge is 0.005 nats per token at p < 0.01. Late audits also ranked by p < 0.25 without a margin (docs/rules.md,
section 4). Welch's test treats the two samples as independent. The paired test uses the differences of equal seeds,
which is more sensitive if a seed moves both systems alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bitgolf.errors import ConfigError, RunError
from bitgolf.report.comparison.student_t import upper_tail

MARGIN_NATS = 0.005  # per token
BAR_P = 0.01
AUDIT_P = 0.25


@dataclass(frozen=True)
class Sample:
    """Scores of one system in bits per byte; build it with `from_seeds`, `from_values` or `from_summary`."""

    name: str  # what messages and tables call it
    # mean, std: of the scores; std with n - 1 in the denominator.
    mean: float
    std: float
    count: int  # n, number of seeds, at least 2
    by_seed: Mapping[int, float]  # score by seed; empty for published numbers, whose seeds are not known

    @classmethod
    def from_seeds(cls, name: str, by_seed: Mapping[int, float]) -> Sample:
        """One score per seed. Raises RunError for fewer than two."""
        mean, std = _moments(name, list(by_seed.values()))
        return cls(name, mean, std, len(by_seed), dict(by_seed))

    @classmethod
    def from_values(cls, name: str, values: Sequence[float]) -> Sample:
        """Published scores of unknown seeds. Raises RunError for fewer than two."""
        mean, std = _moments(name, values)
        return cls(name, mean, std, len(values), {})

    @classmethod
    def from_summary(cls, name: str, mean: float, std: float, count: int) -> Sample:
        """A published mean, standard deviation (n - 1) and number of seeds.

        Raises RunError for fewer than two seeds, ConfigError for an impossible mean or deviation.
        """
        if count < 2:
            raise RunError(_too_few(name, count))
        if not (math.isfinite(mean) and mean > 0 and math.isfinite(std) and std >= 0):
            raise ConfigError(
                f"{name}: a mean of {mean:g} with a standard deviation of {std:g} is impossible; give bits per byte"
            )
        return cls(name, mean, std, count, {})

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return self.std / math.sqrt(self.count)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "by_seed": {str(seed): value for seed, value in self.by_seed.items()}}


@dataclass(frozen=True)
class TTest:
    """A one-sided test of "the candidate is better (lower) by more than the margin"."""

    kind: Literal["welch", "paired"]
    difference_bpb: float  # candidate's mean - baseline's mean; negative is better
    # standard_error, df: of that difference, and the degrees of freedom.
    standard_error: float
    df: float
    margin_bpb: float  # by how many bits per byte the candidate must be better
    # t, p: statistic and one-sided p-value with the margin.
    t: float
    p: float
    # t_any, p_any: the same without a margin.
    t_any: float
    p_any: float

    @property
    def clears_bar(self) -> bool:
        """Whether the difference exceeds the margin at p < 0.01."""
        return self.p < BAR_P

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"clears_bar": self.clears_bar}


def margin_in_bpb(margin_nats: float, bpb_per_nat: float) -> float:
    """A margin in nats per token, converted to bits per byte. Raises ConfigError unless it is finite and >= 0."""
    if not (math.isfinite(margin_nats) and margin_nats >= 0):
        raise ConfigError(
            f"a margin of {margin_nats:g} nats per token is impossible; give 0 or more, for example 0.005"
        )
    return margin_nats * bpb_per_nat


def welch(candidate: Sample, baseline: Sample, margin_bpb: float) -> TTest:
    """Welch's test: independent samples of any sizes and deviations; degrees of freedom by Satterthwaite.

    Raises RunError if neither sample varies.
    """
    a, b = candidate.standard_error**2, baseline.standard_error**2
    if a + b == 0:
        raise RunError(_no_variance(candidate.name, baseline.name))
    scale = max(a, b)  # prevents underflow of the squares of small variances
    a, b = a / scale, b / scale
    df = (a + b) ** 2 / (a**2 / (candidate.count - 1) + b**2 / (baseline.count - 1))
    error = math.sqrt(scale * (a + b))
    return _test("welch", candidate.mean - baseline.mean, error, df, margin_bpb)


def paired(candidate: Sample, baseline: Sample, margin_bpb: float) -> TTest:
    """The paired test over equal seeds.

    Raises RunError if the seeds differ or are unknown, or if the differences do not vary.
    """
    if not candidate.by_seed or candidate.by_seed.keys() != baseline.by_seed.keys():
        raise RunError("the seeds of the two are not the same")
    differences = [value - baseline.by_seed[seed] for seed, value in candidate.by_seed.items()]
    count = len(differences)
    mean, std = _mean_and_std(differences)
    if std == 0:
        raise RunError(_no_variance(candidate.name, baseline.name))
    return _test("paired", mean, std / math.sqrt(count), count - 1, margin_bpb)


def _test(kind: Literal["welch", "paired"], difference: float, error: float, df: float, margin: float) -> TTest:
    t, t_any = (-difference - margin) / error, -difference / error
    return TTest(kind, difference, error, df, margin, t, upper_tail(t, df), t_any, upper_tail(t_any, df))


def _moments(name: str, values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        raise RunError(_too_few(name, len(values)))
    wrong = next((value for value in values if not (math.isfinite(value) and value > 0)), None)
    if wrong is not None:
        raise ConfigError(f"{name}: {wrong:g} is not a score; give bits per byte above 0")
    return _mean_and_std(values)


def _mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1); exactly 0 when all values are equal."""
    mean = math.fsum(values) / len(values)
    if min(values) == max(values):
        return values[0], 0.0
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _too_few(name: str, count: int) -> str:
    return (
        f"{name} has {count} seed{'' if count == 1 else 's'}: deviations and tests over seeds need at least two "
        "(three are usual); run it again with other values of --seed"
    )


def _no_variance(candidate: str, baseline: str) -> str:
    return (
        f"the differences between {candidate} and {baseline} do not vary over seeds, so no test is possible; "
        "are they copies of one run?"
    )
