"""The importer inside a submission's train_gpt.py, which finds modules in memory.

This file is the first section of the packed sources and runs first. The modules of the program are compiled from their
packed source under the name `train_gpt.py/package/module.py`. Tracebacks show that name and the packed line. The
importer is the first on the list of importers, so an installed bitgolf is never imported.
"""

import sys
import traceback
from collections.abc import Sequence
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType


class BundleImporter(MetaPathFinder, ExecutionLoader):
    """Finds and loads modules from their sources.

    Attributes:
        bundle_path: the file that the sources came from.
        sources: text of each module by dotted name. A name is a package if another name begins with it and a dot.
    """

    def __init__(self, bundle_path: str, sources: dict[str, str]) -> None:
        self.bundle_path, self.sources = bundle_path, sources

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        return spec_from_loader(fullname, self) if fullname in self.sources else None

    def is_package(self, fullname: str) -> bool:
        """See importlib.abc.InspectLoader."""
        return any(name.startswith(fullname + ".") for name in self.sources)

    def get_filename(self, fullname: str) -> str:
        """See importlib.abc.ExecutionLoader."""
        inner = "/__init__.py" if self.is_package(fullname) else ".py"
        return f"{self.bundle_path}/{fullname.replace('.', '/')}{inner}"

    def get_source(self, fullname: str) -> str:
        """See importlib.abc.InspectLoader."""
        return self.sources[fullname]


def install(bundle_path: str, sections: Sequence[str]) -> None:
    """Make the modules of a bundle importable. Each section is the name of a module, a line feed and its source.

    Errors are shown by the `traceback` module, because it asks the importer for the lines and the interpreter does not.
    """
    sources = {name: source for name, _, source in (section.partition("\n") for section in sections)}
    sys.meta_path.insert(0, BundleImporter(bundle_path, sources))
    sys.excepthook = traceback.print_exception
