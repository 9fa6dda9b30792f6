"""Bytes of the code that ships with an artifact (rules B1, B2): those of the train_gpt.py that `submit` would write.

The file is made in memory (`bitgolf.record.bundle`), which takes a few seconds once a process. Inside such a file this
module is asked too, by `pack`, and then its own size is the answer.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from bitgolf.config import Config


def code_bytes(config: Config) -> int:
    """Size in bytes of the train_gpt.py of this configuration; the seed makes no difference."""
    shipped = getattr(__spec__.loader, "bundle_path", None)  # see bitgolf.record.importer
    if shipped is not None:
        return Path(shipped).stat().st_size
    bundler = importlib.import_module("bitgolf.record.bundle")  # by name: train_gpt.py does not carry its own maker
    return len(bundler.make_bundle(config).data)
