"""Resumable checkpoints: safetensors and json, written by a thread, whole or absent.

A checkpoint is a folder `step-00000120` with `state.safetensors` (weights, optimizer, averages, random state) and
`state.json` (step, seconds spent, digest of the configuration, SHA-256 of the tensors). It is written under a temporary
name and renamed when it is whole. Older checkpoints are removed only after that, so an interruption of the writing
never costs the last good one. A folder named `step-00000120-kept` is never removed; other runs branch from it.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitgolf.errors import RunError
from bitgolf.foreign import as_integer, as_number, as_object, as_text, conform, read_json, require_regular

log = logging.getLogger(__name__)

_STATE = {  # see `foreign.conform`
    "step": partial(as_integer, low=0), "seconds_spent": partial(as_number, low=0), "config_digest": as_text,
    "world_size": partial(as_integer, low=1), "origin?": as_text, "tensors_sha256": as_text,
}  # fmt: skip
_KEPT = 2  # checkpoints, beside those that were saved as kept
_NAME = re.compile(r"step-(\d+)(-kept)?")


@dataclass(frozen=True)
class TrainState:
    """State of a training besides its tensors. `origin`: of a branch, "digest@step" of its first checkpoint."""

    step: int
    seconds_spent: float
    config_digest: str
    world_size: int
    origin: str = ""


def state_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes of `tensors`, independent of their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def copy_into_(live: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    """Copy saved tensors over the live ones. Raises KeyError with the name of a missing one."""
    for name, tensor in live.items():
        tensor.copy_(saved[name])


class CheckpointStore:
    """Checkpoints under `folder`: the newest two, and all that were saved as kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, state: TrainState, tensors: dict[str, Tensor], *, kept: bool = False) -> None:
        """Copy `tensors` to the CPU now and write them in the background. Raises RunError if the last write failed."""
        self.wait()
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        self._pending = self._writer.submit(self._write, state, copies, kept)

    def wait(self) -> None:
        """Wait for the write in progress. Raises RunError if it failed; earlier checkpoints are then intact."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            try:
                pending.result()
            except OSError as error:
                raise RunError(
                    f"the checkpoint could not be written to {self.folder}: {error.strerror or error}; "
                    "earlier checkpoints are intact: free space and continue with --resume"
                ) from error

    def close(self) -> None:
        """Wait for the write in progress and end the thread."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def load_latest(self, config_digest: str) -> tuple[TrainState, dict[str, Tensor]] | None:
        """Newest whole checkpoint of this configuration (CPU tensors), or None if there is no checkpoint.

        A damaged checkpoint is logged, and the one before it is used. Raises RunError if all checkpoints are damaged,
        or if they belong to another configuration.
        """
        damaged = []
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            try:
                return self._read(path, config_digest)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                log.warning("checkpoint %s is damaged (%s); trying the one before it", path, error)
                damaged.append(path.name)
        if damaged:
            raise RunError(
                f"no usable checkpoint in {self.folder}: {', '.join(damaged)} damaged; remove the folder to "
                "train from the start"
            )
        return None

    def load_step(self, step: int, config_digest: str) -> tuple[TrainState, dict[str, Tensor]]:
        """The checkpoint of one step (CPU tensors). Raises RunError if it is missing or damaged."""
        for path in sorted(self.folder.glob("step-*")):
            if _step_of(path) == step:
                try:
                    return self._read(path, config_digest)
                except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                    raise RunError(f"{path} is damaged ({error}); choose another step") from error
        present = ", ".join(str(number) for number in self.steps()) or "none"
        raise RunError(f"{self.folder} has no checkpoint of step {step}; there are: {present}")

    def steps(self) -> list[int]:
        """Steps of all checkpoints, in ascending order."""
        return sorted({step for path in self.folder.glob("step-*") if (step := _step_of(path)) is not None})

    def remove_all(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, path: Path, config_digest: str) -> tuple[TrainState, dict[str, Tensor]]:
        stored = as_object(read_json(path / "state.json"), "state.json")
        conform(stored, _STATE, "state.json")
        expected = stored.pop("tensors_sha256")
        require_regular(path / "state.safetensors")
        tensors = load_file(path / "state.safetensors")
        if state_digest(tensors) != expected:
            raise ValueError("checksum of state.safetensors does not match state.json")
        state = TrainState(**stored)
        if state.config_digest != config_digest:
            raise RunError(f"{path} belongs to another configuration; choose another --out")
        return state, tensors

    def _write(self, state: TrainState, tensors: dict[str, Tensor], kept: bool) -> None:
        final = self.folder / f"step-{state.step:08d}{'-kept' if kept else ''}"
        temporary = self.folder / f".{final.name}.{os.getpid()}.tmp"
        for stale in self.folder.glob(".step-*.tmp"):  # of killed processes; this is the only writer
            shutil.rmtree(stale, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            save_file(tensors, temporary / "state.safetensors")
            meta = asdict(state) | {"tensors_sha256": state_digest(tensors)}
            (temporary / "state.json").write_text(json.dumps(meta, indent=2))
            mode = (temporary / "state.json").stat().st_mode & 0o777  # safetensors creates files for the owner alone
            for file in temporary.iterdir():
                file.chmod(mode)
                with file.open("r+b") as handle:  # Windows flushes only files that are open for writing
                    os.fsync(handle.fileno())
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        except SafetensorError as error:
            raise OSError(0, str(error)) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        passing = sorted(path for path in self.folder.glob("step-*") if not path.name.endswith("-kept"))
        for old in passing[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def _step_of(path: Path) -> int | None:
    name = _NAME.fullmatch(path.name)
    return int(name[1]) if name else None
