"""The same module in fewer bytes: what a reader needs and the interpreter does not is taken out.

`simplify` drops docstrings, annotations that nothing reads, blocks for type checkers, the wording of errors, and of
pydantic models the descriptions and ranges of fields and the checks of a whole model: the settings that a program is
packed with have passed them. `print_compactly` writes a syntax tree without the white space that Python does not ask
for, and parses back to exactly that tree. What runs, and in which order, stays as it was. Annotations stay in classes
that read them (pydantic models, named tuples), under decorators that this file does not know and in modules that look
at signatures; dataclass fields keep a placeholder. Wording of errors is a seventh of the code: the `source/` folder of
a submission runs the same program with every word and check in place.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize

# Decorators that look neither at the annotations nor at the parameter names of what they decorate.
PLAIN_DECORATORS = frozenset(
    {
        "property", "cached_property", "functools.cached_property", "classmethod", "staticmethod",
        "contextmanager", "contextlib.contextmanager", "cache", "functools.cache", "lru_cache", "functools.lru_cache",
        "torch.no_grad", "torch.enable_grad", "torch.inference_mode", "model_validator",
    }
)  # fmt: skip

# Names by which a module looks at signatures or sources at run time: it keeps all annotations and parameter names.
INTROSPECTION = frozenset(
    {"triton", "inspect", "custom_op", "triton_op", "get_type_hints", "__annotations__", "validate_call", "TypeAdapter"}
)
# Exceptions that carry a message and nothing else.
_MESSAGE_ONLY = frozenset(
    {
        "ValueError", "TypeError", "RuntimeError", "NotImplementedError", "AssertionError",
        "ConfigError", "DataError", "ArtifactError", "BudgetError", "RunError", "TrainingDiverged", "RuleViolation",
    }
)  # fmt: skip
_DESCRIBING = frozenset({"description", "ge", "gt", "le", "lt", "min_length", "max_length"})  # arguments of a Field
_FIELD_MARKERS = frozenset({"ClassVar", "InitVar", "KW_ONLY"})
_STRING_OPENS, _STRING_CLOSES = ("FSTRING_START", "TSTRING_START"), ("FSTRING_END", "TSTRING_END")  # Python 3.12, 3.14


def simplify(tree: ast.Module, source: str) -> ast.Module:
    """Take out of a module, in place, what the interpreter does not need (see the top of this file).

    Args:
        tree: its syntax tree.
        source: its text, in which words are looked for that say that it reads its own signatures.
    """
    keeps_signatures = any(re.search(rf"\b{name}\b", source) for name in INTROSPECTION)
    simplified = _Simplifier(keeps_signatures).visit(tree)
    assert isinstance(simplified, ast.Module)
    return simplified


def names_in(node: ast.AST) -> list[str]:
    """The identifiers that one node spells (not those of its children)."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.alias):
        return node.name.split(".")
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")
    return []


def bound_name(alias: ast.alias) -> str:
    """The name that an import binds."""
    return alias.asname or alias.name.split(".")[0]


def dotted_name(node: ast.expr) -> str:
    """`a.b.c` of a chain of names, and of the function of a call; empty for anything else."""
    if isinstance(node, ast.Call):
        return dotted_name(node.func)
    if isinstance(node, ast.Attribute):
        before = dotted_name(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def has_plain_decorators(node: ast.FunctionDef) -> bool:
    """Whether every decorator is known to ignore annotations and parameter names."""
    return all(dotted_name(decorator) in PLAIN_DECORATORS for decorator in node.decorator_list)


def has_annotations(tree: ast.Module) -> bool:
    """Whether a module has an annotation left that Python would evaluate without `from __future__`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and not isinstance(node.annotation, ast.Constant):
            return True
        if isinstance(node, ast.arg) and node.annotation is not None:
            return True
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            return True
    return False


class _Simplifier(ast.NodeTransformer):
    def __init__(self, keeps_signatures: bool) -> None:
        self.keeps_signatures = keeps_signatures

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case) and getattr(node, "body", None) == []:
            node.body = [ast.Pass()]  # type: ignore[union-attr]
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Drop docstrings and strings that document what stands above them."""
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        is_dataclass = any(dotted_name(d).split(".")[-1] == "dataclass" for d in node.decorator_list)
        is_read = bool(node.bases or node.keywords or node.decorator_list)
        body: list[ast.stmt] = []
        for statement in node.body:
            if not isinstance(statement, ast.AnnAssign):
                body += _as_list(self.visit(statement))
            elif is_read:
                body += _as_list(self.generic_visit(_placeholder(statement) if is_dataclass else statement))
            elif statement.value is not None:
                body += _as_list(self.visit(statement))
        node.body = body or [ast.Pass()]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        """Outside of the classes that read them, annotations of variables are for readers."""
        if self.keeps_signatures:
            return self.generic_visit(node)  # a compiler of kernels may read them
        if node.value is not None:
            return self.generic_visit(_as_assignment(node))
        if not isinstance(node.target, ast.Name):
            return None
        node.annotation = ast.Constant(0)  # the statement alone makes the name local
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        if any(_checks_model(decorator) for decorator in node.decorator_list):
            return None
        if not self.keeps_signatures and has_plain_decorators(node):
            node.returns = None
            for argument in all_arguments(node.args):
                argument.annotation = None
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if dotted_name(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return [self.visit(statement) for statement in node.orelse]
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A pydantic `Field` whose other arguments only describe or check is its default."""
        self.generic_visit(node)
        if dotted_name(node) != "Field" or not node.args:
            return node
        node.keywords = [keyword for keyword in node.keywords if keyword.arg not in _DESCRIBING]
        return node if node.keywords else node.args[0]

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call) and dotted_name(node.exc) in _MESSAGE_ONLY:
            node.exc = node.exc.func
        return self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)


def all_arguments(arguments: ast.arguments) -> list[ast.arg]:
    """Every parameter, in the order of the signature."""
    found = [*arguments.posonlyargs, *arguments.args]
    found += [arguments.vararg] if arguments.vararg else []
    found += arguments.kwonlyargs
    return found + ([arguments.kwarg] if arguments.kwarg else [])


def _checks_model(decorator: ast.expr) -> bool:
    """Whether it is `model_validator(mode="after")`, which sees a finished (here: frozen) model."""
    return (
        isinstance(decorator, ast.Call)
        and dotted_name(decorator) == "model_validator"
        and any(isinstance(k.value, ast.Constant) and k.value.value == "after" for k in decorator.keywords)
    )


def _placeholder(field: ast.AnnAssign) -> ast.AnnAssign:
    """A dataclass field whose annotation is only there; unless it is one that dataclasses understand."""
    if _FIELD_MARKERS.isdisjoint(name for part in ast.walk(field.annotation) for name in names_in(part)):
        field.annotation = ast.Constant(0)
    return field


def _as_assignment(node: ast.AnnAssign) -> ast.Assign:
    assert node.value is not None
    return ast.copy_location(ast.Assign([node.target], node.value), node)


def _as_list(visited: ast.AST | list[ast.stmt] | None) -> list[ast.stmt]:
    if visited is None:
        return []
    return visited if isinstance(visited, list) else [visited]  # type: ignore[list-item]


def print_compactly(tree: ast.Module) -> str:
    """The source of a tree with no white space, parentheses aside, that Python does not ask for.

    Statements without a body share a line; parsing the result gives the tree back, which is checked.
    """
    lines = _join(_lines(ast.unparse(tree)))
    source = "\n".join(" " * depth + text for depth, text in lines)
    assert ast.dump(ast.parse(source)) == ast.dump(tree), "the compact source is another program"
    return source


def _lines(source: str) -> list[tuple[int, str]]:
    """(depth, text) of each logical line, without the spaces between its tokens that can go."""
    offsets = [0]
    for line in source.split("\n"):
        offsets.append(offsets[-1] + len(line) + 1)
    lines: list[tuple[int, str]] = []
    depth = open_strings = string_start = 0
    text = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        start, end = (offsets[row - 1] + column for row, column in (token.start, token.end))
        if kind in _STRING_OPENS:  # Python 3.12 splits f-strings into tokens: take each as one
            string_start = string_start if open_strings else start
            open_strings += 1
            continue
        if kind in _STRING_CLOSES:
            open_strings -= 1
            start = string_start
        if open_strings or kind in ("NL", "COMMENT", "ENDMARKER"):
            continue
        if kind in ("INDENT", "DEDENT"):
            depth += 1 if kind == "INDENT" else -1
        elif kind == "NEWLINE":
            lines.append((depth, text))
            text = ""
        else:
            word = source[start:end]
            text += " " + word if text and _would_merge(text, word) else word
    return lines


def _would_merge(before: str, word: str) -> bool:
    """Whether `word` right behind `before` would be read as part of its last token."""
    return (_in_name(before[-1]) and _in_name(word[0])) or (before[-1].isdigit() and word[0] == ".")


def _in_name(character: str) -> bool:
    return character.isalnum() or character == "_" or not character.isascii()


def _join(lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Statements without a body share a line, behind the header of their block where they are all of it."""
    grouped: list[tuple[int, str]] = []
    for depth, text in lines:
        if grouped and grouped[-1][0] == depth and _is_simple(text) and _is_simple(grouped[-1][1]):
            grouped[-1] = (depth, f"{grouped[-1][1]};{text}")
        else:
            grouped.append((depth, text))
    joined: list[tuple[int, str]] = []
    for position, (depth, text) in enumerate(grouped):
        after = grouped[position + 1][0] if position + 1 < len(grouped) else 0
        behind_header = joined and joined[-1][0] == depth - 1 and joined[-1][1].endswith(":")
        if behind_header and _is_simple(text) and after < depth:
            joined[-1] = (depth - 1, joined[-1][1] + text)
        else:
            joined.append((depth, text))
    return joined


def _is_simple(text: str) -> bool:
    """Whether a line may stand behind a semicolon or a colon: it opens no block, decorates nothing."""
    return not text.endswith(":") and not text.startswith("@")
