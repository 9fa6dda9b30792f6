"""requirements.txt of a submission: the third-party packages that train_gpt.py imports, with versions.

The imports are read from the packed sources. PyTorch has the version that the runs logged. The other packages, which no
run logs, have the version of the environment that writes the submission, and the file says so.
"""

import ast
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version

from bitgolf.artifact.compressors import compressor_names
from bitgolf.bundle.single_file import PACKAGE, Bundle
from bitgolf.errors import RunError
from bitgolf.submit.seed_runs import SeedRun

# Part of PyTorch, or optional.
_ACCELERATORS = ("triton", "flash_attn_interface", "flash_attn", "quack")


def requirements_text(bundle: Bundle, runs: Sequence[SeedRun]) -> str:
    """Text of requirements.txt.

    Raises RunError if the runs used several versions of PyTorch, or if a needed package is not installed.
    """
    lines = ["# torch: as the runs logged it; other packages: as installed where this folder was written."]
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
    modules: set[str] = set()
    for source in bundle.modules.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
                modules |= {str(a.value).split(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    unused = {name for name in compressor_names() if name != compressor}
    return modules - set(sys.stdlib_module_names) - unused - {PACKAGE, *_ACCELERATORS}


def _torch(runs: Sequence[SeedRun]) -> str:
    versions = sorted({str(run.start["torch"]).partition("+")[0] for run in runs})
    if len(versions) > 1:
        raise RunError(f"the runs used several versions of PyTorch: {', '.join(versions)}; submit runs of one version")
    builds = ", ".join(sorted({str(run.start["torch"]) for run in runs}))
    return f"torch=={versions[0]}  # {builds}"
