"""Reference figures beside a score, which are no part of the evaluation.

They are the float weights, a second pass with the weights that the adapted pass left, and general-purpose compressors.

Legend: N tokens.
"""

import lzma
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from torch import Tensor

from bitgolf.artifact.open import forbid_impossible_
from bitgolf.config import Config, ModelConfig
from bitgolf.data.prepare import PreparedData
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import RunError
from bitgolf.evaluate.split_model import Model, Tempered, scoring_model
from bitgolf.model.build import build_model, check_tensors, load_weights_
from bitgolf.model.weights import read_tensors
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World

NOT_ADMISSIBLE = "not admissible: scores tokens that the weights were trained on"
FLOAT_WEIGHTS = {"float": "weights", "last": "weights-last"}  # key in score.json -> file name without its ending


def float_weights(folder: Path, keys: Iterable[str], model: ModelConfig, window: int) -> dict[str, dict[str, Tensor]]:
    """Float weights to score beside the artifact, by the key of their score; those without a file are left out.

    Raises RunError when a file is damaged or holds values that are not finite, ArtifactError when it belongs to
    another model.
    """
    weights: dict[str, dict[str, Tensor]] = {}
    for key in keys:
        path = folder / f"{FLOAT_WEIGHTS[key]}.safetensors"
        if not path.exists():
            continue
        tensors = weights[key] = read_tensors(path, folder)
        check_tensors(model, window, tensors, str(path))
        broken = next((name for name, values in tensors.items() if not bool(values.isfinite().all())), None)
        if broken is not None:
            raise RunError(
                f"{path}: tensor {broken!r} has values that are not finite; run `bitgolf train {folder}` again"
            )
    return weights


def float_model(tensors: dict[str, Tensor], config: Config, tokenizer: Tokenizer, world: World) -> Model:
    """A model with float weights, as the scorers call it."""
    model, _ = build_model(config.model, config.window, world.device, config.train.attention)
    load_weights_(model, tensors, "float weights")
    if config.score.canonical:
        forbid_impossible_(model, tokenizer)
    return scoring_model(model.eval().requires_grad_(False), compiled=config.score.compile)


def rescored(
    plain: Callable[..., Any],  # (method, model, label) -> a scored pass
    forward: Model,
    method: str,
    temperature: float,  # 0 = no such pass
) -> dict[str, Any]:
    """The two-pass figure of PR 576, under "rescored": all targets again, with the weights of the adapted pass."""
    if not temperature:
        return {}
    again = plain(method, Tempered(forward, temperature), "diagnostic").score.to_json()
    return {"rescored": again | {"temperature": temperature, "label": NOT_ADMISSIBLE}}


def validation_text(data: PreparedData, tokens: np.ndarray) -> bytes:
    """The validation text that the tokens stand for."""
    bos = data.tokenizer.bos_id
    documents = np.split(tokens, np.flatnonzero(tokens == bos))
    return "".join(data.tokenizer.decode(d[d != bos].tolist()) for d in documents if len(d)).encode("utf-8")


def general_purpose(text: bytes, progress: Progress = silent) -> dict[str, float]:
    """Bits per byte of zstd-22 and xz-9 on a text, for comparison with a model."""
    if not text:
        return {}
    progress("compressors", 0, 2, "zstd-22")
    long_window = zstandard.ZstdCompressionParameters.from_level(22, window_log=27)
    zstd = len(zstandard.ZstdCompressor(compression_params=long_window).compress(text))
    progress("compressors", 1, 2, "xz-9")
    xz = len(lzma.compress(text, preset=9))
    progress("compressors", 2, 2)
    return {"zstd-22": 8 * zstd / len(text), "xz-9": 8 * xz / len(text)}
