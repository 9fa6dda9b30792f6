"""What a program needs is followed by name, across modules; what may matter unnamed is kept; nothing else is."""

from __future__ import annotations

import ast
import re
import textwrap

import pytest

from bitgolf.bundle.trace import trace


def program(modules: dict[str, str], entry: str) -> dict[str, str]:
    """Source of what remains of a package `p` for the entry "module:name", without empty modules."""
    trees = {name: ast.parse(textwrap.dedent(text)) for name, text in ({"p": ""} | modules).items()}
    before = {name: ast.dump(tree) for name, tree in trees.items()}
    remaining = trace(trees, *entry.split(":"))
    assert {name: ast.dump(tree) for name, tree in trees.items()} == before
    return {name: ast.unparse(tree) for name, tree in remaining.items() if tree.body}


def test_a_module_may_be_named_as_a_part_of_its_package() -> None:
    modules = {
        "p.a": "from p import b\ndef main(): return b.helper()",
        "p.b": "def helper(): return 1\ndef unused(): return 2",
        "p.c": "X = 1",
    }
    remaining = program(modules, "p.a:main")
    assert remaining.keys() == {"p.a", "p.b"} and "helper" in remaining["p.b"]
    with pytest.raises(KeyError, match="p has no d"):
        program(modules | {"p.a": "from p import d\ndef main(): return d"}, "p.a:main")


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
    sources = program({"p.a": a, "p.b": b}, "p.a:main")
    assert sources == {
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
    sources = program(modules, "p.a:main")
    assert set(sources) == {"p.a", "p.sub", "p.sub.small"}
    assert sources["p.sub"] == "from p.sub.small import thing"


def test_modules_used_by_attribute_give_what_is_looked_up() -> None:
    modules = {
        "p.a": "from p import tools, whole\ndef main(): return tools.one() + f(whole)",
        "p.tools": "def one(): return 1\ndef two(): return 2",
        "p.whole": "def x(): return 1\nY = 2",
    }
    sources = program(modules, "p.a:main")
    assert sources["p.tools"] == "def one():\n    return 1"
    assert sources["p.whole"] == "def x():\n    return 1\nY = 2"


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


def test_statements_that_act_stay_and_bindings_that_nobody_needs_go() -> None:
    a = """
    'A docstring.'
    import functools
    log = logging.getLogger(__name__)
    table = {}
    table["a"] = 1
    @register
    def hook(): return quiet
    def register(function): return function
    @functools.cache
    def cached(): return 1
    class Idle: x: int
    quiet = tuple(range(3))
    if quiet:
        print("on import")
    def main(): return 1
    """
    text = program({"p.a": a}, "p.a:main")["p.a"]
    for part in ("table['a'] = 1", "table = {}", "def hook", "def register", "quiet = ", "print"):
        assert part in text
    for part in ("log", "cached", "class Idle", "docstring"):
        assert part not in text


def test_classes_with_bases_stay_whole_and_their_fields_need_their_types() -> None:
    a = """
    from p.b import Field, Other, Result
    class Base: pass
    class Shape(Base):
        size: Field = 1
        def area(self, other: Other) -> Result:
            local: Other = other
            return helper(local)
        def unnamed(self): return 2
    def helper(x): return x
    def main(): return Shape
    """
    remaining = program({"p.a": a, "p.b": "class Field: pass\nclass Other: pass\nclass Result: pass"}, "p.a:main")
    assert remaining["p.b"] == "class Field:\n    pass"
    assert "def unnamed" in remaining["p.a"] and "def helper" in remaining["p.a"]


METHODS = """
from p.b import Left, Right
class Shape:
    def __len__(self): return self.sides()
    def sides(self): return 4
    @property
    def left(self): return Left
    def right(self): return Right
    def by_text(self): return 1
    def alias(self): return 2
    other = alias
    def loop(self): return self.loop()
def main(): return {use}
"""


@pytest.mark.parametrize(
    ("use", "kept"),
    [
        ("Shape", {"__len__", "sides", "alias"}),
        ("Shape().left", {"__len__", "sides", "alias", "left"}),
        ("getattr(Shape(), 'by_text')", {"__len__", "sides", "alias", "by_text"}),
        ("[lambda x: x.right(), Shape]", {"__len__", "sides", "alias", "right"}),
        ("Shape().loop", {"__len__", "sides", "alias", "loop"}),
    ],
)
def test_a_method_that_no_code_names_goes_with_what_it_needs(use: str, kept: set[str]) -> None:
    source = METHODS.format(use=use)
    remaining = program({"p.a": source, "p.b": "class Left: pass\nclass Right: pass"}, "p.a:main")
    assert set(re.findall(r"def (\w+)\(", remaining["p.a"])) - {"main"} == kept
    assert ("class Left" in remaining.get("p.b", "")) == ("left" in kept)
    assert ("class Right" in remaining.get("p.b", "")) == ("right" in kept)


@pytest.mark.parametrize(
    ("use", "kept"),
    [
        ("open(Shape()).open", set()),
        ("os.open(Shape)", set()),
        ("Shape.open()", {"open", "_check"}),
        ("Shape.first()", {"first", "open", "_check"}),
    ],
)
def test_a_class_method_stays_if_the_name_of_its_class_stands_before_it(use: str, kept: set[str]) -> None:
    a = """
    import os
    class Shape:
        @classmethod
        def open(cls): return cls._check()
        @classmethod
        def first(cls): return cls.open()
        @classmethod
        def _check(cls): return cls
    """
    remaining = program({"p.a": textwrap.dedent(a) + f"def main(): return {use}"}, "p.a:main")
    assert set(re.findall(r"def (\w+)\(cls", remaining["p.a"])) == kept


def test_a_class_without_used_methods_is_still_a_class() -> None:
    a = "class Empty:\n    def idle(self): return 1\ndef main(): return Empty()"
    assert program({"p.a": a}, "p.a:main")["p.a"].startswith("class Empty:\n    pass")


def test_blocks_for_type_checkers_go() -> None:
    a = """
    from __future__ import annotations
    from typing import TYPE_CHECKING
    if TYPE_CHECKING:
        from p.b import Heavy
    def main(x: Heavy): return x
    """
    assert set(program({"p.a": a, "p.b": "class Heavy: pass"}, "p.a:main")) == {"p.a"}


def test_types_of_a_custom_operator_are_read_by_pytorch() -> None:
    a = """
    from torch import Size, Tensor, device, library
    @library.custom_op("p::f")
    def f(x: Tensor, *, size: Size) -> tuple[device]: return x
    def main(): return f(0)
    """
    assert "import Size, Tensor, device, library" in program({"p.a": a}, "p.a:main")["p.a"]
    plain = program({"p.a": a.replace("library.custom_op", "library.register_fake")}, "p.a:main")["p.a"]
    assert "import library" in plain


def test_names_bound_in_blocks_are_found() -> None:
    a = """
    try:
        from p.fast import kernel
    except ImportError:
        def kernel(): return 0
    def main(): return kernel()
    """
    assert program({"p.a": a, "p.fast": "def kernel(): return 1\nIDLE = 1"}, "p.a:main")["p.fast"].startswith("def k")
    b = "if FAST:\n    def kernel(): return 1\nelse:\n    def kernel(): return 2\nFAST, IDLE = 1, 2"
    kept = program({"p.a": "from p.b import kernel\ndef main(): return kernel()", "p.b": b}, "p.a:main")["p.b"]
    assert kept.startswith("if FAST:") and "return 2" in kept


def test_what_does_not_exist_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"p\.a has no missing"):
        program({"p.a": "x = 1"}, "p.a:missing")
    with pytest.raises(KeyError, match=r"p\.b has no gone"):
        program({"p.a": "from p.b import gone\ndef main(): return gone", "p.b": ""}, "p.a:main")


def test_an_empty_module_that_is_imported_whole_stays() -> None:
    trees = {"p": ast.parse(""), "p.a": ast.parse("import p.b\ndef main(): return p.b"), "p.b": ast.parse("")}
    assert set(trace(trees, "p.a", "main")) == {"p", "p.a", "p.b"}
