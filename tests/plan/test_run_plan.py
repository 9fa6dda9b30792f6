"""What a run needs is predicted before it starts, and what cannot work is refused with what it would need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import PRESET, cli, done, read_json, refused, settings

from bitgolf.config import Config, load_config
from bitgolf.data.loader import BatchShape
from bitgolf.errors import BudgetError, ConfigError, RunError
from bitgolf.model.build import build_model
from bitgolf.model.flops import flops_per_token
from bitgolf.plan import check, memory
from bitgolf.plan.check import require_fit, settled
from bitgolf.plan.memory import memory_of, predict_memory
from bitgolf.plan.predict import _bytes_per_token, _estimated_speed, _steps, validation_bytes
from bitgolf.plan.speed import Speed
from bitgolf.run.ranks import World
from bitgolf.train.trainer import Trainer

CPU = World(0, 1, torch.device("cpu"))


def tiny(**changes: str) -> Config:
    return load_config(str(PRESET), {key.replace("__", "."): value for key, value in changes.items()})


def test_fake_tensors_count_what_a_real_pass_keeps(one_thread: None) -> None:
    config = tiny()
    model, _ = build_model(config.model, config.train.seq_len, CPU.device, "flash")
    model.initialize_(torch.Generator().manual_seed(1))
    trainer = Trainer(model, config.train, BatchShape(1, 1, 1), CPU)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    storages = []  # kept alive, so that no address is used twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages.append(tensor.untyped_storage())
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = torch.zeros(1, config.train.seq_len, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(tokens, tokens)
    num_bytes = sum(size for address, size in kept.items() if address not in weights)
    predicted = predict_memory(config, CPU.device)
    state = sum(tensor.nbytes for tensor in trainer.tensors().values())
    gradients = sum(parameter.nbytes for parameter in model.parameters())
    assert predicted.state_bytes == 2 * state + gradients
    expected = 0.95 * (num_bytes / config.train.seq_len + 16 * config.model.vocab_size)
    assert predicted.bytes_per_token == pytest.approx(expected, rel=0.02)


def test_memory_grows_with_the_micro_batch_and_auto_takes_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(train__micro_batch_tokens="auto")
    assert config.train.micro_batch_tokens == 0
    predicted = predict_memory(config, CPU.device)
    assert predicted.micro_batch_tokens == config.train.batch_tokens
    assert [predicted.largest_micro_batch(config, 1e15, ranks) for ranks in (1, 2, 16)] == [1024, 512, 64]
    room = predicted.fixed_bytes + 300 * predicted.bytes_per_token
    monkeypatch.setattr(check, "total_memory", lambda device: int(2 * room))  # half of it is used
    assert settled(config, CPU).train.micro_batch_tokens == 256  # 4 rows of 64, a divisor of 16 rows
    earlier = tiny(train__micro_batch_tokens="128")
    assert settled(config, CPU, earlier).train.micro_batch_tokens == 128
    assert settled(config, CPU, config).train.micro_batch_tokens == 256
    assert settled(earlier, CPU) is earlier
    monkeypatch.setattr(check, "total_memory", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"one row of train\.seq_len 64 needs"):
        settled(config, CPU)


def test_a_cap_below_the_code_is_refused_before_anything_is_made(corpus: Path, tmp_path: Path) -> None:
    message = refused("run", *settings(corpus, budget__artifact_bytes="60KB"), "--out", tmp_path / "no", "--anyway")
    assert "budget.artifact_bytes = 60,000 is too small" in message and "set budget.artifact_bytes to" in message
    message = refused("run", *settings(corpus, budget__artifact_bytes="95KB"), "--out", tmp_path / "no")
    assert "the artifact is too large: about" in message and "lower pack.grid.matrix_bits (now 6)" in message
    assert not (tmp_path / "no").exists()


def test_a_preset_for_a_gpu_is_refused_on_a_cpu_unless_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "free_memory", lambda device: 20_000_000_000)
    message = refused("run", "seed-693", "--device", "cpu", "--out", tmp_path / "no")
    for words in ("needs about 4", "train.micro_batch_tokens 98304", "set train.micro_batch_tokens ",
                  "one step takes about", "a GPU with about 2", "--anyway"):  # fmt: skip
        assert words in message
    assert not (tmp_path / "no").exists()
    require_fit(load_config("seed-693", {"device": "cpu"}), CPU, anyway=True)
    require_fit(tiny(), CPU)
    monkeypatch.setattr(check, "free_memory", lambda device: 700_000_000)
    with pytest.raises(BudgetError, match=r"make the model or train\.seq_len smaller"):
        require_fit(tiny(), CPU)


def test_running_out_of_memory_names_the_setting() -> None:
    on_cpu = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), on_cpu):
        with pytest.raises(RunError, match=r"lower train\.seq_len \(now 512\)"), memory_of("train.seq_len", 512):
            raise error
    for other in (BudgetError("cannot allocate memory"), RuntimeError("shapes differ")):
        with pytest.raises(type(other), match=str(other)), memory_of("train.seq_len", 512):
            raise other


def test_the_plan_of_a_tiny_run_agrees_with_the_run(tiny_run: Path, corpus: Path) -> None:
    plan: dict[str, Any] = done("plan", *settings(corpus), "--json").json
    packed = read_json(tiny_run / "pack.json")
    assert plan["fits"] and plan["measured"] and plan["problems"] == []
    assert plan["parameters"] == packed["num_parameters"]
    assert plan["code_bytes"] == packed["code_bytes"]
    assert plan["model_bytes"] == pytest.approx(packed["model_bytes"], rel=0.25)
    assert plan["num_steps"] == 40 and plan["step_seconds"] > 0
    manifest = read_json(tiny_run / "data" / "manifest.json")
    assert plan["val_bytes"] == pytest.approx(manifest["splits"]["val"]["raw_bytes"], rel=0.5)


def test_the_size_of_the_validation_text_is_known_from_the_files_and_val_bytes(tmp_path: Path) -> None:
    for name, size in (("train.txt", 100_000), ("val.txt", 400)):
        (tmp_path / name).write_bytes(b"x" * size)
    own = {"data__source": f"file:{tmp_path}/train.txt"}
    held = own | {"data__val_source": f"file:{tmp_path}/val.txt", "data__val_fraction": "0"}
    for changes, num_bytes in ((own, 8_000), (held, 400), ({"data__source": "fineweb"}, 151_080_891)):
        assert validation_bytes(tiny(**changes)) == num_bytes
        assert validation_bytes(tiny(**changes, data__val_bytes="300")) == 300
        assert validation_bytes(tiny(**changes, data__val_bytes="999999999")) == num_bytes
    for unknown in ("stdlib", "hf:somebody/texts"):
        assert validation_bytes(tiny(data__source=unknown)) is None
    mixed = {"data__mix": f'["file:{tmp_path}/train.txt=1"]'}
    assert validation_bytes(tiny(**mixed)) is None and validation_bytes(tiny(**mixed, data__val_bytes="300")) == 300


@pytest.mark.parametrize(
    ("min_steps", "max_steps", "num_steps", "seconds"),
    [(0, 0, 58, 120), (0, 5, 5, 120), (50, 0, 58, 120), (100, 0, 100, 203), (100, 70, 70, 143), (100, 20, 20, 120)],
)
def test_a_plan_extends_both_times_to_the_least_steps(
    min_steps: int, max_steps: int, num_steps: int, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 2 s, and what follows the steps 2.5 s of the 120 s."""
    monkeypatch.setattr("bitgolf.plan.predict.after_steps_seconds", lambda config, speed: 2.5)
    numbers = {"train__max_steps": str(max_steps), "budget__min_steps": str(min_steps), "budget__eval_seconds": "60"}
    assert _steps(tiny(**numbers), Speed(2.0, 0.0)) == (num_steps, seconds, seconds / 2)
    assert _steps(tiny(budget__train_seconds="0.5"), Speed(0.5, 0.0))[0] == 0


def test_a_forward_pass_is_a_third_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitgolf.plan.predict.estimated_step_seconds", lambda config, world: 6.0)
    for ranks in (1, 2):
        assert _estimated_speed(tiny(), World(0, ranks, CPU.device)) == Speed(6.0, 2.0 * ranks / 1024)


def test_larger_vocabularies_have_longer_tokens() -> None:
    """As measured on FineWeb; tiny vocabularies have at least one byte per token."""
    assert [_bytes_per_token(2**k) for k in (10, 13)] == pytest.approx([2.4, 3.7], abs=0.05)
    assert _bytes_per_token(64) == 1.0


def test_a_plan_says_what_does_not_fit(corpus: Path) -> None:
    outcome = cli("plan", *settings(corpus, budget__artifact_bytes="95KB", budget__eval_seconds="1ms"))
    assert outcome.status == 1
    assert "the artifact is too large" in outcome.stdout and "raise score.stride" in outcome.stdout
    assert "ttt.method" not in outcome.stdout
    adapted = {
        "score__methods": "chunked",
        "ttt__method": "lora",
        "ttt__lora__chunk_tokens": 32,
        "budget__eval_seconds": "1ms",
    }
    stdout = cli("plan", *settings(corpus, **adapted)).stdout
    assert "raise ttt.lora.chunk_tokens (now 32)" in stdout and "score.stride" not in stdout and "ttt.method" in stdout


def test_the_memory_of_this_machine_is_known() -> None:
    assert 0 < memory.free_memory(CPU.device) <= memory.total_memory(CPU.device)


def test_operations_per_token_count_every_matrix() -> None:
    config = tiny().model
    model, _ = build_model(config, 64, CPU.device)
    matrices = sum(m.weight.numel() for m in model.modules() if hasattr(m, "in_features"))
    in_use = matrices + config.vocab_size * config.model_dim
    value_embedding = config.value_embedding.dim * config.kv_dim  # left out of the formula, as it is small
    expected = 6 * (in_use - value_embedding) + 6 * config.num_layers * config.model_dim * 64
    assert flops_per_token(config, 64) == pytest.approx(expected, rel=0.02)
