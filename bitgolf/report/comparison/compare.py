"""`bitgolf compare`: runs against a baseline, over seeds and by document.

Runs are grouped into sets of seeds by their configuration. The baseline is what the user names (runs or published
numbers), otherwise the first set. With a single set and no baseline, the runs are compared with the first of them.
A contrast has the tests over seeds (both sides need at least two) and the paired bootstrap over documents, with the
bits of a set averaged over its seeds. In the place of a result that is not possible stands a text with the reason.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from bitgolf.errors import ConfigError, RunError
from bitgolf.report.comparison.bootstrap import bootstrap, require_possible
from bitgolf.report.comparison.contrasts import Comparison, Contrast, DocumentContrast, RunSet, Settings
from bitgolf.report.comparison.document_losses import DocumentLosses, document_losses, require_same_text
from bitgolf.report.comparison.scored_runs import (
    ScoredRun,
    config_differences,
    group_runs,
    read_runs,
    require_one_set,
    sample,
)
from bitgolf.report.comparison.t_tests import Sample, TTest, margin_in_bpb, paired, welch
from bitgolf.run.progress import Progress, silent

_DEFAULTS = Settings()
_UNEVEN = 1.1  # ratio of most to fewest trained tokens in a set from which a note is added


def compare(
    paths: Sequence[Path],  # run directories of the candidates (and, without a named baseline, of the baseline, first)
    *,
    baseline: Sequence[Path] = (),  # run directories of the baseline, all of one configuration
    published: Sample | None = None,  # numbers of the baseline instead
    settings: Settings = _DEFAULTS,  # what to compare and how
    progress: Progress = silent,  # called with stages "documents" and "bootstrap"
) -> Comparison:
    """Compare runs with a baseline.

    Raises:
        ConfigError: no runs, nothing to compare with, a run twice, both kinds of baseline, an unknown method, a
            margin below 0, too few resamples.
        RunError, DataError: a run is incomplete or damaged, texts or byte accountings differ, baseline runs of
            different configurations.
    """
    if baseline and published is not None:
        raise ConfigError("the baseline is runs or published numbers; give one of them")
    if not paths:
        raise ConfigError("no runs given; `bitgolf compare RUN RUN`")
    if len(paths) == 1 and not baseline and published is None:
        raise ConfigError(f"{paths[0]} has no run to be compared with; give another run or a baseline")
    margin_in_bpb(settings.margin_nats, 1.0)
    require_possible(settings.resamples)
    runs = read_runs([*baseline, *paths], settings.method)
    for other in runs[1:]:
        require_same_text(runs[0], other)
    base_runs, candidates = runs[: len(baseline)], runs[len(baseline) :]
    require_one_set(base_runs)
    groups = ([base_runs] if base_runs else []) + group_runs(candidates)
    sets = [_run_set(name, group) for name, group in zip(_names(groups), groups, strict=True)]
    losses = {} if published is not None else _read_losses(runs, progress)
    pairs = _pairs(sets, published)
    contrasts = tuple(_contrast(c, b, losses, settings, progress) for c, b in pairs)
    differences = {
        key: values
        for key, values in config_differences([group.runs[0].run.config for group in sets]).items()
        if key != "seed"
    }
    return Comparison(settings, tuple(sets), published, contrasts, differences, tuple(_notes(sets, published)))


def _run_set(name: str, runs: Sequence[ScoredRun]) -> RunSet:
    try:
        return RunSet(name, tuple(runs), sample(name, runs))
    except RunError as error:
        return RunSet(name, tuple(runs), str(error))


def _names(groups: Sequence[Sequence[ScoredRun]]) -> list[str]:
    """The common beginning of each group's labels and their number, or all labels if that is ambiguous."""
    labels = [[run.label for run in group] for group in groups]
    names = [_common_name(group) for group in labels]
    return [", ".join(group) if names.count(name) > 1 else name for name, group in zip(names, labels, strict=True)]


def _common_name(labels: Sequence[str]) -> str:
    if len(labels) == 1:
        return labels[0]
    start = labels[0]
    while not all(label.startswith(start) for label in labels):
        start = start[:-1]
    start = start.rstrip("-_./ ")
    return f"{start} ({len(labels)} runs)" if start else ", ".join(labels)


def _read_losses(runs: Sequence[ScoredRun], progress: Progress) -> dict[str, DocumentLosses]:
    """Losses by document of every run whose score is its headline."""
    losses = {}
    for index, run in enumerate(runs):
        progress("documents", index, len(runs), run.label)
        if run.is_headline:
            losses[run.label] = document_losses(run)
    progress("documents", len(runs), len(runs))
    return losses


def _pairs(sets: list[RunSet], published: Sample | None) -> list[tuple[RunSet, RunSet | Sample]]:
    if published is not None:
        return [(group, published) for group in sets]
    if len(sets) > 1:
        return [(group, sets[0]) for group in sets[1:]]
    first, *others = (_run_set(run.label, [run]) for run in sets[0].runs)
    return [(other, first) for other in others]


def _contrast(
    candidate: RunSet,
    baseline: RunSet | Sample,
    losses: dict[str, DocumentLosses],
    settings: Settings,
    progress: Progress,
) -> Contrast:
    margin = margin_in_bpb(settings.margin_nats, candidate.bpb_per_nat)
    documents: DocumentContrast | str = "published numbers have no losses by document"
    reference: Sample | str
    if isinstance(baseline, Sample):
        mean, reference = baseline.mean, baseline
    else:
        mean, reference = baseline.mean_bpb, baseline.sample
        documents = _document_contrast(candidate, baseline, losses, settings, progress)
    difference = candidate.mean_bpb - mean
    return Contrast(
        candidate.name,
        baseline.name,
        difference,
        difference / candidate.bpb_per_nat,
        settings.margin_nats,
        margin,
        *_seed_tests(candidate.sample, reference, margin),
        documents,
    )


def _seed_tests(candidate: Sample | str, baseline: Sample | str, margin_bpb: float) -> tuple[TTest | str, TTest | str]:
    """Welch's and the paired test, or the reason why one is not possible."""
    if isinstance(candidate, str):
        return candidate, candidate
    if isinstance(baseline, str):
        return baseline, baseline
    return _attempt(welch, candidate, baseline, margin_bpb), _attempt(paired, candidate, baseline, margin_bpb)


def _attempt(
    test: Callable[[Sample, Sample, float], TTest], candidate: Sample, baseline: Sample, margin_bpb: float
) -> TTest | str:
    try:
        return test(candidate, baseline, margin_bpb)
    except RunError as error:
        return str(error)


def _document_contrast(
    candidate: RunSet,
    baseline: RunSet,
    losses: dict[str, DocumentLosses],
    settings: Settings,
    progress: Progress,
) -> DocumentContrast | str:
    missing = next((run for run in (*candidate.runs, *baseline.runs) if run.label not in losses), None)
    if missing is not None:
        return (
            f"nll.npy of {missing.label} holds the losses of its headline ({missing.score['headline']}), not of "
            f"{missing.method}; leave out --method to compare documents"
        )
    num_bytes = losses[baseline.runs[0].label].bytes
    for run in (*candidate.runs, *baseline.runs):
        _require_same_bytes(baseline.runs[0].label, num_bytes, run.label, losses[run.label].bytes)
    means = [np.mean([losses[run.label].bits for run in group.runs], axis=0) for group in (candidate, baseline)]
    bits = means[0] - means[1]
    if len(bits) < 2:
        return "the validation text is a single document; resampling needs at least two"
    interval = bootstrap(bits, num_bytes, resamples=settings.resamples, seed=settings.bootstrap_seed, progress=progress)
    return DocumentContrast(interval, bits, num_bytes)


def _require_same_bytes(label: str, num_bytes: np.ndarray, other_label: str, other_bytes: np.ndarray) -> None:
    if len(num_bytes) != len(other_bytes):
        raise RunError(
            f"{label} has {len(num_bytes):,} validation documents with text, {other_label} "
            f"{len(other_bytes):,}; they cannot be compared by document"
        )
    if not np.array_equal(num_bytes, other_bytes):
        index = int(np.flatnonzero(num_bytes != other_bytes)[0])
        raise RunError(
            f"document {index} counts {num_bytes[index]:,} bytes for {label} and {other_bytes[index]:,} for "
            f"{other_label}; their bits per byte are not comparable"
        )


def _notes(sets: Sequence[RunSet], published: Sample | None) -> list[str]:
    """Remarks for the reader of the numbers."""
    runs = [run for group in sets for run in group.runs]
    notes = []
    if published is not None:
        notes.append(
            "The baseline is published numbers. That they are of the same text and byte accounting cannot be "
            "checked here."
        )
    methods = {run.method for run in runs}
    if len(methods) > 1:
        notes.append(f"The headlines of the runs are of different methods: {', '.join(sorted(methods))}.")
    if len({run.text.tokenizer_sha256 for run in runs}) > 1:
        notes.append(
            "The tokenizers differ, so bits per byte are comparable and nats per token are not. Margins are converted "
            "by the candidate's own constant."
        )
    hardware = sorted({run.hardware for run in runs})
    if len(hardware) > 1:
        notes.append(f"The hardware differs ({', '.join(hardware)}), which matters when time is limited.")
    if len({run.text.train_hashes for run in runs}) > 1:
        notes.append("The training documents differ.")
    for group in sets:
        trained = [count for run in group.runs if (count := run.trained_tokens) is not None]
        if trained and max(trained) > _UNEVEN * min(trained):
            notes.append(
                f"The runs of {group.name} were trained on {min(trained):,} to {max(trained):,} tokens. The clock "
                "stopped some early, so their deviation is not that of seeds alone."
            )
    if any(a.shares_training_with(b) for a, b in combinations(runs, 2)):
        notes.append(
            "Some runs are branches of one training, so they are not independent. Paired tests allow for that; Welch's "
            "test does not."
        )
    notes += [
        f"{group.name}: {group.sample}." for group in sets if isinstance(group.sample, str) and len(group.runs) > 1
    ]
    return notes
