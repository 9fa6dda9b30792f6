"""The part of a package that a program needs: modules and top-level statements that its entry function reaches by name.

`trace` starts from one function. A statement that is kept keeps the global names and imports that it mentions, in its
own module and in others, until nothing is added. Four rules limit what is kept:

- Annotations of functions and variables are ignored. Those of class attributes count, because pydantic reads them, and
  those of custom operators, because PyTorch does.
- A definition, an assignment or an import is kept if its name is needed.
- Other statements of a needed module are kept, and also what a function of the package decorates (it may register).
- A class is kept whole if it has bases. Otherwise a method without underscores is kept if its name is mentioned, and a
  class method if it is mentioned after the name of its class, or after `cls`.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Import = ast.Import | ast.ImportFrom


def trace(package: Mapping[str, ast.Module], module: str, function: str) -> dict[str, ast.Module]:
    """The part of a package that a program needs which calls `function` of `module`, by dotted name of the module.

    `package` has all modules by dotted name (a package's `__init__` by the name of the package). The trees are not
    changed. Raises KeyError if the function, or something imported from the package, does not exist.
    """
    tracer = _Tracer(package)
    tracer.need(module, function)
    tracer.follow_all()
    return {name: tracer.remaining(name) for name in sorted(tracer.kept)}


def bound_name(alias: ast.alias) -> str:
    return alias.asname or alias.name.split(".")[0]


@dataclass
class _Mentions:
    """The names in a piece of code, with its local variables. Those can only make the program keep too much."""

    bare: set[str] = field(default_factory=set)  # not followed by an attribute
    attributes: dict[str, set[str]] = field(default_factory=dict)  # by the name before the dot
    words: set[str] = field(default_factory=set)  # attributes, also with their owners; texts and keywords like some
    imports: list[Import] = field(default_factory=list)  # inside functions and blocks


class _Tracer:
    def __init__(self, package: Mapping[str, ast.Module]) -> None:
        self.package = package
        self.kept: dict[str, set[tuple[int, int]]] = {}  # by module: (statement, alias of an import or 0)
        self.tables: dict[str, dict[str, list[tuple[int, int]]]] = {}
        self.to_follow: list[tuple[str, ast.stmt]] = []
        self.words: set[str] = set()  # of all code that was followed
        self.waiting: dict[ast.stmt, tuple[str, set[str]]] = {}  # methods that no such word names: module, words

    def need(self, module: str, name: str) -> None:
        """Keep `name` of `module`, which is a definition, an imported name, or a module of that package."""
        self.enter(module)
        if name in self.table(module):
            self.keep_name(module, name, _Mentions(bare={name}))
        elif f"{module}.{name}" in self.package:
            self.enter(f"{module}.{name}")
        else:
            raise KeyError(f"{module} has no {name}")

    def need_all(self, module: str) -> None:
        """Keep all of `module`, for code that does not name the parts that it uses."""
        self.enter(module)
        for name in self.table(module):
            self.need(module, name)

    def enter(self, module: str) -> None:
        """Keep `module` and the packages above it, with the statements that have an effect at import."""
        if module in self.kept:
            return
        if "." in module:
            self.enter(module.rpartition(".")[0])
        self.kept[module] = set()
        for index, statement in enumerate(self.package[module].body):
            if self.acts(module, statement):
                self.keep(module, index, 0)

    def acts(self, module: str, statement: ast.stmt) -> bool:
        """Whether a top-level statement may have an effect besides binding a name."""
        if isinstance(statement, Definition):
            roots = (next(n for n in ast.walk(d) if isinstance(n, ast.Name)).id for d in statement.decorator_list)
            return any(self.is_own(module, root) for root in roots)
        if isinstance(statement, ast.Assign):
            return not all(isinstance(target, ast.Name | ast.Tuple) for target in statement.targets)
        return not isinstance(statement, Import | ast.AnnAssign) and not _is_for_readers(statement)

    def is_own(self, module: str, name: str) -> bool:
        """Whether a global name of `module` belongs to the package."""
        for index, _ in self.table(module).get(name, ()):
            statement = self.package[module].body[index]
            if not isinstance(statement, Import):
                return True
            if isinstance(statement, ast.ImportFrom) and statement.module in self.package:
                return True
        return False

    def keep(self, module: str, index: int, alias: int) -> None:
        """Keep one top-level statement (of an import, one alias). It is followed unless it is an import."""
        if (index, alias) in self.kept[module]:
            return
        self.kept[module].add((index, alias))
        statement = self.package[module].body[index]
        if not isinstance(statement, Import):
            self.to_follow.append((module, statement))

    def follow_all(self) -> None:
        """Follow the names in kept statements until nothing is added."""
        while self.to_follow:
            module, statement = self.to_follow.pop()
            for method in _methods_on_demand(statement):
                self.waiting[method] = module, _words_for(method, statement)
            mentions = _mentions(statement)
            self.words |= mentions.words
            for named in [node for node, (_, words) in self.waiting.items() if not words.isdisjoint(self.words)]:
                self.to_follow.append((self.waiting.pop(named)[0], named))
            for name in mentions.bare | mentions.attributes.keys():
                if name in self.table(module):
                    self.keep_name(module, name, mentions)
            for inner in mentions.imports:
                for alias in inner.names:
                    self.follow_import(inner, alias, mentions)

    def keep_name(self, module: str, name: str, mentions: _Mentions) -> None:
        """Keep every statement of `module` that binds `name`."""
        for index, position in self.table(module)[name]:
            self.keep(module, index, position)
            statement = self.package[module].body[index]
            if isinstance(statement, Import):
                self.follow_import(statement, statement.names[position], mentions)

    def follow_import(self, statement: Import, alias: ast.alias, mentions: _Mentions) -> None:
        """Keep what an import adds to the code that has these mentions."""
        if isinstance(statement, ast.Import):
            if alias.name in self.package:
                self.need_all(alias.name)
            return
        assert statement.level == 0 and statement.module, "the package imports by full names"
        if statement.module not in self.package:
            return
        inner = f"{statement.module}.{alias.name}"
        if inner not in self.package or alias.name in self.table(statement.module):
            self.need(statement.module, alias.name)
            return
        self.enter(inner)
        if bound_name(alias) in mentions.bare:
            self.need_all(inner)
        for attribute in mentions.attributes.get(bound_name(alias), ()):
            # A local variable may have the name of the module, with other attributes.
            if attribute in self.table(inner) or f"{inner}.{attribute}" in self.package:
                self.need(inner, attribute)

    def table(self, module: str) -> dict[str, list[tuple[int, int]]]:
        """Where each global name of a module is bound: (statement, alias of an import or 0)."""
        if module not in self.tables:
            table: dict[str, list[tuple[int, int]]] = {}
            for index, statement in enumerate(self.package[module].body):
                for position, name in _bound_names(statement):
                    table.setdefault(name, []).append((index, position))
            self.tables[module] = table
        return self.tables[module]

    def remaining(self, module: str) -> ast.Module:
        """The kept part of a module."""
        kept = self.kept[module]
        body: list[ast.stmt] = []
        for index, statement in enumerate(self.package[module].body):
            if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
                body.append(statement)
            elif isinstance(statement, Import):
                names = [alias for position, alias in enumerate(statement.names) if (index, position) in kept]
                if names and isinstance(statement, ast.Import):
                    body.append(ast.Import(names))
                elif names and isinstance(statement, ast.ImportFrom):
                    body.append(ast.ImportFrom(statement.module, names, 0))
            elif (index, 0) in kept:
                body.append(_without(statement, self.waiting.keys()))
        return ast.Module(body, [])


def _is_for_readers(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring or a block for type checkers."""
    if isinstance(statement, ast.If):
        return ast.unparse(statement.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _methods_on_demand(statement: ast.stmt) -> list[ast.FunctionDef]:
    """The methods that are kept only if some code mentions their name: all but those that Python or a base may call."""
    if not isinstance(statement, ast.ClassDef) or statement.bases:
        return []
    return [node for node in statement.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("__")]


def _words_for(method: ast.FunctionDef, owner: ast.stmt) -> set[str]:
    """The words of which one keeps a method of the class `owner`."""
    if isinstance(owner, ast.ClassDef) and "classmethod" in map(ast.unparse, method.decorator_list):
        return {f"{owner.name}.{method.name}", f"cls.{method.name}"}
    return {method.name}


def _without(statement: ast.stmt, unused: Set[ast.stmt]) -> ast.stmt:
    """A class without its unused methods; any other statement as it is."""
    if not isinstance(statement, ast.ClassDef) or unused.isdisjoint(statement.body):
        return statement
    shorter = copy.copy(statement)
    shorter.body = [node for node in statement.body if node not in unused] or [ast.Pass()]
    return shorter


def _mentions(code: ast.stmt) -> _Mentions:
    """The names that one statement mentions."""
    mentions = _Mentions()
    stack: list[ast.AST] = [code]
    on_demand = set(_methods_on_demand(code))
    while stack:
        node = stack.pop()
        if node in on_demand:
            continue
        if isinstance(node, ast.Attribute):
            mentions.words.add(node.attr)
        elif isinstance(node, ast.keyword) and node.arg:
            mentions.words.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            mentions.words.add(node.value)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            mentions.attributes.setdefault(node.value.id, set()).add(node.attr)
            mentions.words.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Name):
            mentions.bare.add(node.id)
            mentions.words.add(node.id)
        elif isinstance(node, Import):
            mentions.imports.append(node)
        else:
            stack.extend(_evaluated(node))
    return mentions


def _evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """The children of a node, without annotations that are never evaluated."""
    if isinstance(node, ast.ClassDef):  # its attributes keep their annotations
        yield from (*node.bases, *node.keywords, *node.decorator_list)
        for statement in node.body:
            yield from ast.iter_child_nodes(statement) if isinstance(statement, ast.AnnAssign) else (statement,)
        return
    if isinstance(node, ast.FunctionDef) and any("custom_op" in ast.unparse(part) for part in node.decorator_list):
        types = [part.annotation for part in ast.walk(node.args) if isinstance(part, ast.arg)]  # PyTorch reads them
        yield from (part for part in (*types, node.returns) if part is not None)
    annotation = getattr(node, "annotation", None), getattr(node, "returns", None)
    yield from (child for child in ast.iter_child_nodes(node) if child not in annotation)


def _bound_names(statement: ast.stmt) -> list[tuple[int, str]]:
    """(alias of an import or 0, name) for each name that a top-level statement binds."""
    if isinstance(statement, Definition):
        return [(0, statement.name)]
    if isinstance(statement, Import):
        return [(position, bound_name(alias)) for position, alias in enumerate(statement.names)]
    if _is_for_readers(statement):
        return []
    names: list[str] = []
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append(node.id)
        elif isinstance(node, Import):
            names += [bound_name(alias) for alias in node.names]
        elif isinstance(node, Definition):
            names.append(node.name)
    return [(0, name) for name in dict.fromkeys(names)]
