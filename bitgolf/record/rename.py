"""Short names for what nobody outside can name: variables, parameters, a module's private functions and constants.

Renamed are variables that live and die inside one outermost function (a function of a module, or a method), and
parameters that no call passes by name. All scopes inside such a function share one table, in which different names
stay different and no new name is used for anything else there, so every name still means the same variable. Left as
they are: names of the module and built-in names, whatever an import binds, functions that hold a class or a match
statement or look at their own variables, and parameters that a decorator or a foreign base class may know.

Functions and constants of a module that begin with an underscore get a short name with one, when no import, attribute
or string of the program spells theirs and no function hides them.

A keyword counts against all functions of the called name. Where the called name does not say which function runs (it
is a variable, an attribute that was assigned, a subscript, a foreign function that may pass keywords on), it counts
against every function.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import keyword
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bitgolf.record.minify import (
    INTROSPECTION,
    all_arguments,
    bound_name,
    dotted_name,
    has_plain_decorators,
    names_in,
)

_WORD = re.compile(r"[A-Za-z_]\w*")
_INSPECTORS = frozenset({"locals", "vars", "eval", "exec", "globals", "dir"})
# Frameworks that call the methods of subclasses by position.
_OPEN_BASES = frozenset({"object", "Protocol", "BaseModel", "Exception", "ValueError", "RuntimeError", "nn.Module"})
_FORWARDERS = frozenset({"partial", "submit", "map", "apply", "run", "call", "checkpoint", "spawn", "Thread"})
_CONSTRUCTORS = frozenset({"__init__", "__new__", "__call__"})


@dataclass
class Keywords:
    """What the calls of a program pass by name; build it with `keywords_of`.

    Attributes:
        by_callee: keywords of calls whose called name is a function, method or class of the program.
        anywhere: keywords of all other calls.
        spread: called names that are given a whole mapping (`**values`).
        spread_anywhere: whether some call passes a mapping to who knows what.
        classes: names of the program's classes.
    """

    by_callee: dict[str, set[str]] = field(default_factory=dict)
    anywhere: set[str] = field(default_factory=set)
    spread: set[str] = field(default_factory=set)
    spread_anywhere: bool = False
    classes: set[str] = field(default_factory=set)

    def may_name(self, function: str, parameter: str) -> bool:
        """Whether some call may pass `parameter` of a function of this name as a keyword."""
        callees = self.classes | _CONSTRUCTORS if function in _CONSTRUCTORS else {function}
        if self.spread_anywhere or callees & self.spread or parameter in self.anywhere:
            return True
        return any(parameter in self.by_callee.get(callee, ()) for callee in callees)


def keywords_of(trees: Sequence[Sequence[ast.AST]]) -> Keywords:
    """All keyword arguments of a program, given the nodes of its modules, by who may receive them."""
    found = Keywords()
    functions: set[str] = set()
    carriers: set[str] = set(_FORWARDERS)  # names that may hold a function of another name
    for nodes in trees:
        for node in nodes:
            if isinstance(node, ast.Name | ast.Attribute):
                if isinstance(node.ctx, ast.Store):
                    carriers.add(node.id if isinstance(node, ast.Name) else node.attr)
            elif isinstance(node, ast.arg):
                carriers.add(node.arg)
            elif isinstance(node, ast.ClassDef):
                found.classes.add(node.name)
            elif isinstance(node, ast.FunctionDef):
                functions.add(node.name)
                if any("property" in dotted_name(decorator) for decorator in node.decorator_list):
                    carriers.add(node.name)
            elif isinstance(node, ast.alias) and node.asname:
                carriers.add(node.asname)
    known = (functions | found.classes) - carriers
    for nodes in trees:
        foreign = _foreign_names(nodes)
        for node in nodes:
            if isinstance(node, ast.Call):
                _note(found, node, known, foreign)
    return found


def _note(found: Keywords, call: ast.Call, known: set[str], foreign: set[str]) -> None:
    callee = dotted_name(call.func) if not isinstance(call.func, ast.Call) else ""
    name = callee.rpartition(".")[2]
    if not callee and isinstance(call.func, ast.Attribute):
        name = call.func.attr  # of an expression: `f(x).method(..)`
    if name not in known:  # may take the keywords of another call as a mapping
        mappings = [argument for argument in call.args if isinstance(argument, ast.Dict)]
        mappings += [word.value for word in call.keywords if isinstance(word.value, ast.Dict)]
        keys = [key for mapping in mappings for key in mapping.keys]
        found.anywhere |= {k.value for k in keys if isinstance(k, ast.Constant) and isinstance(k.value, str)}
    for word in call.keywords:
        if word.arg is not None:
            (found.by_callee.setdefault(name, set()) if name in known else found.anywhere).add(word.arg)
        elif name in known:
            found.spread.add(name)
        elif callee.split(".")[0] not in foreign or name in _FORWARDERS:
            found.spread_anywhere = True


def _foreign_names(nodes: Sequence[ast.AST]) -> set[str]:
    """Names that a module imports from outside of this package; only calls with `**` ask."""
    own = __name__.split(".")[0]
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import) or (
            isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(own)
        ):
            names |= {bound_name(alias) for alias in node.names}
    return names


def shorten_names_(trees: Sequence[ast.Module]) -> None:
    """Rename in all modules of a program, in place."""
    nodes = [nodes_in_order(tree) for tree in trees]
    keywords, spelled = keywords_of(nodes), _spelled(nodes)
    for tree, mine in zip(trees, nodes, strict=True):
        keeps_signatures = any(not INTROSPECTION.isdisjoint(names_in(node)) for node in mine)
        _shorten_variables(tree, keywords, keeps_signatures)
        if not keeps_signatures:  # after the variables: `keywords` knows functions by their old names
            _shorten_private_globals(tree, mine, spelled)


def nodes_in_order(node: ast.AST) -> list[ast.AST]:
    """A node and all below it, parents before their children, in the order of the text."""
    found: list[ast.AST] = []

    def visit(node: ast.AST) -> None:
        found.append(node)
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, ast.AST):
                visit(value)
            elif isinstance(value, list):
                for item in value:
                    if isinstance(item, ast.AST):
                        visit(item)

    visit(node)
    return found


def _shorten_private_globals(tree: ast.Module, nodes: Sequence[ast.AST], spelled: set[str]) -> None:
    """Rename the private functions and constants of a module."""
    names: list[str] = []
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef) and has_plain_decorators(statement):
            names.append(statement.name)
        elif isinstance(statement, ast.Assign):
            names += [target.id for target in statement.targets if isinstance(target, ast.Name)]
    mentioned = {node.id for node in nodes if isinstance(node, ast.Name)}
    if not _INSPECTORS.isdisjoint(mentioned):
        return
    hidden = {name for function, _ in _outermost_functions(tree) for name in _bindings(nodes_in_order(function)[1:])}
    hidden |= {name for node in nodes if isinstance(node, ast.Global) for name in node.names}
    hidden |= {node.name for node in nodes if isinstance(node, ast.ClassDef)} | spelled
    private = [name for name in dict.fromkeys(names) if name.startswith("_") and not name.startswith("__")]
    taken = mentioned | hidden
    free = (name for name in map("_{}".format, _short_names()) if name not in taken)
    _rename_(nodes, dict(zip([name for name in private if name not in hidden], free, strict=False)))


def _spelled(trees: Sequence[Sequence[ast.AST]]) -> set[str]:
    """Names by which one module may reach into another: attributes, imports, words inside strings."""
    words: set[str] = set()
    for nodes in trees:
        for node in nodes:
            if isinstance(node, ast.Attribute):
                words.add(node.attr)
            elif isinstance(node, ast.alias):
                words.update(node.name.split("."))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.update(_WORD.findall(node.value))
    return words


def _shorten_variables(tree: ast.Module, keywords: Keywords, keeps_signatures: bool) -> None:
    """Rename the variables and parameters of all functions of a module."""
    reserved = _global_names(tree) | set(dir(builtins)) | set(keyword.kwlist)
    for function, in_class in _outermost_functions(tree):
        bases = [dotted_name(base) for base in in_class.bases] if in_class else []
        foreign = not all(base in _OPEN_BASES or base in keywords.classes for base in bases)
        _shorten(nodes_in_order(function), reserved, keywords, keeps_signatures or foreign)


def _shorten(nodes: list[ast.AST], reserved: set[str], keywords: Keywords, keeps_signatures: bool) -> None:
    """Rename in one outermost function, the first of `nodes`."""
    if isinstance(nodes[0], ast.FunctionDef) and not has_plain_decorators(nodes[0]):
        return  # what decorates it may compile its source
    fixed = set(reserved)
    mentioned: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ClassDef | ast.Match | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Name):
            mentioned.add(node.id)
        elif isinstance(node, ast.alias):
            fixed.add(bound_name(node))
        elif isinstance(node, ast.Global):
            fixed.update(node.names)
        elif isinstance(node, ast.FunctionDef):
            if keeps_signatures or not has_plain_decorators(node):
                fixed.update(argument.arg for argument in all_arguments(node.args))
            else:
                by_name = (*node.args.args, *node.args.kwonlyargs)
                fixed.update(a.arg for a in by_name if keywords.may_name(node.name, a.arg))
        elif isinstance(node, ast.Lambda):
            unknown = keywords.anywhere
            fixed.update(a.arg for a in all_arguments(node.args) if keywords.spread_anywhere or a.arg in unknown)
    if not _INSPECTORS.isdisjoint(mentioned):
        return
    variables = [name for name in dict.fromkeys(_bindings(nodes[1:])) if name not in fixed]
    taken = fixed | mentioned - set(variables)
    free = (name for name in _short_names() if name not in taken)
    table = dict(zip(variables, free, strict=False))
    _rename_(nodes[1:], table)
    for node in reversed(nodes):  # from the inside out
        if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            _shorten_comprehension(node, set(table.values()), fixed)


def _shorten_comprehension(
    comprehension: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp, renamed: set[str], fixed: set[str]
) -> None:
    """Its own variables may have any name that nothing inside it mentions: taking the first ones packs better."""
    nodes = nodes_in_order(comprehension)
    if any(isinstance(node, ast.NamedExpr | ast.Lambda) for node in nodes):
        return
    targets = [nodes_in_order(generator.target) for generator in comprehension.generators]
    own = {node.id for target in targets for node in target if isinstance(node, ast.Name)} & renamed
    # What it iterates over first belongs to the scope around it, where a name may mean something else.
    own -= {node.id for node in nodes_in_order(comprehension.generators[0].iter) if isinstance(node, ast.Name)}
    taken = fixed | {node.id for node in nodes if isinstance(node, ast.Name)} - own
    free = (name for name in _short_names() if name not in taken)
    _rename_(
        nodes,
        dict(zip(dict.fromkeys(n.id for n in nodes if isinstance(n, ast.Name) and n.id in own), free, strict=False)),
    )


def _bindings(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Names that the inside of a function binds in any of its scopes, in the order of the text."""
    for node in nodes:
        if isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load):
                yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef) or (isinstance(node, ast.ExceptHandler) and node.name):
            yield str(node.name)


def _rename_(nodes: Sequence[ast.AST], table: dict[str, str]) -> None:
    """Give every variable among `nodes` its new name."""
    for node in nodes:
        if isinstance(node, ast.Name):
            node.id = table.get(node.id, node.id)
        elif isinstance(node, ast.arg):
            node.arg = table.get(node.arg, node.arg)
        elif isinstance(node, ast.FunctionDef) or (isinstance(node, ast.ExceptHandler) and node.name):
            node.name = table.get(str(node.name), str(node.name))
        elif isinstance(node, ast.Nonlocal):
            node.names = [table.get(name, name) for name in node.names]


def _outermost_functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, ast.ClassDef | None]]:
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef):
            yield statement, None
        elif isinstance(statement, ast.ClassDef):
            for part in statement.body:
                if isinstance(part, ast.FunctionDef):
                    yield part, statement


def _global_names(tree: ast.Module) -> set[str]:
    """Names that a module binds or mentions outside of its functions."""
    names: set[str] = set()
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names.add(statement.name)
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.alias):
                names.add(bound_name(node))
    return names


def _short_names() -> Iterator[str]:
    """a, b, .., Z, aa, ab, .. without keywords."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_letters, repeat=length):
            name = "".join(letters)
            if not keyword.iskeyword(name):
                yield name
