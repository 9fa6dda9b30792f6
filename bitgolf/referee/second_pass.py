"""Where the result of a second evaluation pass goes, followed through a script's syntax tree.

Condition C4 (docs/rules.md) forbids that a second pass decides the headline. It does not forbid a second pass as a
labelled diagnostic: a value that is stored under a key that nothing reads. `Uses.escape` tells the two apart. It
follows the value through assignments, dictionaries, calls of the script's own functions and their return values, and
names the first place where the value could influence something else. Names of functions and variables decide nothing.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from bitgolf.referee.texts import callee

Function = ast.FunctionDef | ast.AsyncFunctionDef
_WRITERS = ("json.dump", "json.dumps")  # they write a container as a whole and read no single value of it
_READERS = (".get", ".pop", ".setdefault")
_HEADLINE = re.compile(r"headline|final|^best|(^|_)(bpb|loss|nll|score)$")  # keys of what is reported
_PRINTS = re.compile(r"(^|\.)(print\w*|log\d?|info|warning|write\w*|dumps?|save\w*)$")
_PASSED_ON = (ast.Attribute, ast.BoolOp, ast.IfExp, ast.Starred, ast.Await, ast.NamedExpr)


def _changes_arguments(function: Function) -> bool:
    """Whether a function stores into its arguments or into global names."""
    names = {argument.arg for argument in _arguments(function)}
    for node in ast.walk(function):
        if isinstance(node, ast.Global | ast.Nonlocal):
            return True
        if isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            root: ast.AST = node
            while isinstance(root, ast.Subscript | ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in names:
                return True
    return False


def _arguments(function: Function) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


class Uses:
    """Where a script uses its names and constants."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.parents: dict[ast.AST, ast.AST] = {}
        self.functions: dict[str, Function] = {}
        self.methods: dict[str, Function] = {}
        self.names: dict[str, list[ast.expr]] = defaultdict(list)  # variables and attributes
        self.constants: dict[str, list[ast.Constant]] = defaultdict(list)
        for node in ast.walk(tree):
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node
            if isinstance(node, Function):
                kind = self.methods if isinstance(self.parents[node], ast.ClassDef) else self.functions
                kind[node.name] = node
            elif isinstance(node, ast.Name):
                self.names[node.id].append(node)
            elif isinstance(node, ast.Attribute):
                self.names[node.attr].append(node)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                self.constants[node.value].append(node)

    def escape(self, function: Function) -> str:
        """Where the value of `function` may influence anything but an entry that nothing reads; "" when nowhere.

        A call whose value is not used, or a function that prints, must have another effect: that counts as well.
        """
        if _changes_arguments(function):
            return f"line {function.lineno}: {function.name} changes values outside itself"
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            if _PRINTS.search(callee(call)):
                return f"line {call.lineno}: {function.name} prints `{ast.unparse(call)[:60]}`"
        return _Flow(self).follow(function)

    def owner(self, node: ast.AST) -> ast.AST:
        """The function around a node, or the module."""
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, Function):
                return node
        return self.tree

    def loads(self, scope: ast.AST, name: str) -> list[ast.expr]:
        """Reads of a variable of a function (or of the module)."""
        nodes = self.names[name] if isinstance(scope, Function | ast.Module) else []
        return [n for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) and self.within(n, scope)]

    def within(self, node: ast.AST, scope: ast.AST) -> bool:
        """Whether a node stands inside a function, at any depth."""
        while node is not scope and node in self.parents:
            node = self.parents[node]
        return node is scope


class _Flow:
    """The expressions that may hold the value, and the containers that hold it under a key ("holders")."""

    def __init__(self, uses: Uses) -> None:
        self.uses, self.parents = uses, uses.parents
        self.seen: set[tuple[ast.AST, bool]] = set()
        self.keys: set[str] = set()
        self.todo: list[tuple[ast.expr, bool]] = []  # an expression, and whether it is a holder

    def follow(self, function: Function) -> str:
        """Where the value that `function` returns escapes, "" when nowhere."""
        if place := self.result_of(function):
            return place
        while self.todo:
            node, holder = self.todo.pop()
            if (node, holder) not in self.seen:
                self.seen.add((node, holder))
                if not self.use(node, self.parents[node], holder):
                    return f"line {node.lineno}: `{ast.unparse(self.parents[node])[:60]}`"
        return ""

    def result_of(self, function: Function, holder: bool = False) -> str:
        """Follow every call of a function; its use as a value other than by a call is an escape."""
        for node in self.uses.names[function.name]:
            call = self.parents[node]
            if not isinstance(call, ast.Call) or call.func is not node:
                return f"line {node.lineno}: `{ast.unparse(call)[:60]}`"
            self.todo.append((call, holder))
        return ""

    def use(self, node: ast.expr, parent: ast.AST, holder: bool) -> bool:
        """Follow one use of an expression. False when it is none of those that are known to be harmless."""
        if isinstance(parent, ast.Assign | ast.AnnAssign) and parent.value is node:
            targets = parent.targets if isinstance(parent, ast.Assign) else [parent.target]
            return all(self.store(target, holder) for target in targets)
        if isinstance(parent, ast.List | ast.Tuple) and holder:
            self.todo.append((parent, True))
            return True
        if isinstance(parent, ast.Dict) and node in parent.values:
            key = parent.keys[parent.values.index(node)]
            if key is None and holder:  # `**node`
                self.todo.append((parent, True))
                return True
            return self.keep(parent, key, holder)
        if isinstance(parent, ast.Return):
            owner = self.uses.owner(parent)
            return isinstance(owner, Function) and not self.result_of(owner, holder)
        if isinstance(parent, ast.Call | ast.keyword):
            return self.call(node, parent, holder)
        if isinstance(parent, ast.Subscript) and parent.value is node and holder:
            return isinstance(parent.slice, ast.Constant)  # a key that holds the value is followed by `keep`
        if isinstance(parent, ast.IfExp | ast.If) and parent.test is node:
            return isinstance(node, ast.Name)  # whether there is a value, not which
        if isinstance(parent, ast.Compare):
            return all(isinstance(operator, ast.Is | ast.IsNot) for operator in parent.ops)
        joined = isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.BitOr)  # two dictionaries
        if isinstance(parent, _PASSED_ON) or joined or (isinstance(parent, ast.Subscript) and parent.value is node):
            self.todo.append((parent, holder))  # type: ignore[arg-type]
            return True
        return False

    def store(self, target: ast.expr, holder: bool) -> bool:
        """Follow the variable or the entry that is assigned to."""
        if isinstance(target, ast.Name):
            self.todo += [(load, holder) for load in self.uses.loads(self.uses.owner(target), target.id)]
            return True
        if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
            loads = self.uses.loads(self.uses.owner(target), target.value.id)
            self.todo += [(load, True) for load in loads if not self.is_stored_into(load)]
            return self.keep(None, target.slice, holder)
        return False

    def keep(self, container: ast.expr | None, key: ast.expr | None, holder: bool) -> bool:
        """The value stands in `container` under `key`: every read of that key in the script holds it, too."""
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str) or _HEADLINE.search(key.value):
            return False
        if any(other is not key and self.is_written(other) for other in self.uses.constants[key.value]):
            return False  # the entry has another value as well
        if container is not None:
            self.todo.append((container, True))
        if key.value not in self.keys:
            self.keys.add(key.value)
            self.todo += [(read, holder) for read in self.reads(key.value)]
        return True

    def reads(self, key: str) -> Iterator[ast.expr]:
        """Expressions `x[key]`, `x.get(key)` and `x.pop(key)`."""
        for node in self.uses.constants[key]:
            parent = self.parents[node]
            loaded = isinstance(parent, ast.Subscript) and isinstance(parent.ctx, ast.Load) and parent.slice is node
            if loaded or (isinstance(parent, ast.Call) and callee(parent).endswith(_READERS)):
                yield parent  # type: ignore[misc]

    def is_written(self, key: ast.Constant) -> bool:
        """Whether something is stored under this key where it stands."""
        parent = self.parents[key]
        stored = isinstance(parent, ast.Subscript) and isinstance(parent.ctx, ast.Store) and parent.slice is key
        return stored or (isinstance(parent, ast.Dict) and key in parent.keys)

    def is_stored_into(self, container: ast.expr) -> bool:
        """Whether a use of a container only stores an entry."""
        parent = self.parents[container]
        return isinstance(parent, ast.Subscript) and isinstance(parent.ctx, ast.Store) and parent.value is container

    def call(self, node: ast.expr, parent: ast.Call | ast.keyword, holder: bool) -> bool:
        """Follow an argument into a function of the script, or the result of a method of the value."""
        call = self.parents[parent] if isinstance(parent, ast.keyword) else parent
        assert isinstance(call, ast.expr)
        if not isinstance(call, ast.Call):
            return False
        if call.func is node:  # a method of the value; of a container only what reads one key
            if holder:
                return callee(call).endswith(_READERS)
            self.todo.append((call, holder))
            return True
        if holder and callee(call) in _WRITERS:
            return True
        owner, _, name = callee(call).rpartition(".")
        function = self.uses.functions.get(name) or (self.uses.methods.get(name) if owner else None)
        if function is None:
            return False
        arguments = _arguments(function)[name not in self.uses.functions :]  # a method's first one is its object
        if isinstance(parent, ast.keyword):
            names = [argument.arg for argument in arguments if argument.arg == parent.arg]
        else:
            names = [argument.arg for argument in arguments[call.args.index(node) :][:1]]
        self.todo += [(load, holder) for name in names for load in self.uses.loads(function, name)]
        return bool(names)
