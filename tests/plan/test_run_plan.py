"""What a run needs is predicted before it starts, and what cannot work is refused with what it would need."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import PRESET, cli, done, read_json, refused, settings

from bitgolf.config import Config, load_config
from bitgolf.data.loader import BatchShape
from bitgolf.errors import BudgetError, ConfigError, RunError
from bitgolf.grids.grid import Grid
from bitgolf.model.build import build_model
from bitgolf.model.flops import flops_per_token
from bitgolf.plan import check, memory, predict, speed
from bitgolf.plan import size as model_size
from bitgolf.plan.check import require_fit, settled
from bitgolf.plan.memory import memory_of, predict_memory
from bitgolf.plan.predict import _bytes_per_token, _estimated_speed, _steps, validation_bytes
from bitgolf.plan.speed import Speed
from bitgolf.run.directory import RunDirectory
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


def test_memory_of_evaluation_and_of_other_devices() -> None:
    """Evaluation: weights, 3 widths of the MLP and 8 of the model per token, 12 bytes per logit, and the process."""
    config = tiny()
    model, _ = build_model(config.model, config.train.seq_len, CPU.device)
    weights, gpu = sum(parameter.nbytes for parameter in model.parameters()), torch.device("cuda")
    width, hidden, vocab = config.model.model_dim, config.model.mlp_dim, config.model.vocab_size
    for device, float_bytes in ((CPU.device, 4), (gpu, 2)):
        per_token = float_bytes * (3 * hidden + 8 * width) + 12 * vocab
        assert predict_memory(config, device).evaluation_bytes == weights + 2048 * per_token + 800_000_000
    eager = predict_memory(tiny(train__compile="false"), gpu).bytes_per_token
    assert predict_memory(config, gpu).bytes_per_token / eager == pytest.approx(0.68 / 1.15)
    assert predict_memory(tiny(train__compile="false"), CPU.device) == predict_memory(config, CPU.device)


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
    large = SimpleNamespace(fixed_bytes=2e9, bytes_per_token=1e8, largest_micro_batch=lambda *_: 0)
    monkeypatch.setattr(check, "predict_memory", lambda *_: large)
    with pytest.raises(ConfigError, match=r"one row of train\.seq_len 64 needs 8\.4 GB and .* has 0\.0 GB"):
        settled(config, CPU)


def test_training_settles_what_is_auto_and_refuses_what_does_not_fit(
    untrained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[int, bool, str]] = []

    def train(run: RunDirectory, peers: World, *, resume: bool, branch: str, progress: object) -> None:
        trained.append((run.config.train.micro_batch_tokens, resume, branch))
        end = {"event": "end", "step": 3, "tokens": 3_072, "elapsed_seconds": 1.5, "tokens_per_second": 2_048.0}
        (run / "train.jsonl").write_text(json.dumps(end) + "\n")

    monkeypatch.setattr("bitgolf.train.attended.train_attended", train)
    run = untrained(train__micro_batch_tokens="auto")
    text = done("train", run, "--branch", "other@5").stdout
    assert text.strip() == "trained 3 steps, 3,072 tokens in 1.5 s (2,048 tokens/s)"
    assert RunDirectory.open(run).config.train.micro_batch_tokens == 1024
    monkeypatch.setattr(check, "free_memory", lambda device: 0)
    assert "does not fit this machine" in refused("train", run)
    for words in (["--resume"], ["--anyway"]):
        assert done("train", run, *words, "--json").json["step"] == 3
    assert trained == [(1024, False, "other@5"), (1024, True, ""), (1024, False, "")]


def test_caps_are_compared_with_the_code_and_the_predicted_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for code, cap in ((79_000, 89_000), (80_000, 90_000)):
        monkeypatch.setattr(check, "code_bytes", lambda config, code=code: code)
        check.require_room_for_code(tiny(budget__artifact_bytes=str(cap)))
        with pytest.raises(BudgetError, match="is too small"):
            check.require_room_for_code(tiny(budget__artifact_bytes=str(cap - 1)))
    monkeypatch.setattr(check, "predict_model_bytes", lambda config, code: 1_320_000)
    for cap, num_problems in ((1_000_000, 0), (999_999, 1)):  # 1.4 times the cap, with 80,000 bytes of code
        assert len(check.size_problems(tiny(budget__artifact_bytes=str(cap)))) == num_problems
    assert check.size_problems(tiny(budget__artifact_bytes="90000", pack__fit__prune="true")) == []


def test_a_cpu_must_make_ten_steps_in_half_of_the_estimated_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "estimated_step_seconds", lambda config, world: 24.0)
    for seconds, max_steps, min_steps, world, num_problems in (
        ("120", "0", "0", CPU, 0),
        ("119", "0", "0", CPU, 1),
        ("119", "0", "1", CPU, 0),  # the budget will be extended
        ("36", "3", "0", CPU, 0),
        ("35", "3", "0", CPU, 1),
        ("119", "50", "0", CPU, 1),
        ("1", "0", "0", World(0, 1, torch.device("cuda")), 0),
    ):
        changes = {"budget__train_seconds": seconds, "train__max_steps": max_steps, "budget__min_steps": min_steps}
        assert len(check.speed_problems(tiny(**changes), world)) == num_problems, changes


def test_a_step_is_estimated_by_its_operations_and_shared_by_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_flops_of_matrix_product", lambda world: 1e9)
    operations = flops_per_token(tiny().model, 64) * 1024
    for ranks in (1, 2):
        expected = operations / ranks / 0.4e9
        assert speed.estimated_step_seconds(tiny(), World(0, ranks, CPU.device)) == pytest.approx(expected)


@pytest.mark.parametrize(("device", "share"), [("cpu", 0.5), ("cuda", 0.85)])
def test_auto_takes_a_share_of_the_memory(device: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(train__micro_batch_tokens="auto")
    there = torch.device(device)
    predicted = predict_memory(config, there)
    room = predicted.fixed_bytes + 256 * predicted.bytes_per_token
    for total, tokens in ((room / share + 9, 256), (room / share - 9, 128)):
        monkeypatch.setattr(check, "total_memory", lambda device, total=total: total)
        assert settled(config, World(0, 1, there)).train.micro_batch_tokens == tokens


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


def test_memory_is_refused_by_the_prediction_and_shared_by_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny()
    needed = predict_memory(config, CPU.device).training_bytes
    two = World(0, 2, CPU.device)
    shared = predict_memory(config, CPU.device, 2).training_bytes
    assert needed < memory.at_most(config)
    for world, free, fits in (
        (CPU, needed / 0.9 + 10, True),
        (CPU, needed / 0.9 - 10, False),
        (two, 2 * shared / 0.9 + 10, True),
        (two, 2 * shared / 0.9 - 10, False),
    ):
        monkeypatch.setattr(check, "free_memory", lambda device, free=free: free)
        assert (check.memory_problems(config, world) == []) == fits


def test_a_long_step_is_measured_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 16 rows takes 1 s, a quarter of it the update: 16 rows take a quarter and 16 times three quarters."""
    seconds = iter([0.64, 1.0, 0.25, 0.64, 1.0])

    def timed(work: Callable[[], object], world: World) -> float:
        work()
        return next(seconds)

    monkeypatch.setattr(speed, "seconds_of_second_run", timed)
    monkeypatch.setattr(speed, "estimated_step_seconds", lambda config, world: 5.01)
    assert speed.measured_speed(tiny(), CPU) == Speed(0.25 + 16 * 0.75, 0.64 / 64)
    monkeypatch.setattr(speed, "estimated_step_seconds", lambda config, world: 4.99)
    assert speed.measured_speed(tiny(), CPU) == Speed(1.0, 0.64 / 1024)
    assert next(seconds, None) is None


def test_seconds_after_the_steps_and_of_the_evaluation() -> None:
    """Passes: one in pieces, window / stride with overlap, and what adapts: forward, backward, and scores again."""
    one = Speed(9.0, 0.01)
    measured = {"train__measure__calibration_tokens": "500", "train__measure__fisher_tokens": "200"}
    assert speed.after_steps_seconds(tiny(**measured), one) == pytest.approx(1.15 * (5 + 6))
    kept = measured | {"train__measure__reserve_seconds": "2"}
    assert speed.after_steps_seconds(tiny(**kept), one) == pytest.approx(1.15 * (2 + 6))
    chunked, both = {"score__methods": "chunked"}, {"score__methods": "chunked,sliding"}
    full = {"ttt__method": "full", "ttt__weights__epochs": "3"}
    lora = chunked | {"ttt__method": "lora"}
    for changes, passes in (
        (chunked, 1),
        (both, 3),
        (both | {"score__stride": "16"}, 5),
        (both | full, 3 + 2 + 9),
        (lora | {"ttt__lora__chunk_tokens": "64"}, 1 + 4),
        (lora | {"ttt__lora__chunk_tokens": "8"}, 1 + 16),
    ):
        assert speed.evaluation_seconds(tiny(**changes), one, 1_000) == pytest.approx(10 * passes)


@pytest.mark.parametrize(("seconds", "fits"), [(3.9375, False), (4.0, True)])
def test_a_plan_fits_if_one_step_does(seconds: float, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 3 s, and what follows the steps one second."""
    monkeypatch.setattr(predict, "measured_speed", lambda config, world: Speed(3.0, 1e-9))
    monkeypatch.setattr(predict, "after_steps_seconds", lambda config, speed: 1.0)
    monkeypatch.setattr(predict, "speed_problems", lambda config, world: [])
    plan = predict.predict(tiny(budget__train_seconds=str(seconds)), CPU)
    assert (plan["num_steps"], plan["fits"], plan["measured"]) == (int(fits), fits, True)
    assert plan["total_bytes"] == plan["code_bytes"] + plan["model_bytes"]
    monkeypatch.setattr(predict, "speed_problems", lambda config, world: ["slow"])
    assert predict.predict(tiny(budget__train_seconds=str(seconds)), CPU)["problems"] == ["slow"]


def test_an_evaluation_may_take_its_whole_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "measured_speed", lambda config, world: Speed(1.0, 1e-9))
    monkeypatch.setattr(predict, "evaluation_seconds", lambda config, speed, tokens: tokens / 10)
    monkeypatch.setattr(predict, "_bytes_per_token", lambda vocab_size: 2.0)
    (tmp_path / "text").write_bytes(b"x" * 12_500)  # 8 % are validation text
    for limit, problems in (("50", 0), ("49.5", 1)):
        plan = predict.predict(tiny(data__source=f"file:{tmp_path}/text", budget__eval_seconds=limit), CPU)
        assert (plan["val_bytes"], plan["evaluation_seconds"], len(plan["problems"])) == (1_000, 50.0, problems)


def test_a_plan_says_what_does_not_fit(corpus: Path) -> None:
    outcome = cli("plan", *settings(corpus, budget__artifact_bytes="95KB", budget__eval_seconds="1ms"))
    assert outcome.status == 1
    assert "the artifact is too large" in outcome.stdout and "raise score.stride" in outcome.stdout
    assert "ttt.method" not in outcome.stdout
    small = cli("plan", *settings(corpus, budget__artifact_bytes="60KB", train__measure__reserve_seconds=200))
    assert small.status == 1 and "budget.artifact_bytes = 60,000 is too small" in small.stdout
    assert "budget.train_seconds = 120 does not hold one step" in small.stdout
    adapted = {
        "score__methods": "chunked",
        "ttt__method": "lora",
        "ttt__lora__chunk_tokens": 32,
        "budget__eval_seconds": "1ms",
    }
    stdout = cli("plan", *settings(corpus, **adapted)).stdout
    assert "raise ttt.lora.chunk_tokens (now 32)" in stdout and "score.stride" not in stdout and "ttt.method" in stdout


def test_the_size_of_the_artifact_follows_from_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three bits per code in place of the entropy, 16 per small float and per step of a row, 9 bytes per piece."""
    monkeypatch.setattr(model_size, "_code_bits", lambda grid, columns, percentiles: 3.0)
    config = tiny(pack__prune="0.25", train__measure__fisher_tokens="2048")
    model, _ = build_model(config.model, config.train.seq_len, CPU.device)
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    gridded = [shape for shape in shapes if len(shape) == 2 and shape[0] * shape[1] > 1024]
    assert 0 < len(gridded) < len(shapes)
    pruned = 0.75 * 3 + 0.75 * math.log2(4 / 3) + 0.25 * math.log2(4)  # which weights are left, and their codes
    for prune, per_weight in (("0.25", pruned), ("0", 3.0)):
        bits = sum(per_weight * rows * columns + 16 * rows for rows, columns in gridded)
        bits += sum(16 * math.prod(shape) for shape in shapes if shape not in gridded)
        predicted = model_size.predict_model_bytes(config.updated({"pack.prune": float(prune)}), 60_000)
        assert predicted == pytest.approx(bits / 8 + 9 * 384, abs=1)
    for method, num_bytes in (("lossless", 4 * sum(map(math.prod, shapes))), ("rate", 940_000)):
        assert (
            model_size.predict_model_bytes(tiny(pack__method=method, train__measure__fisher_tokens="2048"), 60_000)
            == num_bytes
        )
    small = tiny(pack__method="rate", train__measure__fisher_tokens="2048", budget__artifact_bytes="50KB")
    assert model_size.predict_model_bytes(small, 60_000) == 0


def test_the_entropy_of_a_grid_is_that_of_rounded_normal_rows() -> None:
    """Whole rows at 6 bits: each step is the largest magnitude of the row, over 31."""
    rows = np.random.default_rng(5).standard_normal((256, 512))
    codes = np.rint(rows / (np.abs(rows).max(axis=1, keepdims=True) / 31))
    share = np.unique(codes, return_counts=True)[1] / codes.size
    assert model_size._code_bits(Grid(6), 512, (1.0,)) == pytest.approx(-(share * np.log2(share)).sum(), abs=0.03)


def test_the_memory_of_this_machine_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number_in = memory._number
    assert 0 < memory.free_memory(CPU.device) <= memory.total_memory(CPU.device)
    monkeypatch.setattr(memory.os, "sysconf", {"SC_PHYS_PAGES": 5_000, "SC_PAGE_SIZE": 4_096}.__getitem__)
    for limits, total in (((0, 0), 20_480_000), ((7_000_000, 0), 7_000_000), ((9_000_000, 8_000_000), 8_000_000)):
        limit = dict(zip(("memory.max", "memory.limit_in_bytes"), limits, strict=True))
        monkeypatch.setattr(memory, "_number", lambda file, limit=limit: limit[file.name])
        assert memory.total_memory(CPU.device) == total >= memory.free_memory(CPU.device)
    monkeypatch.setattr(memory.os, "sysconf_names", {})
    monkeypatch.setattr(memory, "_number", lambda file: 0)
    assert memory.total_memory(CPU.device) == 2**62  # of no limit that is known
    for text, number in (("5000\n", 5_000), ("max\n", 0), (None, 0)):
        if text is None:
            (tmp_path / "limit").unlink()
        else:
            (tmp_path / "limit").write_text(text)
        assert number_in(tmp_path / "limit") == number


def test_operations_per_token_count_every_matrix() -> None:
    config = tiny().model
    model, _ = build_model(config, 64, CPU.device)
    matrices = sum(m.weight.numel() for m in model.modules() if hasattr(m, "in_features"))
    in_use = matrices + config.vocab_size * config.model_dim
    value_embedding = config.value_embedding.dim * config.kv_dim  # left out of the formula, as it is small
    expected = 6 * (in_use - value_embedding) + 6 * config.num_layers * config.model_dim * 64
    assert flops_per_token(config, 64) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "ways"),
    [
        ({"score__methods": "chunked"}, ["make the model smaller"]),
        ({"score__methods": "chunked,sliding"}, ["raise score.stride", "drop the sliding pass (score.methods)"]),
        ({"score__methods": "chunked", "ttt__method": "full"}, ["set ttt.method 'none'"]),
        (
            {"score__methods": "chunked", "ttt__method": "lora", "ttt__lora__chunk_tokens": "32"},
            ["raise ttt.lora.chunk_tokens (now 32)", "set ttt.method 'none'"],
        ),
    ],
)
def test_what_makes_an_evaluation_faster(changes: dict[str, str], ways: list[str]) -> None:
    assert predict._faster_evaluation(tiny(**changes)) == ways
