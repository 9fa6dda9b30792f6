"""How commands print: lines, tables and JSON. Square brackets are never markup, and no control character gets out.

Everything that is printed may hold text of others (a name, a path, a document), so it all goes through `harmless`.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bitgolf.foreign import harmless
from bitgolf.run import atomic


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print one text as it is, without wrapping."""
    console.print(Text(harmless(text), style=style), highlight=False, soft_wrap=True)


def print_error(console: Console, text: str) -> None:
    """Print an error as one line, because it may quote a path with a line feed."""
    with suppress(OSError):  # standard error is full or closed: the exit status is left
        print_line(console, text.replace("\n", "\\n"), "bold red")


def print_json(console: Console, value: Any) -> None:
    """Print a value as JSON. Raises ValueError for NaN and infinity."""
    if not console.quiet:
        with atomic.naming("standard output"):
            sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def print_result(console: Console, as_json: bool, value: Any, shown: str | Table) -> None:
    """Print the result of a command: `value` as JSON, or what is shown to people."""
    if as_json:
        print_json(console, value)
    elif isinstance(shown, str):
        print_line(console, shown)
    else:
        console.print(shown)


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]], numeric: int = 0) -> Table:
    """A table whose last `numeric` columns are aligned right and never wrapped. A cell with a style is a `Text`."""
    table = Table(title=plain(title), title_justify="left")
    for position, column in enumerate(columns):
        number = position >= len(columns) - numeric
        table.add_column(plain(column), justify="right" if number else "left", no_wrap=number)
    for row in rows:
        table.add_row(*map(plain, row))
    return table


def plain(text: str | Text, style: str = "") -> Text:
    """Text whose brackets are not markup."""
    return text if isinstance(text, Text) else Text(harmless(text), style=style)
