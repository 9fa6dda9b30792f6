"""Tensors of a run directory as safetensors files, written atomically and read with errors that name a command.

`train` writes the float weights and the calibration statistics with these functions; `pack` and `score` read them.
"""

from __future__ import annotations

import errno
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitgolf.errors import ForeignError, RunError
from bitgolf.foreign import require_regular
from bitgolf.run import atomic


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors, atomically. Raises OSError (a full disk); the earlier file is then intact."""
    with atomic.atomic_path(path) as temporary:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(path)) from error


def read_tensors(path: Path, run: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU. Raises RunError if the file (of the run directory `run`) cannot be read."""
    try:
        require_regular(path)
        return load_file(path)
    except (OSError, ForeignError, SafetensorError) as error:
        raise RunError(
            f"{path} cannot be read ({error}); run `bitgolf train {run}` again, with --resume to continue from "
            "the last checkpoint"
        ) from error
