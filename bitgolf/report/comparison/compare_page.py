"""The page of `bitgolf compare`: a comparison as one self-contained file with charts of the differences."""

from __future__ import annotations

from pathlib import Path

from bitgolf.report.comparison import difference_charts
from bitgolf.report.comparison.compare import Comparison, DocumentContrast
from bitgolf.report.comparison.compare_rows import contrast_rows, difference_rows, run_rows, set_rows, signed
from bitgolf.report.page import markup, render_page
from bitgolf.run import atomic
from bitgolf.version import __version__


def write_page(comparison: Comparison, path: Path) -> None:
    atomic.write_text(path, render(comparison))


def render(comparison: Comparison) -> str:
    contrasts = [
        {
            "candidate": contrast.candidate,
            "baseline": contrast.baseline,
            "difference": signed(contrast.difference_bpb),
            "rows": contrast_rows(contrast),
            "charts": _charts(contrast.documents, f"contrast-{number}") if contrast.documents else [],
            "num_outside": difference_charts.num_outside(contrast.documents) if contrast.documents else 0,
            "num_documents": len(contrast.documents.bytes) if contrast.documents else 0,
        }
        for number, contrast in enumerate(comparison.contrasts)
    ]
    return render_page(
        "compare.html",
        style=("report.css", "site.css"),
        script="site.js",
        version=__version__,
        settings=comparison.settings,
        contrasts=contrasts,
        runs=run_rows(comparison),
        sets=set_rows(comparison),
        set_names=[group.name for group in comparison.sets],
        differences=difference_rows(comparison),
        notes=comparison.notes,
    )


def _charts(documents: DocumentContrast, key: str) -> list[dict[str, object]]:
    return [
        {
            "title": "Documents sorted by their difference, bits per byte",
            "svg": markup(difference_charts.draw_sorted(documents, f"{key}-sorted")),
        },
        {
            "title": "Difference of each document, bits per byte, against its size",
            "svg": markup(difference_charts.draw_by_size(documents, f"{key}-size")),
        },
    ]
