"""The text that an expression of a script stands for, as far as the script shows it: `*` is in place of unknown parts.

    "part" + ".pt"             part.pt
    f"hint{number}.bin"        hint*.bin
    Path(root) / "table.npz"   */table.npz

So a file is found by its name however the name is put together, and a text can be matched with file names as a pattern.
The work is linear in the number of nodes: texts are cut, and each is made of those of its parts.
"""

import ast
import re
from collections import Counter
from pathlib import PurePath

SCRIPT = "train_gpt.py"
_LONGEST = 300  # characters
_FIELD = re.compile(r"\{[^{}]*\}|%[-+ #0]*\d*(\.\d+)?[a-zA-Z]")  # of `format` and of `%`
_SAME = (
    "str", "Path", "pathlib.Path", "PurePath", "os.path.abspath", "os.path.realpath", "os.path.expanduser", "os.fspath"
)  # fmt: skip
_SAME_METHODS = ("resolve", "absolute", "expanduser", "as_posix", "strip", "encode", "decode")

Texts = dict[ast.AST, str]


def folded_texts(tree: ast.AST) -> Texts:
    """The texts of all expressions of a tree that have a known part."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.expr)][::-1]  # parts before what they are part of
    texts: Texts = {}
    variables: dict[str, str] = {}
    for _ in range(2):  # variables that are assigned once are known the second time
        texts = {}
        for node in nodes:
            if text := _fold(node, texts, variables)[:_LONGEST]:
                texts[node] = text
        assigned = [(node.targets[0], node.value) for node in ast.walk(tree) if isinstance(node, ast.Assign)]
        times = Counter(target.id for target, _ in assigned if isinstance(target, ast.Name))
        variables = {
            target.id: texts[value]
            for target, value in assigned
            if isinstance(target, ast.Name) and times[target.id] == 1 and value in texts
        }
    return texts


def _fold(node: ast.expr, texts: Texts, variables: dict[str, str]) -> str:
    """The text of an expression, "" without a known part. `texts` has those of its parts."""

    def part(inner: ast.expr) -> str:
        return texts.get(inner, "*")

    if isinstance(node, ast.Constant):
        value = node.value[:_LONGEST] if isinstance(node.value, str | bytes) else node.value
        if isinstance(value, bytes):
            return value.decode("latin-1")
        return value if isinstance(value, str) else str(value) if type(value) is int and abs(value) < 1e18 else ""
    if isinstance(node, ast.Name):
        return SCRIPT if node.id == "__file__" else variables.get(node.id, "")
    if isinstance(node, ast.JoinedStr):
        return "".join(part(inner) for inner in node.values)
    if isinstance(node, ast.FormattedValue):
        return texts.get(node.value, "")
    if isinstance(node, ast.Attribute):
        return str(PurePath(texts[node.value]).parent) if node.attr == "parent" and node.value in texts else ""
    if isinstance(node, ast.BinOp):
        if node.left not in texts and node.right not in texts:
            return ""
        if isinstance(node.op, ast.Mod):
            return _FIELD.sub("*", part(node.left))
        joint = {ast.Add: "", ast.Div: "/"}.get(type(node.op))
        return "" if joint is None else part(node.left) + joint + part(node.right)
    return _fold_call(node, texts) if isinstance(node, ast.Call) else ""


def _fold_call(call: ast.Call, texts: Texts) -> str:
    name = callee(call)
    arguments = [texts.get(argument, "*") for argument in call.args]
    if name in ("os.path.join", "Path", "pathlib.Path", "PurePath") and any(text != "*" for text in arguments):
        return "/".join(arguments)
    if name in _SAME and arguments:
        return texts.get(call.args[0], "")
    if name == "os.path.dirname" and call.args and call.args[0] in texts:
        return str(PurePath(arguments[0]).parent)
    if name in ("os.environ.get", "os.getenv", "environ.get", "getenv") and len(arguments) == 2:
        return texts.get(call.args[1], "")
    if not isinstance(call.func, ast.Attribute):
        return ""
    method, own = call.func.attr, texts.get(call.func.value, "")
    if method == "joinpath":
        return "/".join([own or "*", *arguments])
    if not own and method != "join":
        return ""
    if method == "format":
        return _FIELD.sub("*", own)
    if method == "replace" and len(arguments) == 2 and arguments[0] != "*":
        return own.replace(arguments[0], arguments[1])
    if method == "join" and len(call.args) == 1 and isinstance(call.args[0], ast.List | ast.Tuple):
        return own.join(texts.get(item, "*") for item in call.args[0].elts)
    if method in ("with_suffix", "with_name") and len(arguments) == 1:
        path = PurePath(own)
        name = arguments[0] if method == "with_name" else path.stem + arguments[0]
        return str(path.parent / name)
    return own if method in _SAME_METHODS else ""


def callee(call: ast.Call) -> str:
    """Dotted name of the function that is called: "dist.all_reduce"; ".backward" for a method of an expression."""
    parts: list[str] = []
    node: ast.expr = call.func
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    parts.append(node.id if isinstance(node, ast.Name) else "")
    return ".".join(reversed(parts))
