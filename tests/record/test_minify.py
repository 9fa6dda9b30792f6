"""The compact printer parses back to its tree; simplifying takes out what an independent walk says it may, no more."""

from __future__ import annotations

import ast
import difflib
import statistics
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bitgolf
from bitgolf.record.minify import print_compactly, simplify

ROOT = Path(bitgolf.__file__).parent
FOLDERS = ("", "config", "data", "model", "train", "compress", "evaluate")  # where a program takes code from
MODULES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
LIBRARY = sorted(Path(ast.__file__).parent.glob("[a-l]*.py"))[::8]  # about 15 modules


def small(text: str) -> str:
    """A piece of source, simplified and printed."""
    source = textwrap.dedent(text)
    return print_compactly(simplify(ast.parse(source), source))


def ran(source: str) -> dict[str, Any]:
    """The globals of a module after running it under a name of its own."""
    name = f"minified_{len(sys.modules)}"
    module = sys.modules[name] = ModuleType(name)
    exec(compile(source, f"<{name}>", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


@pytest.fixture(scope="module", autouse=True)
def no_modules_left() -> Iterator[None]:
    """Forget the modules of these tests."""
    yield
    for name in [name for name in sys.modules if name.startswith("minified_")]:
        del sys.modules[name]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_printing_a_library_module_loses_nothing(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    printed = print_compactly(tree)
    assert ast.dump(ast.parse(printed)) == ast.dump(tree)
    assert len(printed) < len(ast.unparse(tree))


@pytest.mark.parametrize(
    "statement",
    [
        "x = 'a  b'\ny = f'{x!r:>{10}} { {1: 2}[1]} {{}} a  b'",
        "print('if x:  # no comment', \"\"\"two\nlines\"\"\", b'\\x00 \\n', r'\\d ')",
        "y = 1 if x else -1\nz = not -y\nw = x is not None and x in (1, 2) or x ** -y",
        "z = 1 .real + 0x1F .bit_length() + 1.5.real + 1e5 + 1j",
        "x: int = 3\nx: 'str'\nx, *y = [1, 2]\nx = lambda *a, k=1, **kw: (yield)\nx = y[1:2, ::3]",
        "if x:\n    pass\nelif y:\n    if z:\n        a = 1\n        b = 2\n    c = 3\nelse:\n    d = 4",
        "try:\n    a\nexcept* ValueError as e:\n    b\nelse:\n    c\nfinally:\n    d",
        "@dec\n@dec2(a=1)\nclass A(B, metaclass=M):\n    x = 1\n    @p\n    def f(self, /, a, *, b): return a\n"
        "    y = 2",
        "for i in range(3):\n    while True:\n        break\n    else:\n        continue\nelse:\n    del i",
        "with a as b, c as (d, e):\n    assert x, 'm'\nraise A from b",
        "match x:\n    case [1, *rest] if rest: y = 1\n    case {'k': v, **r}: y = 2\n    case A(b=1): y = 3",
        "async def f():\n    async with a as b:\n        return [await c async for c in b if c]",
        "def f():\n    global g\n    g = 1\n    def h():\n        nonlocal x\n        return g\n    x = 1",
        "x = (y := 3)\nf((yield_ for yield_ in x))\nprint(*x, **y)\n'\\u2581'\nx = 'é' 'ü'",
    ],
)
def test_every_kind_of_statement_survives_printing(statement: str) -> None:
    tree = ast.parse(statement)
    assert ast.dump(ast.parse(print_compactly(tree))) == ast.dump(tree)


def test_statements_share_lines_and_bodies_stand_behind_their_header() -> None:
    printed = print_compactly(
        ast.parse("a = 1\nb = 2\nif a:\n    b = 3\n    c = 4\nelse:\n    if b:\n        d()\n    e()")
    )
    assert printed == "a=1;b=2\nif a:b=3;c=4\nelse:\n if b:d()\n e()"


# ---------------------------------------------------------------------------------------------- simplify


def test_documentation_and_annotations_go() -> None:
    source = '''
    """Module."""
    from __future__ import annotations
    from typing import TYPE_CHECKING
    if TYPE_CHECKING:
        from x import Y
    size: int = 3
    """What stands above."""
    def f(a: Y, *b: int, c: str = "d", **e: Y) -> Y:
        """Docstring."""
        local: list[int] = []  # comment
        self.x: int
        return a
    class A:
        """Docstring alone."""
    '''
    assert small(source) == (
        "from __future__ import annotations;from typing import TYPE_CHECKING;size=3\n"
        "def f(a,*b,c='d',**e):local=[];return a\nclass A:pass"
    )


def test_strings_that_are_values_stay() -> None:
    names = ran(small('x = "kept"\ny = ["a", "b"]\ndef f():\n    "gone"\n    return "kept"\nz = f"{x} {f()!r:>8}"'))
    assert (names["x"], names["y"], names["z"]) == ("kept", ["a", "b"], "kept   'kept'")
    assert names["f"].__doc__ is None


def test_dataclasses_keep_their_fields_in_order() -> None:
    source = """
    from __future__ import annotations
    from dataclasses import dataclass, field, fields
    from typing import ClassVar
    @dataclass(frozen=True)
    class A:
        b: int
        a: dict[str, Missing] = field(default_factory=dict)
        count: ClassVar[int] = 7
    names = [f.name for f in fields(A)]
    made = A(3)
    """
    names = ran(small(source))
    assert names["names"] == ["b", "a"]
    assert names["made"] == names["A"](3, {})
    assert names["A"].count == 7


def test_pydantic_models_still_convert_and_refuse_names() -> None:
    source = """
    from __future__ import annotations
    from typing import Literal, Self
    from pydantic import BaseModel, ConfigDict, Field, model_validator
    class A(BaseModel):
        model_config = ConfigDict(extra="forbid")
        kind: Literal["x", "y"] = "x"
        size: int = Field(3, ge=1, description="how much")
        made: list[int] = Field(default_factory=list, description="with")
        @model_validator(mode="after")
        def _fits(self) -> Self:
            if self.size > 10:
                raise ValueError("too large")
            return self
        @model_validator(mode="before")
        @classmethod
        def _from_text(cls, data: object) -> object:
            return {"size": int(data)} if isinstance(data, str) else data
        def double(self) -> int:
            return 2 * self.size
    """
    model = ran(small(source))["A"]
    assert model.model_validate("4").double() == 8
    assert model(size=20).size == 20  # ranges were checked when the file was made
    for wrong in ({"kind": "z"}, {"size": "many"}, {"other": 1}):
        with pytest.raises(ValueError, match="validation error"):
            model(**wrong)
    assert "how much" not in small(source) and "default_factory=list" in small(source)


def test_what_reads_signatures_keeps_them() -> None:
    assert small("import inspect\ndef f(a: int) -> str: return a") == "import inspect\ndef f(a:int)->str:return a"
    assert "a:int" in small("@register\ndef f(a: int): return a")
    assert "x:tl.constexpr=3" in small("import triton\ndef f():\n    x: tl.constexpr = 3")
    assert "a:int" not in small("@functools.cache\ndef f(a: int): return a")
    assert "x:int" in small("class A(NamedTuple):\n    x: int = 1")
    assert "x:int" not in small("class A:\n    x: int = 1\n    y: int")


def test_messages_go_and_causes_stay() -> None:
    assert small("if x: raise ConfigError(f'{x} is {y}')") == "if x:raise ConfigError"
    assert small("try: a()\nexcept OSError as e: raise RunError('no') from e") == (
        "try:a()\nexcept OSError as e:raise RunError from e"
    )
    for kept in ("raise KeyError(name)", "raise SystemExit('usage')", "raise Own('a', 1)", "raise", "raise error"):
        assert small(f"try: a()\nexcept E: {kept}").endswith(ast.unparse(ast.parse(kept)).replace(", ", ","))
    assert small("assert a, f'{b}'") == "assert a"


def expected(node: ast.AST) -> None:
    """The simplification again, for modules that do not look at signatures, as plain recursion, in place."""
    kind = ""
    if isinstance(node, ast.ClassDef):
        kind = "read" if node.bases or node.keywords or node.decorator_list else "plain"
        kind = "dataclass" if any("dataclass" in ast.unparse(d) for d in node.decorator_list) else kind
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if isinstance(block, list):
            kept = [statement for before in block for statement in expected_statement(before, kind)]
            empty = not kept and name == "body" and not isinstance(node, ast.Module)
            setattr(node, name, [ast.Pass()] if empty else kept)
    if isinstance(node, ast.FunctionDef):
        node.returns = None
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        names = [
            "Value",
            "Type",
            "Runtime",
            "NotImplemented",
            "Assertion",
            "Config",
            "Data",
            "Artifact",
            "Budget",
            "Run",
        ]
        if ast.unparse(node.exc.func) in [*(f"{n}Error" for n in names), "TrainingDiverged", "RuleViolation"]:
            node.exc = node.exc.func
    if isinstance(node, ast.Assert):
        node.msg = None
    for name, value in list(ast.iter_fields(node)):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                expected(item)
        setattr(node, name, _plain_fields(value))


def expected_statement(statement: ast.stmt, kind: str) -> list[ast.stmt]:
    """What is left of a statement in the body of a class of this kind ("" = of something else)."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return [] if isinstance(statement.value.value, str) else [statement]
    if isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING"):
        return [left for inner in statement.orelse for left in expected_statement(inner, kind)]
    if isinstance(statement, ast.FunctionDef):
        checks = any("model_validator(mode='after')" in ast.unparse(d) for d in statement.decorator_list)
        return [] if checks else [statement]
    if not isinstance(statement, ast.AnnAssign) or kind == "read":
        return [statement]
    if kind == "dataclass":
        if "ClassVar" not in ast.unparse(statement.annotation):
            statement.annotation = ast.Constant(0)
        return [statement]
    if statement.value is not None:
        return [ast.Assign([statement.target], statement.value)]
    if kind == "plain" or not isinstance(statement.target, ast.Name):
        return []
    statement.annotation = ast.Constant(0)
    return [statement]


def _plain_fields(value: Any) -> Any:
    """A pydantic Field that only describes is its default."""
    if isinstance(value, list):
        return [_plain_fields(item) for item in value]
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field" and value.args:
        value.keywords = [
            k for k in value.keywords if k.arg not in ("description", "ge", "gt", "le", "lt", "min_length")
        ]
        return value if value.keywords else value.args[0]
    return value


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_equal_themselves_but_for_what_was_taken_out(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    words = ("triton", "inspect", "get_type_hints", "validate_call", "TypeAdapter", "custom_op", "__annotations__")
    if any(word in source for word in words):
        pytest.skip("keeps its signatures (another test)")
    wanted = ast.parse(source)
    expected(wanted)
    found = simplify(ast.parse(source), source)
    assert ast.dump(found) == ast.dump(wanted)
    assert ast.dump(ast.parse(print_compactly(found))) == ast.dump(wanted)


# ------------------------------------------------------------------------------- behavior of minified modules


@pytest.fixture(scope="module")
def minified() -> dict[str, dict[str, Any]]:
    """Three modules of the standard library, minified."""
    found = {}
    for module in (textwrap, difflib, statistics):
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        found[module.__name__] = ran(small(source))
    return found


@given(st.text(alphabet="ab \n\t-é", max_size=60), st.integers(5, 30))
def test_a_minified_textwrap_wraps_alike(minified: dict[str, dict[str, Any]], text: str, width: int) -> None:
    assert minified["textwrap"]["wrap"](text, width) == textwrap.wrap(text, width)
    assert minified["textwrap"]["dedent"](text) == textwrap.dedent(text)


@given(st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_a_minified_difflib_differs_alike(minified: dict[str, dict[str, Any]], a: list[str], b: list[str]) -> None:
    assert list(minified["difflib"]["ndiff"](a, b)) == list(difflib.ndiff(a, b))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_a_minified_statistics_computes_alike(minified: dict[str, dict[str, Any]], values: list[float]) -> None:
    assert minified["statistics"]["stdev"](values) == statistics.stdev(values)
    assert minified["statistics"]["median"](values) == statistics.median(values)
