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
            **_documents(contrast.documents, f"contrast-{number}"),
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


def _documents(documents: DocumentContrast | str, key: str) -> dict[str, object]:
    if isinstance(documents, str):
        return {"charts": [], "num_outside": 0, "num_documents": 0}
    drawn = (
        (
            "Documents sorted by their difference, bits per byte",
            difference_charts.draw_sorted(documents, f"{key}-sorted"),
        ),
        (
            "Difference of each document, bits per byte, against its size",
            difference_charts.draw_by_size(documents, f"{key}-size"),
        ),
    )
    return {
        "charts": [{"title": title, "svg": markup(svg)} for title, svg in drawn],
        "num_outside": difference_charts.num_outside(documents),
        "num_documents": len(documents.bytes),
    }
