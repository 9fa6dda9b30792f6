"""Title, description and terms of a report are those of the run's own data."""

import re
from importlib import resources
from pathlib import Path

from bitgolf.config import load_config
from bitgolf.report.products import Products
from bitgolf.report.terms import TERMS, inherited, title_and_description
from bitgolf.run.budget import Budget


def test_a_preset_describes_its_own_data_and_no_other() -> None:
    demo = load_config("demo")
    assert title_and_description(demo) == ("demo", demo.description)
    title, description = title_and_description(load_config("demo", {"data.source": "dir:/home/me/notes"}))
    assert title == "notes (demo)" and "dir:/home/me/notes" in description and "Python" not in description
    assert title_and_description(load_config("demo", {"data.source": "books.txt"}))[0] == "books.txt (demo)"
    mixed = load_config("demo", {"data.mix": "dir:a=1,dir:b=2"})
    assert "dir:a=1 + dir:b=2" in title_and_description(mixed)[1]
    mine = load_config("demo", {"name": "mine", "data.source": "dir:x", "description": "My own words."})
    assert title_and_description(mine) == ("mine", "My own words.")
    assert title_and_description(mine.updated({"description": ""})) == ("mine", "A bitgolf run.")


def test_what_a_branch_inherited_is_said() -> None:
    event = {"event": "branch", "branch_run": "runs/trunk", "branch_step": 1200, "branch_seconds": 61.25}
    run = Products(Path("run"), load_config("demo"), Budget({}), [event], None, None, None)
    assert "its first 1,200 steps, which took 61.2 s, are those of runs/trunk" in inherited(run)
    run = Products(Path("run"), load_config("demo"), Budget({}), [], None, None, None)
    assert inherited(run) == ""


def test_every_linked_term_is_explained() -> None:
    page = resources.files("bitgolf.report").joinpath("templates", "report.html").read_text(encoding="utf-8")
    linked = set(re.findall(r'term\("([a-z-]+)"', page))
    assert linked and linked <= TERMS.keys()
