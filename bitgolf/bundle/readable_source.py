"""The `source/` folder of a submission: the modules of train_gpt.py as they were written, and what they import.

`python source/train_gpt.py` takes the same arguments as the packed file and runs the same program, with all comments,
annotations and messages. The folder also holds modules that Python imports although the packed file does not need
them, and `bitgolf/bundle`, which makes the packed file again. `MODULES.md` lists the modules in the packed file.
"""

import ast
import functools
import platform
from importlib.metadata import version
from pathlib import Path

from bitgolf.bundle.single_file import ENTRY, Bundle, installed_root, module_files

_MAKER = ("bitgolf.bundle.single_file", "bitgolf.bundle.importer")
_LAUNCHER = '''\
"""The readable form of ../train_gpt.py: the same arguments and the same program, with comments."""

import sys
from pathlib import Path

SETTINGS = {settings!r}
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

if __name__ == "__main__":
    from {module} import {function}

    {function}(SETTINGS, sys.argv[1:], (HERE.parent / "train_gpt.py").stat().st_size)
'''


def readable_source(bundle: Bundle) -> dict[str, str]:
    """Text of every file by its path in the folder."""
    root = installed_root()
    files = module_files(root)
    modules = imported_modules(root, frozenset((*bundle.modules, *_MAKER)))
    texts = {str(files[name].relative_to(root)): files[name].read_text(encoding="utf-8") for name in sorted(modules)}
    return {
        "train_gpt.py": _LAUNCHER.format(module=ENTRY[0], function=ENTRY[1], settings=bundle.settings),
        "MODULES.md": _table(bundle, modules),
        **texts,
    }


@functools.lru_cache(maxsize=4)
def imported_modules(root: Path, start: frozenset[str]) -> frozenset[str]:
    """`start`, all modules that it imports, also inside functions, and the packages above them."""
    files = module_files(root)
    modules: set[str] = set()
    todo = list(start)
    while todo:
        name = todo.pop()
        if name in modules or name not in files:
            continue
        modules.add(name)
        todo.append(name.rpartition(".")[0])
        for node in ast.walk(ast.parse(files[name].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                todo += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return frozenset(modules)


def _table(bundle: Bundle, modules: frozenset[str]) -> str:
    rows = ["| module | characters in train_gpt.py, before compression |", "|---|---:|"]
    for name in sorted(modules):
        size = f"{len(bundle.modules[name]):,}" if name in bundle.modules else "not in it"
        rows.append(f"| `{name}` | {size} |")
    made_with = f"Python {platform.python_version()} and python-minifier {version('python-minifier')}"
    return f"# Modules of this folder\n\ntrain_gpt.py was made with {made_with}.\n\n" + "\n".join(rows) + "\n"
