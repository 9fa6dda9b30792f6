"""Everything in a submission folder that its script runs or reads, and code that nobody can count.

Rule B2 (docs/rules.md): all code that runs counts, and so does any file that carries part of the model. The files are
found by the names in the script, however they are put together (`texts`): modules and packages that it imports, sources
that it compiles or starts, data files that it names, that one of its patterns covers, or that stand in a folder that it
lists. Code that is imported by a computed name, or that is executed and not shown, could be anywhere; `hidden_code`
names such lines. Data files that stay unexplained are in `uncertain`.
"""

import ast
import fnmatch
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from bitgolf.audit.verdict import MissingEvidence
from bitgolf.data.spm_model import read_model
from bitgolf.errors import DataError
from bitgolf.referee.code import IMPORTERS, Script, read_script
from bitgolf.referee.folder import Submission
from bitgolf.referee.texts import SCRIPT, callee

_CODE = (".py", ".so", ".pyd", ".pyc", ".pyx")
_COMPILED = (".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".metal")
# Documents, logs and pictures carry no part of a model, unless a script reads them by name.
_NO_DATA = (".md", ".log", ".png", ".jpg", ".jpeg", ".svg", ".pdf", ".csv", ".vocab", ".model", ".toml", ".cfg", ".sh")
_NO_DATA_NAMES = (SCRIPT, "submission.json", "requirements.txt")
_MOST_CODE = 4 << 20  # bytes of code beside the script that are read; more is over any cap
_LONGEST_PATH = 300  # characters of a string that may name a file
_LEAST_LETTERS = 2  # letters and digits of a pattern that says which files it means
_TEXT = (".json", ".txt")
_READS = (
    "open", "read", "read_text", "read_bytes", "readlines", "load", "loads", "fromfile", "memmap", "loadtxt",
    "genfromtxt", "load_file", "read_csv", "get", "urlopen", "getenv", "input", "recv", "check_output", "popen",
)  # fmt: skip
_NO_FILES = ("get", "getenv", "input", "recv", "loads", "check_output", "popen", "urlopen")  # of those
_LOADING = ("torch", "numpy", "np", "pickle", "joblib", "dill", "json", "marshal", "mx", "jnp")  # `load` reads a file
_OPENING = ("os", "io", "gzip", "lzma", "bz2", "codecs", "builtins", "tarfile", "zipfile", "tokenize")
_OUTSIDE = ("os.environ", "sys.stdin", "sys.argv", "environ")
_LISTS = ("os.listdir", "os.scandir", "os.walk", "iterdir", "glob", "iglob", "rglob", "glob.glob", "glob.iglob")
_LIBRARIES = ("CDLL", "LoadLibrary", "load_library", "PyDLL", "dlopen")
_LOADERS = (
    "spec_from_file_location", "SourceFileLoader", "SourcelessFileLoader", "run_path", "run_module", "exec_module",
    "load_module", "zipimporter", "addsitedir", "FunctionType", "CodeType", "load_source", "load_dynamic",
)  # fmt: skip
_EXECUTORS = ("exec", "eval", "__import__")
_RUNNERS = re.compile(  # of text that they are given
    r"(builtins\.)?(exec|eval)|(cProfile|profile)\.run(ctx)?|pdb\.run(eval)?|timeit\.(timeit|repeat|Timer)"
    r"|code\.(interact|InteractiveInterpreter|InteractiveConsole)|doctest\.test\w+|distutils\.core\.run_setup"
    r"|unittest\.main|logging\.config\.fileConfig|yaml\.(unsafe_load|full_load)"
)
_UNPICKLES = re.compile(r"(_?pickle|cPickle|dill|cloudpickle)\.(loads|Unpickler)")
_SHELLS = re.compile(r"(\*|(\S*/)?(python[\d.]*|(ba|z|da)?sh|perl|node|env))(\s|$)")
_FEW_BYTES = 20_000  # of a text file that carries no part of a model
_HIDING = re.compile(r"(exec|eval|compile|__import__|import_module|__builtins__|__dict__)")
# Libraries that many scripts use; others should be named in requirements.txt.
_LIBRARIES_OF_OTHERS = re.compile(
    r"(torch|numpy|np|scipy|pandas|sentencepiece|triton|flash_attn|zstandard|brotli|lz4|blosc|constriction|safetensors"
    r"|tqdm|wandb|einops|transformers|datasets|huggingface_hub|tiktoken|tokenizers|numba|cupy|jax|flax|mlx|psutil"
    r"|matplotlib|pynvml|cutlass|kernels|fla|mamba_ssm|causal_conv1d|apex|xformers|transformer_engine|liger_kernel"
    r"|deepspeed|nvidia|quack|packaging|setuptools|yaml|requests|bitgolf|hopper|python_minifier)\w*$"
)
_OWNERS = ("builtins", "__builtins__", "importlib")
_ALWAYS_IMPORTED = ("sitecustomize", "usercustomize")


def imported_files(submission: Submission) -> dict[str, int]:
    """Bytes of the code files beside the script that it, or one of them, imports, compiles or starts, by path."""
    files: dict[PurePath, Path] = {path.relative_to(submission.path): path for path in submission.all_files}
    files = {relative: path for relative, path in files.items() if str(relative) != SCRIPT}
    modules = _by_module(files, [PurePath(), *_added_to_path(submission, files)])
    compiled = [path for path in files if path.suffix in _COMPILED]
    sizes: dict[str, int] = {}
    todo = [submission.script]
    while todo and sum(sizes.values()) < _MOST_CODE:
        script = todo.pop()
        texts = {*script.strings, *script.texts.values()} if compiled else ()
        names = [text for text in texts if 1 < len(text) < _LONGEST_PATH]
        used = [path for path in compiled if any(path.name in text for text in names)]
        if started := {PurePath(word).name for text in _started(script) for word in text.split()}:
            used += [path for path in files if path.name in started]
        for module in {*_ALWAYS_IMPORTED, *(name.partition(".")[0] for name in script.imports)} & modules.keys():
            used += modules.pop(module)
        for relative in used:
            path = files[relative]
            new = str(relative) not in sizes
            sizes[str(relative)] = path.stat().st_size
            if relative.suffix == ".py" and new:
                todo.append(read_script(str(relative), submission.read(path)))
    return dict(sorted(sizes.items()))


def _started(script: Script) -> Iterator[str]:
    """Commands of other programs, and names of libraries that are loaded."""
    yield from (command for _, command in script.commands())
    for call in script.nodes(ast.Call):
        if script.function(call).rpartition(".")[2] in _LIBRARIES and call.args:
            yield script.texts.get(call.args[0], "")


def _by_module(files: Iterable[PurePath], roots: Iterable[PurePath]) -> dict[str, list[PurePath]]:
    """The code files that belong to each module or package that can be imported from one of the roots."""
    modules: dict[str, list[PurePath]] = {}
    for path in files:
        if path.suffix in _CODE:
            for root in roots:
                if path.is_relative_to(root):
                    modules.setdefault(path.relative_to(root).parts[0].split(".")[0], []).append(path)
    return modules


def _added_to_path(submission: Submission, files: Iterable[PurePath]) -> list[PurePath]:
    """Folders that may be added to the paths of imports: those that the script names, if it mentions `sys.path`, and
    those in PYTHONPATH of README's commands."""
    folders = {parent for path in files for parent in path.parents if parent != PurePath()}
    try:
        strings = [submission.readme.assigned.get("PYTHONPATH", "")]
    except MissingEvidence:
        strings = []
    if _changes_path(submission.script):
        strings += [text for text in submission.script.texts.values() if len(text) < _LONGEST_PATH]
    return [folder for folder in folders if any(folder.name in text for text in strings)]


def _changes_path(script: Script) -> bool:
    """Whether a script changes `sys.path`."""
    assigned = [target for node in script.nodes(ast.Assign) for target in node.targets]
    assigned += [node.target for node in script.nodes(ast.AugAssign)]
    assigned = [target.value if isinstance(target, ast.Subscript) else target for target in assigned]
    called = any(script.function(call).startswith("sys.path.") for call in script.nodes(ast.Call))
    return called or any(_text(target) == "sys.path" for target in assigned)


def _text(node: ast.AST) -> str:
    """The source of a short expression."""
    return callee(ast.Call(node, [], [])) if isinstance(node, ast.Attribute | ast.Name) else ""


def unknown_modules(submission: Submission) -> list[str]:
    """Modules that the script imports and that are not in the folder, the standard library or the requirements."""
    script = submission.source
    here = {part.split(".")[0] for path in submission.all_files for part in path.relative_to(submission.path).parts}
    path = submission.path / "requirements.txt"
    required = submission.read(path).decode(errors="replace").lower().replace("-", "_") if path.is_file() else ""
    modules = {name.partition(".")[0] for name in script.imports} - here - sys.stdlib_module_names
    return sorted(m for m in modules if not _LIBRARIES_OF_OTHERS.match(m) and m.lower() not in required)


def data_files(submission: Submission) -> dict[str, int]:
    """Bytes of the other files that the script names, or that a pattern in it covers, by path."""
    try:
        script = submission.source
    except MissingEvidence:  # the script cannot be read: its names are unknown
        return {}
    names = [text for text in {*script.strings, *script.texts.values()} if 1 < len(text) < _LONGEST_PATH]
    last = {PurePath(text).name for text in names if "*" not in text}
    patterns = [name for text in names if "*" in text and _says_which(name := PurePath(text).name)]
    read = {PurePath(text).name for text in _read_texts(script)}
    lists = any(PurePath(place) == PurePath() for place in _listed_places(script))
    sizes = {}
    for path in submission.all_files:
        if path.name == SCRIPT or path.suffix in (*_CODE, *_COMPILED):
            continue
        by_ending = path.suffix not in _TEXT or path.parent == submission.path  # such files are found by it, too
        used = path.name in read
        used |= by_ending and any(fnmatch.fnmatch(path.name, t) for t in read if "*" in t and _says_which(t))
        if not used and not _is_document(path):
            used = lists or path.name in last
            if by_ending:
                used |= path.suffix not in _TEXT and path.stem in names
                used |= any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)
        if used and not _is_tokenizer(submission, path):
            sizes[str(path.relative_to(submission.path))] = path.stat().st_size
    return sizes


def uncertain(submission: Submission) -> dict[str, int]:
    """Bytes of the other data files beside the script. It may read them by names that it puts together in any way."""
    files = [path for path in submission.all_files if path.suffix not in (*_CODE, *_COMPILED)]
    sizes = {path: path.stat().st_size for path in files if not _is_document(path)}
    return {
        str(path.relative_to(submission.path)): size
        for path, size in sizes.items()
        if size > (_FEW_BYTES if path.suffix in _TEXT else 0) and not _is_tokenizer(submission, path)
    }


def _says_which(pattern: str) -> bool:
    return sum(c.isalnum() for c in pattern) >= _LEAST_LETTERS


def _read_texts(script: Script) -> Iterator[str]:
    """The texts that name what the script opens for reading; `*` for an unknown one."""
    for call in script.nodes(ast.Call):
        owner, _, name = script.function(call).rpartition(".")
        if name not in _READS or name in _NO_FILES or (name == "load" and owner.partition(".")[0] not in _LOADING):
            continue
        of_path = name in ("read", "readlines", "read_text", "read_bytes")
        of_path |= name == "open" and isinstance(call.func, ast.Attribute) and owner not in _OPENING
        modes = call.args[:1] if of_path else call.args[1:2] if name == "open" else []
        modes += [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
        if any(set("wax") & set(script.texts.get(mode, "r")) for mode in modes):
            continue
        place = call.func.value if of_path and isinstance(call.func, ast.Attribute) else next(iter(call.args), None)
        if place is not None and (place in script.texts or not isinstance(place, ast.Call)):
            yield script.texts.get(place, "*")


def _listed_places(script: Script) -> Iterator[str]:
    """The folders whose files the script lists; `*` for an unknown one."""
    for call in script.nodes(ast.Call):
        name = script.function(call)
        if name not in _LISTS and name.rpartition(".")[2] not in _LISTS:
            continue
        texts = [script.texts.get(argument, "*") for argument in call.args]
        if name.startswith("glob."):
            path = PurePath(texts[0] if texts else "*")
            place, pattern = str(path.parent), path.name
        elif name.startswith("os."):
            place, pattern = texts[0] if texts else ".", "*"
        else:  # a method of a path
            place = script.texts.get(call.func.value, "*") if isinstance(call.func, ast.Attribute) else "*"
            pattern = texts[0] if texts else "*"
        if not _says_which(pattern):
            yield place


def _is_document(path: Path) -> bool:
    """Whether a file is one that a script does not read, by its name."""
    log = path.suffix == ".txt" and path.name.startswith(("train", "log", "README", "LICENSE"))
    return log or path.suffix.lower() in _NO_DATA or path.name in _NO_DATA_NAMES


def _is_tokenizer(submission: Submission, path: Path) -> bool:
    """Whether a file is a SentencePiece model: it is part of the challenge's data."""
    if path.suffix != ".model":
        return False
    try:
        read_model(submission.read(path))
    except DataError:
        return False
    return True


def hidden_code(script: Script) -> Iterator[str]:
    """Lines that import a module by a computed name, execute what they read, or hide that they do so."""
    read = _names_of_read_values(script)
    called = {id(call.func) for call in script.nodes(ast.Call)}
    for call in script.nodes(ast.Call):
        name, shown = script.function(call), ast.unparse(call)[:60]
        last = name.rpartition(".")[2]
        if name in IMPORTERS and not (call.args and isinstance(call.args[0], ast.Constant)):
            yield f"line {call.lineno} imports a module by a computed name"
        elif last in _LOADERS or name in ("marshal.loads", "marshal.load"):
            yield f"line {call.lineno} loads code from a file: {shown}"
        elif last in _LIBRARIES and "*" in script.texts.get(next(iter(call.args), call), "*"):
            yield f"line {call.lineno} loads a library by a computed name: {shown}"
        elif _RUNNERS.fullmatch(name) and _reads(call, read):
            yield f"line {call.lineno} executes what it reads: {shown}"
        elif _RUNNERS.fullmatch(name) and (call.args or call.keywords) and not _is_shown(script, call):
            yield f"line {call.lineno} executes text that it does not show: {shown}"
        elif _UNPICKLES.fullmatch(name) and any(isinstance(node, ast.Constant) for node in call.args):
            yield f"line {call.lineno} loads an object that it does not show: {shown}"
        elif name in ("getattr", "vars") and _text(call.args[0] if call.args else call) in _OWNERS:
            attribute = script.texts.get(call.args[1], "*") if len(call.args) > 1 else "*"
            if "*" in attribute or _HIDING.fullmatch(attribute):
                yield f"line {call.lineno} hides what it calls: {shown}"
        elif (name == "getattr" or last in ("attrgetter", "methodcaller", "__getattribute__")) and any(
            _HIDING.fullmatch(script.texts.get(argument, "")) for argument in call.args
        ):
            yield f"line {call.lineno} hides what it calls: {shown}"
    for call, command in script.commands():
        program = _SHELLS.match(command)
        if program and "*" in command and (" -c " in command or command.strip() == "*"):
            yield f"line {call.lineno} starts a program that it does not show: {ast.unparse(call)[:60]}"
    for node in script.nodes(ast.Name):
        if node.id == "__builtins__" or (node.id in _EXECUTORS and id(node) not in called):
            yield f"line {node.lineno} uses {node.id} under another name"
    for item in script.nodes(ast.Subscript):
        owner, key = _text(item.value), script.texts.get(item.slice, "*")
        if key == "__builtins__" or (owner == "sys.modules" and key in _OWNERS):
            yield f"line {item.lineno} hides what it calls: {ast.unparse(item)[:60]}"
    for member in script.nodes(ast.Attribute):
        if _text(member) in ("builtins.exec", "builtins.eval", "builtins.compile") and id(member) not in called:
            yield f"line {member.lineno} uses {_text(member)} under another name"


def _is_shown(script: Script, call: ast.Call) -> bool:
    """Whether the text that a call executes stands in the script as it is."""
    text = [*call.args, *(keyword.value for keyword in call.keywords)][0]
    if (
        isinstance(text, ast.Call)
        and script.function(text) in ("compile", "ast.parse", "ast.literal_eval")
        and text.args
    ):
        text = text.args[0]
    return "*" not in script.texts.get(text, "*")


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
    """Whether an expression has a value from outside the script."""
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and callee(part).rpartition(".")[2] in _READS:
            return True
        if isinstance(part, ast.Name) and part.id in read:
            return True
        if isinstance(part, ast.Attribute | ast.Name) and _text(part) in _OUTSIDE:
            return True
    return False
