"""Renaming changes names alone: every use still means the same binding, by an independent resolver of scopes."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

import bitgolf
from bitgolf.record.minify import print_compactly, simplify
from bitgolf.record.rename import keywords_of, nodes_in_order, shorten_names_

ROOT = Path(bitgolf.__file__).parent
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Scope:
    """One scope with what it binds; `uses` records, in order, what each name of the text means."""

    def __init__(self, node: ast.AST, parent: Scope | None, uses: list[tuple[int, object]], number: list[int]) -> None:
        self.parent, self.uses, self.number = parent, uses, number
        self.is_class = isinstance(node, ast.ClassDef)
        self.order: dict[str, int] = {}  # names it binds, by first appearance
        self.outer: set[str] = set()  # declared nonlocal or global
        self.identity = number[0]
        number[0] += 1

    def resolve(self, name: str) -> tuple[int, object]:
        """Which scope binds `name` here, and as which of its bindings; (-1, name) for built-in names."""
        scope: Scope | None = self
        first = True
        while scope is not None:
            if name in scope.order and name not in scope.outer and (first or not scope.is_class):
                return scope.identity, name if scope.parent is None else scope.order[name]
            scope, first = scope.parent, False
        return -1, name


def meanings(tree: ast.Module) -> list[tuple[int, object]]:
    """What each occurrence of a name in the text means, in order: the slow definition of scoping."""
    uses: list[tuple[int, object]] = []
    enter(tree, None, uses, [0])
    return uses


def enter(node: ast.AST, parent: Scope | None, uses: list[tuple[int, object]], number: list[int]) -> None:
    scope = Scope(node, parent, uses, number)
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        for argument in named:
            if argument is not None:
                bind(scope, argument.arg)
    own = list(inside(node))
    for part in own:
        if isinstance(part, ast.Nonlocal | ast.Global):
            scope.outer.update(part.names)
    for part in own:
        for name in bound_by(part):
            bind(scope, name)
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        for argument in named:
            if argument is not None:
                uses.append(scope.resolve(argument.arg))
    for part in own:
        if isinstance(part, ast.Name):
            uses.append(scope.resolve(part.id))
        elif isinstance(part, ast.ExceptHandler) and part.name:
            uses.append(scope.resolve(part.name))
        elif isinstance(part, ast.Nonlocal):
            uses += [scope.resolve(name) for name in part.names]
        if isinstance(part, ast.FunctionDef | ast.ClassDef):
            uses.append(scope.resolve(part.name))
        if isinstance(part, (ast.FunctionDef, ast.Lambda, ast.ClassDef, *COMPREHENSIONS)):
            enter(part, scope, uses, number)


def bind(scope: Scope, name: str) -> None:
    scope.order.setdefault(name, len(scope.order))


def bound_by(part: ast.AST) -> list[str]:
    if isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load):
        return [part.id]
    if isinstance(part, ast.FunctionDef | ast.ClassDef):
        return [part.name]
    if isinstance(part, ast.ExceptHandler) and part.name:
        return [part.name]
    if isinstance(part, ast.alias):
        return [part.asname or part.name.split(".")[0]]
    return []


def inside(node: ast.AST) -> list[ast.AST]:
    """The nodes that belong to the scope of `node`: not what nested scopes hold, but what stands around them."""
    found: list[ast.AST] = []

    def visit(part: ast.AST) -> None:
        found.append(part)
        if isinstance(part, ast.FunctionDef):
            around: list[ast.AST | None] = [*part.decorator_list, *part.args.defaults, *part.args.kw_defaults]
        elif isinstance(part, ast.Lambda):
            around = [*part.args.defaults, *part.args.kw_defaults]
        elif isinstance(part, ast.ClassDef):
            around = [*part.decorator_list, *part.bases, *part.keywords]
        elif isinstance(part, COMPREHENSIONS):
            around = [part.generators[0].iter]
        else:
            around = list(ast.iter_child_nodes(part))
        for child in around:
            if child is not None:
                visit(child)

    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
        starts: list[ast.AST] = list(node.body)
    elif isinstance(node, ast.Lambda):
        starts = [node.body]
    else:
        assert isinstance(node, COMPREHENSIONS)
        results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        starts = [g.target for g in node.generators] + [c for g in node.generators for c in g.ifs] + results
        starts += [g.iter for g in node.generators[1:]]
    for start in starts:
        visit(start)
    return found


def renamed(*sources: str) -> list[str]:
    """A program of modules with its names shortened, printed."""
    trees = [ast.parse(textwrap.dedent(source)) for source in sources]
    shorten_names_(trees)
    return [print_compactly(tree) for tree in trees]


def skeleton(tree: ast.Module) -> str:
    """The tree without the names of variables, functions and parameters."""
    for node in ast.walk(tree):
        for field in ("id", "arg", "name"):
            if isinstance(node, ast.Name | ast.arg | ast.FunctionDef | ast.ExceptHandler) and hasattr(node, field):
                setattr(node, field, "_" if getattr(node, field) else None)
        if isinstance(node, ast.Nonlocal):
            node.names = ["_"] * len(node.names)
    return ast.dump(tree)


def test_variables_and_parameters_get_short_names() -> None:
    (short,) = renamed("def area(width, height):\n    result = width * height\n    return result")
    assert short == "def area(a,b):c=a*b;return c"


def test_every_use_in_the_package_still_means_the_same() -> None:
    folders = ("train", "evaluate", "model")
    files = [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]
    sources = {path: path.read_text(encoding="utf-8") for path in files}
    before = {path: ast.unparse(simplify(ast.parse(source), source)) for path, source in sources.items()}
    after = {path: ast.parse(text) for path, text in before.items()}
    shorten_names_(list(after.values()))
    shorter = 0
    for path, text in before.items():
        old, new = ast.parse(text), after[path]
        aliases = [node.asname or node.name for node in ast.walk(new) if isinstance(node, ast.alias)]
        assert aliases == [node.asname or node.name for node in ast.walk(old) if isinstance(node, ast.alias)]
        old_meanings, new_meanings = meanings(old), meanings(new)
        assert len(old_meanings) == len(new_meanings)
        # Scopes and the order of bindings in them agree; a private global may have another name, the same everywhere.
        table: dict[object, object] = {}
        for one, other in zip(old_meanings, new_meanings, strict=True):
            assert one[0] == other[0], path
            if one[0] > 0:
                assert one == other, path
            else:
                assert table.setdefault(one, other) == other, path
        assert len(set(table.values())) == len(table)
        changed = {one[1] for one, other in table.items() if one != other}  # type: ignore[index]
        assert all(str(name).startswith("_") for name in changed)
        shorter += len(text) - len(ast.unparse(new))
        assert skeleton(old) == skeleton(new)
    assert shorter > 10_000


def test_names_that_somebody_may_pass_stay() -> None:
    module = """
    def f(one, two, three, *rest, four=4, **more):
        return one, two, three, rest, four, more
    def g(values, callback):
        f(1, two=2, four=5)
        callback(one=3)
        values.method(three=1)
    """
    (short,) = renamed(module)
    assert short.splitlines()[0] == "def f(one,two,three,*a,four=4,**b):return(one,two,three,a,four,b)"
    assert "def g(a,b):" in short


def test_a_keyword_counts_for_all_functions_of_the_called_name_only() -> None:
    one, two = renamed("def f(size):\n    return size", "def g(size):\n    return size\nx = g(size=1)")
    assert one == "def f(a):return a"
    assert two.startswith("def g(size):return size")


def test_a_mapping_counts_for_every_parameter_of_what_it_may_reach() -> None:
    (short,) = renamed("def f(a_long, b_long): return a_long\ndef g(c_long): return c_long\nf(**{'a_long': 1})")
    assert "def f(a_long,b_long)" in short and "def g(a):" in short
    (short,) = renamed("def f(a_long): return a_long\ndef h(work, values): return work(**values)")
    assert "def f(a_long)" in short


def test_keys_of_a_mapping_that_a_foreign_function_may_pass_on_count() -> None:
    (short,) = renamed("import torch\ndef forward(tokens, targets): return tokens\ntorch.call(m, {'targets': 1})")
    assert short.endswith("def forward(a,targets):return a;torch.call(m,{'targets':1})".replace(";torch", "\ntorch"))


def test_what_looks_at_itself_or_may_be_looked_at_stays() -> None:
    for text in (
        "def f(value): return locals()",
        "def f(value):\n    class A:\n        x = value\n    return A",
        "@register\ndef f(value): return value",
        "@triton.jit\ndef f():\n    value = 1\n    return value",
        "import triton\ndef f(value): return value",
        "class A(Foreign):\n    def f(self, value): return value",
    ):
        assert "value" in renamed(text)[0], text
    assert "value" not in renamed("class A(nn.Module):\n    def forward(self, value): return value")[0]


def test_globals_builtins_and_imports_stay() -> None:
    (short,) = renamed(
        "import os\nlimit = 3\ndef f(limit, max, os):\n    from x import y\n    return limit, max, os, y, len"
    )
    assert short.endswith("def f(limit,max,os):from x import y;return(limit,max,os,y,len)")


def test_private_functions_and_constants_of_a_module_are_renamed_together() -> None:
    (short,) = renamed("_LIMIT = 3\ndef _check(x):\n    return x < _LIMIT\ndef public(x):\n    return _check(x)")
    assert short == "_a=3\ndef _b(a):return a<_a\ndef public(a):return _b(a)"


def test_keywords_of_private_functions_stay() -> None:
    (short,) = renamed(
        "def _check(value, at_least=0): return value >= at_least\ndef f(x): return _check(x, at_least=1)"
    )
    assert short == "def _a(a,at_least=0):return a>=at_least\ndef f(a):return _a(a,at_least=1)"


@pytest.mark.parametrize(
    "other", ["from m import _check", "import m\nm._check(1)", "getattr(m, '_check')", "x = 'a _check b'"]
)
def test_private_names_that_anybody_spells_stay(other: str) -> None:
    assert "def _check" in renamed("def _check(x): return x", other)[0]


def test_comprehensions_take_the_first_names_that_nothing_inside_mentions() -> None:
    (short,) = renamed("def f(first, items):\n    total = [item + first for item in items]\n    return total")
    assert short == "def f(a,b):c=[c+a for c in b];return c"
    (short,) = renamed("def f(x):\n    y = g(x)\n    return [y for y in h(y) if [x for x in y]]")
    assert ast.unparse(ast.parse(short)) == "def f(a):\n    b = g(a)\n    return [b for b in h(b) if [a for a in b]]"
    (short,) = renamed("def f(x):\n    y = g(x)\n    return [y for y in h(y)]")
    assert short == "def f(a):b=g(a);return[b for b in h(b)]"  # what it iterates over is the outer one


def test_closures_and_exceptions_follow() -> None:
    source = """
    def outer(count):
        total = 0
        def inner(step):
            nonlocal total
            try:
                total += step * count
            except ValueError as error:
                raise KeyError(error) from error
            return lambda scale: total * scale
        return inner
    """
    namespace: dict[str, object] = {}
    (short,) = renamed(source)
    exec(short, namespace)
    assert namespace["outer"](3)(5)(2) == 30  # type: ignore[operator]
    assert "total" not in short and "error" not in short.replace("Error", "")


def test_keywords_by_callee() -> None:
    source = "def f(a, b): pass\nclass A: pass\nf(b=1)\nA(x=2)\nthing.f(a=1)\nunknown(c=1)\ntable['f'](d=1)\nself.g = f"
    found = keywords_of([nodes_in_order(ast.parse(source))])
    assert found.by_callee == {"f": {"a", "b"}, "A": {"x"}}
    assert found.anywhere == {"c", "d"}
    assert found.may_name("f", "b") and found.may_name("other", "d") and not found.may_name("other", "b")
    assert found.may_name("__init__", "x") and not found.may_name("__init__", "b")
