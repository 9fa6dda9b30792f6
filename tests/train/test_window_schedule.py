"""Attention windows that grow during the run: when they hold, how they are compiled, and that resuming keeps them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from slow_gpt import make, slow_logits
from tiny_run import done, events, weights_digest
from tiny_trainer import ALONE, MODEL, SIZES, batch

from bitgolf.config import TrainConfig
from bitgolf.data.loader import BatchShape
from bitgolf.model import GPT
from bitgolf.train.schedule import windows_at
from bitgolf.train.trainer import Trainer

PARTS = ((0.0, 2, 4), (0.25, 4, 6), (0.75, 5, 0))


def trainer(changes: dict[str, object]) -> Trainer:
    model = GPT(MODEL.updated({"attention.window": 6, "attention.full_layers": (1,)}), 8)
    model.initialize_(torch.Generator().manual_seed(0))
    return Trainer(model, TrainConfig().updated(SIZES | changes), BatchShape(4, 4, 4), ALONE)


def test_each_window_holds_from_its_fraction_on() -> None:
    config = TrainConfig(windows=PARTS)
    at = [windows_at(fraction, config, (6, 0)) for fraction in (0.0, 0.24, 0.25, 0.74, 0.75, 1.0)]
    assert at == [(2, 4), (2, 4), (4, 6), (4, 6), (5, 0), (5, 0)]
    assert windows_at(0.1, TrainConfig(windows=PARTS[1:]), (6, 0)) == windows_at(0.1, TrainConfig(), (6, 0)) == (6, 0)


@pytest.mark.parametrize("backend", ["math", "flash"])
def test_the_layers_have_the_windows_of_the_model_at_the_moment(backend: str) -> None:
    model = make({"num_layers": 3, "attention.window": 5, "attention.full_layers": (1,)})
    model.set_attention_backend(backend)
    tokens = np.random.default_rng(0).integers(2, 300, 12)
    for windows in ((2, 4), (3, 0), (3, 3), (5, 0)):
        model.windows = windows
        logits = model(torch.from_numpy(tokens)[None])[0].detach().numpy()
        np.testing.assert_allclose(logits, slow_logits(model, tokens, windows), rtol=3e-4, atol=3e-4)


def test_every_kind_of_step_is_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = trainer({"windows": PARTS, "extra_targets.next_tokens": (0.5,), "extra_targets.until": 0.5})
    kinds, loss = [], learner._loss

    def noted(x: torch.Tensor, y: torch.Tensor, fake: None, looped: bool, *extra: object) -> torch.Tensor:
        kinds.append((learner.model.windows, bool(extra)))
        return loss(x, y, fake, looped, *extra)

    monkeypatch.setattr(learner, "_loss", noted)
    learner.warm_up()
    assert kinds == [((2, 4), True), ((4, 6), True), ((4, 6), False), ((5, 0), False)]
    assert learner.model.windows == (6, 0)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it traces
def test_a_compiled_model_has_one_graph_per_pair_of_windows() -> None:
    model = trainer({}).model
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    step = torch.compile(model, dynamic=False, fullgraph=True, backend="eager")
    for windows in ((2, 4), (4, 0), (2, 4), (4, 0)):
        model.windows = windows
        torch.testing.assert_close(step(*batch(0)), model(*batch(0)), atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_a_run_changes_its_windows_and_resumes_in_them(untrained: Callable[..., Path]) -> None:
    """The windows as after training change no bit. Shorter ones at first do, and a resumed run has the same."""
    attention = {"model__attention__window": 16, "model__attention__full_layers": "[1]", "train__max_steps": 8}
    runs = {
        "plain": attention,
        "same": attention | {"train__windows": "[[0.5, 16, 0]]"},
        "growing": attention | {"train__windows": "[[0, 4, 8], [0.5, 16, 0]]", "train__checkpoint__at": "[0.3]"},
    }
    paths = {name: untrained(name, **changes) for name, changes in runs.items()}
    for path in paths.values():
        done("train", path)
    digests = {name: weights_digest(path) for name, path in paths.items()}
    assert digests["plain"] == digests["same"] != digests["growing"]
    growing = paths["growing"]
    changed = [(event["step"], event["window"], event["full_window"]) for event in events(growing, "windows")]
    assert changed == [(0, 4, 8), (4, 16, 0)]
    assert not events(paths["same"], "windows")
    done("train", growing, "--resume", "--overwrite")
    assert events(growing, "resume")[0]["step"] == 3
    assert weights_digest(growing) == digests["growing"]
