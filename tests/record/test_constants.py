"""A parameter that every call gives the same constant is that constant; anything less certain is left alone."""

from __future__ import annotations

import ast
import textwrap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgolf.record.constants import propagate_


def propagated(*modules: str) -> list[str]:
    """Modules p.a, p.b, .. after propagation; `p.a:main` is called from outside."""
    trees = {f"p.{'abc'[i]}": ast.parse(textwrap.dedent(text)) for i, text in enumerate(modules)}
    propagate_(trees, ("p.a", "main"))
    return [ast.unparse(tree) for tree in trees.values()]


WORK = (
    "def work(x, flag=False, how='fast', *, limit=None):\n    return a() if flag else b() if limit is None else c()\n"
)


@pytest.mark.parametrize(
    ("calls", "left"),
    [
        ("work(1)", "b()"),
        ("work(1), work(2, False)", "b()"),
        ("work(1, True)", "a()"),
        ("work(1, flag=True), work(2, True)", "a()"),
        ("work(1, limit=3)", "c()"),
        ("work(1, True), work(2)", "a() if flag else b()"),
        ("work(1), work(2, limit=y)", "b() if limit is None else c()"),
        ("work(1, y)", "a() if flag else b()"),
        ("work(*y)", "a() if flag else b() if limit is None else c()"),
        ("work(1, **y)", "a() if flag else b() if limit is None else c()"),
        ("work(1), map(work, y)", "a() if flag else b() if limit is None else c()"),
        ("y", "a() if flag else b() if limit is None else c()"),
    ],
)
def test_calls_decide(calls: str, left: str) -> None:
    (found,) = propagated(f"{WORK}def main(y): return {calls}")
    assert f"return {left}\n" in found


def test_constants_pass_through_calls_and_variables() -> None:
    source = """
    def main(x): return outer(x)
    def outer(x, branch=""):
        trunk = find(branch) if branch else None
        if trunk is not None:
            check(trunk)
        return inner(x, trunk, resume=False)
    def inner(x, trunk, resume):
        if resume: return load(x)
        if trunk is None: return x
        return trunk.load(x)
    """
    (found,) = propagated(source)
    assert "find" not in found and "load" not in found and "check" not in found


def test_calls_in_other_modules_count() -> None:
    a = "from p.b import work\nfrom p import b\ndef main(y): return work(1), b.work(2{})"
    for extra, left in (("", "b()"), (", flag=True", "a() if flag")):
        _, found = propagated(a.format(extra), WORK)
        assert f"return {left}" in found
    _, _, found = propagated("from p.b import work\ndef main(): return work(1)", "from p.c import work", WORK)
    assert "return b()" in found


@pytest.mark.parametrize(
    "other",
    ["x = work", "def main2(f=work): pass", "@register\ndef deco(): return work", "class A:\n    f = work", "use(b)"],
)
def test_functions_that_are_passed_around_are_left_alone(other: str) -> None:
    _, found = propagated(f"from p.b import work\nfrom p import b\n{other}\ndef main(): return work(1)", WORK)
    assert "a() if flag" in found


@pytest.mark.parametrize(
    "body",
    [
        "flag = other()\n    return a() if flag else b()",
        "for flag in x: pass\n    return a() if flag else b()",
        "def g():\n        nonlocal flag\n        flag = True\n    g()\n    return a() if flag else b()",
        "def g(flag): return a() if flag else b()\n    return g",
        "return lambda flag: a() if flag else b()",
        "return [a() if flag else b() for flag in x]",
        "from other import flag\n    return a() if flag else b()",
        "with x as flag:\n        return a() if flag else b()",
        "match x:\n        case flag: return a() if flag else b()",
        "if (flag := x): pass\n    return a() if flag else b()",
        "yield a() if flag else b()",
    ],
)
def test_parameters_that_are_bound_again_are_left_alone(body: str) -> None:
    (found,) = propagated(f"def work(x, flag=False):\n    {body}\ndef main(x): return work(x)")
    assert "a() if flag else b()" in found


def test_a_variable_that_another_function_changes_is_left_alone() -> None:
    source = """
    def work(x, flag=None):
        state = x
        def g():
            nonlocal state
            state = None
            h()
            return a() if state else b()
        def h():
            nonlocal state
            state = 5
        return g()
    def main(x): return work(x)
    """
    assert "a() if state else b()" in propagated(source)[0]


def test_one_and_true_are_two_constants() -> None:
    source = "def work(flag): return a() if flag is True else b()\ndef main(): return work(1), work(True)"
    assert "a() if flag is True else b()" in propagated(source)[0]


def test_a_local_variable_of_the_name_of_a_function_is_no_mention() -> None:
    source = "def train(x, resume=False): return a() if resume else b()\n"
    source += "def plan(config):\n    train = config.train\n    return train\ndef main(x): return train(x), plan(x)"
    (found,) = propagated(source)
    assert "return b()" in found


NAMES = st.sampled_from(["p", "q", "u", "None", "True", "False", "0", "1"])
CONDITION = st.tuples(NAMES, st.sampled_from(["{0}", "not {0}", "{0} is None", "{0} == {1}"]), NAMES).map(
    lambda parts: parts[1].format(parts[0], parts[2])
)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=3), CONDITION, CONDITION, NAMES)
def test_any_program_returns_the_same(calls: list[tuple[str, str]], first: str, second: str, kept: str) -> None:
    source = f"""
    def inner(u, p, q=None):
        r = {kept}
        if {first}:
            return "first", r, p
        return ("second", q) if {second} and r is None else ("third", r, u)
    def middle(u, p, q):
        s = p
        return inner(u, s, q), inner(u, p, q=q)
    def main(u):
        p = q = 5
        return [{", ".join(f"middle(u, {a}, {b})" for a, b in calls)}]
    """
    outcomes: list[Any] = []
    for text in (textwrap.dedent(source), *propagated(source)):
        namespace: dict[str, Any] = {}
        exec(text, namespace)
        outcomes.append([namespace["main"](value) for value in (None, 0, 1, "x")])
    assert outcomes[0] == outcomes[1]
