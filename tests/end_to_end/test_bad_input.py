"""Bad input through the command line: exit status 2, one line that says what to do, and nothing lost."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from surgery import put_together, take_apart
from tiny_run import (
    PRESET,
    documents,
    done,
    events,
    file_digest,
    read_json,
    refused,
    settings,
    tree_digest,
    write_jsonl,
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "demoo", "--out", "x"], ["unknown preset 'demoo'", "did you mean 'demo'"]),
        (["run", "demo", "--out", "x", "--train.matrx_lr", "1"], ["train.matrx_lr", "did you mean 'train.matrix_lr'"]),
        (["run", "demo", "--out", "x", "--device", "tpu"], ["device", "'tpu'", "'cpu'"]),
        (["run", "demo", "--out", "x", "surprise"], ["surprise"]),
        (["run", "demo"], ["--out"]),
        (["run", "none.toml", "--out", "x"], ["none.toml does not exist"]),
        (["rnu", "demo"], ["rnu", "run"]),
        (["prepare", "stdlbi", "--out", "x"], ["stdlbi", "did you mean 'stdlib'"]),
        (["prepare", "jsonl:none.jsonl", "--out", "x"], ["none.jsonl"]),
        (["prepare", "stdlib", "--out", "x", "--train.seq_len", "8"], ["--train.seq_len", "--data."]),
        (["prepare", "stdlib", "--out", "x", "--data.source", "fineweb"], ["--data.source"]),
        (["train", "x", "--quick"], ["--quick"]),
        (["train", "x", "--train.seq_len", "8"], ["--train.seq_len"]),
        (["train", "x"], ["x is not a run directory", "bitgolf run PRESET --out x"]),
        (["pack", "x"], ["x is not a run directory"]),
        (["score", "x"], ["x is not a run directory"]),
        (["audit", "x"], ["x is not a run directory"]),
        (["report", "x"], ["x is not a run directory"]),
        (["sample", "none.bitgolf"], ["none.bitgolf", "No such file"]),
        (["presets", "show"], ["presets show needs a name"]),
        (["presets", "show", "basline"], ["did you mean 'baseline'"]),
    ],
    ids=" ".join,
)
def test_bad_arguments_are_named_and_leave_nothing_behind(
    words: list[str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(*words)
    for word in expected:
        assert word in message
    assert list(tmp_path.iterdir()) == []


def test_a_trained_run_is_trained_again_only_with_overwrite(run_copy: Path) -> None:
    before = tree_digest(run_copy)
    for words in ([], ["--resume"]):
        assert "use --overwrite" in refused("train", run_copy, *words)
    assert tree_digest(run_copy) == before
    done("train", run_copy, "--overwrite")
    left = {path.name for path in run_copy.iterdir()}
    assert "weights.safetensors" in left
    assert not left & {"model.bitgolf", "pack.json", "score.json", "nll.npy", "tape.json", "audit.json", "report.html"}
    charges = [charge for charge in read_json(run_copy / "budget.json")["charges"] if charge["stage"] == "train"]
    assert [charge["what"] for charge in charges] == ["optimizer steps", "calibration"]
    spent = sum(charge["amount"] for charge in charges)
    assert spent == pytest.approx(events(run_copy, "end")[0]["elapsed_seconds"])


def test_the_directory_of_another_configuration_is_left_alone(run_copy: Path, corpus: Path) -> None:
    before = tree_digest(run_copy)
    for resume in ([], ["--resume"]):
        message = refused("run", *settings(corpus, train__matrix_lr=0.01), "--out", run_copy, *resume)
        assert "train.matrix_lr" in message
        assert "another --out" in message
    assert tree_digest(run_copy) == before


def test_a_run_whose_end_would_fail_does_not_begin(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its compressor is missing, or the run that it branches from is."""
    out = tmp_path / "new"
    assert "none is not a run directory" in refused(
        "run", *settings(corpus), "--out", out, "--branch", tmp_path / "none"
    )
    monkeypatch.setattr("bitgolf.artifact.compressors.missing_package", {"zstd": "brotli>=1.2"}.get)
    message = refused("run", *settings(corpus, pack__compressor="zstd"), "--out", out)
    assert "'zstd' needs brotli>=1.2, which is not installed" in message
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert "not a bitgolf run" in refused("run", *settings(corpus), "--out", tmp_path)
    assert "not a run directory" in refused("pack", tmp_path)
    assert "not prepared data" in refused("prepare", f"jsonl:{corpus}", "--out", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("stage", "missing", "command"),
    [
        ("train", "data", "bitgolf run"),
        ("pack", "weights.safetensors", "bitgolf train"),
        ("pack", "calibration", "bitgolf train"),
        ("score", "model.bitgolf", "bitgolf pack"),
        ("score", "data", "bitgolf run"),
    ],
)
def test_a_stage_too_early_names_the_command_that_comes_first(
    run_copy: Path, stage: str, missing: str, command: str
) -> None:
    gone = run_copy / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    before = tree_digest(run_copy)
    message = refused(stage, run_copy, *(["--overwrite"] if stage == "train" else []))
    assert str(gone) in message
    assert f"`{command} {run_copy}" in message
    assert tree_digest(run_copy) == before


def with_model(**settings: object) -> Callable[[bytes], bytes]:
    """Replaces settings of the model in the header of an artifact, whose checksums stay right."""

    def rewrite(data: bytes) -> bytes:
        header, streams = take_apart(data)
        header["model_config"].update(settings)
        return put_together(header, streams)

    return rewrite


@pytest.mark.parametrize("command", ["score", "sample"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[: len(data) // 2], "truncated"),
        (with_model(num_layers=256, model_dim=16384, ve_layers=[], mlp_multiple=16), "do not match the model"),
        (with_model(vocab_size=400), "384 pieces, the model 400"),
    ],
    ids=["truncated", "terabytes by configuration", "another vocabulary"],
)
def test_a_damaged_artifact_is_refused_with_the_place(
    run_copy: Path, command: str, damage: Callable[[bytes], bytes], words: str
) -> None:
    artifact = run_copy / "model.bitgolf"
    artifact.write_bytes(damage(artifact.read_bytes()))
    before = tree_digest(run_copy)
    message = refused("score", run_copy) if command == "score" else refused("sample", artifact, "--max-tokens", "3")
    assert "model.bitgolf" in message
    assert words in message
    assert tree_digest(run_copy) == before


def test_weights_of_an_earlier_training_are_not_packed(run_copy: Path) -> None:
    """A training that was to replace them has ended early."""
    log = run_copy / "train.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    message = refused("pack", run_copy)
    assert "has not ended" in message and f"bitgolf train {run_copy} --resume" in message


def test_an_artifact_over_the_cap_says_by_how_much_and_keeps_the_earlier_one(run_copy: Path) -> None:
    before = tree_digest(run_copy)
    message = refused("pack", run_copy, "--budget.artifact_bytes", "1000")
    sum_of_bytes = r"([\d,]+) bytes of model \+ ([\d,]+) bytes of code = ([\d,]+), ([\d,]+) over the cap of 1,000"
    model, code, total, over = (int(text.replace(",", "")) for text in re.findall(sum_of_bytes, message)[0])
    assert model + code == total == over + 1000
    assert tree_digest(run_copy) == before


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_shard_stops_every_stage_that_opens_the_data(run_copy: Path, split: str) -> None:
    shard = run_copy / "data" / f"{split}_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    before = tree_digest(run_copy)
    for stage in ("train", "pack", "score"):
        message = refused(stage, run_copy, *(["--overwrite"] if stage == "train" else []))
        assert shard.name in message
        assert "truncated" in message
    assert tree_digest(run_copy) == before


def test_validation_ids_beyond_the_vocabulary_are_found(run_copy: Path) -> None:
    shard = run_copy / "data" / "val_000000.bin"
    tokens = np.memmap(shard, dtype="<u2", mode="r+", offset=1024)
    tokens[1234] = 384
    tokens.flush()
    before = tree_digest(run_copy)
    message = refused("score", run_copy)
    assert "token 1,234 is id 384" in message
    assert tree_digest(run_copy) == before


def test_the_tokenizer_of_other_data_is_not_taken(run_copy: Path, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", tuple(text.upper() for text in documents()[:200]))
    data = tmp_path / "data"
    done("prepare", f"jsonl:{other}", "--out", data, "--model.vocab_size", "384")
    shutil.rmtree(run_copy / "data")
    data.rename(run_copy / "data")
    assert "is not the one that" in refused("score", run_copy)
    (run_copy / "data" / "tokenizer.model").write_bytes(b"not a model")
    assert "tokenizer.model" in refused("score", run_copy)


@pytest.mark.parametrize("name", ["weights.safetensors", "calibration/hessians.safetensors"])
def test_damaged_weights_or_statistics_name_the_command_that_makes_them(run_copy: Path, name: str) -> None:
    path = run_copy / name
    path.write_bytes(path.read_bytes()[:-40])
    before = tree_digest(run_copy)
    message = refused("pack", run_copy)
    assert str(path) in message
    assert f"bitgolf train {run_copy}" in message
    assert tree_digest(run_copy) == before


@pytest.mark.parametrize("name", ["weights.safetensors", "budget.json", "pack.json"])
def test_a_score_that_cannot_be_finished_leaves_the_earlier_one_whole(run_copy: Path, name: str) -> None:
    (run_copy / name).write_bytes(b"not what it was")
    before = tree_digest(run_copy)
    assert str(run_copy / name) in refused("score", run_copy)
    assert tree_digest(run_copy) == before


@pytest.mark.parametrize("name", ["pack.json", "score.json"])
def test_a_damaged_product_is_named_with_the_command_that_makes_it(run_copy: Path, name: str) -> None:
    (run_copy / name).write_text('{"half of')
    message = refused("run", run_copy / "config.toml", "--out", run_copy, "--resume")
    assert name in message
    assert f"bitgolf {name.removesuffix('.json')} {run_copy}" in message


@pytest.mark.parametrize(
    ("name", "damage", "command", "words"),
    [
        ("audit.json", b"{}", "report", "checks is missing"),
        ("audit.json", b"{}", "submit", "bitgolf audit"),
        ("pack.json", b'{"a": 1}', "report", "total_bytes is missing"),
        ("pack.json", b"{}", "score", "total_bytes is missing"),
        ("score.json", b'{"a": 1}', "report", "methods is missing"),
        ("tape.json", b"[]", "compare", "`bitgolf score"),
        ("nll.npy", b"", "report", "`bitgolf score"),
        ("train.jsonl", b"\xff\xfe", "report", "is damaged"),
        ("train.jsonl", b"[1]\n", "compare", "line 1 is not an event"),
        ("train.jsonl", b'{"step": 1}\n', "submit", "line 1 is not an event"),
        ("train.log", b"\xff\xfe", "submit", "is damaged"),
    ],
)
def test_what_is_damaged_is_named_by_those_that_read_it(
    tiny_run: Path, run_copy: Path, tmp_path: Path, name: str, damage: bytes, command: str, words: str
) -> None:
    (run_copy / name).write_bytes(damage)
    more = {"compare": [tiny_run], "submit": ["--seeds", "1", "--out", tmp_path / "records"]}.get(command, [])
    before = tree_digest(run_copy)
    message = refused(command, run_copy, *more)
    assert str(run_copy / name) in message
    assert words in message
    assert tree_digest(run_copy) == before
    assert not (tmp_path / "records").exists()


def test_ids_beyond_the_vocabulary_are_found_when_runs_are_compared(tiny_run: Path, run_copy: Path) -> None:
    shard = run_copy / "data" / "val_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-2] + b"\xff\xff")
    assert "is id 65535" in refused("compare", run_copy, tiny_run)


def test_a_failed_preparation_can_be_repeated_with_other_settings(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"txt": "b"}\n')
    out = tmp_path / "run"
    assert "'text'" in refused("run", PRESET, "--out", out, "--data.source", f"jsonl:{source}")
    assert [p.name for p in out.iterdir()] == ["config.toml"]
    write_jsonl(tmp_path / "b.jsonl")
    changes = ("--data.source", f"jsonl:{tmp_path / 'b.jsonl'}", "--train.max_steps", "2")
    done("run", PRESET, "--out", out, *changes)


def test_a_full_disk_while_packing_keeps_the_earlier_artifact(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as handle:
            handle.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    before = tree_digest(run_copy)
    artifact = file_digest(run_copy / "model.bitgolf")
    monkeypatch.setattr(Path, "write_bytes", full)
    message = refused("pack", run_copy)
    monkeypatch.undo()
    assert "No space left on device" in message
    assert "intact" in message
    assert file_digest(run_copy / "model.bitgolf") == artifact
    assert tree_digest(run_copy) == before


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_pipe, _device, _folder, lambda path: path.write_text("[" * 100_000 + "\n{}\n")])
@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("score.json", ["report", "compare"]),
        ("pack.json", ["report", "score"]),
        ("train.jsonl", ["report", "train --overwrite --resume"]),
        ("tape.json", ["compare"]),
        ("nll.npy", ["report", "compare"]),
        ("model.bitgolf", ["report", "score"]),
        ("weights.safetensors", ["pack"]),
        ("calibration/hessians.safetensors", ["pack"]),
        ("budget.json", ["report", "score", "pack"]),
        ("data/manifest.json", ["report", "score", "compare"]),
        ("data/val_000000.bin", ["report", "score"]),
        ("data/tokenizer.model", ["report", "score"]),
    ],
)
def test_a_damaged_or_special_file_of_a_run_is_one_line_of_error(
    run_copy: Path, tiny_run: Path, name: str, commands: list[str], damage: Callable[[Path], object]
) -> None:
    damage(run_copy / name)
    for command in commands:
        word, *options = command.split()
        others = [tiny_run] if word == "compare" else []
        assert Path(name).name in refused(word, run_copy, *others, *options)
