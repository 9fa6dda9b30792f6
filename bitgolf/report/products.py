"""Reading what the stages wrote into a run directory, for pages, comparisons and submissions.

Every JSON product is checked for the values that are read of it, so a damaged one is an error that names the command to
run again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tokenize import TokenError  # of NumPy, for some headers
from typing import Any

import numpy as np

from bitgolf.config import Config
from bitgolf.errors import ForeignError, RunError
from bitgolf.foreign import (
    as_bool,
    as_integer,
    as_list,
    as_number,
    as_object,
    as_text,
    conform,
    field,
    printable,
    read_json,
    require_regular,
)
from bitgolf.run.budget import Budget
from bitgolf.run.directory import RunDirectory
from bitgolf.run.seal import seal_of
from bitgolf.train.metrics import read_events

_count = partial(as_integer, low=0, high=10**15)
_amount = partial(as_number, low=-1e15, high=1e15)
_bits = partial(as_number, low=1e-12, high=1e6)  # per byte
_result = {"bpb": _bits, "loss_nats": _amount, "bpb_per_nat": _bits, "tokens": _count, "bytes": _count}
_tensor = {
    "shape": [partial(as_integer, low=1, high=2**31)],
    "group": as_text,
    "kind": as_text,
    "bytes": _amount,
    "hessian_error?": (_amount, None),
    "code_bits?": (_amount, None),
}
_KINDS: dict[str, Any] = {  # what is read of the products; see `foreign.conform`
    "pack": {
        "total_bytes": partial(as_integer, low=1, high=10**15),
        "num_parameters": _count,
        "model_sha256": as_text,
        "model_bytes": _count,
        "code_bytes": _count,
        "cap_bytes": _count,
        "header_bytes": _count,
        "bits_per_weight": _amount,
        "stream_bytes": {"*": _count},
        "group_bytes": {"*": _count},
        "tensors": {"*": _tensor},
        "allocation?": (
            {"predicted_nats": _amount, "passes": as_list, "tensors": {"*": {"predicted_nats": _amount}}},
            None,
        ),
    },
    "score": {
        "methods": {"*": _result | {"seconds": _amount}},
        "headline": as_text,
        "headline_bpb": _bits,
        "last?": {"*": _result},
        "float": {"*": _result},
        "compressors": {"*": _bits},
        "model_sha256": as_text,
        "accounting": as_text,
        "val_bytes": _count,
        "val_tokens": _count,
        "val_documents": _count,
        "evaluation_seconds": _amount,
        "device": as_text,
        "world_size": _count,
    },
    "audit": {
        "checks": [{"name": as_text, "rule": as_text, "title": as_text, "verdict": as_text, "reason?": as_text}],
        "passed": as_bool,
        "complete?": as_bool,
        "counts?": {"*": _count},
    },
    "tape": {"tokens_sha256": as_text},
}
_BEGIN = {
    "train_tokens_available": _count, "world_size": _count, "torch": as_text, "device": as_text,
    "warm_up_seconds?": _amount,
}  # fmt: skip
_EVENTS: dict[str, dict[str, Any]] = {  # the same for the lines of train.jsonl
    "start": _BEGIN,
    "resume": _BEGIN | {"elapsed_seconds": _amount},
    "branch": _BEGIN | {"branch_step?": _count, "branch_seconds?": _amount},
    "held_out": {"loss": _amount, "elapsed_seconds": _amount},
    "step": {
        "loss": _amount, "lr_scale": _amount, "tokens": partial(as_integer, low=1, high=10**15),
        "tokens_per_second": _amount, "elapsed_seconds": _amount,
    },
    "calibration": {"tokens": _count},
    "end": {
        "step": partial(as_integer, low=1, high=10**15), "tokens": _count, "elapsed_seconds": _amount,
        "steps_seconds": _amount,
        "tokens_per_second": _amount, "peak_memory_mib": _amount,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Products:
    """The products of a run directory. A product that does not exist is None, or an empty list of events."""

    path: Path
    config: Config
    budget: Budget
    events: list[dict[str, Any]]
    pack: dict[str, Any] | None
    score: dict[str, Any] | None
    audit: dict[str, Any] | None

    @classmethod
    def read(cls, run: RunDirectory) -> Products:
        """Read all products but the texts. Raises RunError for a damaged one."""
        return cls(
            run.path,
            run.config,
            run.budget(),
            read_training(run),
            read_product(run, "pack"),
            read_product(run, "score"),
            read_product(run, "audit"),
        )

    def outdated(self) -> dict[str, str]:
        """The products that were made from another version of an earlier product: stage -> that earlier stage.

        Seals decide it (see `bitgolf.run.seal`). Products without seals are not judged.
        """
        trained = self.events[-1] if self.events else {}
        pack, score, audit = self.pack or {}, self.score or {}, self.audit or {}
        reasons = {}
        if _is_unlinked(pack, trained):
            reasons["pack"] = "train"
        if score.get("model_sha256") not in (None, pack.get("model_sha256")) or _is_unlinked(score, pack):
            reasons["score"] = "pack"
        if audit.get("score_seal", score.get("seal")) != score.get("seal"):
            reasons["audit"] = "score"
        if reasons and audit:
            reasons.setdefault("audit", next(iter(reasons)))
        return reasons

    def command(self, stage: str) -> str:
        if stage == "prepare":
            return f"bitgolf run {self.path}/config.toml --out {self.path} --resume"
        return f"bitgolf {stage} {self.path}"

    def last_event(self, kind: str) -> dict[str, Any]:
        """The last event of a kind; empty if there is none."""
        return next((event for event in reversed(self.events) if event["event"] == kind), {})

    def last_launch(self) -> dict[str, Any]:
        """How training was last started, resumed or branched; empty before training."""
        launches = [event for event in self.events if event["event"] in ("start", "resume", "branch")]
        return launches[-1] if launches else {}


def _is_unlinked(record: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether both records have seals, and the seal of `record` was not made after that of `before`."""
    return "seal" in record and "seal" in before and seal_of(record, before["seal"]) != record["seal"]


def read_training(run: RunDirectory) -> list[dict[str, Any]]:
    """The events of train.jsonl. Raises RunError if it is damaged, or if an event lacks what is read of its kind."""
    path = run / "train.jsonl"
    events = read_events(path)
    try:
        for event in events:
            conform(event, _EVENTS.get(event["event"], {}), printable(event["event"]))
    except ForeignError as error:
        raise RunError(f"{path} is damaged: {error}; train again with `bitgolf train {run.path}`") from error
    return events


def read_product(run: RunDirectory, stage: str) -> dict[str, Any] | None:
    """The JSON product of a stage (pack, score or audit) or the tape; None if there is none.

    Raises RunError if it is damaged.
    """
    path = run / f"{stage}.json"
    if not path.exists():
        return None
    try:
        value = as_object(read_json(path), "it")
        conform(value, _KINDS[stage], stage)
        if stage == "pack":
            _require_known_tensors(value)
        if stage == "score" and value["headline"] not in value["methods"]:
            raise ForeignError("it has no method of the name of its headline")
    except ForeignError as error:
        again = f"run `bitgolf {'score' if stage == 'tape' else stage} {run.path}` again"
        raise RunError(f"{path} is damaged: {error}; {again}") from error
    return value


def _require_known_tensors(pack: dict[str, Any]) -> None:
    """Raise ForeignError unless every group and every allocated tensor is described under `tensors`."""
    tensors = pack["tensors"]
    if unknown := sorted(pack["group_bytes"].keys() - {tensor["group"] for tensor in tensors.values()}):
        raise ForeignError(f"no tensor is of group {printable(unknown[0])!r}")
    for name in (pack.get("allocation") or {"tensors": {}})["tensors"]:
        conform(field(tensors, name), {"code_bits": _amount}, printable(name))


def require_product(run: RunDirectory, stage: str) -> dict[str, Any]:
    """The JSON product of a stage. Raises RunError if it is missing or damaged."""
    run.require(f"{stage}.json")
    product = read_product(run, stage)
    assert product is not None
    return product


def read_losses(path: Path, again: str) -> np.ndarray:
    """The array of nll.npy, memory-mapped. If it is damaged, raises RunError that ends with `again`."""
    try:
        require_regular(path)
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError, TokenError) as error:
        raise RunError(f"{path} is damaged ({error}); {again}") from error
    if array.dtype.kind != "f":
        raise RunError(f"{path} holds {array.dtype}, not losses; {again}")
    return array
