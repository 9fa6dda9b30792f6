"""What a program needs is followed by name, across modules; what may matter unnamed is kept; nothing else is."""

from __future__ import annotations

import ast
import textwrap

import pytest

from bitgolf.record.trace import trace

STAND_IN = {"p.absent": "def __getattr__(name): return name"}


def program(modules: dict[str, str], *entries: str, absent: tuple[str, ...] = ()) -> dict[str, str]:
    """Source of what remains of a package `p` for entries "module:name", without empty modules."""
    texts = {"p": "", **STAND_IN, **modules}
    trees = {name: ast.parse(textwrap.dedent(text)) for name, text in texts.items()}
    before = {name: ast.dump(tree) for name, tree in trees.items()}
    pairs = [(entry.split(":")[0], entry.split(":")[1]) for entry in entries]
    remaining = trace(trees, pairs, frozenset(absent), "p.absent")
    assert {name: ast.dump(tree) for name, tree in trees.items()} == before
    return {name: ast.unparse(tree) for name, tree in remaining.items() if tree.body}


def test_only_what_is_named_remains() -> None:
    a = """
    import json
    import os.path as path
    from p.b import helper, unused
    LIMIT = 3
    OTHER = 4
    def main(x):
        return helper(x, LIMIT)
    def idle():
        return json, path, OTHER
    class Idle:
        pass
    """
    b = "def helper(x, y): return inner(x)\ndef inner(x): return x\ndef unused(): return helper(1, 2)"
    found = program({"p.a": a, "p.b": b}, "p.a:main")
    assert found == {
        "p.a": "from p.b import helper\nLIMIT = 3\n\ndef main(x):\n    return helper(x, LIMIT)",
        "p.b": "def helper(x, y):\n    return inner(x)\n\ndef inner(x):\n    return x",
    }


def test_names_passed_on_by_other_modules_are_followed_to_their_source() -> None:
    modules = {
        "p.a": "from p.sub import thing\ndef main(): return thing()",
        "p.sub": "from p.sub.big import heavy\nfrom p.sub.small import thing\n__all__ = ['heavy', 'thing']",
        "p.sub.big": "import torch\ndef heavy(): return torch",
        "p.sub.small": "def thing(): return 1",
    }
    found = program(modules, "p.a:main")
    assert set(found) == {"p.a", "p.sub", "p.sub.small"}
    assert found["p.sub"] == "from p.sub.small import thing"


def test_modules_used_by_attribute_give_what_is_looked_up() -> None:
    modules = {
        "p.a": "from p import tools, whole\ndef main(): return tools.one() + f(whole)",
        "p.tools": "def one(): return 1\ndef two(): return 2",
        "p.whole": "def x(): return 1\nY = 2",
    }
    found = program(modules, "p.a:main")
    assert found["p.tools"] == "def one():\n    return 1"
    assert found["p.whole"] == "def x():\n    return 1\nY = 2"


def test_a_variable_of_the_name_of_a_module_asks_nothing_of_it() -> None:
    modules = {
        "p.a": "from p import tools\ndef main(): return tools.one() + other()\n"
        "def other():\n    tools = []\n    tools.append(1)\n    return len(tools)",
        "p.tools": "def one(): return 1\ndef two(): return 2",
    }
    assert program(modules, "p.a:main")["p.tools"] == "def one():\n    return 1\n\ndef two():\n    return 2"


def test_imports_inside_functions_count() -> None:
    modules = {
        "p.a": "def main():\n    from p.b import late\n    return late()\ndef idle():\n    from p.c import never",
        "p.b": "def late(): return 1\ndef other(): return 2",
        "p.c": "def never(): return 3",
    }
    assert program(modules, "p.a:main")["p.b"] == "def late():\n    return 1"


def test_statements_with_effects_stay_and_quiet_ones_go() -> None:
    a = """
    import logging
    log = logging.getLogger(__name__)
    table = {}
    REGISTERED = register("x")
    table["a"] = 1
    @register
    def hook(): return quiet
    @dataclass
    class Idle: x: int
    class Kept(metaclass=Meta): pass
    quiet = tuple(range(3))
    print("on import")
    def main(): return 1
    """
    found = program({"p.a": a}, "p.a:main")["p.a"]
    for part in ("REGISTERED", "table['a'] = 1", "table = {}", "def hook", "class Kept", "quiet", "print"):
        assert part in found
    for part in ("log", "class Idle"):
        assert part not in found


def test_methods_wait_until_something_names_them() -> None:
    a = """
    from base import Foreign
    class Shape:
        SIDES = 4
        def __init__(self): self.x = 1
        def area(self): return self._helper()
        def _helper(self): return 1
        def idle(self): return self.idle_helper()
        def idle_helper(self): return 2
        @property
        def corners(self): return 3
        @validator
        def decorated(self): return 4
        def by_text(self): return 5
        def write(self): return 6
    class Hooked(Foreign):
        def called_by_others(self): return 7
    class Own(Shape):
        def area(self): return 8
        def unnamed(self): return 9
    def main(shape): return Shape().area(), Hooked(), Own(), getattr(shape, "by_text")
    """
    found = program({"p.a": a}, "p.a:main")["p.a"]
    for kept in ("area", "_helper", "__init__", "decorated", "by_text", "write", "called_by_others", "SIDES"):
        assert kept in found
    for dropped in ("idle", "corners", "unnamed"):
        assert f"def {dropped}" not in found


def test_class_bodies_name_methods_too() -> None:
    found = program({"p.a": "class A:\n    def x(self): pass\n    y = x\ndef main(): return A"}, "p.a:main")
    assert "def x" in found["p.a"]


def test_annotated_fields_do_not_hide_methods_of_their_name() -> None:
    """A name seen first as a field of one class must still call for the method of another."""
    a = """
    from p.b import Run
    class Config:
        budget: int = 1
    def main(): return first(Run())
    def first(x): return second(Config(), x)
    def second(x, y): return third(y)
    def third(y): return y.budget()
    """
    b = "class Run:\n    def budget(self): return Budget()\nclass Budget: pass"
    assert "class Budget" in program({"p.a": a, "p.b": b}, "p.a:main")["p.b"]


def test_the_future_line_stays_where_annotations_do() -> None:
    a = "from __future__ import annotations\nclass A(Base):\n    x: Missing = 1\ndef main(): return A"
    b = "from __future__ import annotations\ndef other(): return 1"
    found = program({"p.a": a + "\nfrom p.b import other\nother", "p.b": b}, "p.a:main")
    assert "__future__" in found["p.a"] and "__future__" not in found["p.b"]


def test_absent_code_takes_what_only_it_needs_along() -> None:
    modules = {
        "p.a": "from p.b import one, two\nfrom p.c import Three as T\nfrom p import d\n"
        "def main(x): return one(x), two(x), isinstance(x, T), d.four",
        "p.b": "from p.c import deep\ndef one(x): return deep(x)\ndef two(x): return x",
        "p.c": "def deep(x): return x\nclass Three: pass",
        "p.d": "def four(): return 4",
    }
    found = program(modules, "p.a:main", absent=("p.b:one", "p.c", "p.d"))
    assert set(found) == {"p.a", "p.b", "p.absent"}
    assert found["p.a"].splitlines()[0] == "from p.absent import Three as T, d, one"
    assert found["p.b"] == "def two(x):\n    return x"


def test_absent_names_of_a_kept_module_are_replaced_inside_it() -> None:
    found = program(
        {"p.a": "def slow(): return 1\ndef main(x): return slow() if x else 2"}, "p.a:main", absent=("p.a:slow",)
    )
    assert found["p.a"].startswith("from p.absent import slow\n")
    assert "def slow" not in found["p.a"]


def test_what_does_not_exist_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"p\.a has no missing"):
        program({"p.a": "x = 1"}, "p.a:missing")
    with pytest.raises(KeyError, match=r"p\.b has no gone"):
        program({"p.a": "from p.b import gone\ndef main(): return gone", "p.b": ""}, "p.a:main")


def test_lazy_names_of_a_package_need_its_getattr() -> None:
    lazy = "def __getattr__(name):\n    from p.b import late\n    return late"
    found = program(
        {"p": lazy, "p.a": "from p import anything\ndef main(): return anything", "p.b": "late = 1"}, "p.a:main"
    )
    assert "late" in found["p"] and "late = 1" in found["p.b"]
