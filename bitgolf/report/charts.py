"""Charts of the pages as inline SVG in the page's colors, and the line chart of the report.

Matplotlib draws them without a display. Colors are placeholders that become CSS variables, so one drawing serves
the light and the dark page. Text stays text in the page's font. The layout is for a phone: 360 units wide with 14-unit
letters, and the style sheet makes the letters smaller if the drawing is scaled up. Every chart uses `canvas`,
`style_axes` and `as_svg`, also in `site.overlays` and `comparison.compare_page`.
"""

import html
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

MAX_POINTS = 600

_WIDTH, _HEIGHT = 360, 225  # user units of the SVG; matplotlib draws 72 of them an inch
_FONT = 14
_DOTTED = 15  # up to this many points get markers
INK, GRID, LINE, MARK = "#010101", "#020202", "#030303", "#040404"
CURVES = tuple(f"#0{n}0{n}0{n}" for n in "56789abc")  # of overlaid curves
_VARIABLES = {INK: "var(--muted)", GRID: "var(--grid)", LINE: "var(--series-1)", MARK: "var(--series-2)"} | {
    color: f"var(--curve-{number})" for number, color in enumerate(CURVES, 1)
}


@dataclass(frozen=True)
class LineChart:
    """One curve with its axes."""

    key: str  # identifier, unique on the page (letters, digits, hyphens)
    title: str  # what is drawn, with its unit
    summary: str  # a description with the main numbers, for readers who cannot see the chart
    x_label: str  # label of the x axis
    # x, y: the points in order, of one length.
    x: Sequence[float]
    y: Sequence[float]
    log_x: bool = False  # logarithmic x axis, without points at or below 0
    from_zero: bool = False  # the y axis begins at 0, otherwise at the smallest value
    # x positions of dashed vertical lines with a word each, without those outside the axis.
    marks: Sequence[tuple[float, str]] = field(default_factory=tuple)
    dots: Sequence[tuple[float, float]] = field(default_factory=tuple)  # further points (x, y) in another color


def thin(length: int, most: int = MAX_POINTS) -> list[int]:
    """At most `most` (>= 2) indices below `length`, evenly spread, with the first and the last."""
    if length <= most:
        return list(range(length))
    return [round(i * (length - 1) / (most - 1)) for i in range(most)]


def drawable(
    x: Sequence[float], y: Sequence[float], log_x: bool, most: int = MAX_POINTS
) -> tuple[list[float], list[float]]:
    """At most `most` of the points that can be drawn."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b) and (a > 0 or not log_x)]
    kept = [points[i] for i in thin(len(points), most)]
    return [a for a, _ in kept], [b for _, b in kept]


def short_number(value: float) -> str:
    """A number for an axis: 0.25, 950, 1.5 k, 20 M, 3 G."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:g} {prefix}"
    return f"{round(value, 9):g}"


def draw(chart: LineChart) -> str:
    xs, ys = drawable(chart.x, chart.y, chart.log_x)
    with canvas(chart.key) as (figure, axes):
        axes.plot(
            xs,
            ys,
            color=LINE,
            linewidth=2,
            solid_joinstyle="round",
            marker="o" if len(xs) <= _DOTTED else None,
            markersize=5,
            clip_on=False,  # points on the edge are drawn whole
        )
        if chart.dots:
            x, y = zip(*chart.dots, strict=True)
            axes.plot(x, y, color=MARK, linewidth=0, marker="o", markersize=5, clip_on=False)
        style_axes(axes, chart.x_label, xs, log_x=chart.log_x)
        if chart.from_zero:
            axes.set_ylim(bottom=0)
        left, right = axes.get_xlim()
        for position, word in chart.marks:
            if not left <= position <= right:
                continue
            before = position > (left + right) / 2  # the word stays inside the picture
            axes.axvline(position, color=MARK, linewidth=1.5, linestyle=(0, (4, 3)))
            axes.annotate(
                word,
                (position, 1),
                (-4 if before else 4, -2),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="right" if before else "left",
                va="top",
                color=INK,
            )
        return as_svg(figure, chart.key, chart.summary)


@contextmanager
def canvas(key: str) -> Iterator[tuple[Any, Any]]:
    """An empty figure and its axes with the settings of all charts.

    Args:
        key: identifier of the chart, unique on the page (letters, digits, hyphens).
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": key,
        "font.size": _FONT,
        "text.color": INK,
        "axes.edgecolor": GRID,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "path.simplify": False,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), dpi=72, layout="constrained")
        yield figure, figure.add_subplot()


def style_axes(axes: Any, x_label: str, x: Sequence[float], *, log_x: bool = False) -> None:
    """Grid, ticks and labels. `x` are the positions drawn, in any order; a linear axis begins at 0 or below."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.grid(axis="y", color=GRID, linewidth=1)
    axes.tick_params(length=0, pad=4)
    axes.set_xlabel(x_label)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    if log_x:
        axes.set_xscale("log")
        decades = math.log10(max(x) / min(x)) if x else 0.0
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlim(left=min(0.0, *x) if x else 0.0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def as_svg(figure: Any, key: str, summary: str) -> str:
    """A finished figure as an `<svg>` element without metadata, with unique ids and the page's colors and fonts.

    `summary` is its label for readers who cannot see it.
    """
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = drawing.getvalue()
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{key}-', body)
    body = body.replace('href="#', f'href="#{key}-').replace("url(#", f"url(#{key}-")
    for placeholder, variable in _VARIABLES.items():
        body = body.replace(placeholder, variable)
    body = re.sub(r'\bfont(?:-[a-z]+)?: [^";]*;? ?', "", body)  # the page's style sheet decides
    opening = f'<svg class="chart" role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-label="{html.escape(summary)}">'
    return re.sub(r"^<svg[^>]*>", lambda _: opening, body).strip()
