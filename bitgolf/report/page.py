"""What all pages of bitgolf share: templates, style, scripts, and a policy that lets a page load nothing.

A page is one file: its style and script stand in it, and its content security policy allows this script (by hash) and
no other, no request, no form. Every inserted value is escaped by jinja2; only the page's own style, script and charts
are markup.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from types import ModuleType
from typing import Any

from bitgolf.errors import ConfigError
from bitgolf.report import charts


def render_page(template: str, *, style: tuple[str, ...], script: str, **values: Any) -> str:
    """Fill a template.

    Args:
        template: file of `templates/`.
        style: style sheets of `templates/`, in their order.
        script: script of `templates/`.
        values: what the template inserts; a name it uses and is not given is an error.
    Raises:
        ConfigError: jinja2 is not installed.
    """
    source = _read(script)
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return str(
        _environment()
        .get_template(template)
        .render(style=markup("".join(map(_read, style))), script=markup(source), script_hash=markup(digest), **values)
    )


def markup(text: str) -> Any:
    """Text that a template inserts as it is: style, script or chart, never a value of a run."""
    return _jinja2().utils.markupsafe.Markup(text)


def require_libraries() -> None:
    """Raise ConfigError when matplotlib or jinja2 is not installed (better before a long run than after it)."""
    _jinja2()
    charts.require_matplotlib()


def _read(name: str) -> str:
    return resources.files("bitgolf.report").joinpath("templates", name).read_text(encoding="utf-8")


def _environment() -> Any:
    """Templates; every inserted value is escaped and an unknown name is an error."""
    jinja2 = _jinja2()
    return jinja2.Environment(
        loader=jinja2.PackageLoader("bitgolf.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _jinja2() -> ModuleType:
    try:
        import jinja2
        import jinja2.utils
    except ImportError as error:
        raise ConfigError(
            "the report is made with jinja2, which is not installed; `pip install bitgolf[report]`"
        ) from error
    return jinja2
