"""Held-out losses, samples, MFU and other sinks while a model trains; none of them changes the weights."""

import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import PRESET, cli, done, events, refused, weights_digest

from bitgolf.audit.budgets import train_clock
from bitgolf.audit.configuration import train_log
from bitgolf.audit.evidence import Evidence
from bitgolf.config import load_config
from bitgolf.data.prepare import open_data
from bitgolf.data.row_order import HeldOut
from bitgolf.model.build import build_model, load_weights_
from bitgolf.model.weights import read_tensors
from bitgolf.run.directory import RunDirectory
from bitgolf.run.ranks import World, device_name
from bitgolf.train import sinks
from bitgolf.train.attended import Attended
from bitgolf.train.pace import LAG, Pace
from bitgolf.train.stop import StopOnSignal
from bitgolf.train.watch import Watch

Make = Callable[..., Path]
CPU = World(0, 1, torch.device("cpu"))
HELD_OUT = {"train__held_out_tokens": 640, "train__average__ema_decay": 0}
WATCH = {"train__watch__seconds": 1e-6, "train__watch__tokens": 512, "train__watch__sample_tokens": 5}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, float], int]]:
    """What a stand-in for the package trackio is sent."""
    received: list[tuple[dict[str, float], int]] = []
    fake = types.SimpleNamespace(
        init=lambda **about: print("a greeting"),
        log=lambda numbers, step: received.append((numbers, step)),
        finish=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)  # type: ignore[arg-type]
    return received


def test_a_watched_training_has_the_same_weights_and_losses_on_rows_it_never_reads(
    untrained: Make, sent: list[tuple[dict[str, float], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = untrained("plain", **HELD_OUT)
    watched = untrained("watched", **HELD_OUT, **WATCH, train__watch__sinks=["trackio"])
    monkeypatch.setattr("bitgolf.train.attended.mfu", lambda *training: 1e-6)
    done("train", plain)
    assert "a greeting" not in done("train", watched, "--json").stdout
    assert weights_digest(plain) == weights_digest(watched)
    losses = events(watched, "held_out")
    assert len(losses) > 3 and events(plain, "held_out") == []
    assert {event["tokens"] for event in losses} == {512} and all(event["seconds"] > 0 for event in losses)
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert len({event["sample"] for event in losses}) > 1
    assert ("train/loss" in sent[0][0]) and any("held_out/loss" in numbers for numbers, _ in sent)

    assert all(event["mfu"] == pytest.approx(1e-6 * event["tokens_per_second"]) for event in events(watched, "step"))

    # The last weights, scored again by another path.
    config = load_config(str(watched / "config.toml"))
    model, _ = build_model(config.model, config.train.seq_len, torch.device("cpu"))
    load_weights_(model, read_tensors(watched / "weights.safetensors", watched), "weights")
    stream = open_data(watched / "data").train
    rows = HeldOut.of(stream.num_tokens, config.train).rows(stream, 0, 8)
    with torch.no_grad():
        loss = float(model(rows[:, :-1], rows[:, 1:]))
    assert loss == pytest.approx(losses[-1]["loss"], abs=1e-5 if losses[-1]["step"] == 40 else 0.3)

    evidence = Evidence(RunDirectory.open(watched))
    assert train_log(evidence).verdict == "PASS" and train_clock(evidence).verdict == "PASS"


def test_a_sink_without_its_package_is_refused(untrained: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]
    message = refused("train", untrained("sink", train__watch__sinks=["wandb"]))
    assert "train.watch.sinks 'wandb' needs the package wandb: pip install wandb" in message


def test_time_that_a_measurement_took_is_no_part_of_the_steps() -> None:
    pace = Pace(0, 0.0, 1.0)
    for step in (1, 2, 3):
        pace.observe(step, float(step - 1))
    pace.restart(4, 53.0)  # after step 3, a measurement of 50 s
    pace.observe(4, 53.0)
    pace.observe(5, 54.0)
    assert pace.seconds_per_step == pytest.approx(1.0) and pace.mean_seconds == pytest.approx(1.0)
    assert pace.predict(6) == pytest.approx(55.0)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_training_with_a_checkpoint(
    untrained: Make, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    run = untrained("stopped", train__max_steps=12)
    monkeypatch.setattr("bitgolf.cli.end_in_order", lambda: None)
    caught = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    handlers = [signal.getsignal(each) for each in caught]
    signal.signal(number, signal.SIG_DFL)  # a shell may have started the tests with it ignored

    def signal_at_7(watch: Watch, step: int, looped: bool) -> None:
        if step == 7:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(Watch, "after_step", signal_at_7)
        assert cli("train", run).status == status
    assert signal.signal(number, handlers[caught.index(number)]) == signal.SIG_DFL
    assert [signal.getsignal(each) for each in caught] == handlers
    assert [(event["step"], event["kept"]) for event in events(run, "checkpoint")] == [(7, False)]
    done("train", run, "--resume")
    whole = untrained("whole", train__max_steps=12)
    done("train", whole)
    assert weights_digest(run) == weights_digest(whole)


def test_another_rank_waits_for_rank_0_after_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[float, object, tuple[int]]] = []
    timer = lambda *arguments: types.SimpleNamespace(start=lambda: started.append(arguments))  # noqa: E731
    monkeypatch.setattr("bitgolf.train.stop.threading.Timer", timer)
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        for number in numbers:  # a shell may have started the tests with SIGINT ignored
            signal.signal(number, signal.SIG_DFL)
        for rank in (0, 1):
            stop = StopOnSignal(None, None, World(rank, 2, torch.device("cpu")), lambda step, looped: None)  # type: ignore[arg-type]
            with stop as after_step:
                os.kill(os.getpid(), signal.SIGTERM)
                ignored = [signal.getsignal(number) == signal.SIG_IGN for number in numbers]
                assert ignored == [rank == 1] * 2
                if rank == 0:
                    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "a second signal ends it at once"
                if rank == 1:
                    after_step(1, False)  # without the end that rank 0 decides
        ((seconds, leave, status),) = started  # it ends by itself if rank 0 does not end it
        assert 0 < seconds <= 60 and leave is os._exit and status == (128 + signal.SIGTERM,)
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def test_a_signal_that_is_ignored_does_not_stop_the_training() -> None:
    """`nohup` has SIGHUP ignored, and a shell script SIGINT in what it starts in the background."""
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler, received in ((signal.SIG_IGN, None), (signal.SIG_DFL, signal.SIGHUP)):
            signal.signal(signal.SIGHUP, handler)
            stop = StopOnSignal(None, None, CPU, lambda step, looped: None)  # type: ignore[arg-type]
            with stop:
                os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received == received and signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_saves_what_was_trained_before_the_end() -> None:
    order: list[object] = []
    store = types.SimpleNamespace(close=lambda: order.append("closed"))
    checkpoints: Any = types.SimpleNamespace(save=lambda step, keep: order.append((step, keep)), store=store)
    report: Any = types.SimpleNamespace(drain=lambda: order.append("drained"))
    stop = StopOnSignal(checkpoints, report, CPU, lambda step, looped: order.append(("work", step, looped)))
    stop.after_step(6, False)
    stop.received = signal.SIGTERM
    with pytest.raises(SystemExit) as ended:
        stop.after_step(7, True)
    assert ended.value.code == 143
    assert order == [("work", 6, False), ("work", 7, True), "drained", (7, False), "closed"]


@pytest.mark.parametrize(
    ("step", "end", "measured"),
    [(9, 99.0, False), (10, 99.0, True), (10, 14 + 2 * (LAG + 2), True), (10, 13.5 + 2 * (LAG + 2), False)],
)
def test_a_loss_is_measured_when_it_is_due_and_time_is_left(
    step: int, end: float, measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 2 s, and so do 2 rows on each of 2 ranks: 4 s for 6 rows. They are due 10 s after the start."""
    calls: list[tuple[object, ...]] = []
    clock = iter((20.0, 23.5, 40.0, 49.0))
    pace = types.SimpleNamespace(
        elapsed=0.0, seconds_per_step=2.0, predict=float, restart=lambda *words: calls.append(("restart", *words))
    )
    timeline = types.SimpleNamespace(
        pace=pace, clock=types.SimpleNamespace(elapsed=lambda: next(clock)), steps_end=lambda: end
    )
    report: Any = types.SimpleNamespace(
        timeline=timeline,
        drain=lambda: calls.append(("drain",)),
        log_held_out=lambda *words: calls.append(("log", *words)),
    )
    world: Any = types.SimpleNamespace(
        size=2, synchronize=lambda: calls.append(("synchronize",)), from_main=lambda seconds: seconds
    )
    config = types.SimpleNamespace(watch=types.SimpleNamespace(seconds=10.0, tokens=55, sample_tokens=4))
    trainer: Any = types.SimpleNamespace(config=config, world=world)
    rows: Any = types.SimpleNamespace(
        held_out=types.SimpleNamespace(num_rows=99),
        order=types.SimpleNamespace(seq_len=9),
        shape=types.SimpleNamespace(micro_rows=2),
    )
    monkeypatch.setattr(Watch, "_loss", lambda watch, looped: 2.5 + looped)
    monkeypatch.setattr(Watch, "_sample", lambda watch, step, looped: f"text {step} {looped}")
    watch = Watch(trainer, rows, report, None)  # type: ignore[arg-type]
    watch.after_step(step, True)
    waited = [("drain",), ("synchronize",), ("synchronize",)]
    logged = ("log", step, 3.5, 54, 23.5, 3.5, f"text {step} True")
    assert calls == ([*waited, ("restart", step + 1, 23.5), logged] if measured else [])
    assert (watch._longest, watch._due) == ((3.5, 33.5) if measured else (0.0, 10.0))
    if measured:
        calls.clear()
        watch.after_step(33, False)
        assert calls == []


def test_what_other_sinks_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    exits: list[Callable[[], None]] = []
    package = types.SimpleNamespace(
        init=lambda **words: calls.append(("init", words["project"], words["name"], words["config"]["train.seq_len"])),
        log=lambda numbers, step: calls.append(("log", numbers, step)),
        finish=lambda: calls.append(("finish",)),
    )
    monkeypatch.setitem(sys.modules, "trackio", package)  # type: ignore[arg-type]
    monkeypatch.setattr("atexit.register", exits.append)
    write = sinks._trackio(load_config(str(PRESET)), tmp_path / "my-run")
    write({"loss": 2.5}, 7)
    for leave in exits:
        leave()
    assert calls == [("init", "bitgolf", "my-run", 64), ("log", {"loss": 2.5}, 7), ("finish",)]


def test_a_sample_is_what_the_model_says_after_the_last_window() -> None:
    """A model that is sure that the next token is the sum of its window, and of whether the loops run."""

    def model(window: torch.Tensor, targets: None, mask: None, looped: bool) -> torch.Tensor:
        logits = torch.zeros(1, window.shape[1], 99)
        for place in range(window.shape[1]):
            logits[0, place, int(window[0, : place + 1].sum()) + looped] = 1e4
        return logits

    watch: Any = object.__new__(Watch)
    watch.world = CPU
    watch.config = types.SimpleNamespace(sample_tokens=5)
    watch.tokenizer = types.SimpleNamespace(bos_id=1, decode=str)
    watch.rows = types.SimpleNamespace(order=types.SimpleNamespace(seq_len=3))
    watch.trainer = types.SimpleNamespace(model=model)
    assert watch._sample(7, False) == "[1, 2, 4, 7, 13]"
    assert watch._sample(7, True) == "[2, 4, 8, 15, 28]"
    watch.world = World(1, 2, CPU.device)
    assert watch._sample(7, False) == ""


def test_the_utilization_is_that_of_steps_without_and_with_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    answers = {False: None, True: 0.25}
    monkeypatch.setattr("bitgolf.train.attended.mfu", lambda *given: calls.append(given[1:]) or answers[given[-1]])
    attended: Any = object.__new__(Attended)
    attended.run = types.SimpleNamespace(config=load_config(str(PRESET)))
    assert attended.mfu_per_token_rates(World(0, 2, CPU.device)) == (0.0, 0.25)
    assert calls == [(64, 1.0, device_name(CPU.device), 2, looped) for looped in (False, True)]
