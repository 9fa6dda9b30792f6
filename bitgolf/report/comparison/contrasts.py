"""The results of `bitgolf compare`, as values and as JSON.

A contrast compares two systems: a candidate and a baseline. In the place of a result that is not possible stands a text
with the reason.

Legend: D documents.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bitgolf.report.comparison.bootstrap import RESAMPLES, Interval
from bitgolf.report.comparison.scored_runs import ScoredRun
from bitgolf.report.comparison.t_tests import MARGIN_NATS, Sample, TTest


@dataclass(frozen=True)
class Settings:
    method: str = "headline"  # "headline", a method of score.json, or "float-METHOD"
    margin_nats: float = MARGIN_NATS  # nats per token by which a candidate has to be better
    # resamples, bootstrap_seed: of the bootstrap over documents.
    resamples: int = RESAMPLES
    bootstrap_seed: int = 0


@dataclass(frozen=True)
class RunSet:
    """Runs that differ by seed only."""

    name: str
    runs: tuple[ScoredRun, ...]
    sample: Sample | str  # or the reason why they are none

    @property
    def mean_bpb(self) -> float:
        return sum(run.bpb for run in self.runs) / len(self.runs)

    @property
    def bpb_per_nat(self) -> float:
        """Bits per byte per nat per token."""
        return self.runs[0].bpb_per_nat


@dataclass(frozen=True)
class DocumentContrast:
    """Two systems compared by document."""

    interval: Interval  # the difference over all documents, candidate - baseline, with its bootstrap
    difference_bits: np.ndarray  # (D,) float64, of each document, candidate - baseline
    bytes: np.ndarray  # (D,) int64

    @property
    def difference_bpb(self) -> np.ndarray:
        """Difference in bits per byte of each document, (D,) float64."""
        return np.asarray(self.difference_bits / self.bytes)

    @property
    def share_of_documents_better(self) -> float:
        """Share of documents that the candidate codes in fewer bits, 0..1."""
        return float((self.difference_bits < 0).mean())

    @property
    def share_of_bytes_better(self) -> float:
        """Share of the bytes in those documents, 0..1."""
        return float(self.bytes[self.difference_bits < 0].sum() / self.bytes.sum())

    def to_json(self) -> dict[str, Any]:
        shares = ("share_of_documents_better", "share_of_bytes_better")
        return self.interval.to_json() | {name: getattr(self, name) for name in shares}


@dataclass(frozen=True)
class Contrast:
    """A candidate against the baseline; differences are candidate - baseline, so negative is better."""

    candidate: str
    baseline: str
    # difference_bpb, difference_nats: of the means; nats are per token of the candidate.
    difference_bpb: float
    difference_nats: float
    # margin_nats, margin_bpb: by how much it must be better, converted by the candidate's own constant.
    margin_nats: float
    margin_bpb: float
    # welch, paired, documents: tests over seeds, and the bootstrap; or the reason why there is none.
    welch: TTest | str
    paired: TTest | str
    documents: DocumentContrast | str

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("welch", "paired", "documents"):
            values |= _result_and_reason(name, values[name])
        return values


@dataclass(frozen=True)
class Comparison:
    """Everything that `bitgolf compare` shows."""

    settings: Settings
    sets: tuple[RunSet, ...]  # sets of seeds; runs of the baseline are first
    published: Sample | None  # the baseline, if it is published numbers
    contrasts: tuple[Contrast, ...]
    differences: dict[str, list[Any]]  # the value of each set by dotted key, for keys whose values differ
    notes: tuple[str, ...]  # remarks for the reader, for example that headlines are of different methods

    @property
    def runs(self) -> list[ScoredRun]:
        return [run for group in self.sets for run in group.runs]

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.settings.method,
            "runs": [
                {
                    "label": run.label,
                    "path": str(run.run.path),
                    "set": group.name,
                    "seed": run.seed,
                    "method": run.method,
                    "bpb": run.bpb,
                    "loss_nats": run.loss_nats,
                    "bpb_per_nat": run.bpb_per_nat,
                    "hardware": run.hardware,
                }
                for group in self.sets
                for run in group.runs
            ],
            "sets": [{"name": group.name, **_result_and_reason("sample", group.sample)} for group in self.sets],
            "published": self.published and self.published.to_json(),
            "contrasts": [contrast.to_json() for contrast in self.contrasts],
            "config_differences": self.differences,
            "notes": list(self.notes),
        }


def _result_and_reason(name: str, result: Any) -> dict[str, Any]:
    """A result under its name and "" under `no_NAME`, or null and the reason."""
    if isinstance(result, str):
        return {name: None, f"no_{name}": result}
    return {name: result.to_json(), f"no_{name}": ""}
