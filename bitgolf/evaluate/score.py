"""Stage `score`: artifact and validation tokens -> bits per byte by each method, under the evaluation clock.

The clock runs from opening the artifact to the last score: reading, decompressing, compiling and every method.
A configuration that adapts while scoring has one more pass, which is then the headline. Reference figures that are
no part of the evaluation (the float weights, general-purpose compressors on the same text, a second pass with the
adapted weights) are computed after the clock has stopped and marked as such.
"""

from __future__ import annotations

import hashlib
import logging
import lzma
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

from bitgolf.artifact.open import open_model
from bitgolf.config import Config
from bitgolf.data.prepare import PreparedData, open_data
from bitgolf.errors import ConfigError, RunError
from bitgolf.evaluate.adapters import NOT_ADMISSIBLE, adapted_evaluation, adapted_name, preserved
from bitgolf.evaluate.bits import BitsPerByte, bits_per_byte
from bitgolf.evaluate.scorers import make_scorer
from bitgolf.evaluate.split_model import CompiledModel, Tempered
from bitgolf.evaluate.tape import ScoreTape, evaluate
from bitgolf.model.build import build_model, check_tensors, load_weights_
from bitgolf.model.gpt import GPT
from bitgolf.model.weights import read_tensors
from bitgolf.run import atomic
from bitgolf.run.directory import RunDirectory
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World, device_name

_logger = logging.getLogger(__name__)


def score(run: RunDirectory, world: World, *, progress: Progress = silent) -> None:
    """Score the artifact on all validation tokens and write score.json, nll.npy and tape.json.

    None of them is written before all is scored. Raises RunError when a product is missing, ArtifactError when the
    artifact is damaged, ConfigError when the tokenizer of the artifact is not that of the data.
    """
    config, budget = run.config, run.budget()
    data = open_data(run.require("data"))
    data.val.validate(config.model.vocab_size)
    tokens = data.val.read(0, data.val.num_tokens)
    costs = data.tokenizer.byte_costs(tokens)
    path = run.require("model.bitgolf")
    floats = _float_weights(run) if config.score.float_reference or config.score.last_reference else {}
    world.barrier()
    begin = time.perf_counter()
    packed = open_model(path, world.device, config.train.attention)
    if packed.tokenizer.model_bytes != data.tokenizer.model_bytes:
        raise ConfigError(f"the tokenizer in {path} is not the one that {data.path} was prepared with; pack again")
    load_seconds = time.perf_counter() - begin
    model = scoring_model(packed.model, config, world.device)
    results: dict[str, Any] = {}
    tape = ScoreTape(tokens)
    headline: str = config.score.methods[-1]
    for method in config.score.methods:
        started = time.perf_counter()
        tape = _run_method(method, model, tokens, config, world, progress)
        results[method] = bits_per_byte(tape.nll, costs).to_json() | {"seconds": time.perf_counter() - started}
    diagnostic: dict[str, Any] = {}
    with preserved(packed.model):
        if config.ttt.enabled:
            started, headline = time.perf_counter(), adapted_name(config)
            tape, details = _run_adapted(packed.model, model, tokens, data.tokenizer.bos_id, config, world, progress)
            results[headline] = bits_per_byte(tape.nll, costs).to_json() | {
                "seconds": time.perf_counter() - started,
                **details,
            }
        evaluation_seconds = time.perf_counter() - begin
        if config.ttt.rescore_temperature:
            diagnostic["rescored"] = _rescored(model, tokens, costs, config, world, progress)
    first = config.score.methods[0]
    reference = (
        _float_score(run, floats, "weights", tokens, costs, world, progress) if config.score.float_reference else None
    )
    last = (
        _float_score(run, floats, "weights-last", tokens, costs, world, progress)
        if config.score.last_reference
        else None
    )
    if not world.is_main:
        return
    compressors = _general_purpose(data, tokens, progress) if config.score.compressors else {}
    _save_array(run / "nll.npy", tape.nll)
    atomic.write_json(run / "tape.json", tape.event_log)
    budget.forget("score")
    budget.charge("eval_seconds", "score", "read and decompress", load_seconds)
    for name, result in results.items():
        budget.charge("eval_seconds", "score", name, result["seconds"])
    results[headline]["nll_file"] = "nll.npy"
    atomic.write_json(
        run / "score.json",
        {
            "methods": results,
            "headline": headline,
            "headline_bpb": results[headline]["bpb"],
            "diagnostic": diagnostic,
            "last": {first: last.to_json()} if last else {},
            "float": {first: reference.to_json()} if reference else {},
            "quantization_tax": results[first]["bpb"] - reference.bpb if reference else None,
            "accounting": data.manifest["accounting"],
            "val_tokens": data.val.num_tokens,
            "val_bytes": results[headline]["bytes"],
            "val_documents": data.manifest["splits"]["val"]["documents"],
            "model_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "window": config.window,
            "stride": config.score.stride,
            "evaluation_seconds": evaluation_seconds,
            "device": device_name(world.device),
            "attention": packed.attention,
            "world_size": world.size,
            "compressors": compressors,
        },
    )


def scoring_model(model: GPT, config: Config, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model as the scorers call it: compiled on a GPU when the configuration says so."""
    if config.score.compile and device.type == "cuda":
        return CompiledModel(model)
    return model


def _run_method(
    method: str,
    model: Callable[[torch.Tensor], torch.Tensor],
    tokens: np.ndarray,
    config: Config,
    world: World,
    progress: Progress,
    label: str = "score",
) -> ScoreTape:
    tape = ScoreTape(tokens)
    scorer = make_scorer(
        method,
        model,
        window=config.window,
        stride=config.score.stride,
        batch_tokens=config.score.batch_tokens,
        device=world.device,
        rank=world.rank,
        world_size=world.size,
    )

    def report(stage: str, done: float, total: float, note: str = "") -> None:
        progress(f"{label} {method}", done, total, note)

    evaluate(tape, scorer, progress=report)
    return tape


def _run_adapted(
    model: GPT,  # changed by what it learns
    forward: Callable[[torch.Tensor], torch.Tensor],
    tokens: np.ndarray,
    bos_id: int,
    config: Config,
    world: World,
    progress: Progress,
) -> tuple[ScoreTape, dict[str, Any]]:
    """The adapted pass: its tape, and how often it adapted."""
    tape = ScoreTape(tokens)
    if config.ttt.between_chunks and config.ttt.weights.chunk_tokens >= tape.num_targets:
        _logger.warning(
            "ttt.weights.chunk_tokens %d holds all %d targets: nothing is learned before the text ends",
            config.ttt.weights.chunk_tokens,
            tape.num_targets,
        )
    adapted = adapted_evaluation(config, model, forward, num_targets=tape.num_targets, bos_id=bos_id, world=world)

    def report(stage: str, done: float, total: float, note: str = "") -> None:
        progress(f"score {adapted_name(config)}", done, total, note)

    adapted.run(tape, report)
    return tape, {"updates": tape.state}


def _rescored(
    model: Callable[[torch.Tensor], torch.Tensor],
    tokens: np.ndarray,
    costs: np.ndarray,
    config: Config,
    world: World,
    progress: Progress,
) -> dict[str, Any]:
    """The two-pass figure of PR 576: all targets again, with the weights that the adapted pass left."""
    temperature = config.ttt.rescore_temperature
    tempered = Tempered(model, temperature)
    tape = _run_method(config.score.methods[-1], tempered, tokens, config, world, progress, "diagnostic")
    return bits_per_byte(tape.nll, costs).to_json() | {"temperature": temperature, "label": NOT_ADMISSIBLE}


def _float_weights(run: RunDirectory) -> dict[str, dict[str, torch.Tensor]]:
    """The float weights that are scored beside the artifact, by the name of their file, as far as there are files.

    Raises RunError when one is damaged or holds values that are not finite, ArtifactError when it is another model's.
    """
    config = run.config
    wanted = {"weights": config.score.float_reference, "weights-last": config.score.last_reference}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, asked in wanted.items():
        path = run / f"{name}.safetensors"
        if asked and path.exists():
            tensors = found[name] = read_tensors(path, run.path)
            check_tensors(config.model, config.window, tensors, str(path))
            if broken := [key for key, values in tensors.items() if not bool(torch.isfinite(values).all())]:
                raise RunError(
                    f"{path}: tensor {broken[0]!r} has values that are not finite; run `bitgolf train {run.path}` again"
                )
    return found


def _float_score(
    run: RunDirectory,
    floats: dict[str, dict[str, torch.Tensor]],
    name: str,
    tokens: np.ndarray,
    costs: np.ndarray,
    world: World,
    progress: Progress,
) -> BitsPerByte | None:
    """Score of float weights by the first method, or None when there are none of this name."""
    if name not in floats:
        return None
    config = run.config
    model, _ = build_model(config.model, config.window, world.device, config.train.attention)
    load_weights_(model, floats[name], str(run / f"{name}.safetensors"))
    model.eval().requires_grad_(False)
    tape = _run_method(
        config.score.methods[0],
        scoring_model(model, config, world.device),
        tokens,
        config,
        world,
        progress,
        f"score float {name}",
    )
    return bits_per_byte(tape.nll, costs)


def _general_purpose(data: PreparedData, tokens: np.ndarray, progress: Progress) -> dict[str, float]:
    """Bits per byte of zstd-22 and xz-9 on the same validation text, for comparison."""
    bos = data.tokenizer.bos_id
    documents = np.split(tokens, np.flatnonzero(tokens == bos))
    text = "".join(data.tokenizer.decode(d[d != bos].tolist()) for d in documents if len(d)).encode("utf-8")
    if not text:
        return {}
    progress("compressors", 0, 2, "zstd-22")
    long_window = zstandard.ZstdCompressionParameters.from_level(22, window_log=27)
    zstd = len(zstandard.ZstdCompressor(compression_params=long_window).compress(text))
    progress("compressors", 1, 2, "xz-9")
    xz = len(lzma.compress(text, preset=9))
    progress("compressors", 2, 2)
    return {"zstd-22": 8 * zstd / len(text), "xz-9": 8 * xz / len(text)}


def _save_array(path: Path, array: np.ndarray) -> None:
    with atomic.atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.save(handle, array)
