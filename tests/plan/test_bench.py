"""`bitgolf bench` measures every part of a step; MFU is what its formula says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_run import PRESET, done, refused

from bitgolf.config import load_config
from bitgolf.evaluate.tape import ScoreTape
from bitgolf.model.flops import flops_per_token, mfu, peak_flops
from bitgolf.plan import bench
from bitgolf.plan.bench import PARTS
from bitgolf.run.ranks import World

CPU = World(0, 1, torch.device("cpu"))


class SlowSteps:
    """A trainer, its loader and the clock. Three threads work in a quarter of the seconds of each part."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[float, ...]]) -> None:
        self.now, self.work, self.steps, self.world = 100.0, 50.0, iter(steps), CPU
        self.config = load_config(str(PRESET), {}).train
        self.mark: Callable[[str], None] = lambda part: None
        clock = SimpleNamespace(perf_counter=lambda: self.now, process_time=lambda: self.work)
        monkeypatch.setattr(bench, "time", clock)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    def __next__(self) -> tuple[None, None]:
        self.parts = next(self.steps)
        self.pass_(self.parts[0])
        return None, None

    def pass_(self, seconds: float) -> None:
        self.now, self.work = self.now + seconds, self.work + seconds * 3 / 4

    def step(self, *_: object) -> None:
        for part, seconds in zip(
            ("forward", "backward", "forward", "backward", "optimizer"), self.parts[1:], strict=True
        ):
            self.pass_(seconds)
            self.mark(part)


def test_every_part_is_measured_and_the_summary_has_a_table(tmp_path: Path, one_thread: None) -> None:
    summary, trace, run = tmp_path / "speed" / "summary.json", tmp_path / "trace.json", tmp_path / "run"
    summary.parent.mkdir()
    summary.write_text(json.dumps({"other": {"tokens_per_second": 1, "ms_per_step": 2, "mfu": 0.5,
                                             "peak_memory_mib": 3, "gpu": "H200", "commit": "abc"}}))  # fmt: skip
    run.mkdir()
    (run / "pack.json").write_text('{"seconds": 12.5}')
    words = ["bench", str(PRESET), "--steps", "5", "--json", "--train.micro_batch_tokens", "512"]
    out = done(*words, "--run", str(run), "--profile", str(trace), "--summary", str(summary))
    figures = json.loads(out.stdout)
    assert set(figures["ms_per_part"]) == set(PARTS)
    assert all(figures["ms_per_part"][part] > 0 for part in ("loader", "forward", "backward", "optimizer", "averaging"))
    assert figures["tokens_per_second"] == pytest.approx(1e3 * figures["batch_tokens"] / figures["ms_per_step"])
    assert figures["packing_seconds"] == 12.5 and figures["evaluation_tokens_per_second"] > 0
    assert json.loads(trace.read_text())["traceEvents"]
    entries = json.loads(summary.read_text())
    assert set(entries) == {"other", "tiny"} and set(entries["tiny"]) == set(entries["other"])
    head, other, mine = (summary.parent / "README.md").read_text().rsplit("\n", 3)[:3]
    assert head == (
        "# Speed by preset\n\nMade by `bitgolf bench PRESET --summary FILE`.\n\n"
        "| preset | tokens/s | ms per step | MFU | peak memory, MiB | device | commit |\n"
        "|---|---:|---:|---:|---:|---|---|"
    )
    assert other == "| `other` | 1 | 2.0 | 50.0% | 3 | H200 | abc |" and mine.startswith("| `tiny` |")


def test_the_time_of_a_step_is_the_median_of_five_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [(0.0, 0.0, 0.0, 0.0, 0.0, seconds) for seconds in (9, 9, 1, 3, 6, 6, 5, 5, 4, 4)]
    trainer: Any = SlowSteps(monkeypatch, steps)
    assert bench._step_time(trainer, trainer, 10) == pytest.approx((5_000, 3_750))
    trainer = SlowSteps(monkeypatch, steps[::2])
    assert bench._step_time(trainer, trainer, 4) == pytest.approx((5_000, 3_750)), "at least one step per group"


def test_the_times_of_parts_are_medians_of_their_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer: Any = SlowSteps(monkeypatch, [(1, 2, 3, 4, 5, 6), (2, 7, 1, 1, 1, 9), (9, 9, 9, 1, 0, 7)])
    milliseconds = bench._part_times(trainer, trainer, 3)
    assert milliseconds == {"loader": 2e3, "forward": 8e3, "backward": 8e3, "communication": 0.0,
                            "optimizer": 7e3, "averaging": 0.0}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "ranks", "batch_tokens", "targets"),
    [("chunked", 1, 200, 64 + 3 * 3 * 64), ("sliding", 2, 200, 64 + 3 * 3 * 16 * 2), ("chunked", 1, 64, 64 + 3 * 64)],
)
def test_an_evaluation_is_timed_after_its_compilation(
    monkeypatch: pytest.MonkeyPatch, method: str, ranks: int, batch_tokens: int, targets: int
) -> None:
    """Three batches after a first window, twice: the first takes 9 s, the second 2 s."""
    trainer: Any = SlowSteps(monkeypatch, [])
    seconds, tapes = iter((9.0, 2.0)), []

    def evaluate(tape: ScoreTape, scorer: object) -> None:
        tapes.append(tape)
        trainer.now += next(seconds)

    evaluated: list[str] = []
    trainer.model = SimpleNamespace(eval=lambda: evaluated.append("eval"))
    monkeypatch.setattr(bench, "evaluate", evaluate)
    monkeypatch.setattr(bench.Windows, "scorer", lambda *_: None)
    numbers = {"methods": method, "stride": 16, "seq_len": 64, "batch_tokens": batch_tokens}
    config = load_config(str(PRESET), {f"score.{key}": str(value) for key, value in numbers.items()})
    assert bench._evaluation_speed(config, trainer, World(0, ranks, CPU.device)) == targets / 2
    assert [tape.num_targets for tape in tapes] == [targets] * 2 and evaluated == ["eval"]


def test_on_a_gpu_a_step_is_idle_while_no_kernel_runs(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """A step of 10 ms, of which the process waited 4 ms and kernels ran 7 ms; and the memory of either device."""
    config = load_config(str(PRESET), {"train.warmup_steps": "1"})
    monkeypatch.setattr(bench, "_step_time", lambda *_: (10.0, 4.0))
    monkeypatch.setattr(bench, "_part_times", lambda *_: {})
    monkeypatch.setattr(bench, "_evaluation_speed", lambda *_: 5.0)
    for busy, idle in ((7.0, 3.0), (0.0, 4.0), (12.0, 0.0)):
        monkeypatch.setattr(bench, "_profile", lambda *_, busy=busy: busy)
        figures = bench.measure(config, CPU)
        assert figures["idle_ms"] == idle and figures["tokens_per_second"] == 102_400
        assert figures["packing_seconds"] is None and figures["attention"] == "flash"
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 * 2**20)
    assert bench._peak_memory(World(0, 1, torch.device("cuda"))) == 5.0
    monkeypatch.setattr("resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=3 * 2**20))
    for system, mebibytes in (("linux", 3 * 2**10), ("darwin", 3)):
        monkeypatch.setattr("sys.platform", system)
        assert bench._peak_memory(CPU) == mebibytes


def test_kernels_are_counted_on_a_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps, with kernels of 4 and 2 ms; on other ranks the trace is not written."""
    traces: list[str] = []

    class Profile:
        def __init__(self, activities: list[object]) -> None:
            self.activities = activities

        def __enter__(self) -> Profile:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def key_averages(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(self_device_time_total=microseconds) for microseconds in (4e3, 2e3)]

        def export_chrome_trace(self, path: str) -> None:
            traces.append(path)
            if "full" not in path:
                Path(path).touch()

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    for device, rank, trace, milliseconds in (
        ("cuda", 0, None, 2.0),
        ("cuda", 1, tmp_path / "other", 2.0),
        ("cuda", 0, tmp_path / "trace", 2.0),
        ("cpu", 0, tmp_path / "trace", 0.0),
        ("cpu", 0, None, 0.0),
    ):
        trainer: Any = SlowSteps(monkeypatch, [(1.0,) * 6] * 3)
        trainer.world = World(rank, 2, torch.device(device))
        assert bench._profile(trainer, trainer, trace) == milliseconds
        assert len(list(trainer.steps)) == (3 if (device, trace) == ("cpu", None) else 0)
    assert traces == [str(tmp_path / "trace")] * 2
    trainer = SlowSteps(monkeypatch, [(1.0,) * 6] * 3)
    trainer.world = World(0, 1, torch.device("cpu"))
    with pytest.raises(OSError, match="could not write its trace") as error:  # PyTorch tells nobody
        bench._profile(trainer, trainer, tmp_path / "full")
    assert error.value.filename == str(tmp_path / "full")


def test_a_trace_goes_to_a_pipe_and_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: object, trace: Path, **settings: object) -> dict[str, object]:
        trace.write_bytes(b"[]")
        return {}

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr("bitgolf.commands.bench.bench_table", lambda figures: "")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        done("bench", PRESET, "--profile", pipe)
        assert os.read(reader, 9) == b"[]" and pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]
    finally:
        os.close(reader)


def test_mfu_is_operations_over_the_peak_of_all_gpus() -> None:
    config = load_config(str(PRESET), {}).model
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    expected = 1e6 * flops_per_token(config, 64) / (2 * 989.4e12)
    assert mfu(config, 64, 1e6, "NVIDIA H200", 2) == pytest.approx(expected)
    assert mfu(config, 64, 1e6, "Abacus") is None
    cut = config.updated({"attention.within_documents": True, "attention.document_tokens": 32, "smear.gate": "none"})
    assert flops_per_token(cut, 64) == flops_per_token(config, 32) < flops_per_token(config, 64)
    loops = config.updated({"loop.repeats": 1, "loop.first": 1, "loop.last": 1})
    assert flops_per_token(loops, 64, False) == flops_per_token(config, 64) < flops_per_token(loops, 64)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "line 1"), ("[" * 9999, "nested"), ("[]", "the file"), ("{}", "seconds"), ('{"seconds": null}', "seconds"),
        ('{"seconds": "1"}', "seconds"), ('{"seconds": -1}', "seconds"), (None, "there is no such file; give a run"),
    ],
)  # fmt: skip
def test_a_run_without_a_packing_time_is_named(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "pack.json").write_text(content)
    message = refused("bench", PRESET, "--run", tmp_path)
    start = f"--run {tmp_path} has no packing time: {tmp_path / 'pack.json'}: "
    assert message.startswith(start) and reason in message.removeprefix(start)
    assert ("no such file" in message) == (content is None)


@pytest.mark.parametrize("content", ["", "[]", '{"demo": 1}', '{"demo": {"mfu": "x"}}'])
def test_a_summary_of_something_else_is_refused_before_the_work(tmp_path: Path, content: str) -> None:
    summary, readme = tmp_path / "summary.json", tmp_path / "README.md"
    summary.write_text(content)
    assert "is no summary of `bitgolf bench`" in refused("bench", PRESET, "--summary", summary)
    readme.write_text("# My project")
    assert "would replace" in refused("bench", PRESET, "--summary", tmp_path / "new.json")
    assert readme.read_text() == "# My project"
    assert "is a directory" in refused("bench", PRESET, "--profile", tmp_path)


def test_too_few_steps_are_refused() -> None:
    assert "at least 5" in refused("bench", str(PRESET), "--steps", "1")
