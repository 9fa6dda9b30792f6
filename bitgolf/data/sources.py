"""The sources of text: a source string becomes an iterator of documents.

`stdlib` is the default (see `stdlib_text`). `file:PATH` and `dir:PATH` read text files, `jsonl:PATH` a field of JSON
lines (both may be compressed, see `text_files`; globs), and `parquet:PATH` and `hf:NAME` a column of a table (see
`table_texts`). A path alone is a source too. `fineweb-docs` has a module of its own. Only one document is in memory at
a time. `shards:PATH` and `fineweb` contain tokens instead of text (see `existing_shards`). Bad input raises DataError
with file and line.
"""

import difflib
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from bitgolf.config import DataConfig
from bitgolf.data.cut_text import cut_text
from bitgolf.data.stdlib_text import stdlib_documents
from bitgolf.data.table_texts import hub_texts, parquet_texts
from bitgolf.data.text_files import json_line_texts, text_lines
from bitgolf.errors import ConfigError, DataError

KINDS = ("stdlib", "file", "dir", "jsonl", "parquet", "hf", "shards", "fineweb", "fineweb-docs")
FILE_KINDS = ("file", "dir", "jsonl", "parquet")  # their text lies in files on this machine
ALLOWED = (
    "a path, stdlib, file:PATH, dir:PATH, jsonl:PATH, parquet:PATH, hf:NAME[:CONFIG][@SPLIT], shards:PATH, "
    "fineweb[:VARIANT], fineweb-docs"
)
# Suffixes of text files; `dir:` skips all other files.
_SUFFIXES = """
.txt .text .md .markdown .rst .adoc .org .tex .html .htm .xml .json .csv .tsv .toml .yaml .yml .ini
.py .pyi .c .h .cc .cpp .hpp .cu .rs .go .java .kt .js .ts .css .rb .pl .php .sh .sql .lua .r .jl .swift
"""
TEXT_SUFFIXES = frozenset(_SUFFIXES.split())
# Text without borders is cut into documents of this size, and into smaller ones if it has less than 6.5 MB: about 100.
DOCUMENT_BYTES = 64 * 1024
_LEAST_DOCUMENT_BYTES = 2 * 1024


def parse_source(source: str) -> tuple[str, str]:
    """Split 'kind:argument'. The argument may be empty. A leading ~ of a path is replaced by the home folder.

    A path alone is a directory, JSON lines, Parquet or a text file, by its name. Raises ConfigError for an unknown
    kind, a missing path, or an argument to `stdlib`.
    """
    kind, colon, argument = source.partition(":")
    if kind not in KINDS and _is_path(source):
        kind, colon, argument = _kind_of(source), ":", source
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown data source {source!r}{hint}; allowed: {ALLOWED}")
    if kind in (*FILE_KINDS, "hf", "shards") and not argument:
        raise ConfigError(f"data source {source!r} needs a path: {kind}:PATH")
    if kind in ("stdlib", "fineweb-docs") and colon:
        raise ConfigError(f"data source {source!r}: {kind} takes no argument")
    if argument.startswith("~") and kind not in ("fineweb", "hf"):
        argument = str(_expanded(argument))
    return kind, argument


def _expanded(path: str) -> Path:
    """A path with the home folder in place of a leading ~."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        name = path.split("/")[0]
        raise ConfigError(f"path {path!r}: the home folder of {name!r} is unknown; write the full path") from error


def _is_path(source: str) -> bool:
    """Whether a source without a known kind is the path of something, or looks like a path."""
    return (bool(source) and _expanded(source).exists()) or (":" not in source and ("/" in source or "." in source))


def _kind_of(path: str) -> str:
    if _expanded(path).is_dir():
        return "dir"
    name = Path(path).name.lower()
    return "jsonl" if ".jsonl" in name else "parquet" if name.endswith(".parquet") else "file"


def all_sources(config: DataConfig) -> list[str]:
    """The sources of training text, then that of validation text if it has its own."""
    training = [source for source, _ in weighted_sources(config)] or [config.source]
    return [*training, *([config.val_source] if config.val_source else [])]


def weighted_sources(config: DataConfig) -> list[tuple[str, float]]:
    """The sources of `data.mix` and their weights. Raises ConfigError for a text without a positive weight."""
    sources = []
    for entry in config.mix:
        source, _, weight = entry.rpartition("=")
        try:
            sources.append((source, float(weight)))
        except ValueError:
            sources.append(("", 0.0))
        if not source or not 0 < sources[-1][1] < float("inf"):
            raise ConfigError(f"data.mix {entry!r} is not SOURCE=WEIGHT, for example dir:notes=0.7")
    return sources


def training_documents(config: DataConfig) -> Iterator[str]:
    """Documents of `data.source`, or of the sources of `data.mix` in turn, so that their bytes have the given shares.

    A mix ends with the first of its sources that ends.
    """
    mix = weighted_sources(config)
    if not mix:
        return iterate_documents(config.source, config.text_field)
    return _in_turn([(iterate_documents(source, config.text_field), weight) for source, weight in mix])


def _in_turn(sources: list[tuple[Iterator[str], float]]) -> Iterator[str]:
    taken = [0.0] * len(sources)  # bytes so far, divided by the weight
    while True:
        index = taken.index(min(taken))
        documents, weight = sources[index]
        text = next(documents, None)
        if text is None:
            return
        taken[index] += (len(text.encode()) + 1) / weight
        yield text


def iterate_documents(source: str, text_field: str = "text") -> Iterator[str]:
    """Documents of one source of text in a fixed order, empty ones included. `text_field`: of JSON lines and tables.

    Raises ConfigError for a source that is unknown or contains tokens, DataError for bad input.
    """
    kind, argument = parse_source(source)
    if kind == "stdlib":
        return stdlib_documents()
    if kind == "jsonl":
        return json_line_texts(source_files(source), text_field)
    if kind in ("dir", "file"):
        return _text_documents(source_files(source))
    if kind == "parquet":
        return parquet_texts(source_files(source), text_field)
    if kind == "hf":
        return hub_texts(argument, text_field)
    raise ConfigError(f"data source {source!r} contains tokens, not text; use {ALLOWED}")


def source_files(source: str) -> list[Path]:
    """Files that a source of FILE_KINDS reads, in order. Raises DataError if there are none."""
    kind, argument = parse_source(source)
    if kind in ("jsonl", "parquet", "file"):
        paths = sorted(Path(p) for p in glob.glob(argument, recursive=True) if Path(p).is_file())  # noqa: PTH207 - may be absolute
        if not paths and Path(argument).is_file():  # a name that contains brackets
            paths = [Path(argument)]
        if not paths:
            raise DataError(f"no file matches {argument!r} (source {source!r})")
        return paths
    root = Path(argument)
    if not root.is_dir():
        raise DataError(f"{root} is not a directory (source {source!r})")
    paths = sorted(_text_files(root))
    if not paths:
        raise DataError(f"{root} contains no text files; names of text files end in {' '.join(sorted(TEXT_SUFFIXES))}")
    return paths


def _text_files(root: Path) -> Iterator[Path]:
    """Text files below `root`, without hidden ones. Raises DataError for a directory that cannot be read."""

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read the directory {error.filename}: {error.strerror}; make it readable, or move it")

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.suffix.lower() in TEXT_SUFFIXES and path.is_file():
                yield path


def _text_documents(paths: list[Path]) -> Iterator[str]:
    total = sum(path.stat().st_size for path in paths)
    limit = min(DOCUMENT_BYTES, max(_LEAST_DOCUMENT_BYTES, total // 100))
    for path in paths:
        yield from cut_text(text_lines(path, DOCUMENT_BYTES), limit)
