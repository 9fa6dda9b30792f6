"""Atomic writes, the budget ledger and the run directory."""

import errno
import hashlib
import json
import os

import pytest
import torch

from bitgolf.config import load_config
from bitgolf.errors import BudgetError, ConfigError, RunError
from bitgolf.model.weights import write_tensors
from bitgolf.run import atomic
from bitgolf.run.budget import Budget
from bitgolf.run.directory import RunDirectory
from bitgolf.run.lock import LOCK_FILES
from bitgolf.run.seal import digest


def test_an_interrupted_write_leaves_the_earlier_file_and_no_litter(tmp_path) -> None:
    target = tmp_path / "product.json"
    atomic.write_json(target, {"version": 1})

    def fail() -> None:
        with atomic.atomic_path(target) as temporary:
            temporary.write_text("half of a")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert json.loads(target.read_text()) == {"version": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["product.json"]


def test_what_a_killed_process_of_the_same_number_left_is_replaced(tmp_path) -> None:
    """In a container every process may have the same number."""
    litter = tmp_path / f".data.{os.getpid()}.partial"
    litter.mkdir()
    (litter / "half").touch()
    with atomic.atomic_directory(tmp_path / "data") as folder:
        (folder / "whole").touch()
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["data", "data/whole"]


def test_temporary_names_are_no_content_of_a_folder(tmp_path) -> None:
    for name in (".x.json.999999999.tmp", ".data.1.partial", ".x.json.text.tmp", "x.1.tmp"):
        (tmp_path / name).touch()
    assert atomic.entries(tmp_path) == {".x.json.text.tmp", "x.1.tmp"}


@pytest.mark.parametrize("make", [atomic.atomic_path, atomic.atomic_directory])
@pytest.mark.parametrize(
    ("code", "file", "named"),
    [
        (errno.ENOSPC, None, "product"),
        (errno.EDQUOT, None, "product"),
        (errno.EFBIG, None, "product"),
        (errno.EIO, None, None),  # perhaps of another file that was read
        (errno.EROFS, "temporary", "product"),
        (errno.ENOSPC, "/other", "/other"),
    ],
)
def test_a_full_disk_names_what_was_to_be_written(make, code, file, named, tmp_path) -> None:
    with pytest.raises(OSError, match="why") as error, make(tmp_path / "product") as temporary:
        raise OSError(code, "why", str(temporary) if file == "temporary" else file)
    assert error.value.errno == code
    assert error.value.filename == (str(tmp_path / "product") if named == "product" else named)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_through_links_that_wait_under_the_temporary_name(tmp_path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / f".x.json.{os.getpid()}.tmp").symlink_to("victim")
    atomic.write_json(tmp_path / "x.json", 1)
    assert (tmp_path / "victim").read_text() == "mine" and (tmp_path / "x.json").read_text() == "1\n"


def test_json_refuses_nan_and_keeps_the_file(tmp_path) -> None:
    target = tmp_path / "x.json"
    atomic.write_json(target, [1])
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(target, float("nan"))
    assert json.loads(target.read_text()) == [1]


def test_the_ledger_survives_and_a_stage_can_replace_its_charges(tmp_path) -> None:
    path = tmp_path / "budget.json"
    budget = Budget({"train_seconds": 10}, path)
    budget.charge("train_seconds", "train", "steps", 7.5)
    budget.charge("train_seconds", "train", "calibration", 1.0)
    budget.charge("eval_seconds", "score", "sliding", 3.0)
    again = Budget({"train_seconds": 10}, path)
    assert again.spent("train_seconds") == 8.5
    again.forget("train")
    assert Budget({}, path).spent("train_seconds") == 0
    assert Budget({}, path).spent("eval_seconds") == 3.0


def test_bad_charges_are_refused() -> None:
    budget = Budget({})
    with pytest.raises(BudgetError, match="minutes"):
        budget.charge("minutes", "train", "steps", 1)
    with pytest.raises(BudgetError, match="-1"):
        budget.charge("train_seconds", "train", "steps", -1)
    with pytest.raises(BudgetError, match="unknown budget"):
        Budget({"minutes": 3})


@pytest.mark.parametrize(
    "content",
    ["{]", "[]", "null", '{"charges": null}', '{"charges": [null]}', '{"charges": [{"kind": "train_seconds"}]}',
     '{"charges": ' + "[" * 9_999, *(
         f'{{"charges": [{{"kind": "train_seconds", "stage": "train", "what": "steps", "amount": {amount}}}]}}'
         for amount in ("null", "-1", '"3"', "1e400", "9" * 400, "9" * 5_000, "NaN", "true", "[]")
     ), '{"charges": [{"kind": "minutes", "stage": "train", "what": "steps", "amount": 1}]}'],
    ids=lambda text: text[-30:],
)  # fmt: skip
def test_a_damaged_ledger_is_named(tmp_path, content: str) -> None:
    path = tmp_path / "budget.json"
    path.write_text(content)
    with pytest.raises(RunError, match=r"budget\.json is not a budget ledger: .*; remove it") as caught:
        Budget({}, path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_of_the_umask(tmp_path, umask: int) -> None:
    before = os.umask(umask)
    try:
        atomic.write_text(tmp_path / "text", "a")
        with atomic.atomic_path(tmp_path / "private") as temporary:
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as some libraries write
        write_tensors(tmp_path / "weights.safetensors", {"a": torch.zeros(1)}, {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_a_product_without_permission_is_not_called_missing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.create(tmp_path / "run", load_config("demo"))
    (run / "weights.safetensors").touch()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(RunError, match=r"weights\.safetensors cannot be read: permission denied; ask its owner"):
        run.require("weights.safetensors")


@pytest.mark.parametrize(
    "content",
    [b"[train", b"\xff\xfe", b"a = " + b"[" * 50_000, b"seed = " + b"9" * 5_000, b"seed = " + b"9" * 400, b"seed = nan",
     b"x" * 2_000_000],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_damaged_configuration_of_a_run_is_named(tmp_path, content: bytes) -> None:
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(RunError, match=r"config\.toml is damaged: ") as caught:
        RunDirectory.open(tmp_path)
    assert str(caught.value).isprintable()


def test_a_configuration_has_at_most_a_million_bytes(tmp_path) -> None:
    text = load_config("demo").to_toml()
    for size, fits in ((1_000_000, True), (1_000_001, False)):
        (tmp_path / "config.toml").write_text(text + "#" * (size - len(text.encode())))
        for read in (RunDirectory.open, lambda path: load_config(str(path / "config.toml"))):
            if fits:
                read(tmp_path)
                continue
            with pytest.raises((RunError, ConfigError), match="more than 1,000,000 bytes"):
                read(tmp_path)


def test_a_run_directory_belongs_to_one_configuration(tmp_path) -> None:
    config = load_config("demo")
    root = tmp_path / "run"
    RunDirectory.create(root, config)
    assert RunDirectory.open(root).config == config
    (root / "train.jsonl").write_text("")
    with pytest.raises(RunError, match="--resume"):
        RunDirectory.create(root, config)
    assert RunDirectory.create(root, config, resume=True).config == config
    other = load_config("demo", {"train.matrix_lr": "0.5"})
    with pytest.raises(RunError, match=r"train\.matrix_lr"):
        RunDirectory.create(root, other, resume=True)


def test_a_directory_whose_first_stage_failed_can_be_used_again(tmp_path) -> None:
    RunDirectory.create(tmp_path / "run", load_config("demo"))
    other = load_config("demo", {"seed": "5"})
    assert RunDirectory.create(tmp_path / "run", other).config.seed == 5
    assert RunDirectory.open(tmp_path / "run").config == other


def test_a_directory_that_a_killed_process_began_can_be_used(tmp_path) -> None:
    for name in (".config.toml.999999999.tmp", "..lock-owner.json.999999999.tmp"):
        (tmp_path / name).touch()
    RunDirectory.create(tmp_path, load_config("demo"))
    assert atomic.entries(tmp_path) - LOCK_FILES == {"config.toml"}


def test_a_foreign_directory_is_left_alone(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="not a bitgolf run"):
        RunDirectory.create(tmp_path, load_config("demo"))
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    with pytest.raises(RunError, match="not a run directory"):
        RunDirectory.open(tmp_path)


@pytest.mark.parametrize(
    ("stage", "products"),
    [
        ("train", ("weights.safetensors", "calibration", "train.jsonl")),
        ("pack", ("model.bitgolf", "pack.json")),
        ("score", ("score.json", "nll.npy", "tape.json")),
        ("audit", ("audit.json",)),
    ],
)
def test_a_product_is_there_as_what_it_must_be(tmp_path, stage: str, products: tuple[str, ...]) -> None:
    run = RunDirectory.create(tmp_path / "run", load_config("demo"))
    for name in products:
        with pytest.raises(RunError, match=rf"{name} is missing; run `bitgolf {stage} {run.path}` first"):
            run.require(name)
        (run / name).mkdir()
        if name == "calibration":
            assert run.require(name) == run / name
            (run / name).rmdir()
            (run / name).touch()
        with pytest.raises(RunError, match=rf"{name} is damaged: it is a folder"):
            run.require(name)
    with pytest.raises(RunError, match=rf"run `bitgolf run {run.path}/config.toml --out {run.path} --resume` first"):
        run.require("data")


def test_new_weights_remove_what_was_made_of_earlier_ones(tmp_path) -> None:
    run = RunDirectory.create(tmp_path / "run", load_config("demo"))
    later = "model.bitgolf pack.json score.json nll.npy nll-chunked.npy tape.json audit.json report.html".split()  # noqa: SIM905
    kept = ("weights.safetensors", "train.jsonl", "budget.json", "notes.npy")
    for name in (*later, *kept):
        (run / name).touch()
    run.remove_products_of_later_stages()
    run.remove_products_of_later_stages()
    assert {path.name for path in run.path.iterdir()} - LOCK_FILES == {"config.toml", *kept}


def test_the_digest_of_a_value_is_that_of_its_ascii_json() -> None:
    """Keys in order, no spaces, and escapes for all other characters."""
    for value in ({"é": (1, None), "a": 0.5}, {"a": 0.5, "é": [1, None]}):
        assert digest(value) == hashlib.sha256(rb'{"a":0.5,"\u00e9":[1,null]}').hexdigest()
