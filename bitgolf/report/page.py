"""What all pages share: templates, style, scripts, and a policy that forbids all loading.

A page is one file with its style and script inside. Its content security policy allows this script (by hash) and no
other script, request or form. jinja2 escapes every inserted value, and `harmless` replaces control characters and
bidirectional overrides. Only the page's own style, script and charts are inserted as markup.
"""

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from bitgolf.foreign import harmless


def render_page(template: str, *, style: tuple[str, ...], script: str, **values: Any) -> str:
    """Fill a template of `templates/`, with style sheets and a script from there; a missing value is an error."""
    source = _read(script)
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return str(
        _environment()
        .get_template(template)
        .render(style=markup("".join(map(_read, style))), script=markup(source), script_hash=markup(digest), **values)
    )


def markup(text: str) -> Any:
    """Text that a template inserts unchanged: style, script or chart, never a value of a run."""
    return Markup(text)


def _read(name: str) -> str:
    return resources.files("bitgolf.report").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> Any:
    """The templates. Every inserted value is escaped and an unknown name is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("bitgolf.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_harmless_value,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _harmless_value(value: Any) -> Any:
    return harmless(value) if type(value) is str else value  # a Markup is not a plain str
