"""Conditions on known settings are decided; what a program does under these settings stays, everything else too."""

from __future__ import annotations

import ast
import itertools
import textwrap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgolf.record.specialize import specialize, types_of

KNOWN: dict[str, Any] = {"pack.method": "gptq", "pack.rate": 0.0, "pack.prune_to_fit": True, "ttt.enabled": False}


def decided(text: str, known: dict[str, Any] = KNOWN, *others: str) -> str:
    """A module after specialization; `others` are more modules of its package."""
    trees = [ast.parse(textwrap.dedent(source)) for source in (text, *others)]
    return ast.unparse(specialize(trees[0], known, types_of(trees)))


def body(statements: str, header: str = "def f(config: Config, x):") -> str:
    """The body of a function after specialization, statements joined by "; "."""
    lines = textwrap.indent(textwrap.dedent(statements).strip(), "    ")
    return "; ".join(line.strip() for line in decided(f"{header}\n{lines}").splitlines()[1:])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("if config.pack.method == 'rate':\n    a()\nelse:\n    b()", "b()"),
        ("if config.pack.method in ('gptq', 'rate'): a()", "a()"),
        ("if config.pack.method not in ['gptq']: a()", "pass"),
        ("if config.pack.rate: a()\nb()", "b()"),
        ("if not config.pack.prune_to_fit: a()\nelif x: b()", "if x:; b()"),
        ("return a() if config.ttt.enabled else b()", "return b()"),
        ("return config.pack.prune_to_fit and x", "return x"),
        ("return x and config.pack.prune_to_fit", "return x and config.pack.prune_to_fit"),
        ("return config.ttt.enabled or x", "return x"),
        ("return x or config.pack.prune_to_fit or y", "return x or config.pack.prune_to_fit"),
        ("return config.ttt.enabled and x", "return config.ttt.enabled"),
        ("if config.pack.method == x: a()", "if config.pack.method == x:; a()"),
        ("if config.pack.damping: a()", "if config.pack.damping:; a()"),
        ("if other.pack.method == 'rate': a()", "if other.pack.method == 'rate':; a()"),
        ("if config.pack.method != 'gptq' or config.ttt.enabled: a()", "pass"),
        ("if config.pack.prune_to_fit:\n    return a()\nreturn b()", "return a()"),
        ("while x:\n    if config.pack.prune_to_fit:\n        break\n    a()", "while x:; break"),
        ("try:\n    if config.ttt.enabled: a()\nfinally:\n    b()", "try:; pass; finally:; b()"),
    ],
)
def test_conditions(before: str, after: str) -> None:
    assert body(before) == after


@pytest.mark.parametrize(
    "source",
    [
        "def f(p: PackConfig): return a() if p.method == 'rate' else b()",
        "def f(run: RunDirectory): return a() if run.config.pack.method == 'rate' else b()",
        "def f(config: Config):\n    pack = config.pack\n    return a() if pack.method == 'rate' else b()",
        "def f(config: Config):\n    t, p = config.ttt, config.pack\n    return a() if p.method == 'rate' else b()",
        "def f(config: Config):\n    def g(): return a() if config.pack.method == 'rate' else b()\n    return g",
        "class A:\n    def __init__(self, run: RunDirectory): self.run = run\n"
        "    def g(self): return a() if self.run.config.pack.method == 'rate' else b()",
        "@dataclass\nclass A:\n    settings: PackConfig\n"
        "    def g(self): return a() if self.settings.method == 'rate' else b()",
        "def f(s: Session): return a() if s.config.method == 'rate' else b()",
    ],
)
def test_settings_are_found_by_annotations(source: str) -> None:
    others = (
        "class RunDirectory:\n    def __init__(self, path: str, config: Config): self.path, self.config = path, config",
        "class Session:\n    @property\n    def config(self) -> PackConfig: return self.run.config.pack",
    )
    assert "a()" not in decided(source, KNOWN, *others)


@pytest.mark.parametrize(
    "source",
    [
        "def f(p): return a() if p.method == 'rate' else b()",
        "def f(p: PackConfig):\n    p = other()\n    return a() if p.method == 'rate' else b()",
        "def f(p: PackConfig): return [a() if p.method == 'rate' else b() for p in x]",
        "def f(p: PackConfig): return lambda p: a() if p.method == 'rate' else b()",
        "def f(p: PackConfig):\n    def g(p): return a() if p.method == 'rate' else b()\n    return g",
        "def f(config: Config):\n    p = config.pack\n    if x: p = y\n    return a() if p.method == 'rate' else b()",
        "class A:\n    def __init__(self, p: PackConfig): self.p = p\n    def set(self, q): self.p = q\n"
        "    def g(self): return a() if self.p.method == 'rate' else b()",
        "class A:\n    def __init__(self, p: PackConfig): self.p = p\n"
        "    def g(self): return a() if self.p.method == 'rate' else b()\ndef h(z): z.p = 1",
        "class PackConfig:\n    def g(self): return a() if self.method == 'rate' else b()",
        "def f(p: PackConfig):\n    if p.method == 'rate':\n        yield a()",
        "def f(p: PackConfig | None): return a() if p.method == 'rate' else b()",
    ],
)
def test_what_may_be_something_else_is_left_alone(source: str) -> None:
    assert decided(source) == ast.unparse(ast.parse(source))


def test_a_class_name_used_twice_says_nothing() -> None:
    holder = "class A:\n    def __init__(self, p: PackConfig): self.p = p"
    user = "def f(x: A): return a() if x.p.method == 'rate' else b()"
    assert "a()" not in decided(user, KNOWN, holder)
    assert "a()" in decided(user, KNOWN, holder, "class A:\n    def __init__(self, p: int): self.p = p")


ATOMS = ["config.pack.method == 'gptq'", "config.pack.method != 'gptq'", "config.pack.rate", "config.pack.prune_to_fit"]
CONDITIONS = st.recursive(
    st.sampled_from([*ATOMS, "u", "v", "note(1)", "note(0)"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]} and {pair[1]})"),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]} or {pair[1]})"),
        inner.map(lambda one: f"(not {one})"),
        st.tuples(inner, inner, inner).map(lambda three: f"({three[0]} if {three[1]} else {three[2]})"),
    ),
    max_leaves=7,
)


class Settings:
    """Just enough of a configuration."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


@given(CONDITIONS, CONDITIONS)
def test_any_program_does_the_same_under_the_known_settings(first: str, second: str) -> None:
    """The same value, and the same calls with effects, in the same order."""
    source = textwrap.dedent(f"""
    def f(config: Config, u, v, note):
        if {first}:
            note("then")
            if {second}:
                return "inner"
        elif {second}:
            note("elif")
        else:
            return {second}
        return {first}
    """)
    config = Settings(pack=Settings(method="gptq", rate=0.0, prune_to_fit=True))
    outcomes = []
    for text in (source, decided(source)):
        namespace: dict[str, Any] = {"Config": object}
        exec(text, namespace)
        results = []
        for u, v in itertools.product((False, True), repeat=2):
            notes: list[Any] = []

            def note(value: Any, notes: list[Any] = notes) -> Any:
                notes.append(value)
                return value

            results.append((namespace["f"](config, u, v, note), notes))
        outcomes.append(results)
    assert outcomes[0] == outcomes[1]
