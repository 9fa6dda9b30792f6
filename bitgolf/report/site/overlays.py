"""Curves of several runs in one chart, for the site.

A run has the same color and dash in every chart (`look`), so one legend serves all of them. Its SVG group has the id
`KEY-run-N`, which the page's script uses to highlight it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bitgolf.report.charts import CURVES, as_svg, canvas, drawable, style_axes

_MAX_POINTS = 300  # of one curve
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2))  # in line widths; () is solid


@dataclass(frozen=True)
class Curve:
    """The line of run number `number` (0..): its points in order, of one length."""

    number: int
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Overlay:
    """Several curves with their axes. The attributes are those of `charts.LineChart`."""

    key: str
    title: str
    summary: str
    x_label: str
    curves: Sequence[Curve]
    log_x: bool = False


@dataclass(frozen=True)
class Look:
    """How a run is drawn: the number of its color, from 1, and its dash in SVG notation ("" is solid)."""

    color: int
    dash: str


def look(number: int) -> Look:
    """Color and dash of a run. The color changes first, then the dash. All combinations are used before one repeats."""
    dash = DASHES[number // len(CURVES) % len(DASHES)]
    return Look(number % len(CURVES) + 1, " ".join(f"{2 * part:g}" for part in dash))


def draw_overlay(chart: Overlay) -> str:
    with canvas(chart.key) as (figure, axes):
        drawn: list[float] = []
        for curve in chart.curves:
            xs, ys = drawable(curve.x, curve.y, chart.log_x, _MAX_POINTS)
            drawn += xs
            dash = DASHES[curve.number // len(CURVES) % len(DASHES)]
            (line,) = axes.plot(
                xs,
                ys,
                color=CURVES[curve.number % len(CURVES)],
                linewidth=1.8,
                linestyle=(0, dash) if dash else "solid",
                solid_joinstyle="round",
                marker="o" if len(xs) == 1 else None,
            )
            line.set_gid(f"run-{curve.number}")
        style_axes(axes, chart.x_label, drawn, log_x=chart.log_x)
        return as_svg(figure, chart.key, chart.summary)
