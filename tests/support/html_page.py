"""An HTML page taken apart for the tests: tags, text, and a check that every element is closed."""

import base64
import hashlib
import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags with attributes, text by element, and a check that every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[tuple[tuple[str, ...], str]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append((tuple(self.open), data))

    def visible_text(self) -> str:
        return "".join(data for path, data in self.text if "script" not in path and "style" not in path)


def assert_loads_nothing(html: str, links: tuple[str, ...] = ()) -> None:
    """No element or style of the page fetches anything, and its policy allows its own script alone; `links` are the
    only places besides itself that it points to."""
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in {"img", "iframe", "object", "embed", "base", "form"}
        assert not attributes.get("src")
        assert not any(key.startswith("on") for key in attributes)
        for key in ("href", "xlink:href"):
            target = attributes.get(key, "#")
            assert target.startswith(("#", "data:,")) or target in links, (tag, attributes)
    for style in re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL):
        assert not re.search(r"url\((?!#)|@import", style)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def drawn_points(svg: str) -> list[list[tuple[float, float]]]:
    """The points of each path of straight lines, right and up from its first point, in lengths of its last one."""
    lines = []
    for path in re.findall(r' d="(M [^C"z]*)"', svg):
        points = [tuple(map(float, point.split())) for point in re.findall(r"[ML] ([\d.]+ [\d.]+)", path)]
        (x, y), (right, top) = points[0], points[-1]
        if right != x and top != y:
            lines.append([((a - x) / abs(right - x), (y - b) / abs(top - y)) for a, b in points])
    return lines
