"""How a submission's train_gpt.py finds the modules inside itself: an importer over sources in memory.

This file travels at the head of the packed sources and is the first to run. Modules of the program are compiled from
their packed source under the name `train_gpt.py/package/module.py`, which is what tracebacks show, with the packed
line. A bitgolf that is installed beside it is never imported: the importer comes first, and what it does not hold does
not exist below its packages.
"""

from __future__ import annotations

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
        sources: text of each module by dotted name; a name that stands before another with a dot is a package.
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
    """Make the modules of a bundle importable; each section is the name of one, a line feed and its source.

    Errors are shown by the `traceback` module, which asks an importer for the lines; the interpreter itself does not.
    """
    sources = {name: source for name, _, source in (section.partition("\n") for section in sections)}
    sys.meta_path.insert(0, BundleImporter(bundle_path, sources))
    sys.excepthook = traceback.print_exception
