"""Method rate from end to end: curvature is measured in training, steps follow from it, the file fills its cap."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import cli, done, events, read_json, refused, settings

import bitgolf
from bitgolf.artifact.container import read_artifact
from bitgolf.quantize.fill_cap import SLACK

RATE: dict[str, Any] = {
    "pack__method": "rate",
    "pack__compressor": "range",
    "pack__small_tensor": 256,
    "pack__rate__trellis": 8,
    "train__measure__fisher_tokens": 1024,
    "train__max_steps": 20,
    "model__num_layers": 1,
    "model__attention__xsa_layers": 1,
    "model__attention__value_residual": False,
    "model__value_embedding__layers": [0],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A complete run whose training measured curvature and Fisher statistics; not to be changed."""
    run = tmp_path_factory.mktemp("rate") / "run"
    done("run", *settings(corpus, **RATE), "--out", run)
    return run


def bits_of_cap(run: Path, bits: float) -> tuple[int, int]:
    """A cap that leaves `bits` per quantized weight, and the number of those weights."""
    pack = read_json(run / "pack.json")
    rounded = [tensor for tensor in pack["tensors"].values() if tensor["kind"] == "int16"]
    weights = sum(math.prod(tensor["shape"]) for tensor in rounded)
    return pack["total_bytes"] - sum(tensor["bytes"] for tensor in rounded) + int(weights * bits / 8), weights


def test_the_file_fills_its_cap_and_is_what_was_scored(trained: Path) -> None:
    pack, score = read_json(trained / "pack.json"), read_json(trained / "score.json")
    cap = pack["cap_bytes"]
    # The tiny model is far smaller than its cap: the finest steps there are end the search.
    assert pack["total_bytes"] <= cap
    assert pack["allocation"]["passes"][-1]["model_bytes"] == pack["model_bytes"]
    assert abs(score["quantization_tax"]) < 1e-3 and read_json(trained / "audit.json")["passed"]
    (measured,) = events(trained, "curvature")
    quantized = [name for name, tensor in pack["tensors"].items() if tensor["kind"] == "int16"]
    assert measured["tensors"] == len(quantized) > 6
    charges = [charge for charge in read_json(trained / "budget.json")["charges"] if charge["kind"] == "train_seconds"]
    assert {"calibration", "fisher statistics"} < {charge["what"] for charge in charges}


@pytest.mark.parametrize(("bits", "trellis", "hessian"), [(1.5, 8, "fisher"), (6.0, 0, "plain")])
def test_the_file_fills_any_cap(trained: Path, tmp_path: Path, bits: float, trellis: int, hessian: str) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    text = (run / "config.toml").read_text()
    text = text.replace("trellis = 8", f"trellis = {trellis}").replace('hessian = "plain"', f'hessian = "{hessian}"')
    (run / "config.toml").write_text(text)
    cap, _ = bits_of_cap(trained, bits)
    done("pack", run, "--budget.artifact_bytes", cap)
    pack = read_json(run / "pack.json")
    assert cap - SLACK <= pack["total_bytes"] <= cap
    parts = pack["part_seconds"]
    assert {"reading", "factors of the Hessians, forecast", "encoding of whole files"} < parts.keys()
    assert any(part.startswith("rounding ") for part in parts) and sum(parts.values()) < pack["seconds"]
    assert pack["model_bytes"] == (run / "model.bitgolf").stat().st_size
    choices = pack["allocation"]["tensors"]
    assert sum(choice["predicted_nats"] for choice in choices.values()) == pytest.approx(
        pack["allocation"]["predicted_nats"]
    )
    artifact = read_artifact(run / "model.bitgolf")
    assert all(torch.isfinite(tensor).all() for tensor in artifact.tensors.values())
    assert 0 < bitgolf.load(run / "model.bitgolf").bits_per_byte("Letter 3 from the quiet river.") < 12


def test_a_cap_below_what_cannot_be_rounded_is_refused(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before = (run / "model.bitgolf").read_bytes()
    cap, _ = bits_of_cap(run, 0.0)
    outcome = cli("pack", run, "--budget.artifact_bytes", cap - 1_000)
    error = outcome.stderr.strip().splitlines()[-1]
    assert outcome.status == 2 and "rounded to zero" in error and "bytes of the cap are code" in error
    assert "the code alone" in refused("pack", run, "--budget.artifact_bytes", 9_000)
    assert (run / "model.bitgolf").read_bytes() == before


def test_statistics_that_were_not_gathered_are_asked_for(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "calibration" / "curvature.json").unlink()
    assert "curvature.json is missing" in refused("pack", run)


def test_one_fisher_pass_gives_everything(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    one_pass = settings(corpus, **RATE, train__measure__calibration_tokens=0)
    done("run", *one_pass, "--pack.rate.hessian", "fisher", "--out", run)
    assert sorted(path.name for path in (run / "calibration").iterdir()) == ["curvature.json", "fisher.safetensors"]
    pack = read_json(run / "pack.json")
    choices = pack["allocation"]["tensors"].values()
    (measured,) = events(run, "curvature")
    assert measured["tensors"] == len(choices) > 6
    assert {choice["curvature_from"] for choice in choices} == {"measured"}
    assert read_json(run / "audit.json")["passed"]
    assert "gptq" in refused("pack", run, "--pack.method", "gptq")
