"""Stage `pack`: float weights and calibration statistics become one artifact under the byte cap.

The stage reads the products of `train`, plans how many bytes the model may have, runs one of three pipelines and writes
model.bitgolf and pack.json:

    fixed_grids.pack_on_grids       methods gptq, rtn and lossless
    fixed_grids.pack_pruned_to_fit  method gptq with pack.fit.prune: codes are zeroed until the file fits
    fill_cap.fill_cap               method rate: steps are chosen so that the file fills the cap

No text is read (docs/rules.md, B4 and B7). The bytes that count are those of the artifact and of the code that reads it
(docs/rules.md, B1).
"""

import hashlib
import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitgolf.artifact.entropy_coder import Map
from bitgolf.artifact.processes import coder_processes
from bitgolf.config import Config, PackConfig
from bitgolf.config.idle import idle_packing
from bitgolf.data.prepare import open_data
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import BudgetError
from bitgolf.grids.roles import idle_passthrough, require_passthrough_names, role
from bitgolf.measure.statistics import Statistics, read_statistics
from bitgolf.model.build import check_tensors
from bitgolf.model.weights import read_tensors
from bitgolf.quantize.fill_cap import fill_cap, measured_tensors
from bitgolf.quantize.fixed_grids import pack_on_grids, pack_pruned_to_fit
from bitgolf.quantize.packed import ArtifactEncoder, Packed
from bitgolf.quantize.prune import prune
from bitgolf.quantize.tensors import QuantizedTensor
from bitgolf.run import atomic
from bitgolf.run.clock import PartSeconds
from bitgolf.run.directory import RunDirectory, writes_run
from bitgolf.run.progress import Progress, silent
from bitgolf.run.seal import (
    PACK_SETTINGS,
    TRAIN_PRODUCTS,
    code_digest,
    digest,
    file_digests,
    last_seal,
    sealed,
    settings_of,
)

log = logging.getLogger(__name__)


@writes_run
def pack(
    run: RunDirectory,  # needs weights.safetensors, and calibration/ unless the method uses no statistics
    device: torch.device,  # where GPTQ runs
    # size of the code that ships with the artifact. It counts against the cap.
    code_bytes: int,
    *,
    artifact_bytes: int | None = None,  # cap to use instead of the configured one
    progress: Progress = silent,
) -> None:
    """Write model.bitgolf and pack.json.

    Raises:
        ArtifactError: the weights are not finite or not those of the configured model. An earlier artifact stays.
        BudgetError: code and model together exceed the cap; says by how much. An earlier artifact stays.
        ConfigError: a setting that does not fit the weights.
        RunError: a product is missing or damaged.
    """
    begin, parts = time.perf_counter(), PartSeconds()
    settings, ledger = run.config.pack, run.budget()
    with parts.timed("reading"):
        products = _read(run, device)
    _warn_of_idle_settings(settings, products.weights)
    room = _plan(run.config, code_bytes, artifact_bytes)
    num_weights = sum(weight.numel() for weight in products.weights.values())
    with coder_processes(num_weights) as apply:
        encode = _encoder(products, run.config, apply)
        packed = _run_pipeline(products, settings, encode, room, device, progress, parts)
    progress("pack", 1, 1, "compressing")
    if len(packed) > room.model_bytes:
        raise _does_not_fit(packed, room, settings)
    atomic.write_bytes(run / "model.bitgolf", packed.artifact)
    seconds = time.perf_counter() - begin
    record = _record(packed, products.weights, room, settings, seconds) | {
        "inputs": products.digests,
        "code_sha256": code_digest(),
        "settings": settings_of(run.config, PACK_SETTINGS),
        "config": run.config.model_dump(mode="json"),
        "part_seconds": parts,
    }
    atomic.write_json(run / "pack.json", sealed(record, products.train_seal))
    run.mark_report_outdated("pack")
    ledger.forget("pack")
    ledger.charge("artifact_bytes", "pack", "model", len(packed))
    ledger.charge("artifact_bytes", "pack", "code", code_bytes)
    ledger.charge("untimed_seconds", "pack", "quantize and compress", seconds)


@dataclass(frozen=True)
class _Products:
    """What `train` and `prepare` left."""

    weights: dict[str, Tensor]  # by parameter name, pruned as `pack.prune` says
    statistics: Statistics
    tokenizer: Tokenizer
    digests: dict[str, str]  # SHA-256 of the files by their path in the run
    train_seal: str  # seal of the last line of train.jsonl; "" without one


@dataclass(frozen=True)
class _Room:
    """The bytes there are: the artifact may have `model_bytes` = `cap_bytes` - `code_bytes` - `margin_bytes`."""

    cap_bytes: int
    code_bytes: int
    margin_bytes: int

    @property
    def model_bytes(self) -> int:
        return self.cap_bytes - self.code_bytes - self.margin_bytes


def _read(run: RunDirectory, device: torch.device) -> _Products:
    config = run.config
    weights = read_tensors(run.require("weights.safetensors"), run.path)
    check_tensors(config.model, config.window, weights, str(run / "weights.safetensors"))
    require_passthrough_names(weights, config.pack)
    if config.pack.method in ("gptq", "rate"):
        run.require("calibration")
    return _Products(
        prune(weights, config.pack.prune),
        read_statistics(run.path, config.pack, device),
        open_data(run.require("data")).tokenizer,
        file_digests(run.path, *TRAIN_PRODUCTS),
        last_seal(run / "train.jsonl"),
    )


def _warn_of_idle_settings(settings: PackConfig, weights: dict[str, Tensor]) -> None:
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    for sentence in (*idle_packing(settings), *idle_passthrough(settings, shapes)):
        log.warning("no effect: %s", sentence)


def _plan(config: Config, code_bytes: int, artifact_bytes: int | None) -> _Room:
    """Raises BudgetError if the code alone exceeds the cap and the method has to fill what is left."""
    cap = config.budget.artifact_bytes if artifact_bytes is None else artifact_bytes
    room = _Room(cap, code_bytes, config.pack.fit.margin_bytes if _prunes_to_fit(config.pack) else 0)
    if config.pack.method == "rate" and room.model_bytes <= 0:
        raise BudgetError(
            f"the artifact does not fit: the code alone has {code_bytes:,} bytes, {-room.model_bytes:,} over the cap"
        )
    return room


def _prunes_to_fit(settings: PackConfig) -> bool:
    return settings.fit.prune and settings.method == "gptq"


def _encoder(products: _Products, config: Config, apply: Map) -> ArtifactEncoder:
    return ArtifactEncoder(
        weights=products.weights,
        exact=config.pack.method == "lossless",
        model_config=config.model.model_dump(mode="json"),
        tokenizer=products.tokenizer.model_bytes,
        tokenizer_meta={"lossless": products.tokenizer.lossless, "name": products.tokenizer.name},
        meta={
            "preset": config.name,
            "window": config.window,
            "stride": config.score.stride,
            **({"canonical": True} if config.score.canonical else {}),
            "config_sha256": config.digest(),
            "inputs_sha256": digest(products.digests),
        },
        compressor=config.pack.compressor,
        apply=apply,
    )


def _run_pipeline(
    products: _Products,
    settings: PackConfig,
    encode: ArtifactEncoder,
    room: _Room,
    device: torch.device,
    progress: Progress,
    parts: PartSeconds,
) -> Packed:
    weights, hessians = products.weights, products.statistics.hessians
    if settings.method == "rate":
        tensors = measured_tensors(weights, products.statistics, settings, device)
        try:
            return fill_cap(tensors, encode, room.model_bytes, settings, progress, parts)
        except BudgetError as error:
            raise BudgetError(f"{error}; {room.code_bytes:,} bytes of the cap are code") from error
    if _prunes_to_fit(settings):
        return pack_pruned_to_fit(weights, hessians, settings, encode, room.model_bytes, device, progress)
    return pack_on_grids(weights, hessians, settings, encode, device, progress)


def _does_not_fit(packed: Packed, room: _Room, settings: PackConfig) -> BudgetError:
    pruned, margin = packed.pruned_to_fit, room.margin_bytes
    tried = f" even with all {pruned['candidates']:,} codes of +-1 zeroed" if pruned else ""
    less = f" less pack.fit.margin_bytes {margin:,}" if pruned else ""
    return BudgetError(
        f"the artifact does not fit{tried}: {len(packed):,} bytes of model + {room.code_bytes:,} bytes of code = "
        f"{len(packed) + room.code_bytes:,}, {len(packed) - room.model_bytes:,} over the cap of "
        f"{room.cap_bytes:,}{less}; {_smaller(settings)}model.num_layers or model.model_dim, or raise "
        "budget.artifact_bytes"
    )


def _smaller(settings: PackConfig) -> str:
    """The settings in force that make the file smaller, as the beginning of a list."""
    if settings.method == "lossless":
        return "use pack.method 'gptq' or 'rate', lower "
    grid = settings.grid
    bits = {name: getattr(grid, name) for name in ("attention_bits", "mlp_bits", "embed_bits")}
    if not (grid.attention_bits and grid.mlp_bits):
        bits = {"matrix_bits": grid.matrix_bits} | bits
    return "lower " + "".join(f"pack.grid.{name} (now {value}), " for name, value in bits.items() if value > 2)


def _record(
    packed: Packed, weights: dict[str, Tensor], room: _Room, settings: PackConfig, seconds: float
) -> dict[str, Any]:
    """The contents of pack.json."""
    num_weights = sum(weight.numel() for weight in weights.values())
    return {
        "model_bytes": len(packed),
        "code_bytes": room.code_bytes,
        "total_bytes": len(packed) + room.code_bytes,
        "cap_bytes": room.cap_bytes,
        "model_sha256": hashlib.sha256(packed.artifact).hexdigest(),
        "seconds": seconds,
        "num_parameters": num_weights,
        "bits_per_weight": 8 * len(packed) / num_weights,
        "method": settings.method,
        "compressor": settings.compressor,
        "header_bytes": packed.sizes.header,
        "stream_bytes": packed.sizes.streams,
        "group_bytes": packed.sizes.groups,
        "pruned_to_fit": packed.pruned_to_fit,
        "allocation": packed.allocation,
        "tensors": {
            name: {
                "shape": list(weight.shape),
                "kind": packed.stored[name].kind,
                "group": role(name),
                "bytes": packed.sizes.tensors[name],
                **_errors(packed.quantized.get(name)),
            }
            for name, weight in weights.items()
        },
    }


def _errors(tensor: QuantizedTensor | None) -> dict[str, float | None]:
    """The relative errors of a tensor's weights and outputs, and the entropy of its codes."""
    if tensor is None:
        return {}
    return {
        "weight_error": tensor.weight_error,
        "hessian_error": tensor.hessian_error,
        "rtn_hessian_error": tensor.rtn_hessian_error,
        "code_bits": tensor.code_bits,
    }
