"""Compilations after the warm-up are logged with their reasons, and a training step has no graph breaks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_run import Tokens
from tiny_trainer import make_trainer
from torch._dynamo.utils import counters

from bitgolf.config import ModelConfig, load_config
from bitgolf.data.loader import BatchLoader
from bitgolf.data.row_order import RowOrder
from bitgolf.model.gpt import GPT
from bitgolf.train.metrics import TrainLog, read_events
from bitgolf.train.recompiles import Recompiles
from bitgolf.train.trainer import StepSettings


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()
    counters.clear()


def test_what_is_compiled_on_the_clock_is_logged_with_its_reason(tmp_path: Path) -> None:
    model = GPT(
        ModelConfig().updated({"vocab_size": 260, "num_layers": 1, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1}),
        8,
    )
    loss = torch.compile(model, backend="eager", dynamic=False)
    tokens = torch.zeros(2, 9, dtype=torch.int64)
    for _ in range(2):
        loss(tokens[:, :-1], tokens[:, 1:])
    train_log = TrainLog(tmp_path, enabled=True)
    recompiles = Recompiles(train_log, 0, 0.0)
    loss(tokens[:, :-1], tokens[:, 1:])
    recompiles.after_step(1, 1.0)
    loss(tokens[:, :-2], tokens[:, 2:])  # shorter rows
    recompiles.after_step(2, 2.0)
    recompiles.after_step(3, 3.0)
    loss(tokens[:, :-3], tokens[:, 3:])
    recompiles.after_step(4, 4.0)
    before, event, again = read_events(tmp_path / "train.jsonl")
    assert again["step"] == 4 and len(again["reasons"]) == len(event["reasons"])
    assert before["event"] == "compiled" and before["graphs"] > 0 and before["graph_breaks"] == []
    assert event["event"] == "recompile" and (event["step"], event["graphs"]) == (2, before["graphs"])
    assert any("size mismatch" in reason for reason in event["reasons"])


@pytest.mark.parametrize("micro_rows", [1, 4])
def test_a_batch_of_the_loader_is_not_compiled_again_after_the_warm_up(micro_rows: int) -> None:
    trainer = make_trainer(micro_rows=micro_rows)
    trainer._loss = torch.compile(trainer.model, backend="eager", dynamic=False)
    trainer.warm_up()
    graphs = counters["stats"]["unique_graphs"]
    stream = Tokens(np.arange(260, dtype=np.uint16))
    with BatchLoader(stream, RowOrder(260, 8, False, 0), trainer.shape, rank=0, device=torch.device("cpu")) as loader:
        trainer.step(*next(loader), StepSettings(1.0, 0.9))
    assert counters["stats"]["unique_graphs"] == graphs > 0


def test_graph_breaks_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break("for the test")
        return x + 1

    torch.compile(step, backend="eager")(torch.ones(1))
    Recompiles(TrainLog(tmp_path, enabled=True), 0, 0.0)
    (event,) = read_events(tmp_path / "train.jsonl")
    assert len(event["graph_breaks"]) == 1
    assert "breaks the training step into several graphs" in caplog.text
    reason, context = event["graph_breaks"][0].split("; ")
    assert "graph_break" in reason and "Developer" not in reason and "for the test" in context


def test_the_loss_is_one_graph_with_every_part_of_the_record() -> None:
    """Reduced in size, with the attention and the kernels of a CPU."""
    config = load_config("record").model.updated(
        {
            "vocab_size": 260, "num_layers": 3, "model_dim": 32, "num_heads": 2, "num_kv_heads": 1, "lanes_from": 2,
            "loop.first": 1, "loop.last": 1, "bigram.dim": 8, "value_embedding.layers": [1], "attention.xsa_layers": 1,
            "attention.full_layers": [2], "rope.dims": 8,
        }
    )  # fmt: skip
    loss = torch.compile(GPT(config, 16), backend="eager", dynamic=False, fullgraph=True)
    tokens = torch.zeros(2, 17, dtype=torch.int64)
    for looped in (False, True):
        loss(tokens[:, :-1], tokens[:, 1:], None, looped).backward()
    assert counters["stats"]["unique_graphs"] == 2
