"""Paths for machines that the tests do not have: chosen by what PyTorch says of the device."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bitgolf.config.train import MuonConfig
from bitgolf.errors import ConfigError
from bitgolf.model.build import compute_dtype
from bitgolf.plan.memory import free_memory, total_memory
from bitgolf.run import atomic
from bitgolf.run.ranks import World, choose_device, has_bf16, sums_dtype
from bitgolf.train.checkpoint import CheckpointStore, TrainState
from bitgolf.train.muon import Muon

GPU = torch.device("cuda")


def test_a_gpu_without_bf16_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, value=supported: value)
        assert compute_dtype(GPU) == dtype and has_bf16(GPU) is supported
        monkeypatch.setattr("bitgolf.train.muon.has_bf16", lambda _, value=supported: value)
        muon = Muon({"matrix": torch.nn.Parameter(torch.zeros(4, 8))}, World(0, 1, torch.device("cpu")), MuonConfig())
        muon.parameters["matrix"].grad = torch.randn(4, 8)
        muon.step(1.0, 0.0)
        in_bf16 = torch.equal(muon.parameters["matrix"].bfloat16().float(), muon.parameters["matrix"])
        assert in_bf16 is supported
    assert compute_dtype(torch.device("cpu")) == compute_dtype(torch.device("mps")) == torch.float32


def test_an_apple_gpu_is_used_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("mps").type == "mps" and choose_device("auto").type == "cpu"
    assert sums_dtype(torch.device("mps")) == torch.float32 and sums_dtype(torch.device("cpu")) == torch.float64
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="PyTorch finds no Apple GPU"):
        choose_device("mps")


def test_every_module_can_be_imported_where_modules_of_unix_are_missing() -> None:
    program = """
import importlib, os, pkgutil, signal, sys
import numpy, torch, uvicorn  # what these need is no part of the test
for name in ("fcntl", "resource", "pwd", "grp", "termios"): sys.modules[name] = None
del os.fork, os.sched_getaffinity, os.uname, os.sysconf, signal.pthread_sigmask, signal.SIGKILL
import bitgolf
for module in pkgutil.walk_packages(bitgolf.__path__, "bitgolf."):
    # Left out: the program itself, kernels for NVIDIA GPUs, and code that is copied into other folders.
    if not module.name.endswith(("__main__", "_triton", "_quack", "flash4")) and ".remote." not in module.name:
        importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_are_flushed_through_handles_that_are_open_for_writing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Windows refuses to flush a file that is open for reading."""
    fcntl = pytest.importorskip("fcntl")
    modes = []
    monkeypatch.setattr("os.fsync", lambda handle: modes.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE))
    atomic.write_text(tmp_path / "text", "text")
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(TrainState(1, 0.5, "digest", 1), {"a": torch.zeros(1)})
    store.close()
    assert len(modes) == 3 and os.O_RDONLY not in modes


def test_no_process_is_asked_by_a_signal_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """There `os.kill(pid, 0)` ends the process."""
    monkeypatch.setattr("os.kill", lambda *_: pytest.fail("a signal"))
    with monkeypatch.context() as patched:
        patched.setattr("os.name", "nt")
        assert atomic._process_lives("1")


@pytest.mark.skipif(os.name == "nt", reason="asks by a signal")
def test_processes_that_have_ended_are_dead_and_those_of_others_live(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not atomic._process_lives(str(ended.pid)) and not atomic._process_lives("9" * 30)
    assert not atomic._process_lives(str(os.getpid())) and atomic._process_lives(str(os.getppid()))
    assert atomic._process_lives("no number")

    def foreign(pid: int, number: int) -> None:
        assert number == 0
        raise PermissionError

    monkeypatch.setattr(os, "kill", foreign)
    assert atomic._process_lives("1")


@pytest.mark.parametrize(("rank", "device"), [(0, "cuda:0"), (1, "cuda:1"), (2, "")])
def test_each_local_rank_has_a_gpu_of_its_own(rank: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for requested in ("auto", "cuda"):
        if device:
            assert choose_device(requested, rank) == torch.device(device)
        else:
            with pytest.raises(ConfigError, match=r"local rank 2 has no GPU: 2 found; .*nproc_per_node=2"):
                choose_device(requested, rank)


def test_memory_of_a_gpu_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", {device: SimpleNamespace(total_memory=80)}.__getitem__)
    monkeypatch.setattr(torch.cuda, "mem_get_info", {device: (30, 80)}.__getitem__)
    assert (total_memory(device), free_memory(device)) == (80, 30)
