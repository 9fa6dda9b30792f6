"""The `source/` folder of a submission: the modules of train_gpt.py as they were written, and what they import.

`python source/train_gpt.py` takes the same arguments as the packed file and runs the same program, with every comment
and every error message. Imported modules that the packed file does without are there too, because Python asks for
them; `MODULES.md` says which ones count.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from bitgolf.record.bundle import ENTRY, Bundle, installed_root, module_files

_LAUNCHER = '''\
"""The readable form of ../train_gpt.py: the same arguments, the same program, every comment and message."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

if __name__ == "__main__":
    from {module} import {function}

    raise SystemExit({function}((HERE / "settings.json").read_text(encoding="utf-8"), sys.argv[1:]))
'''


def readable_source(bundle: Bundle) -> dict[str, str]:
    """Every file of the folder by its path in it."""
    root = installed_root()
    files = module_files(root)
    wanted = imported_modules(root, frozenset(bundle.modules))
    texts = {str(files[name].relative_to(root)): files[name].read_text(encoding="utf-8") for name in sorted(wanted)}
    return {
        "train_gpt.py": _LAUNCHER.format(module=ENTRY[0], function=ENTRY[1]),
        "settings.json": bundle.settings + "\n",
        "MODULES.md": _table(bundle, wanted),
        **texts,
    }


@functools.lru_cache(maxsize=4)
def imported_modules(root: Path, start: frozenset[str]) -> frozenset[str]:
    """`start`, every module that Python imports with it, also inside functions, and the packages above them."""
    files = module_files(root)
    found: set[str] = set()
    todo = list(start)
    while todo:
        name = todo.pop()
        if name in found or name not in files:
            continue
        found.add(name)
        todo.append(name.rpartition(".")[0])
        for node in ast.walk(ast.parse(files[name].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
                todo += [str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)]
            elif isinstance(node, ast.ImportFrom) and node.module:
                todo += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return frozenset(found)


def _table(bundle: Bundle, modules: frozenset[str]) -> str:
    rows = ["| module | characters in train_gpt.py, before compression |", "|---|---:|"]
    for name in sorted(modules):
        rows.append(
            f"| `{name}` | {len(bundle.modules[name]):,} |" if name in bundle.modules else f"| `{name}` | not in it |"
        )
    return "# Modules of this folder\n\n" + "\n".join(rows) + "\n"
