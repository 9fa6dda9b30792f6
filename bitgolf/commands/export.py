"""`bitgolf export`: a model for other programs."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.files import artifact_path, check_output, require_regular_or_new
from bitgolf.commands.output import print_result
from bitgolf.errors import ConfigError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="run directory, or its model.bitgolf")
    parser.add_argument("--to", required=True, choices=("transformers", "onnx"), help="format")
    parser.add_argument("out", type=Path, help="new folder for transformers, or .onnx file")


def _export(arguments: Arguments, out: Console) -> int:
    from bitgolf.language_model import load

    target: Path = arguments.out
    if arguments.to == "onnx" and (target.suffix != ".onnx" or target.is_dir()):
        raise ConfigError(f"{target}: the ONNX format is one file; give a name that ends in .onnx")
    if arguments.to == "onnx":
        for path in (target, target.with_suffix(".model")):
            check_output(path, "the file", [arguments.model])
            require_regular_or_new(path)
    model = load(artifact_path(arguments.model), "cpu")
    values: dict[str, Any] = {"format": arguments.to, "out": str(target)}
    if arguments.to == "transformers":
        from bitgolf.export.transformers import export_transformers

        export_transformers(model, target)
        text = f"{target}: AutoModelForCausalLM.from_pretrained({str(target)!r}, trust_remote_code=True) loads it"
    else:
        from bitgolf.export.onnx import export_onnx

        values["largest_difference"] = export_onnx(model, target)
        text = (
            f"{target}: the largest difference of a logit from the model is {values['largest_difference']:.1e}; the "
            f"tokenizer is {target.with_suffix('.model')}"
        )
    print_result(out, arguments.json, values, text)
    return 0


EXPORT = Command(
    "export",
    "write a model for other programs: Hugging Face Transformers or ONNX",
    _add_arguments,
    _export,
    examples=(
        ("export runs/mine --to transformers exported", "a folder with weights, tokenizer and code"),
        ("export runs/mine --to onnx mine.onnx", "one file, checked with onnxruntime, and the tokenizer beside it"),
    ),
)
