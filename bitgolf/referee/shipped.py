"""Everything in a submission folder that its script runs or reads, and code that nobody can count.

Rule B2 (docs/rules.md): all code that runs counts, and so does any file that carries part of the model. The files are
found by the names in the script: modules and packages that it imports, sources that it compiles, data files that it
names or that one of its patterns covers. Code that is imported by a computed name, or executed after it was read, could
be anywhere; `hidden_code` names such lines.
"""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from bitgolf.audit.verdict import MissingEvidence
from bitgolf.referee.code import Script, callee, read_script
from bitgolf.referee.folder import SCRIPT, Submission

_CODE = (".py", ".so", ".pyd", ".pyc")
_COMPILED = (".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".metal")
# Documents, logs and pictures carry no part of a model; a tokenizer is part of the challenge's data.
_NO_DATA = (".md", ".log", ".png", ".jpg", ".jpeg", ".svg", ".pdf", ".csv", ".model", ".vocab", ".toml", ".cfg", ".sh")
_MOST_CODE = 4 << 20  # bytes of code beside the script that are read; more is over any cap
_LONGEST_PATH = 300  # characters of a string that may name a file
_TEXT = (".json", ".txt")
_READS = ("open", "read", "read_text", "read_bytes", "readlines", "load", "loads", "fromfile", "get", "urlopen")
_IMPORTS = ("importlib.import_module", "import_module", "__import__")
_LOADERS = ("spec_from_file_location", "SourceFileLoader", "run_path", "run_module", "exec_module", "load_module")


def imported_files(submission: Submission) -> dict[str, int]:
    """Bytes of the code files beside the script that it, or one of them, imports or compiles, by path."""
    files: dict[PurePath, Path] = {path.relative_to(submission.path): path for path in submission.all_files}
    files = {relative: path for relative, path in files.items() if str(relative) != SCRIPT}
    modules = _by_module(files, [PurePath(), *_added_to_path(submission.script, files)])
    compiled = [path for path in files if path.suffix in _COMPILED]
    sizes: dict[str, int] = {}
    todo = [submission.script]
    while todo and sum(sizes.values()) < _MOST_CODE:
        script = todo.pop()
        names = [text for text in script.strings if compiled and len(text) < _LONGEST_PATH]
        used = [path for path in compiled if any(path.name in text for text in names)]
        for module in {name.partition(".")[0] for name in script.imports} & modules.keys():
            used += modules.pop(module)
        for relative in used:
            path = files[relative]
            sizes[str(relative)] = path.stat().st_size
            if relative.suffix == ".py":
                todo.append(read_script(str(relative), submission.read(path)))
    return dict(sorted(sizes.items()))


def _by_module(files: Iterable[PurePath], roots: Iterable[PurePath]) -> dict[str, list[PurePath]]:
    """The code files that belong to each module or package that can be imported from one of the roots."""
    modules: dict[str, list[PurePath]] = {}
    for path in files:
        if path.suffix in _CODE:
            for root in roots:
                if path.is_relative_to(root):
                    modules.setdefault(path.relative_to(root).parts[0].split(".")[0], []).append(path)
    return modules


def _added_to_path(script: Script, files: Iterable[PurePath]) -> list[PurePath]:
    """Folders that the script may add to the paths of imports: those that it names, if it changes `sys.path`."""
    if not any(callee(call).startswith("sys.path.") for call in script.nodes(ast.Call)):
        return []
    folders = {parent for path in files for parent in path.parents if parent != PurePath()}
    strings = [text for text in script.strings if len(text) < _LONGEST_PATH]
    return [folder for folder in folders if any(folder.name in text for text in strings)]


def data_files(submission: Submission) -> dict[str, int]:
    """Bytes of the other files that the script names, or that a pattern in it covers, by path."""
    try:
        names = [text for text in submission.source.strings if 1 < len(text) < _LONGEST_PATH]
    except MissingEvidence:  # the script cannot be read: its names are unknown
        return {}
    patterns = [PurePath(text).name for text in names if "*" in text]
    sizes = {}
    for path in submission.all_files:
        documents = path.suffix.lower() in (*_NO_DATA, *_CODE, *_COMPILED)
        if documents or path.name in (SCRIPT, "submission.json", "requirements.txt") or _is_log(path):
            continue
        named = any(PurePath(text).name == path.name for text in names)
        if path.suffix not in _TEXT or path.parent == submission.path:  # such files are found by their ending, too
            named |= path.suffix not in _TEXT and path.stem in names
            named |= any(pattern.strip("*") and fnmatch.fnmatch(path.name, pattern) for pattern in patterns)
        if named:
            sizes[str(path.relative_to(submission.path))] = path.stat().st_size
    return sizes


def _is_log(path: Path) -> bool:
    return path.suffix == ".txt" and path.name.startswith(("train", "log", "README", "LICENSE"))


def hidden_code(script: Script) -> Iterator[str]:
    """Lines that import a module by a computed name, or execute what they read."""
    read = _names_of_read_values(script)
    for call in script.nodes(ast.Call):
        name = callee(call)
        if name in _IMPORTS and not (call.args and isinstance(call.args[0], ast.Constant)):
            yield f"line {call.lineno} imports a module by a computed name"
        elif name.rpartition(".")[2] in _LOADERS:
            yield f"line {call.lineno} loads code from a file: {ast.unparse(call)[:60]}"
        elif name in ("exec", "eval") and _reads(call, read):
            yield f"line {call.lineno} executes what it reads: {ast.unparse(call)[:60]}"


def _names_of_read_values(script: Script) -> set[str]:
    """Variables that are assigned from a call that reads a file, or from such a variable."""
    read: set[str] = set()
    for _ in range(2):
        for node in script.nodes(ast.Assign):
            if _reads(node.value, read):
                read |= {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        for item in script.nodes(ast.withitem):
            if _reads(item.context_expr, read) and isinstance(item.optional_vars, ast.Name):
                read.add(item.optional_vars.id)
    return read


def _reads(node: ast.AST, read: set[str]) -> bool:
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and callee(part).rpartition(".")[2] in _READS:
            return True
        if isinstance(part, ast.Name) and part.id in read:
            return True
    return False
