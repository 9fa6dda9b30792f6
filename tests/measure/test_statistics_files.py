"""The files of calibration/: what is written is read, old measurements are removed, missing and damaged files named."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bitgolf.config import PackConfig
from bitgolf.errors import RunError
from bitgolf.measure.curvature import Curvature, curvature_from_gradient
from bitgolf.measure.fisher import Fisher
from bitgolf.measure.statistics import (
    Statistics,
    read_curvature,
    read_fisher,
    read_hessians,
    with_curvature,
    write_statistics,
)
from bitgolf.model.weights import read_tensors

ALL = Statistics(
    {"head": torch.eye(3)},
    96,
    {"embedding": Fisher(2 * torch.eye(3), torch.arange(4.0))},
    {"embedding": Curvature(0.25, 1e-3)},
)
READERS = {
    "hessians.safetensors": read_hessians,
    "fisher.safetensors": read_fisher,
    "curvature.json": read_curvature,
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_statistics(tmp_path, ALL)
    assert torch.equal(read_hessians(tmp_path, tmp_path)["head"], torch.eye(3))
    fisher = read_fisher(tmp_path, tmp_path)["embedding"]
    assert torch.equal(fisher.inputs, 2 * torch.eye(3)) and torch.equal(fisher.rows, torch.arange(4.0))
    assert read_curvature(tmp_path, tmp_path) == ALL.curvature


@pytest.mark.parametrize("fisher", [True, False])
@pytest.mark.parametrize("column_steps", [True, False])
def test_the_curvature_of_each_tensor_is_that_of_its_own_statistics(fisher: bool, column_steps: bool) -> None:
    rng = torch.Generator().manual_seed(3)
    names = ["embedding", "blocks.0.mlp.up.weight", "bigram.table", "unused"]
    weights = {name: torch.randn(5, 4, generator=rng) for name in names} | {"unused": torch.zeros(5, 4)}
    gradients = {name: torch.randn(5, 4, generator=rng) for name in names}
    squares = [part @ part.T + torch.eye(4) for part in torch.randn(4, 4, 4, generator=rng)]
    hessians = {"head": squares[0], "blocks.0.mlp.up": squares[1]}
    information = {
        "embedding": Fisher(squares[2], torch.ones(5)),
        "blocks.0.mlp.up.weight": Fisher(squares[3], torch.ones(5)),
    }
    settings = PackConfig().updated(
        {"rate.hessian": "fisher" if fisher else "plain", "rate.column_steps": column_steps, "gptq.damping": 0.02}
    )
    statistics = Statistics(hessians, 7, information, {}, gradients)
    made = with_curvature(statistics, weights, settings, torch.device("cpu"))
    used = dict(zip(names, squares[2:] if fisher else squares[:2], strict=False))
    assert made.curvature == {
        name: curvature_from_gradient(weights[name], gradients[name], used.get(name), 0.02, column_steps=column_steps)
        for name in names[:3]
    }
    assert made.gradients == {} and (made.hessians, made.calibration_tokens, made.fisher) == (hessians, 7, information)


def test_a_later_training_without_a_measurement_removes_its_file(tmp_path: Path) -> None:
    write_statistics(tmp_path, ALL)
    write_statistics(tmp_path, Statistics(ALL.hessians, 96))
    assert [path.name for path in tmp_path.iterdir()] == ["hessians.safetensors"]


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"[1]",
        b'{"a": 1}',
        # Packing divides by the square of a step.
        b'{"a": {"step": 1e308, "increase_nats": 1}}',
        b'{"a": {"step": 1e-308, "increase_nats": 1}}',
        b'{"a": {"step": -1, "increase_nats": 1}}',
    ],
)
def test_missing_and_damaged_files_are_named_with_the_command_to_run(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=rf"{name}.* run `bitgolf train"):
        READERS[name](tmp_path, tmp_path / "run")


def test_a_pipe_in_place_of_the_weights_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.safetensors")
    with pytest.raises(RunError, match="it is not a regular file"):
        read_tensors(tmp_path / "weights.safetensors", tmp_path)


def test_statistics_without_their_other_half_are_damaged(tmp_path: Path) -> None:
    save_file({"blocks.0.mlp.up.weight.rows": torch.ones(4)}, tmp_path / "fisher.safetensors")
    with pytest.raises(
        RunError, match=r"fisher\.safetensors is damaged: it lacks 'blocks.0.mlp.up.weight.inputs'; run"
    ):
        read_fisher(tmp_path, tmp_path / "run")
