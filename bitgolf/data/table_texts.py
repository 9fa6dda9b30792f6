"""Tables of text: Parquet files, and data sets of the Hugging Face Hub (or a local folder in their form), streamed.

Both need an optional package: `pip install 'bitgolf[parquet]'` (pyarrow) and `pip install 'bitgolf[datasets]'`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bitgolf.errors import DataError

_ROWS = 16  # read at a time; a row can be a book


def parquet_texts(paths: Iterable[Path], text_field: str) -> Iterator[str]:
    """The column `text_field` of Parquet files, in order. Raises DataError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("reading Parquet needs pyarrow: pip install 'bitgolf[parquet]'") from error
    for path in paths:
        number = 0
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                if text_field not in file.schema_arrow.names:
                    raise DataError(_no_field(str(path), text_field, file.schema_arrow.names))
                for batch in file.iter_batches(_ROWS, columns=[text_field], use_threads=False):
                    for text in batch.column(0).to_pylist():
                        number += 1
                        yield _text(text, f"{path}, row {number}", text_field)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: a text after row {number} is not UTF-8 ({error.reason}); convert it") from error
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"cannot read {path}: {error}") from error


def hub_texts(argument: str, text_field: str) -> Iterator[str]:
    """The field `text_field` of a data set `NAME[:CONFIG][@SPLIT]`, split `train` by default. Raises DataError."""
    try:
        import datasets
    except ImportError as error:
        raise DataError("the source hf: needs datasets: pip install 'bitgolf[datasets]'") from error
    named, _, split = argument.partition("@")
    name, _, config = named.partition(":")
    try:
        rows = iter(datasets.load_dataset(name, config or None, split=split or "train", streaming=True))
    except Exception as error:  # of many libraries
        raise DataError(f"cannot open the data set hf:{argument}: {error}") from error
    for number, row in enumerate(_rows(rows, argument), 1):
        if text_field not in row:
            raise DataError(_no_field(f"hf:{argument}", text_field, list(row)))
        yield _text(row[text_field], f"hf:{argument}, row {number}", text_field)


def _rows(rows: Iterator[dict[str, Any]], argument: str) -> Iterator[dict[str, Any]]:
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(f"reading hf:{argument} failed: {error}; run the same command again") from error
        yield row


def _text(value: Any, where: str, text_field: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: the field {text_field!r} is {type(value).__name__}, not a string")
    return value


def _no_field(where: str, text_field: str, names: list[str]) -> str:
    return f"{where} has no field {text_field!r}, but {', '.join(sorted(names)[:12])}; set data.text_field"
