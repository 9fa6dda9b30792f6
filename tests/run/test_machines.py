"""Paths for machines that the tests do not have: chosen by what PyTorch says of the device."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bitgolf.errors import ConfigError
from bitgolf.model.build import compute_dtype
from bitgolf.run.ranks import choose_device, has_bf16, sums_dtype
from bitgolf.train.muon import orthogonalize

GPU = torch.device("cuda")


def test_a_gpu_without_bf16_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, value=supported: value)
        assert compute_dtype(GPU) == dtype and has_bf16(GPU) is supported
    assert compute_dtype(torch.device("cpu")) == compute_dtype(torch.device("mps")) == torch.float32
    assert orthogonalize(torch.randn(1, 4, 8), 5).dtype == torch.float32


def test_an_apple_gpu_is_used_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("mps").type == "mps" and choose_device("auto").type == "cpu"
    assert sums_dtype(torch.device("mps")) == torch.float32 and sums_dtype(torch.device("cpu")) == torch.float64
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="PyTorch finds no Apple GPU"):
        choose_device("mps")


def test_the_audit_can_be_imported_where_modules_of_unix_are_missing() -> None:
    program = (
        "import sys\nfor name in ('fcntl', 'resource', 'pwd', 'grp'): sys.modules[name] = None\n"
        "import os; del os.fork\nimport bitgolf.cli, bitgolf.audit.run, bitgolf.audit.sandbox.evaluation"
    )
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
