"""`bitgolf doctor`: the hardware and libraries of this machine, and what each missing one costs."""

import argparse
import importlib.util
import os
import platform
import sys
from dataclasses import asdict, dataclass

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.output import print_result
from bitgolf.commands.tables import doctor_table
from bitgolf.version import __version__

_PACKAGES = {
    "sentencepiece": ("tokenizers", "required: no text can be prepared or scored"),
    "zstandard": ("artifact streams, .zst corpora", "required: no artifact can be packed or read"),
    "constriction": (
        "writes entropy-coded weights and text",
        "pack.compressor range and `compress` are errors; reading is slower",
    ),
    "safetensors": ("weights and checkpoints", "required: nothing can be trained"),
    "rich": ("progress bars and tables", "required by the command line"),
    "matplotlib": ("plots of the report", "required by the report"),
    "jinja2": ("page of the report", "required by the report"),
    "huggingface_hub": (
        "source `fineweb`",
        "the challenge's shards must be downloaded by hand; pip install 'bitgolf[hub]'",
    ),
    "flash_attn_interface": (
        "FlashAttention 3 on Hopper",
        "cuDNN attention is used instead (within 7 % by published figures)",
    ),
    "quack": (
        "MLP in fused products on Hopper",
        "a training step takes 3 % longer; pip install 'bitgolf[hopper]', which brings FlashAttention 4 too",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One line of the table. If `ok` is False, `cost` says what the missing piece costs."""

    kind: str
    name: str
    ok: bool
    detail: str
    cost: str = ""


def examine() -> list[Finding]:
    """Look at devices, attention backends, compressors and libraries."""
    import torch

    from bitgolf.artifact.compressors import compressor_names, missing_package
    from bitgolf.model.backends import AttentionCase, available_backends
    from bitgolf.model.build import compute_dtype

    interpreter = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    findings = [
        Finding("system", "bitgolf", True, __version__),
        Finding("system", "python", True, interpreter),
        Finding("system", "cpu", True, f"{os.cpu_count()} cores, {torch.get_num_threads()} PyTorch threads"),
        Finding("library", "torch", True, torch.__version__),
        *_gpus(),
    ]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, reason in available_backends(AttentionCase(device, compute_dtype(device))).items():
        cost = "`auto` uses the next backend that works" if reason else ""
        findings.append(Finding("attention", name, not reason, reason or f"works on {device}", cost))
    for name, (purpose, cost) in _PACKAGES.items():
        is_installed = importlib.util.find_spec(name) is not None
        detail = _version(name) if is_installed else f"not installed ({purpose})"
        findings.append(Finding("library", name, is_installed, detail, "" if is_installed else cost))
    for name in compressor_names():
        package = missing_package(name)
        detail = "works" if package is None else f"needs {package}, which is not installed"
        cost = "" if package is None else f"pack.compressor = {name!r} is an error"
        findings.append(Finding("compressor", name, package is None, detail, cost))
    return findings


def _gpus() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        cost = "training runs on the CPU, which is fast enough for the demo preset alone"
        return [Finding("device", "cuda", False, "no CUDA device found by PyTorch", cost)]
    findings = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        memory, capability = f"{about.total_memory / 2**30:.0f} GiB", f"{about.major}.{about.minor}"
        detail = f"{about.name}, {memory}, capability {capability}, CUDA {torch.version.cuda}"
        findings.append(Finding("device", f"cuda:{index}", True, detail))
    return findings


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "installed"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def _doctor(arguments: Arguments, out: Console) -> int:
    findings = [asdict(finding) for finding in examine()]
    print_result(out, arguments.json, {"python": sys.version.split()[0], "findings": findings}, doctor_table(findings))
    return 0


DOCTOR = Command(
    "doctor",
    "show what this machine and its libraries offer, and what each missing piece costs",
    _add_arguments,
    _doctor,
    examples=(("doctor", "a table"), ("doctor --json", "for a report of a problem")),
)
