"""`bitgolf compress` and `bitgolf decompress`: code a file without loss with the model of an artifact, and back.

With `-o -` the result goes to standard output and the figures to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.files import artifact_path, check_output, is_standard_output, read_input, write_output
from bitgolf.commands.output import print_json, print_line
from bitgolf.config import TTTConfig, load_config
from bitgolf.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from bitgolf.codec import CodecModel


def _add_compress_arguments(parser: argparse.ArgumentParser) -> None:
    _add_paths(parser, "file to code, any bytes; - = standard input")
    parser.add_argument("--streams", type=int, default=0, help="parts coded side by side; 0 = by size (default)")
    parser.add_argument(
        "--stride", type=int, default=0, help="targets per sliding window; 0 = the artifact's (default)"
    )
    parser.add_argument("--ttt", action="store_true", help="learn from the text while coding it (--ttt.KEY VALUE)")
    parser.add_argument("--config", help="preset or .toml file to take the [ttt] settings from")
    parser.add_argument("--verify", action="store_true", help="decode again before the result is written")


def _add_decompress_arguments(parser: argparse.ArgumentParser) -> None:
    _add_paths(parser, "coded file; - = standard input")
    parser.add_argument(
        "--allow-platform-mismatch",
        action="store_true",
        help="decode although another release, device or processor coded it; a digest still decides",
    )
    parser.add_argument(
        "--allow-unchecked",
        action="store_true",
        help="accept a long file of format version 1, which is decoded to the end although it is damaged",
    )


def _compress(arguments: Arguments, out: Console) -> int:
    ask_for_reproducible_cublas()
    data = _input(arguments)
    from bitgolf.codec import compress_bytes, decompress_bytes

    model = _model(arguments)
    ttt = _ttt(arguments, model)
    begin = time.perf_counter()
    coded = compress_bytes(
        data, model, streams=arguments.streams, stride=arguments.stride, ttt=ttt, progress=arguments.progress
    )
    seconds = time.perf_counter() - begin
    if arguments.verify and decompress_bytes(coded.data, model, progress=arguments.progress) != data:
        raise ArtifactError(f"{arguments.file} does not survive coding on this machine; nothing was written")
    write_output(arguments.output, coded.data)
    figures = {
        "bytes": len(data),
        "coded_bytes": len(coded.data),
        "header_bytes": len(coded.data) - coded.text.payload_bytes,
        "payload_bytes": coded.text.payload_bytes,
        "bpb": coded.bpb,
        "tokens": coded.num_tokens,
        "streams": len(coded.text.streams),
        "byte_streams": sum(stream.joined for stream in coded.text.streams),
        "stride": coded.text.stride,
        "ttt": None if coded.text.ttt is None else coded.text.ttt.model_dump(mode="json"),
        "verified": arguments.verify,
        "model_sha256": model.sha256.hex(),
        "platform": coded.text.platform,
        "threads": coded.text.threads,
        "seconds": seconds,
        "bytes_per_second": len(data) / seconds,
    }
    count = len(coded.text.streams)
    line = (
        f"{len(data):,} bytes coded in {len(coded.data):,} ({coded.bpb:.4f} bits per byte) "
        f"in {count} stream{'' if count == 1 else 's'}, {seconds:.1f} s, {len(data) / seconds:,.0f} bytes/s"
    )
    _show(arguments, out, figures, line)
    return 0


def _decompress(arguments: Arguments, out: Console) -> int:
    ask_for_reproducible_cublas()
    data = _input(arguments)
    from bitgolf.codec import decompress_bytes

    model = _model(arguments)
    begin = time.perf_counter()
    try:
        text = decompress_bytes(
            data,
            model,
            allow_platform_mismatch=arguments.allow_platform_mismatch,
            allow_unchecked=arguments.allow_unchecked,
            progress=arguments.progress,
        )
    except ArtifactError as error:
        raise ArtifactError(f"{arguments.file}: {error}") from error
    seconds = time.perf_counter() - begin
    write_output(arguments.output, text)
    figures = {
        "bytes": len(text),
        "coded_bytes": len(data),
        "seconds": seconds,
        "bytes_per_second": len(text) / seconds,
    }
    _show(arguments, out, figures, f"{len(text):,} bytes in {seconds:.1f} s, {len(text) / seconds:,.0f} bytes/s")
    return 0


def ask_for_reproducible_cublas() -> None:
    """Have cuBLAS use one workspace per stream. cuBLAS reads this variable when it is first used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _add_paths(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("file", type=Path, help=what)
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write; - = standard output")
    parser.add_argument("--model", type=Path, required=True, help="run directory, or its model.bitgolf")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def _input(arguments: Arguments) -> bytes:
    """The bytes of the input file; the output path is checked first."""
    from bitgolf.codec.file_format import MAX_TEXT_BYTES

    check_output(arguments.output, "-o", (arguments.file, arguments.model))
    return read_input(arguments.file, MAX_TEXT_BYTES)


def _model(arguments: Arguments) -> CodecModel:
    from bitgolf.codec import CodecModel

    return CodecModel.load(artifact_path(arguments.model), arguments.device)


def _ttt(arguments: Arguments, model: CodecModel) -> TTTConfig | None:
    """Settings of test-time training; None without `--ttt`."""
    from bitgolf.codec.text import codec_configuration

    foreign = [key for key in arguments.overrides if not key.startswith("ttt.")]
    if foreign:
        raise ConfigError(f"--{foreign[0]} is not used by `compress`; it takes --ttt.KEY VALUE")
    if not arguments.ttt:
        if arguments.overrides or arguments.config:
            raise ConfigError("settings of test-time training need --ttt; add it")
        return None
    base = load_config(arguments.config).ttt if arguments.config else TTTConfig(method="full")
    ttt = codec_configuration(model.packed, arguments.stride, base, arguments.overrides).ttt
    if not ttt.enabled:
        raise ConfigError("--ttt with method none changes nothing; set --ttt.method full, last_blocks or lora")
    return ttt


def _show(arguments: Arguments, out: Console, figures: dict[str, Any], line: str) -> None:
    if is_standard_output(arguments.output):
        sys.stderr.write((json.dumps(figures, indent=2) if arguments.json else line) + "\n")
    elif arguments.json:
        print_json(out, figures)
    else:
        print_line(out, line)


COMPRESS = Command(
    "compress",
    "compress a file without loss with the model of an artifact",
    _add_compress_arguments,
    _compress,
    True,
    settings=("ttt.method", "ttt.lora.rank", "ttt.lora.lr", "ttt.weights.lr"),
    examples=(
        ("compress notes.txt -o notes.bg --model runs/mine", "compress one file"),
        ("compress notes.txt -o notes.bg --model runs/mine --ttt --ttt.method lora", "smaller, and much slower"),
    ),
)
DECOMPRESS = Command(
    "decompress",
    "restore the file that `compress` coded",
    _add_decompress_arguments,
    _decompress,
    examples=(("decompress notes.bg -o same.txt --model runs/mine", "the exact bytes, or an error"),),
)
