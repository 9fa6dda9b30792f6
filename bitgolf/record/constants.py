"""Parameters that every call of a program gives the same constant are that constant.

    train(run, peers)                 def train(run, world, resume=False):
                              ──▶         if resume: ...                      goes

Only functions of modules that are called by name, and never passed around, are looked at, so that all their calls are
known. What a parameter decides is decided (`specialize`), a variable that is only ever that constant decides in turn,
and calls pass it on: `propagate_` is repeated until nothing changes. Constants are None, True, False, numbers and text.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bitgolf.record.minify import all_arguments, bound_name, has_plain_decorators
from bitgolf.record.specialize import Types, decide_in_function, stored

_ROUNDS = 6
Function = tuple[str, str]  # module, name


@dataclass
class _Calls:
    """Who calls a function; `escaped` when it is used in any other way too."""

    node: ast.FunctionDef
    calls: list[ast.Call] = field(default_factory=list)
    escaped: bool = False


def propagate_(trees: Mapping[str, ast.Module], entry: Function) -> None:
    """Fix parameters that are the same constant in every call, in place; `entry` is called from outside."""
    for _ in range(_ROUNDS):
        changed = False
        for calls in _find_calls(trees, entry).values():
            known = _constant_parameters(calls)
            if known:
                before = ast.dump(calls.node)
                decide_in_function(calls.node, known, Types())
                changed |= ast.dump(calls.node) != before
        if not changed:
            return


def _find_calls(trees: Mapping[str, ast.Module], entry: Function) -> dict[Function, _Calls]:
    """Functions of modules that nothing but calls mentions, with these calls."""
    found = {
        (module, node.name): _Calls(node, escaped=not has_plain_decorators(node))
        for module, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__")
    }
    found.pop(entry, None)
    for module, tree in trees.items():
        names = {name: function for (where, name) in found for function in [(where, name)] if where == module}
        modules: dict[str, str] = {}
        nodes = list(ast.walk(tree))
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    if inner in trees:
                        modules[bound_name(alias)] = inner
                    function = _defined(trees, found, str(node.module), alias.name)
                    if function is not None:
                        names[bound_name(alias)] = function
        called = {id(node.func): node for node in nodes if isinstance(node, ast.Call)}
        looked_up = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
        hidden = _hidden(tree)
        for node in nodes:
            if id(node) in hidden:
                continue
            if isinstance(node, ast.Name) and node.id in names:
                _note(found[names[node.id]], called.get(id(node)) if isinstance(node.ctx, ast.Load) else None)
            elif isinstance(node, ast.Name) and node.id in modules and id(node) not in looked_up:
                for where, name in found:
                    found[where, name].escaped |= where == modules[node.id]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                function = _defined(trees, found, modules[node.value.id], node.attr)
                if function is not None:
                    _note(found[function], called.get(id(node)))
    for (module, name), calls in found.items():
        twice = [node for node in trees[module].body if getattr(node, "name", "") == name]
        calls.escaped |= len(twice) > 1
    return found


def _hidden(tree: ast.Module) -> set[int]:
    """Identities of the names that mean a variable of the outermost function they stand in."""
    found: set[int] = set()
    outermost = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            outermost += [part for part in node.body if isinstance(part, ast.FunctionDef)]
    for function in outermost:
        own = {argument.arg for argument in ast.walk(function) if isinstance(argument, ast.arg)} | set(stored(function))
        found |= {id(node) for node in ast.walk(function) if isinstance(node, ast.Name) and node.id in own}
    return found


def _defined(
    trees: Mapping[str, ast.Module], found: Mapping[Function, _Calls], module: str, name: str
) -> Function | None:
    """The function that `name` of `module` is, through imports that pass it on."""
    if (module, name) in found:
        return module, name
    for node in trees[module].body if module in trees else ():
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if bound_name(alias) == name:
                    return _defined(trees, found, str(node.module), alias.name)
    return None


def _note(calls: _Calls, call: ast.Call | None) -> None:
    if call is None:
        calls.escaped = True
    else:
        calls.calls.append(call)


def _constant_parameters(calls: _Calls) -> dict[str, Any]:
    """Value of each parameter that is one constant in all calls."""
    if calls.escaped or not calls.calls:
        return {}
    given = [_arguments(calls.node.args, call) for call in calls.calls]
    if any(arguments is None for arguments in given):
        return {}
    known: dict[str, Any] = {}
    for argument in all_arguments(calls.node.args):
        values = [arguments.get(argument.arg) for arguments in given if arguments is not None]
        constants = [value.value for value in values if isinstance(value, ast.Constant)]
        if len(constants) == len(values) and len({(type(value), value) for value in constants}) == 1:
            known[argument.arg] = constants[0]
    return known


def _arguments(signature: ast.arguments, call: ast.Call) -> dict[str, ast.expr] | None:
    """What a call gives each parameter, defaults included; None when the call does not say."""
    if any(isinstance(value, ast.Starred) for value in call.args) or any(word.arg is None for word in call.keywords):
        return None
    positional = [argument.arg for argument in (*signature.posonlyargs, *signature.args)]
    given: dict[str, ast.expr] = {}
    if signature.defaults:
        given |= dict(zip(positional[-len(signature.defaults) :], signature.defaults, strict=True))
    for argument, default in zip(signature.kwonlyargs, signature.kw_defaults, strict=True):
        if default is not None:
            given[argument.arg] = default
    if len(call.args) > len(positional):
        return None
    given |= dict(zip(positional, call.args, strict=False))
    return given | {str(word.arg): word.value for word in call.keywords}
