"""requirements.txt of a submission: what train_gpt.py imports besides Python itself, with versions.

Imports are found in the packed sources. PyTorch has the version that the runs logged; the others, which no run logs,
that of the environment in which the submission is written, as the file says.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version

from bitgolf.artifact.compressors import compressor_names
from bitgolf.bundle.single_file import PACKAGE, Bundle
from bitgolf.errors import RunError
from bitgolf.submit.seed_runs import SeedRun

# Come with PyTorch, or make a GPU faster where they are.
_ACCELERATORS = ("triton", "flash_attn_interface")


def requirements_text(bundle: Bundle, runs: Sequence[SeedRun]) -> str:
    """Text of requirements.txt.

    Raises RunError when the runs used several versions of PyTorch, or a package that they need is not installed.
    """
    lines = ["# torch: as the runs logged it; the rest: as installed where this folder was written."]
    distributions = packages_distributions()
    for module in sorted(required_modules(bundle, runs[0].config.pack.compressor)):
        if module == "torch":
            lines.append(_torch(runs))
            continue
        name = next(iter(distributions.get(module, [module])))
        try:
            lines.append(f"{name}=={version(name)}")
        except PackageNotFoundError as error:
            raise RunError(f"train_gpt.py needs the package {name}, which is not installed here; install it") from error
    return "\n".join(lines) + "\n"


def required_modules(bundle: Bundle, compressor: str) -> set[str]:
    """Top-level names of the third-party modules that a bundle imports when its run uses `compressor`."""
    found: set[str] = set()
    for source in bundle.modules.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
                found |= {str(a.value).split(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    unused = {name for name in compressor_names() if name != compressor}
    return found - set(sys.stdlib_module_names) - unused - {PACKAGE, *_ACCELERATORS}


def _torch(runs: Sequence[SeedRun]) -> str:
    versions = sorted({str(run.start["torch"]).partition("+")[0] for run in runs})
    if len(versions) > 1:
        raise RunError(f"the runs used several versions of PyTorch: {', '.join(versions)}; submit runs of one")
    builds = ", ".join(sorted({str(run.start["torch"]) for run in runs}))
    return f"torch=={versions[0]}  # {builds}"
