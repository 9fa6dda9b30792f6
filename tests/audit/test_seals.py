"""Seals: every change of a product after it was made is named; an untouched run passes."""

import json
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_run import change_artifact, read_json, shard

from bitgolf.audit.run import audit_run
from bitgolf.data.shards import write_shard
from bitgolf.data.split import hash_document
from bitgolf.run import atomic
from bitgolf.run.directory import RunDirectory
from bitgolf.run.seal import digest, file_digest, seal_of, sealed

CHECKS = ("artifact-sealed", "data-sealed", "sealed-chain")
CHANGED_SCORE = "score.json was changed after scoring"


def problems(root: Path) -> str:
    """The reasons of the checks of seals that fail."""
    verdict = audit_run(RunDirectory.open(root), only=CHECKS)
    return "; ".join(f"{check.name}: {check.reason}" for check in verdict.checks if check.verdict == "FAIL")


@pytest.fixture
def copy(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint", "*.html")))


def edit(path: Path, change: Callable[[dict[str, Any]], Any], reseal: bool = False) -> None:
    record = read_json(path)
    change(record)
    atomic.write_json(path, sealed(record) if reseal else record)


def events(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "train.jsonl").read_text().splitlines()]


def write_events(root: Path, lines: list[dict[str, Any]]) -> None:
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def other_shard(root: Path) -> None:
    """Another training shard of equal length."""
    tokens = shard(root, "train")
    write_shard(root / "data" / "train_000000.bin", np.roll(tokens, 7))


def name_shard(root: Path, split: str, reseal: bool) -> None:
    path = root / "data" / f"{split}_000000.bin"
    tokens = len(shard(root, split))

    def change(manifest: dict[str, Any]) -> None:
        manifest["splits"][split]["shards"][0] |= {"sha256": file_digest(path), "tokens": tokens}
        manifest["splits"][split]["tokens"] = tokens

    edit(root / "data" / "manifest.json", change, reseal)


def other_shard_that_the_manifest_names(root: Path) -> None:
    other_shard(root)
    name_shard(root, "train", reseal=False)


def other_shard_in_a_new_seal(root: Path) -> None:
    other_shard(root)
    name_shard(root, "train", reseal=True)


def easiest_documents(root: Path) -> None:
    """The validation documents of least loss only: hashes, counts and manifest agree."""
    tokens, nll = shard(root, "val"), np.load(root / "nll.npy")
    edges = [*np.flatnonzero(tokens == tokens[0]), len(tokens)]
    easy = sorted(pairwise(edges), key=lambda span: nll[max(span[0] - 1, 0) : span[1] - 1].mean())[:20]
    kept = [tokens[start:stop] for start, stop in sorted(easy)]
    write_shard(root / "data" / "val_000000.bin", np.concatenate(kept))
    hashes = root / "data" / "val_documents.bin"
    hashes.write_bytes(np.array([hash_document(part.tobytes()) for part in kept], dtype="<u8").tobytes())

    def change(manifest: dict[str, Any]) -> None:
        manifest["splits"]["val"]["documents"] = len(kept)
        manifest["document_hashes"]["val"] |= {"sha256": file_digest(hashes), "of": "uint16 tokens"}

    edit(root / "data" / "manifest.json", change)
    name_shard(root, "val", reseal=True)


def record(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A record that is edited."""
    return lambda root: edit(root / name, change)


def setting(pattern: str, line: str) -> Callable[[Path], None]:
    """Another value in config.toml."""

    def change(root: Path) -> None:
        text = (root / "config.toml").read_text()
        (root / "config.toml").write_text(re.sub(pattern, line, text))

    return change


def better_method_with_losses(root: Path) -> None:
    np.save(root / "nll-chunked.npy", np.load(root / "nll-chunked.npy") * np.float32(0.7))


def other_weights(root: Path) -> None:
    path = root / "weights.safetensors"
    save_file({name: tensor * 1.001 for name, tensor in load_file(path).items()}, path)


def other_statistics(root: Path) -> None:
    path = root / "calibration" / "hessians.safetensors"
    tokens = next(event for event in events(root) if event["event"] == "calibration")["tokens"]
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path, {"tokens": str(tokens)})


def more_statistics(root: Path) -> None:
    folder = root / "calibration"
    shutil.copy(folder / "hessians.safetensors", folder / "more.safetensors")


def other_tokenizer(root: Path) -> None:
    path = root / "data" / "tokenizer.model"
    path.write_bytes(path.read_bytes() + b"\x82\x01\x00")


def other_tokenizer_in_a_new_seal(root: Path) -> None:
    other_tokenizer(root)
    path = root / "data" / "manifest.json"
    edit(
        path, lambda manifest: manifest["tokenizer"].update(sha256=file_digest(path.with_name("tokenizer.model"))), True
    )


def other_source_in_a_new_seal(root: Path) -> None:
    edit(root / "data" / "manifest.json", lambda manifest: manifest["settings"].update(val_bytes=9), True)


def other_loss(root: Path) -> None:
    lines = events(root)
    next(line for line in lines if line["event"] == "step")["loss"] = 0.5
    write_events(root, lines)


def missing_line(root: Path) -> None:
    lines = events(root)
    write_events(root, [line for line in lines if line["event"] != "calibration"])


def log_sealed_again(root: Path) -> None:
    before, lines = "", events(root)
    next(line for line in lines if line["event"] == "step")["loss"] = 0.5
    for line in lines:
        line["seal"] = before = seal_of(line, before)
    write_events(root, lines)


def sealed_from(root: Path, *, log: Callable[[list[dict[str, Any]]], Any] = len, pack: Any = len) -> None:
    """Change the log and pack.json, and make all seals after them again."""
    before, lines = "", events(root)
    log(lines)
    for line in lines:
        line["seal"] = before = seal_of(line, before)
    write_events(root, lines)
    for name, change in (("pack.json", pack), ("score.json", len)):
        record = read_json(root / name)
        change(record)
        record["seal"] = before = seal_of(record, before)
        atomic.write_json(root / name, record)


def other_cap_in_new_seals(root: Path) -> None:
    setting(r"artifact_bytes = \d+", "artifact_bytes = 2000000")(root)

    def change(pack: dict[str, Any]) -> None:
        pack["settings"]["budget.artifact_bytes"] = pack["config"]["budget"]["artifact_bytes"] = 2_000_000

    sealed_from(root, pack=change)


def other_settings_in_new_seals(root: Path) -> None:
    setting(r"artifact_bytes = \d+", "artifact_bytes = 2000000")(root)
    sealed_from(root, pack=lambda pack: pack["settings"].update({"budget.artifact_bytes": 2_000_000}))


def no_data_in_the_log(root: Path) -> None:
    other_shard_in_a_new_seal(root)
    sealed_from(root, log=lambda lines: lines[0].pop("data_seal"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_cap_in_new_seals, "the header of model.bitgolf names another configuration than pack.json"),
        (other_settings_in_new_seals, "pack.json has other settings than its configuration"),
        (no_data_in_the_log, "the data is not the data that was trained on"),
        (other_shard, "data-sealed: train_000000.bin was changed after it was prepared"),
        (other_shard_that_the_manifest_names, "data-sealed: manifest.json was changed after the data was prepared"),
        (other_shard_in_a_new_seal, "the data is not the data that was trained on"),
        (easiest_documents, "the data is not the data that was scored"),
        (other_tokenizer, "tokenizer"),
        (other_tokenizer_in_a_new_seal, "the tokenizer in model.bitgolf is not the tokenizer of the data"),
        (other_source_in_a_new_seal, "data.val_bytes was 9 when the data was prepared, it is 0 in config.toml"),
        (
            setting(r"artifact_bytes = \d+", "artifact_bytes = 2000000"),
            "budget.artifact_bytes was 1000000 when the model was packed, it is 2000000 in config.toml",
        ),
        (
            setting(r"train_seconds = [\d.]+", "train_seconds = 900.0"),
            "budget.train_seconds was 120.0 when the model was trained",
        ),
        (setting(r"stride = \d+", "stride = 16"), "score.stride was 32 when the model was scored"),
        (record("score.json", lambda score: score["methods"]["chunked"].update(bpb=0.2)), CHANGED_SCORE),
        (better_method_with_losses, "nll-chunked.npy was changed after scoring"),
        (record("score.json", lambda score: score["float"]["chunked"].update(bpb=0.1)), CHANGED_SCORE),
        (record("score.json", lambda score: score.update(device="NVIDIA H200")), CHANGED_SCORE),
        (record("tape.json", lambda tape: tape.update(note="nothing")), "tape.json was changed after scoring"),
        (record("score.json", lambda score: score.pop("seal")), "score.json has no seal"),
        (other_weights, "weights.safetensors was changed after training"),
        (other_statistics, "calibration/hessians.safetensors was changed after training"),
        (more_statistics, "calibration/more.safetensors was added after training"),
        (record("pack.json", lambda pack: pack.update(seconds=0.1)), "pack.json was changed after packing"),
        (other_loss, "line 2 of train.jsonl (`step`) does not follow"),
        (missing_line, "of train.jsonl (`end`) does not follow"),
        (log_sealed_again, "pack.json was changed after packing, or it does not follow this train.jsonl"),
        (change_artifact, "artifact-sealed: model.bitgolf has SHA-256"),
    ],
)
def test_changes_after_sealing_are_named(copy: Path, change: Callable[[Path], None], words: str) -> None:
    change(copy)
    assert words in problems(copy)
    assert problems(copy).count("does not follow") <= 1, "what comes after a changed line follows from it"


def test_an_untouched_run_is_sealed(copy: Path) -> None:
    verdict = audit_run(RunDirectory.open(copy), only=CHECKS)
    assert [check.verdict for check in verdict.checks] == ["PASS"] * 3, verdict
    assert len(set(verdict["sealed-chain"].evidence["code_sha256"].values())) == 1


def test_runs_of_earlier_versions_prove_nothing(copy: Path) -> None:
    for name in ("score.json", "pack.json"):
        edit(copy / name, lambda record: record.pop("seal"))
    write_events(copy, [{key: value for key, value in event.items() if key != "seal"} for event in events(copy)])
    assert audit_run(RunDirectory.open(copy), only=("sealed-chain",))["sealed-chain"].verdict == "NOT RUN"


def test_a_packing_without_its_configuration_proves_only_the_configuration_of_today(copy: Path) -> None:
    sealed_from(copy, pack=lambda pack: pack.pop("config"))
    assert audit_run(RunDirectory.open(copy), only=("sealed-chain",))["sealed-chain"].verdict == "PASS"
    setting(r"artifact_bytes = \d+", "artifact_bytes = 2000000")(copy)
    sealed_from(copy, pack=lambda pack: pack["settings"].update({"budget.artifact_bytes": 2_000_000}))
    made = audit_run(RunDirectory.open(copy), only=("sealed-chain",))["sealed-chain"]
    assert made.verdict == "NOT RUN" and "config.toml was changed after packing" in made.reason


def test_digests_depend_on_content_alone() -> None:
    assert (
        digest({"a": 1, "b": [1.5, None]})
        == digest(json.loads('{"b":[1.5,null],"a":1}'))
        == digest({"b": (1.5, None), "a": 1})
    )
    assert digest({"a": 1}) != digest({"a": 1.0}) and digest([1, 2]) != digest([2, 1])
    record = sealed({"a": 1}, "before")
    assert record["seal"] == seal_of(record, "before") != seal_of(record, "other")
