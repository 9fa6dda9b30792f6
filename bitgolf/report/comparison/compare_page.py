"""The page of `bitgolf compare`: a comparison as one self-contained file with two charts of each difference.

The first chart sorts the documents by their difference, with their bytes as widths. The curve crosses 0 at the share of
the text that the candidate codes better. The second chart shows the difference against the size of the document.
"""

import numpy as np

from bitgolf.report.charts import INK, LINE, MARK, as_svg, canvas, style_axes, thin
from bitgolf.report.comparison.compare_rows import contrast_rows, difference_rows, run_rows, set_rows, signed
from bitgolf.report.comparison.contrasts import Comparison, DocumentContrast
from bitgolf.report.page import markup, render_page
from bitgolf.version import __version__

_TRIMMED_FROM = 200  # documents from which the axis leaves out 0.5 % at each end


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
        return {"charts": []}
    drawn = (
        (
            "Documents sorted by their difference, bits per byte",
            _draw_sorted(documents, f"{key}-sorted"),
        ),
        (
            "Difference of each document, bits per byte, against its size",
            _draw_by_size(documents, f"{key}-size"),
        ),
    )
    return {
        "charts": [{"title": title, "svg": markup(svg)} for title, svg in drawn],
        "num_outside": _num_outside(documents),
        "num_documents": len(documents.bytes),
    }


def _draw_sorted(documents: DocumentContrast, key: str) -> str:
    """Difference in bits per byte over the share of the text, with documents sorted by their difference."""
    order = np.argsort(documents.difference_bpb, kind="stable")
    values, sizes = documents.difference_bpb[order], documents.bytes[order]
    edges = np.concatenate([[0], np.cumsum(sizes)]) / sizes.sum() * 100  # (D + 1,) percent of the bytes
    kept = thin(len(values))
    x, y = edges[[*kept, len(values)]], values[[*kept, len(values) - 1]]
    below = documents.share_of_bytes_better
    with canvas(key) as (figure, axes):
        axes.axhline(0, color=INK, linewidth=1)
        axes.step(x, y, where="post", color=LINE, linewidth=2)
        style_axes(axes, "percent of the text", x.tolist())
        axes.set_xlim(0, 100)
        axes.set_ylim(*_limits(values))
        return as_svg(
            figure,
            key,
            f"Curve of sorted differences: {below:.1%} of the text is in documents that the candidate codes better; "
            f"the middle document differs by {np.median(values):+.4f} bits per byte.",
        )


def _draw_by_size(documents: DocumentContrast, key: str) -> str:
    """Difference in bits per byte of each document against its bytes. Better and worse ones have two colors."""
    order = np.argsort(documents.bytes, kind="stable")
    kept = order[thin(len(order))]
    sizes, values = documents.bytes[kept], documents.difference_bpb[kept]
    with canvas(key) as (figure, axes):
        axes.axhline(0, color=INK, linewidth=1)
        for chosen, color in ((values < 0, LINE), (values >= 0, MARK)):
            axes.plot(sizes[chosen], values[chosen], "o", color=color, markersize=3.5, markeredgewidth=0, alpha=0.75)
        style_axes(axes, "bytes of the document (logarithmic)", sizes.tolist(), log_x=True)
        axes.set_ylim(*_limits(documents.difference_bpb))
        return as_svg(
            figure,
            key,
            f"Scatter plot: difference of {len(kept):,} documents of {sizes.min():,} to {sizes.max():,} bytes.",
        )


def _num_outside(documents: DocumentContrast) -> int:
    """Number of documents whose difference is outside the axis."""
    low, high = _limits(documents.difference_bpb)
    return int(((documents.difference_bpb < low) | (documents.difference_bpb > high)).sum())


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Lower and upper end of the axis. It contains 0 and has a margin."""
    trim = 0.5 if len(values) >= _TRIMMED_FROM else 0.0
    low, high = np.percentile(values, (trim, 100 - trim)).tolist()
    low, high = min(low, 0.0), max(high, 0.0)
    room = 0.05 * (high - low) or 0.001
    return low - room, high + room
