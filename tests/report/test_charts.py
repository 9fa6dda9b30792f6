"""Charts: what is drawn is complete, follows the page's colors and cannot break out of its element."""

import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from html_page import drawn_points
from hypothesis import given
from hypothesis import strategies as st

from bitgolf.report.charts import MAX_POINTS, LineChart, draw, short_number, thin
from bitgolf.report.site.overlays import Curve, Overlay, draw_overlay


def chart(**changes: object) -> LineChart:
    values = {
        "key": "loss",
        "title": "Loss",
        "summary": "Loss goes from 6 to 2.",
        "x_label": "seconds",
        "x": [0.0, 10.0, 20.0],
        "y": [6.0, 3.0, 2.0],
        **changes,
    }
    return LineChart(**values)


@given(length=st.integers(0, 5000), most=st.integers(2, 700))
def test_thinned_indices_are_increasing_and_keep_both_ends(length: int, most: int) -> None:
    kept = thin(length, most)
    assert len(kept) == min(length, most)
    assert all(a < b for a, b in pairwise(kept))
    if length:
        assert kept[0] == 0 and kept[-1] == length - 1


def test_a_long_curve_is_drawn_with_few_points() -> None:
    long = chart(x=list(range(20_000)), y=[1 / (i + 1) for i in range(20_000)])
    paths = re.findall(r' d="([^"]*)"', draw(long))
    longest = max(len(re.findall(r"[ML] ", path)) for path in paths)
    assert 300 <= longest <= MAX_POINTS


def test_a_logarithmic_axis_has_no_points_at_or_below_zero() -> None:
    shown = draw(chart(x=[1.0, 10.0, 20.0], log_x=True))
    assert draw(chart(x=[-1.0, 0.0, 1.0, 10.0, 20.0], y=[9.0, 8.0, 6.0, 3.0, 2.0], log_x=True)) == shown
    assert draw(chart(x=[0.0, 10.0, 20.0])) != draw(chart(x=[10.0, 20.0], y=[3.0, 2.0]))


@pytest.mark.parametrize(("x", "log_x"), [([1.0, 2.0, 5.0], False), ([1.0, math.sqrt(2), 4.0], True)])
def test_points_are_drawn_at_their_places(x: list[float], log_x: bool) -> None:
    """A quarter of the way right, half of the way down; in the same way on the page of several runs."""
    y = [9.0, 5.0, 1.0]
    svgs = (draw(chart(x=x, y=y, log_x=log_x)), draw_overlay(Overlay("key", "", "", "steps", [Curve(0, x, y)], log_x)))
    for svg in svgs:
        (line,) = drawn_points(svg)
        assert [place for point in line for place in point] == pytest.approx([0, 0, 0.25, -0.5, 1, -1], abs=1e-4)


def test_losses_on_held_out_text_are_dots() -> None:
    plain, dotted = (draw(chart(dots=dots)) for dots in ((), ((5.0, 4.0), (15.0, 2.5))))
    places = [re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg) for svg in (plain, dotted)]
    (x, y), (later_x, later_y) = ((float(x), float(y)) for x, y in places[1] if (x, y) not in places[0])
    assert len(places[1]) == len(places[0]) + 2 and x < later_x and y < later_y, "to the right, and lower"


def test_drawing_is_well_formed_themed_and_local() -> None:
    svg = draw(chart(marks=[(5.0, "resumed")]))
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == "Loss goes from 6 to 2."
    text = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "seconds" in text and "resumed" in text  # text, not outlines
    assert "var(--series-1)" in svg and "var(--muted)" in svg
    assert not re.search(r"#0[1-9]0[1-9]0[1-9]", svg), "a placeholder color is left"
    assert not re.search(r"\bfont\b|font-family|font-size", svg), "the page decides on fonts"
    assert "http" not in svg and "<metadata" not in svg
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert len(set(ids)) == len(ids) and all(name.startswith("loss-") for name in ids)
    used = re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)\"", svg)
    assert {a or b for a, b in used} <= set(ids)


@pytest.mark.filterwarnings("error")
def test_a_mark_beyond_the_curve_is_left_out_and_one_at_its_end_keeps_its_word_inside() -> None:
    assert "far away" not in draw(chart(marks=[(5e6, "far away")]))
    svg = draw(chart(x=[0.0, 10.0], y=[2.0, 1.0], marks=[(10.0, "the end of the curve")]))
    (word,) = re.findall(r"<text ([^>]*)>the end of the curve", svg)
    assert "text-anchor: end" in word


def test_the_summary_cannot_leave_its_attribute() -> None:
    root = ElementTree.fromstring(draw(chart(summary='a "b" <c> & d')).replace("xlink:href", "href"))
    assert root.attrib["aria-label"] == 'a "b" <c> & d'


@pytest.mark.parametrize("points", [([], []), ([3.0], [1.0]), ([0.0, 1.0], [float("nan"), 2.0])])
@pytest.mark.parametrize("log_x", [False, True])
def test_few_or_missing_points_still_draw(points: tuple[list[float], list[float]], log_x: bool) -> None:
    assert draw(chart(x=points[0], y=points[1], log_x=log_x)).endswith("</svg>")


def test_losses_that_are_not_finite_leave_no_gap_and_do_not_stretch_the_axis() -> None:
    values, infinite = [3.0, 2.5, 2.0, 1.0], [3.0, 2.5, math.nan, 2.0, math.inf, 1.0]
    assert draw(chart(x=[1.0, 2.0, 4.0, 6.0], y=values)) == draw(chart(x=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], y=infinite))


def test_short_numbers() -> None:
    cases = {0.25: "0.25", 0: "0", 950: "950", 1500: "1.5 k", 2e7: "20 M", 3e9: "3 G", 0.30000000000000004: "0.3"}
    assert {value: short_number(value) for value in cases} == cases
