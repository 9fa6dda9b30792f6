"""What a program needs of a package: modules, top-level definitions and methods, found by following names.

`trace` starts from the functions that a program calls and keeps what they name: a definition pulls in the definitions
and imports it mentions, in its own module and in others, until nothing new comes up. What may matter without being
named stays: statements with effects, decorated functions, special methods, methods of classes with foreign bases, and
any method whose name occurs as an attribute or inside a string. So an unused import, or one function taken from a large
module, costs nothing, and no list of modules has to be kept.

What is declared `absent` is left out with everything that only it needs. Its names become those of a module that stands
in for it (`bitgolf.record.absent`), so whoever declares it must know that the program never calls it.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bitgolf.record.minify import PLAIN_DECORATORS, bound_name, dotted_name, has_annotations

# Calls in the value of an assignment that nothing but the assignment sees.
_QUIET_CALLS = frozenset(
    {
        "logging.getLogger", "re.compile", "struct.Struct", "np.dtype", "timedelta", "TypeVar", "frozenset", "set",
        "tuple", "list", "dict", "range", "len", "float", "int", "str", "bytes", "min", "max", "sum", "sorted",
        "namedtuple", "Path", "object", "ContextVar", "torch.finfo", "math.sqrt", "math.log", "math.log2",
    }
)  # fmt: skip
# Bases whose methods are called by name only, never by a framework behind our back.
_OPEN_BASES = frozenset({"object", "Protocol", "BaseModel", "Exception", "ValueError", "RuntimeError"})
_QUIET_DECORATORS = PLAIN_DECORATORS - {"model_validator"}
_DUCK_TYPED = frozenset({"read", "readinto", "readline", "write", "flush", "close", "seek", "tell", "keys", "items"})
_WORD = re.compile(r"[A-Za-z_]\w*")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass
class _Uses:
    """What a piece of code mentions."""

    names: set[str] = field(default_factory=set)
    bare: set[str] = field(default_factory=set)  # names used other than as `name.attribute`
    attributes: dict[str, set[str]] = field(default_factory=dict)  # by the name they are looked up on
    words: set[str] = field(default_factory=set)  # attribute names, and identifiers inside strings
    imports: list[ast.Import | ast.ImportFrom] = field(default_factory=list)  # inside functions


def trace(
    package: Mapping[str, ast.Module],
    entries: Iterable[tuple[str, str]],
    absent: frozenset[str] = frozenset(),
    stand_in: str = "bitgolf.record.absent",
) -> dict[str, ast.Module]:
    """The part of a package that a program needs.

    Args:
        package: its modules by dotted name (packages: their `__init__`), simplified (`minify.simplify`); the trees are
            not changed.
        entries: (module, name) of the functions that the program calls.
        absent: what it does without: modules ("package.module"), names in them ("package.module:name") or
            methods ("package.module:Class.name").
        stand_in: the module of the package that has all absent names.
    Returns:
        The trees that remain, by module name, with the packages above them.
    Raises:
        KeyError: an entry, or something imported from the package, does not exist.
    """
    tracer = _Tracer(package, absent, stand_in)
    for module, name in entries:
        tracer.need(module, name)
    tracer.finish()
    return {name: tracer.remaining(name) for name in sorted(tracer.kept)}


def external_imports(trees: Iterable[ast.Module]) -> set[str]:
    """Top-level names of everything that modules import, also inside functions."""
    found: set[str] = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found


class _Tracer:
    def __init__(self, package: Mapping[str, ast.Module], absent: frozenset[str], stand_in: str) -> None:
        self.package, self.absent, self.stand_in = package, absent, stand_in
        self.replaced: dict[str, set[tuple[str, str]]] = {}  # by module: absent (name, name it is bound to)
        self.roots = {name.split(".")[0] for name in package}
        self.kept: dict[str, set[tuple[int, int]]] = {}  # by module: (statement, alias of an import or 0)
        self.methods: set[ast.stmt] = set()  # kept methods of kept classes
        self.words: set[str] = set()
        self.waiting: dict[str, list[tuple[str, list[ast.stmt]]]] = {}  # methods nobody has named yet, by name
        self.tables: dict[str, dict[str, list[tuple[int, int]]]] = {}
        self.needed: set[tuple[str, str]] = set()
        self.todo: list[tuple[str, ast.AST]] = []

    def need(self, module: str, name: str) -> None:
        """Somebody uses `name` of `module`: a definition, an imported name, or a module of that package."""
        if self.is_absent(module, name) or (module, name) in self.needed:
            return
        self.needed.add((module, name))
        self.enter(module)
        if name in self.table(module):
            self.keep_name(module, name, _Uses(bare={name}))
        elif f"{module}.{name}" in self.package:
            self.enter(f"{module}.{name}")
        elif self.is_lazy(module):
            self.need(module, "__getattr__")
        else:
            raise KeyError(f"{module} has no {name}")

    def need_all(self, module: str) -> None:
        """Somebody uses `module` in a way that does not say what of it."""
        self.enter(module)
        for name in self.table(module):
            self.need(module, name)

    def is_absent(self, module: str, name: str) -> bool:
        return not self.absent.isdisjoint((module, f"{module}:{name}", f"{module}.{name}"))

    def enter(self, module: str) -> None:
        """Keep `module` with the statements that act by themselves."""
        if module in self.kept or module in self.absent:
            return
        if "." in module:
            self.enter(module.rpartition(".")[0])
        self.kept[module] = set()
        for index, statement in enumerate(self.package[module].body):
            if _acts(statement):
                self.keep(module, index, 0)

    def finish(self) -> None:
        """Follow names until nothing new comes up."""
        while self.todo:
            module, code = self.todo.pop()
            self.follow(module, code)

    def keep(self, module: str, index: int, alias: int) -> None:
        """Keep one top-level statement (of an import: one alias) and remember to look into it."""
        if (index, alias) in self.kept[module]:
            return
        self.kept[module].add((index, alias))
        statement = self.package[module].body[index]
        if isinstance(statement, ast.ClassDef):
            self.keep_class(module, statement)
        elif not isinstance(statement, ast.Import | ast.ImportFrom):
            self.todo.append((module, statement))

    def keep_class(self, module: str, node: ast.ClassDef) -> None:
        """Keep a class: its header and what is not a method at once, methods once somebody names them."""
        groups: dict[str, list[ast.stmt]] = {}
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef):
                groups.setdefault(statement.name, []).append(statement)
            else:
                self.hear(_uses(statement).names)
                self.todo.append((module, statement))
        for part in (*node.bases, *node.keywords, *node.decorator_list):
            self.todo.append((module, part))
        droppable = self.is_open(module, node)
        for name, methods in groups.items():
            if f"{module}:{node.name}.{name}" in self.absent:
                continue
            if droppable and all(_may_be_dropped(method) for method in methods) and name not in self.words:
                self.waiting.setdefault(name, []).append((module, methods))
            else:
                self.keep_methods(module, methods)

    def keep_methods(self, module: str, methods: list[ast.stmt]) -> None:
        self.methods.update(methods)
        self.todo += [(module, method) for method in methods]

    def hear(self, words: set[str]) -> None:
        """Names by which methods may be called: keep those that have been waiting for them."""
        for word in words - self.words:
            self.words.add(word)
            for module, methods in self.waiting.pop(word, []):
                self.keep_methods(module, methods)

    def is_open(self, module: str, node: ast.ClassDef) -> bool:
        """Whether all bases are known not to call methods that the package does not name."""
        return not node.keywords and all(self.is_open_base(module, dotted_name(base)) for base in node.bases)

    def is_open_base(self, module: str, base: str) -> bool:
        if base in _OPEN_BASES:
            return True
        for statement in self.package[module].body:
            if isinstance(statement, ast.ClassDef) and statement.name == base:
                return self.is_open(module, statement)
            if isinstance(statement, ast.ImportFrom) and statement.module in self.package:
                for alias in statement.names:
                    if (alias.asname or alias.name) == base:
                        return self.is_open_base(str(statement.module), alias.name)
        return False

    def follow(self, module: str, code: ast.AST) -> None:
        uses = _uses(code)
        self.hear(uses.words)
        table = self.table(module)
        for name in uses.names:
            if name in table:
                self.keep_name(module, name, uses)
        for statement in uses.imports:
            for alias in statement.names:
                self.follow_import(statement, alias, bound_name(alias), uses)

    def keep_name(self, module: str, name: str, uses: _Uses) -> None:
        """Keep every statement of `module` that binds `name`."""
        if self.is_absent(module, name):
            self.replace(module, name, name)
            return
        for index, position in self.table(module)[name]:
            statement = self.package[module].body[index]
            if isinstance(statement, ast.ImportFrom):
                alias = statement.names[position]
                if self.is_absent(statement.module or "", alias.name):
                    self.replace(module, alias.name, name)
                    continue
            self.keep(module, index, position)
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self.follow_import(statement, statement.names[position], name, uses)

    def replace(self, module: str, name: str, bound: str) -> None:
        """Let `module` import an absent name from the stand-in."""
        self.replaced.setdefault(module, set()).add((name, bound))
        self.need(self.stand_in, "__getattr__")

    def follow_import(self, statement: ast.Import | ast.ImportFrom, alias: ast.alias, bound: str, uses: _Uses) -> None:
        if isinstance(statement, ast.Import):
            if alias.name.split(".")[0] in self.roots:
                self.need_all(alias.name)
            return
        assert statement.level == 0 and statement.module, "the package imports by full names"
        if statement.module.split(".")[0] not in self.roots:
            return
        if self.is_absent(statement.module, alias.name):
            return
        inner = f"{statement.module}.{alias.name}"
        if inner not in self.package or alias.name in self.table(statement.module):
            self.need(statement.module, alias.name)
            return
        self.enter(statement.module)
        self.enter(inner)
        if bound in uses.bare:
            self.need_all(inner)
        for attribute in uses.attributes.get(bound, ()):
            # A local variable may have the name of the module: what the module has not is looked up on that.
            if attribute in self.table(inner) or f"{inner}.{attribute}" in self.package or self.is_lazy(inner):
                self.need(inner, attribute)

    def is_lazy(self, module: str) -> bool:
        """Whether a module makes names when they are asked for."""
        return "__getattr__" in self.table(module)

    def table(self, module: str) -> dict[str, list[tuple[int, int]]]:
        """Where each global name of a module is bound: (statement, alias of an import or 0)."""
        if module not in self.tables:
            found: dict[str, list[tuple[int, int]]] = {}
            for index, statement in enumerate(self.package[module].body):
                for position, name in _bound_names(statement):
                    found.setdefault(name, []).append((index, position))
            self.tables[module] = found
        return self.tables[module]

    def remaining(self, module: str) -> ast.Module:
        """What is left of a module."""
        kept = self.kept[module]
        body: list[ast.stmt] = []
        future: list[ast.stmt] = []
        if module in self.replaced:
            names = [ast.alias(n, bound if bound != n else None) for n, bound in sorted(self.replaced[module])]
            body.append(ast.ImportFrom(self.stand_in, names, 0))
        for index, statement in enumerate(self.package[module].body):
            if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
                future.append(statement)
            elif isinstance(statement, ast.Import | ast.ImportFrom):
                names = [alias for position, alias in enumerate(statement.names) if (index, position) in kept]
                if names and isinstance(statement, ast.Import):
                    body.append(ast.Import(names))
                elif names and isinstance(statement, ast.ImportFrom):
                    body.append(ast.ImportFrom(statement.module, names, 0))
            elif (index, 0) in kept:
                body.append(self.without_methods(statement) if isinstance(statement, ast.ClassDef) else statement)
        tree = ast.Module(body, [])
        return ast.Module([*future, *body], []) if has_annotations(tree) else tree

    def without_methods(self, node: ast.ClassDef) -> ast.ClassDef:
        left = copy.copy(node)  # with all fields that this version of Python knows
        left.body = [s for s in node.body if not isinstance(s, ast.FunctionDef) or s in self.methods] or [ast.Pass()]
        return left


def _uses(code: ast.AST) -> _Uses:
    """What a piece of code mentions; the names of its own variables are among them, which keeps too much at worst."""
    uses = _Uses()
    stack = [code]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Attribute):
            uses.words.add(node.attr)
            if isinstance(node.value, ast.Name):
                uses.names.add(node.value.id)
                uses.attributes.setdefault(node.value.id, set()).add(node.attr)
                continue
        elif isinstance(node, ast.Name):
            uses.names.add(node.id)
            uses.bare.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            uses.words.update(_WORD.findall(node.value))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            uses.imports.append(node)
        stack.extend(ast.iter_child_nodes(node))
    return uses


def _bound_names(statement: ast.stmt) -> list[tuple[int, str]]:
    """(alias of an import or 0, name) that a top-level statement binds."""
    if isinstance(statement, Definition):
        return [(0, statement.name)]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [(i, bound_name(alias)) for i, alias in enumerate(statement.names)]
    stored = [n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    inner = [
        bound_name(alias)
        for node in ast.walk(statement)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    return [(0, name) for name in dict.fromkeys(stored + inner)]


def _acts(statement: ast.stmt) -> bool:
    """Whether a top-level statement may do something besides binding a name."""
    if isinstance(statement, ast.FunctionDef):
        return not all(dotted_name(decorator) in PLAIN_DECORATORS for decorator in statement.decorator_list)
    if isinstance(statement, ast.ClassDef):
        known = all(dotted_name(d).split(".")[-1] == "dataclass" for d in statement.decorator_list)
        return bool(statement.keywords) or not known
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return False
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if any(isinstance(node, ast.Attribute | ast.Subscript) for t in targets for node in ast.walk(t)):
            return True
        return any(isinstance(node, ast.Call) and dotted_name(node) not in _QUIET_CALLS for node in ast.walk(statement))
    return True


def _may_be_dropped(method: ast.stmt) -> bool:
    """Whether a method is called by its name or not at all."""
    assert isinstance(method, ast.FunctionDef)
    special = method.name.startswith("__") and method.name.endswith("__")
    return (
        not special
        and method.name not in _DUCK_TYPED
        and all(dotted_name(decorator) in _QUIET_DECORATORS for decorator in method.decorator_list)
    )
