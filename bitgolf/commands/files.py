"""Files that the user names on the command line: regular files, `-`, devices, pipes and symbolic links.

`-` is standard input or output. Links are followed. A regular file is replaced atomically; anything else (a device, a
FIFO, a socket) is written to and stays what it is. Products of a run directory do not come here but through
`bitgolf.run.atomic`, which never follows a link.
"""

import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from bitgolf.errors import ConfigError
from bitgolf.foreign import read_at_most
from bitgolf.run import atomic

STANDARD = Path("-")


def is_standard_output(path: Path) -> bool:
    """Whether a path is `-`, or another name of standard output such as /dev/stdout."""
    try:
        return path == STANDARD or os.path.samestat(path.stat(), os.fstat(1))
    except OSError:  # there is no such file, or standard output is closed
        return False


def read_input(path: Path, max_bytes: int) -> bytes:
    """The content of a file, device or pipe, or of standard input.

    Raises ConfigError for a path that does not exist, a directory, or more than `max_bytes` bytes.
    """
    if path == STANDARD:
        data = read_at_most(sys.stdin.buffer, max_bytes + 1)
    elif path.is_dir() or not path.exists():
        reason = "is a directory" if path.is_dir() else "does not exist"
        raise ConfigError(f"{path} {reason}; give the path of a file, or - for standard input")
    else:
        with path.open("rb") as file:
            data = read_at_most(file, max_bytes + 1)
    if len(data) > max_bytes:
        raise ConfigError(f"{path} has more than the {max_bytes:,} bytes that are accepted")
    return data


def artifact_path(path: Path) -> Path:
    """The artifact of a run directory, or `path` itself. Raises ConfigError for a directory without an artifact."""
    if not path.is_dir():
        return path
    artifact = path / "model.bitgolf"
    if not artifact.exists():
        raise ConfigError(f"{path} holds no model.bitgolf; finish the run with `bitgolf run ... --resume`")
    return artifact


def save_standard_input(out: Path, keep: bool = False) -> str:
    """Write standard input to OUT.stdin.txt, because text is read several times. Returns its source string.

    `keep`: use the file if it exists.
    """
    path = out.with_name(f"{out.name}.stdin.txt")
    if keep and path.is_file():
        return f"file:{path}"
    with atomic.atomic_path(path) as temporary, temporary.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return f"file:{path}"


def check_output(path: Path, option: str, inputs: Iterable[Path] = ()) -> None:
    """Raise ConfigError if `path` cannot be written, or is one of the files that are read.

    An input that is a run directory stands for its artifact.
    """
    if is_standard_output(path):
        return
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a directory; give the path of a file")
    read = [source / "model.bitgolf" if source.is_dir() else source for source in inputs if source != STANDARD]
    if path.is_file() and any(source.exists() and path.samefile(source) for source in read):
        raise ConfigError(f"{option} {path} would overwrite what is read; choose another file")
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise ConfigError(f"{option} {path} is a link that leads to itself; choose another file")
    if path.exists() and not path.is_file():  # a device or a pipe
        return
    folder = next(parent for parent in target.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        reason = "does not allow it" if folder.is_dir() else "is not a folder"
        raise ConfigError(f"{option} {path} cannot be written: {folder} {reason}; choose another file")


def require_regular_or_new(path: Path) -> None:
    """Raise ConfigError if `path` is a device or a pipe."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is a device or a pipe; give the path of a file")


def write_output(path: Path, data: bytes) -> None:
    """Write `data` to standard output, to a special file, or atomically to a regular file or the target of a link."""
    if is_standard_output(path):
        write_standard_output(data)
        return
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):  # /dev/fd/3 has no other name
        with atomic.naming(path), path.open("wb") as file:
            file.write(data)
    else:
        atomic.write_bytes(target, data)


def write_standard_output(data: bytes) -> None:
    """Write bytes to standard output, whatever the encoding of the terminal."""
    with atomic.naming("standard output"):
        sys.stdout.flush()
        binary = getattr(sys.stdout, "buffer", None)
        if binary is None:  # replaced by a stream of text, as in a notebook
            sys.stdout.write(data.decode("utf-8", "replace"))
        else:
            binary.write(data)
            binary.flush()
