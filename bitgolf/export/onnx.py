"""Writes an ONNX file: tokens (batch, time) int64 -> logits (batch, time, vocabulary) fp32, any batch and time.

The file is made from `bitgolf.export.remote.network` and compared with the model before it gets its name. It holds
the window, the vocabulary and the id of the BOS as metadata. The tokenizer is written beside it.
"""

import contextlib
import io
import logging
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from bitgolf.artifact.open import PackedModel
from bitgolf.errors import ConfigError
from bitgolf.export.network_tensors import network_of
from bitgolf.run import atomic

TOLERANCE = 1e-3  # largest difference of a logit
_logger = logging.getLogger(__name__)
_OPSET = 20


def export_onnx(packed: PackedModel, path: Path) -> float:
    """Write the file of a model on the CPU, and the tokenizer as `path` with the suffix .model.

    Returns the largest difference of a logit between the file and the model, over texts shorter and longer than the
    window. Raises ConfigError if a package is missing or the file computes something else.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        missing = f"ONNX files need {error.name}, which is not installed"
        raise ConfigError(f"{missing}; pip install 'bitgolf[onnx]'") from error
    network = network_of(packed.model)
    example = torch.ones(2, 8, dtype=torch.int64)
    shapes = {"tokens": {0: torch.export.Dim("batch"), 1: torch.export.Dim("time", min=2)}}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.naming(path), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / path.name
        with _quiet():
            torch.onnx.export(
                network, (example,), str(file), input_names=["tokens"], output_names=["logits"], dynamo=True,
                dynamic_shapes=shapes, opset_version=_OPSET, external_data=False,
            )  # fmt: skip
        model = onnx.load(str(file))
        for key, value in (("window", packed.window), ("bos_id", packed.tokenizer.bos_id)):
            model.metadata_props.add(key=key, value=str(value))
        onnx.save(model, str(file))
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        difference = _difference(packed, session)
        if not difference <= TOLERANCE:
            raise ConfigError(
                f"the ONNX file differs from the model by {difference:.3g} in a logit; it was not written"
            )
        atomic.write_bytes(os.path.realpath(path), file.read_bytes())  # links are followed
    atomic.write_bytes(os.path.realpath(path.with_suffix(".model")), packed.tokenizer.model_bytes)
    if packed.tokenizer.marks_capitals:
        _logger.warning(
            "the tokenizer marks capitals: use `lowered` of bitgolf/data/case_markers.py (it needs only Python) before "
            "it, and `spell` after it"
        )
    return difference


def _difference(packed: PackedModel, session: object) -> float:
    """The largest difference of a logit on random tokens: short, one window, and half as long again."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch, length in ((3, 5), (1, packed.window), (1, packed.window * 3 // 2)):
        tokens = torch.randint(packed.tokenizer.vocab_size, (batch, length), generator=generator)
        tokens[:, 0] = packed.tokenizer.bos_id
        (logits,) = session.run(None, {"tokens": tokens.numpy()})  # type: ignore[attr-defined]
        with torch.no_grad():
            expected = packed.model(tokens).numpy()
        worst = max(worst, float(np.abs(logits - expected).max()))
    return worst


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """Without the progress lines and warnings of the exporter."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
