"""A program for one configuration: conditions on settings that are known are decided, and what cannot run goes.

    if config.pack.method == "rate":          with pack.method = "gptq"
        packed = fill(...)              ──▶       packed = fit(...)
    else:
        packed = fit(...)

What is a setting is read off the annotations, which mypy has checked: a parameter `config: TrainConfig`, what a class
keeps of it (`self.config = config`, dataclass fields, properties), and `Config`, whose sections lead to the others. A
name counts only where nothing else is ever stored under it. Decided are `if`, `x if .. else y`, `and` and `or` over
comparisons of settings and constants, and of variables that are only ever one constant. That takes a program with one
configuration, so settings that also come from elsewhere (those of the model: an artifact has its own) are not for this
file, and the program refuses other values of those that are (`variants`).
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bitgolf.config import Config
from bitgolf.record.minify import all_arguments, bound_name, dotted_name

_UNKNOWN = object()
_OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
# Type of each attribute that holds a section, by class: the sections of a Config to begin with.
_SECTIONS = {
    "Config": {
        name: info.annotation.__name__
        for name, info in Config.model_fields.items()
        if isinstance(info.annotation, type) and hasattr(info.annotation, "model_fields")
    }
}
_SECTION_OF = {type_name: section for section, type_name in _SECTIONS["Config"].items()}


@dataclass
class Types:
    """What annotations say: types of attributes by class, for all classes of a package; build with `types_of`."""

    attributes: dict[str, dict[str, str]] = field(default_factory=dict)

    def of(self, node: ast.expr, names: Mapping[str, str]) -> str:
        """Name of the type of an expression, empty when not known. `names`: types of variables."""
        if isinstance(node, ast.Name):
            return names.get(node.id, "")
        if isinstance(node, ast.Attribute):
            return self.attributes.get(self.of(node.value, names), {}).get(node.attr, "")
        return ""


def types_of(trees: Iterable[ast.Module]) -> Types:
    """Types of the attributes of all classes in `trees` (before annotations are taken out)."""
    types = Types({name: dict(attributes) for name, attributes in _SECTIONS.items()})
    spoiled: set[str] = set()  # attributes that something outside of their class stores
    twice: set[str] = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                if node.name in types.attributes and node.name != "Config":
                    twice.add(node.name)
                types.attributes.setdefault(node.name, {}).update(_attributes(node))
            elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load) and not _is_self(node.value):
                spoiled.add(node.attr)
    for name, attributes in types.attributes.items():
        for attribute in list(attributes):
            if name in twice or attribute in spoiled:
                del attributes[attribute]
    return types


def specialize(tree: ast.Module, values: Mapping[str, Any], types: Types) -> ast.Module:
    """Decide the conditions of a module, in place.

    Args:
        tree: the module as written, annotations included.
        values: settings that are known, by dotted key; derived ones too ("ttt.enabled").
        types: `types_of` the package.
    """
    specialized = _Specializer(values, types).visit(tree)
    assert isinstance(specialized, ast.Module)
    return specialized


def decide_in_function(function: ast.FunctionDef, constants: Mapping[str, Any], types: Types) -> None:
    """Decide the conditions of one function in which these parameters have these constant values, in place."""
    _Specializer({}, types, constants).visit(function)


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _attributes(node: ast.ClassDef) -> dict[str, str]:
    """Types of the attributes that a class declares or fills from annotated parameters, where they agree."""
    found: dict[str, set[str]] = {}
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found.setdefault(statement.target.id, set()).add(dotted_name(statement.annotation))
        elif isinstance(statement, ast.FunctionDef):
            if any("property" in dotted_name(d) for d in statement.decorator_list) and statement.returns is not None:
                found.setdefault(statement.name, set()).add(dotted_name(statement.returns))
            names = _parameter_types(statement)
            for target, value in _assignments(statement):
                if isinstance(target, ast.Attribute) and _is_self(target.value):
                    known = names.get(value.id, "") if isinstance(value, ast.Name) else ""
                    found.setdefault(target.attr, set()).add(known)
    return {name: next(iter(kinds)) for name, kinds in found.items() if len(kinds) == 1 and "" not in kinds}


def _parameter_types(function: ast.FunctionDef) -> dict[str, str]:
    """Types of the parameters that the function does not store anything else in."""
    places = stored(function)
    return {
        argument.arg: dotted_name(argument.annotation)
        for argument in all_arguments(function.args)
        if argument.annotation is not None and argument.arg not in places and argument.arg != "self"
    }


def stored(function: ast.FunctionDef) -> list[str]:
    """Names that something is stored in, once for each assignment; other ways to bind a name count twice."""
    found: list[str] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.append(node.id)
        elif isinstance(node, ast.Nonlocal | ast.Global):
            found += 2 * node.names
        elif isinstance(node, ast.alias):
            found += 2 * [bound_name(node)]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
            found += 2 * [node.name] if node.name and node is not function else []
        elif isinstance(node, ast.MatchMapping) and node.rest:
            found += 2 * [node.rest]
    return found


def _assignments(function: ast.FunctionDef) -> Iterable[tuple[ast.expr, ast.expr]]:
    """(target, value) of all assignments, taken apart where both sides are tuples; a target without its own value
    is paired with a constant."""
    for node in ast.walk(function):
        if isinstance(node, ast.AnnAssign):
            yield node.target, node.value or ast.Constant(None)
        elif isinstance(node, ast.AugAssign):
            yield node.target, ast.Constant(None)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if not isinstance(target, ast.Tuple):
                    yield target, node.value
                elif isinstance(node.value, ast.Tuple) and len(node.value.elts) == len(target.elts):
                    yield from zip(target.elts, node.value.elts, strict=True)
                else:
                    yield from ((element, ast.Constant(None)) for element in target.elts)


class _Specializer(ast.NodeTransformer):
    def __init__(self, values: Mapping[str, Any], types: Types, parameters: Mapping[str, Any] | None = None) -> None:
        self.values, self.types = values, types
        self.parameters = dict(parameters or {})  # of the outermost function
        self.names: dict[str, str] = {}  # types of variables
        self.constants: dict[str, Any] = {}  # variables that are never anything else
        self.once: set[str] = set()  # variables of the innermost function that are stored in one place
        self.class_name = ""
        self.outermost = True

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        if node.name == "Config" or node.name in _SECTION_OF:
            return node  # its methods also check settings that the program refuses
        outer, self.class_name = self.class_name, node.name
        visited = self.generic_visit(node)
        self.class_name = outer
        return visited

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        outer = self.names, self.constants
        self._hide({argument.arg for argument in all_arguments(node.args)})
        visited = self.generic_visit(node)
        self.names, self.constants = outer
        return visited

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in ast.walk(node)):
            return node  # without its last `yield` it would be another kind of function
        outer = self.names, self.constants, self.once, self.outermost
        places = stored(node)
        is_method = bool(self.class_name) and not self.names
        self._hide({*places, *(argument.arg for argument in all_arguments(node.args))})
        self.names |= _parameter_types(node)
        if is_method and node.args.args and node.args.args[0].arg == "self":
            self.names["self"] = self.class_name
        for target, value in _assignments(node):
            if isinstance(target, ast.Name) and places.count(target.id) == 1:
                kind = self.types.of(value, self.names)
                if kind:
                    self.names[target.id] = kind
        if self.outermost:
            self.constants |= {name: value for name, value in self.parameters.items() if name not in places}
        self.once, self.outermost = {name for name in places if places.count(name) == 1}, False
        visited = self.generic_visit(node)
        self.names, self.constants, self.once, self.outermost = outer
        return visited

    def _hide(self, own: set[str]) -> None:
        """In an inner scope, its own names mean something else."""
        self.names = {name: kind for name, kind in self.names.items() if name not in own}
        self.constants = {name: value for name, value in self.constants.items() if name not in own}

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id in self.once and isinstance(node.value, ast.Constant):
            self.constants[target.id] = node.value.value
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        value = self.constants.get(node.id, _UNKNOWN) if isinstance(node.ctx, ast.Load) else _UNKNOWN
        return ast.Constant(value) if value is None or value is True or value is False else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return node  # text for people

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                setattr(node, name, _reachable(block))
        if isinstance(node, ast.stmt | ast.ExceptHandler) and getattr(node, "body", None) == []:
            node.body = [ast.Pass()]  # type: ignore[union-attr]
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        known = self.decide(node.test)
        if known is _UNKNOWN:
            return self.generic_visit(node)
        kept = node.body if known else node.orelse
        visited: list[ast.stmt] = []
        for statement in kept:
            after = self.visit(statement)
            visited += after if isinstance(after, list) else [after]
        return visited

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        known = self.decide(node.test)
        if known is _UNKNOWN:
            return self.generic_visit(node)
        chosen: ast.AST = self.visit(node.body if known else node.orelse)
        return chosen

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        """`known and x` is `x` or `known`; what stands before an operand is evaluated, whatever that operand is."""
        stops = isinstance(node.op, ast.Or)  # the truth of an operand that ends the evaluation
        operands: list[ast.expr] = []
        for position, operand in enumerate(node.values):
            known = self.decide(operand)
            if known is not _UNKNOWN and bool(known) is stops:
                operands.append(operand)
                break
            if known is _UNKNOWN or position == len(node.values) - 1:
                operands.append(operand)
        visited = [self.visit(operand) for operand in operands]
        return visited[0] if len(visited) == 1 else ast.BoolOp(node.op, visited)

    def decide(self, node: ast.expr) -> Any:
        """The value of an expression of settings and constants, or _UNKNOWN."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self.constants.get(node.id, _UNKNOWN)
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            parts = [self.decide(element) for element in node.elts]
            return _UNKNOWN if any(part is _UNKNOWN for part in parts) else tuple(parts)
        if isinstance(node, ast.Attribute):
            section = _SECTION_OF.get(self.types.of(node.value, self.names), "")
            return self.values.get(f"{section}.{node.attr}", _UNKNOWN) if section else _UNKNOWN
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            known = self.decide(node.operand)
            return _UNKNOWN if known is _UNKNOWN else not known
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            left, right = self.decide(node.left), self.decide(node.comparators[0])
            compare = _OPERATORS[type(node.ops[0])]
            return _UNKNOWN if left is _UNKNOWN or right is _UNKNOWN else compare(left, right)
        if isinstance(node, ast.BoolOp):
            stops = isinstance(node.op, ast.Or)
            known = _UNKNOWN
            for operand in node.values:
                known = self.decide(operand)
                if known is _UNKNOWN or bool(known) is stops:
                    return known
            return known
        return _UNKNOWN


def _reachable(block: list[ast.stmt]) -> list[ast.stmt]:
    """A block up to the first statement that leaves it."""
    for index, statement in enumerate(block):
        if isinstance(statement, ast.Return | ast.Raise | ast.Continue | ast.Break):
            return block[: index + 1]
    return block
