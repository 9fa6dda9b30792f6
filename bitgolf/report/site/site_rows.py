"""The tables of the site: columns and cells, sets of seeds, curves and budgets.

A cell has the value that it is sorted by and the text that it shows. There is one table per validation text, because
bits per byte of different texts are not comparable.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitgolf.errors import RunError
from bitgolf.report import sections
from bitgolf.report.comparison.scored_runs import (
    ScoredRun,
    TextIdentity,
    group_runs,
    label_paths,
    methods_of,
    read_run,
    sample,
)
from bitgolf.report.products import Products
from bitgolf.report.site.overlays import Curve, Overlay
from bitgolf.run.directory import REPORT_MARK, RunDirectory

_LEFT_OUT = 0.05  # share at the beginning of each loss curve that is not drawn, so that differences are visible


@dataclass(frozen=True)
class SiteRun:
    """A run on the site.

    `page` is its report.html relative to the index, "" without one.
    """

    number: int
    label: str
    products: Products
    text: TextIdentity | None
    scored: ScoredRun | None
    page: str

    @property
    def no_page(self) -> str:
        """The command that makes a missing page, else ""."""
        return "" if self.page else self.products.command("report")

    @property
    def headline_bpb(self) -> float | None:
        """Bits per byte, None before scoring."""
        return self.products.score["headline_bpb"] if self.products.score else None


@dataclass(frozen=True)
class Cell:
    """A cell: its text, the value it is sorted by (None = last), a small second line, and the color of a verdict."""

    text: str
    value: float | str | None
    small: str = ""
    state: str = ""


@dataclass(frozen=True)
class Column:
    """A column: its heading, and whether it is numbers."""

    title: str
    numeric: bool


@dataclass(frozen=True)
class RunTable:
    """Runs of one validation text, best first, with one cell per column."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[SiteRun, tuple[Cell, ...]], ...] = field(repr=False)


@dataclass(frozen=True)
class SeedSet:
    """A set of seeds. `mean` and `std` are text; if they are "", `reason` says why."""

    name: str
    seeds: str
    mean: str
    std: str
    reason: str


def read_site_runs(paths: Sequence[Path]) -> list[SiteRun]:
    """Read all products of the runs, without their texts.

    Raises:
        ConfigError: a run is given twice.
        RunError, DataError: a product is damaged.
    """
    labels = label_paths(paths)
    pages = _page_names(labels)
    runs = []
    for number, (path, label, page) in enumerate(zip(paths, labels, pages, strict=True)):
        run = RunDirectory.open(path)
        products = Products.read(run)
        has_data = (run / "data").exists()
        scored = read_run(path, label) if has_data and products.score is not None else None
        text = TextIdentity.read(run / "data") if has_data else None
        shown = f"runs/{page}" if (run / "report.html").is_file() else ""
        runs.append(SiteRun(number, label, products, text, scored, shown))
    return runs


def warnings(runs: Sequence[SiteRun]) -> list[str]:
    """Remarks for the reader of the table."""
    remarks = []
    texts = {run.text for run in runs if run.text is not None}
    if len(_by_text(runs)) > 1 and len(texts) > 1:
        remarks.append("These runs have different validation texts; compare scores within one table only.")
    for run in runs:
        remarks += [f"{run.label}: {text}" for text in sections.warnings(run.products)]
        if run.no_page:
            remarks.append(f"{run.label} has no page of its own yet; run `{run.no_page}`, then this again.")
        elif REPORT_MARK not in (run.products.path / "report.html").read_text(encoding="utf-8", errors="replace"):
            remarks.append(f"{run.label}: its page is outdated; run `{run.products.command('report')}`.")
    return remarks


def tables(runs: Sequence[SiteRun]) -> list[RunTable]:
    """One table per validation text. The text with most runs is first."""
    result = []
    for group in sorted(_by_text(runs), key=len, reverse=True):
        methods: list[str] = []
        for run in group:
            methods += [name for name in methods_of(run.products.score or _UNSCORED) if name not in methods]
        columns = (
            Column("bits per byte", True),
            *(Column(name.replace("-", " ", 1), True) for name in methods),
            Column("artifact bytes", True),
            Column("train seconds", True),
            Column("eval seconds", True),
            Column("parameters", True),
            Column("preset", False),
            Column("seed", True),
            Column("hardware", False),
            Column("audit", False),
        )
        ranked = sorted(group, key=lambda run: (run.headline_bpb is None, run.headline_bpb or 0.0))
        rows = tuple((run, tuple(_cells(run, methods))) for run in ranked)
        result.append(RunTable(_text_title(group[0]), columns, rows))
    return result


def seed_sets(runs: Sequence[SiteRun]) -> list[SeedSet]:
    """Mean and standard deviation of runs that differ by seed only, best first."""
    ranked: list[tuple[float, SeedSet]] = []
    for group in group_runs([run.scored for run in runs if run.scored is not None]):
        if len(group) < 2:
            continue
        name, seeds = ", ".join(run.label for run in group), ", ".join(str(run.seed) for run in group)
        try:
            scores = sample(name, group)
        except RunError as error:
            ranked.append((float("inf"), SeedSet(name, seeds, "", "", str(error))))
        else:
            ranked.append((scores.mean, SeedSet(name, seeds, f"{scores.mean:.5f}", f"{scores.std:.5f}", "")))
    return [row for _, row in sorted(ranked, key=lambda item: item[0])]


def overlays(runs: Sequence[SiteRun]) -> list[Overlay]:
    """Training loss of all runs against time and against tokens. Empty if no run has been trained."""
    by_time, by_tokens, ends = [], [], []
    for run in runs:
        steps = [event for event in run.products.events if event["event"] == "step"]
        if not steps:
            continue
        first = _LEFT_OUT * steps[-1]["elapsed_seconds"]
        steps = [event for event in steps if event["elapsed_seconds"] >= first]
        seconds, tokens, loss = ([event[key] for event in steps] for key in ("elapsed_seconds", "tokens", "loss"))
        by_time.append(Curve(run.number, seconds, loss))
        by_tokens.append(Curve(run.number, tokens, loss))
        ends.append(loss[-1])
    if not ends:
        return []
    text = (
        f"runs: {len(ends)}, the first {_LEFT_OUT:.0%} of each left out; at the end the loss "
        f"is between {min(ends):.3f} and {max(ends):.3f} nats per token."
    )
    return [
        Overlay("time", "Training loss, nats per token, against time", f"Line chart: {text}", "seconds", by_time),
        Overlay(
            "tokens",
            "Training loss, nats per token, against tokens (logarithmic)",
            f"Line chart: {text}",
            "tokens",
            by_tokens,
            log_x=True,
        ),
    ]


def as_json(runs: Sequence[SiteRun]) -> list[dict[str, Any]]:
    """The table as plain values, in the order of the runs."""
    return [
        {
            "label": run.label,
            "page": run.page,
            "preset": run.products.config.name,
            "seed": run.products.config.seed,
            "config_sha256": run.products.config.digest(),
            "headline": run.products.score["headline"] if run.products.score else None,
            "headline_bpb": run.headline_bpb,
            "bpb": {name: value["bpb"] for name, value in methods_of(run.products.score or _UNSCORED).items()},
            "total_bytes": run.products.pack["total_bytes"] if run.products.pack else None,
            "num_parameters": run.products.pack["num_parameters"] if run.products.pack else None,
            "train_seconds": _spent(run, "train_seconds"),
            "eval_seconds": _spent(run, "eval_seconds"),
            "hardware": _hardware(run),
            "audit": sections.verdict(run.products)[2],
            "validation_text": run.text.val_hashes if run.text else None,
        }
        for run in runs
    ]


_UNSCORED: dict[str, Any] = {"float": {}, "methods": {}}


def _cells(run: SiteRun, methods: Sequence[str]) -> list[Cell]:
    products = run.products
    score, pack, budget = products.score, products.pack, products.budget
    named = methods_of(score or _UNSCORED)
    state, symbol, word, checks = sections.verdict(products)
    bpb = run.headline_bpb
    cells = [Cell(f"{bpb:.4f}", bpb, score["headline"]) if score and bpb is not None else _missing("not scored")]
    cells += [
        Cell(f"{named[name]['bpb']:.4f}", named[name]["bpb"]) if name in named else _missing() for name in methods
    ]
    size = pack["total_bytes"] if pack else None
    cells.append(_amount(size, budget.limits["artifact_bytes"], "{:,.0f}") if size is not None else _missing())
    for kind in ("train_seconds", "eval_seconds"):
        spent = _spent(run, kind)
        cells.append(_amount(spent, budget.limits[kind], "{:,.1f}") if spent is not None else _missing())
    cells.append(Cell(f"{pack['num_parameters']:,}", pack["num_parameters"]) if pack else _missing())
    cells.append(Cell(products.config.name, products.config.name))
    cells.append(Cell(str(products.config.seed), products.config.seed))
    hardware = _hardware(run)
    cells.append(Cell(hardware, hardware) if hardware else _missing())
    cells.append(Cell(f"{symbol} {word}", word, checks, state))
    return cells


def _missing(text: str = "\N{EM DASH}") -> Cell:
    return Cell(text, None)


def _amount(used: float, limit: float, pattern: str) -> Cell:
    over = used > limit
    return Cell(pattern.format(used), used, "over the cap" if over else "", "fail" if over else "")


def _spent(run: SiteRun, kind: str) -> float | None:
    charged = any(charge.kind == kind for charge in run.products.budget.charges)
    return run.products.budget.spent(kind) if charged else None


def _hardware(run: SiteRun) -> str:
    """The devices that trained it, or if unknown those that scored it."""
    event = run.products.last_launch() or run.products.score or {}
    device, size = event.get("device", ""), event.get("world_size", 1)
    return f"{size} × {device}" if device and size > 1 else str(device)


def _by_text(runs: Sequence[SiteRun]) -> list[list[SiteRun]]:
    """Groups of runs with the same validation text and byte accounting. Runs without data are one group."""
    groups: dict[tuple[str, ...], list[SiteRun]] = {}
    for run in runs:
        key = (run.text.val_hashes, run.text.hashes_of, run.text.accounting) if run.text else ()
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _text_title(run: SiteRun) -> str:
    if run.text is None:
        return "Runs without data"
    return (
        f"{run.text.bytes:,} bytes of validation text in {run.text.documents:,} documents, {run.text.accounting} byte "
        f"accounting ({run.text.val_hashes[:12]})"
    )


def _page_names(labels: Sequence[str]) -> list[str]:
    """A file name for each label, of letters, digits, `.`, `_` and `-`. Names differ even if case is ignored."""
    names: list[str] = []
    for label in labels:
        plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in label).strip(".-") or "run"
        name, number = f"{plain}.html", 2
        while name.lower() in {taken.lower() for taken in names}:
            name, number = f"{plain}-{number}.html", number + 1
        names.append(name)
    return names
