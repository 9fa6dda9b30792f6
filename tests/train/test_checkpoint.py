"""Checkpoints are whole or absent, and the last good one survives a failure of the next."""

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

import bitgolf.train.checkpoint
from bitgolf.errors import RunError
from bitgolf.train.checkpoint import CheckpointStore, TrainState, state_digest


def tensors(seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "model.a": torch.randn(5, 7, generator=rng),
        "bits": torch.randn(4, generator=rng).bfloat16(),
        "step": torch.tensor(float(seed)),
        "rng": torch.get_rng_state(),
    }


def state(step: int, digest: str = "config") -> TrainState:
    return TrainState(step, step / 10, digest, 1)


def saved(folder: Path, *steps: int) -> CheckpointStore:
    store = CheckpointStore(folder)
    for step in steps:
        store.save(state(step), tensors(step))
    store.close()
    return CheckpointStore(folder)


def newest_step(store: CheckpointStore) -> int:
    """Step of the checkpoint that is loaded."""
    loaded = store.load_latest("config")
    assert loaded is not None
    return loaded[0].step


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    loaded = saved(tmp_path, 30).load_latest("config")
    assert loaded is not None
    assert loaded[0] == state(30)
    assert loaded[1].keys() == tensors(30).keys()
    for name, tensor in tensors(30).items():
        assert torch.equal(loaded[1][name], tensor)
        assert loaded[1][name].dtype == tensor.dtype


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_others_may_read_a_checkpoint_as_far_as_the_umask_allows(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        saved(tmp_path, 1)
    finally:
        os.umask(before)
    files = list((tmp_path / "step-00000001").iterdir())
    assert [file.stat().st_mode & 0o777 for file in files] == [0o666 & ~umask] * 2


def test_the_tensors_are_saved_as_they_are_at_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, live, changed = CheckpointStore(tmp_path), tensors(1), threading.Event()
    write = bitgolf.train.checkpoint.save_file

    def write_later(values: dict[str, torch.Tensor], path: Path) -> None:
        assert changed.wait(60)
        write(values, path)

    monkeypatch.setattr(bitgolf.train.checkpoint, "save_file", write_later)
    store.save(state(1), live)
    live["model.a"].zero_()
    changed.set()
    store.close()
    loaded = store.load_latest("config")
    assert loaded is not None
    assert torch.equal(loaded[1]["model.a"], tensors(1)["model.a"])


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    store = saved(tmp_path, 9, 10, 100)
    assert names(tmp_path) == ["step-00000010", "step-00000100"]
    assert newest_step(store) == 100


def test_a_step_saved_again_replaces_the_first(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    store = CheckpointStore(tmp_path)
    store.save(state(5), tensors(77))
    store.close()
    loaded = store.load_latest("config")
    assert loaded is not None
    assert float(loaded[1]["step"]) == 77
    assert names(tmp_path) == ["step-00000005"]


def test_without_checkpoints_there_is_nothing_to_load(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "never").load_latest("config") is None


def cut(path: Path) -> None:
    file = path / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def flip(path: Path) -> None:
    file = path / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(bytes(data))


def delete_state(path: Path) -> None:
    (path / "state.json").unlink()


def garble_state(path: Path) -> None:
    (path / "state.json").write_text("{")


def strip_state(path: Path) -> None:
    (path / "state.json").write_text(json.dumps({"step": 2, "tensors_sha256": "0"}))


@pytest.mark.parametrize("damage", [cut, flip, delete_state, garble_state, strip_state])
def test_a_damaged_one_is_reported_and_the_one_before_it_used(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = saved(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002")
    assert newest_step(store) == 1
    assert "step-00000002 is damaged" in caplog.text


def test_if_all_are_damaged_none_is_loaded_or_removed(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2)
    for name in names(tmp_path):
        cut(tmp_path / name)
    with pytest.raises(RunError, match="step-00000002, step-00000001 damaged; remove the folder"):
        store.load_latest("config")
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_checkpoints_of_another_configuration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="another configuration"):
        saved(tmp_path, 1).load_latest("other")


def test_a_folder_left_by_a_killed_writer_is_ignored_and_then_removed(tmp_path: Path) -> None:
    store = saved(tmp_path, 1)
    stale = tmp_path / ".step-00000002.4242.tmp"
    stale.mkdir()
    (stale / "state.safetensors").write_bytes(b"half")
    assert newest_step(store) == 1
    store.save(state(3), tensors(3))
    store.close()
    assert names(tmp_path) == ["step-00000001", "step-00000003"]


def test_what_cannot_be_removed_keeps_no_checkpoint_from_being_written(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001.17.tmp").touch()  # no folder, as every other of that name is
    assert newest_step(saved(tmp_path, 3)) == 3


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["write", "safetensors"],
)
def test_a_full_disk_raises_at_the_next_call_and_the_earlier_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    store = saved(tmp_path, 1)

    def full(_: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(bitgolf.train.checkpoint, "save_file", full)
        store.save(state(2), tensors(2))
        with pytest.raises(RunError, match=r"No space left.*earlier checkpoints are intact.*--resume"):
            store.save(state(3), tensors(3))
    assert names(tmp_path) == ["step-00000001"]
    assert newest_step(store) == 1
    store.save(state(4), tensors(4))  # the disk has room again
    store.close()
    assert names(tmp_path) == ["step-00000001", "step-00000004"]


def test_the_digest_depends_on_names_shapes_types_and_bits_but_not_on_the_order() -> None:
    base = {"a": torch.arange(6.0), "b": torch.ones(2)}
    same = state_digest(dict(reversed(base.items())))
    assert state_digest(base) == same
    others = [
        {"a": torch.arange(6.0), "c": torch.ones(2)},
        {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)},
        {"a": torch.arange(6.0).view(torch.int32), "b": torch.ones(2)},
        {"a": torch.arange(6.0).nextafter(torch.tensor(9.0)), "b": torch.ones(2)},
    ]
    assert len({same, *map(state_digest, others)}) == 5


def test_all_can_be_removed(tmp_path: Path) -> None:
    store = saved(tmp_path / "checkpoint", 1, 2)
    store.remove_all()
    assert store.load_latest("config") is None
    store.remove_all()


def test_kept_ones_stay_and_the_newest_of_all_is_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step, kept in ((1, False), (2, True), (3, False), (4, True), (5, False), (6, False)):
        store.save(state(step), tensors(step), kept=kept)
    store.close()
    assert names(tmp_path) == ["step-00000002-kept", "step-00000004-kept", "step-00000005", "step-00000006"]
    (tmp_path / "step-notes").mkdir()  # not a checkpoint
    assert store.steps() == [2, 4, 5, 6]
    loaded = store.load_step(4, "config")
    assert loaded[0] == state(4)
    assert torch.equal(loaded[1]["model.a"], tensors(4)["model.a"])
    cut(tmp_path / "step-00000006")
    cut(tmp_path / "step-00000005")
    assert newest_step(store) == 4


def test_a_missing_damaged_or_foreign_step_is_named(tmp_path: Path) -> None:
    store = saved(tmp_path, 7, 9)
    with pytest.raises(RunError, match="no checkpoint of step 8; there are: 7, 9"):
        store.load_step(8, "config")
    with pytest.raises(RunError, match="another configuration"):
        store.load_step(7, "other")
    cut(tmp_path / "step-00000007")
    with pytest.raises(RunError, match="step-00000007 is damaged"):
        store.load_step(7, "config")
    with pytest.raises(RunError, match="there are: none"):
        CheckpointStore(tmp_path / "never").load_step(1, "config")


def test_the_origin_of_a_branch_is_stored_and_older_checkpoints_have_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(TrainState(3, 0.5, "config", 2, "digest@1"), tensors(3))
    store.close()
    assert store.load_step(3, "config")[0].origin == "digest@1"
    file = tmp_path / "step-00000003" / "state.json"
    stored = json.loads(file.read_text())
    del stored["origin"]
    file.write_text(json.dumps(stored))
    assert store.load_step(3, "config")[0].origin == ""
