"""Tensors of a run as safetensors files: written atomically, read with errors that name the command to run.

`train` writes the float weights and the Hessians with these; `pack` and `score` read them.
"""

from __future__ import annotations

import errno
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitgolf.errors import RunError
from bitgolf.run import atomic


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors, atomically. Raises OSError (a full disk) with the earlier file intact."""
    with atomic.atomic_path(path) as temporary:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(path)) from error


def read_tensors(path: Path, run: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU. Raises RunError when the file (of the run directory `run`) is damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path} cannot be read ({error}); run `bitgolf train {run}` again, with --resume to continue from "
            "the last checkpoint"
        ) from error
