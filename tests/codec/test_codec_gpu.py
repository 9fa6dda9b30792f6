"""The codec on a GPU: texts are restored exactly, with and without adaptation, but not on another device."""

import hashlib
import os
from collections.abc import Iterator

import pytest
import torch
from tiny_gpt import WINDOW, config, tiny_gpt

from bitgolf.codec import CodecModel, compress_bytes, decompress_bytes
from bitgolf.config import TTTConfig
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import ArtifactError
from bitgolf.language_model import LanguageModel
from bitgolf.model import cached_steps
from bitgolf.model.build import build_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def on_gpu(lossless: Tokenizer) -> Iterator[CodecModel]:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the command line does
    settings = config().model.model_copy(update={"vocab_size": lossless.vocab_size})
    gpt, backend = build_model(settings, WINDOW, torch.device("cuda"))
    gpt.load_state_dict(tiny_gpt(settings).state_dict())
    digest = hashlib.sha256(b"the tiny model").digest()
    yield CodecModel(LanguageModel(gpt.eval().requires_grad_(False), lossless, WINDOW, 4, backend), digest)


@pytest.mark.parametrize(
    "ttt",
    [
        None,
        TTTConfig(method="full", weights={"chunk_tokens": 32, "lr": 0.1}),
        TTTConfig(method="last_blocks", weights={"chunk_tokens": 32, "optimizer": "adamw", "lr": 0.01}),
        TTTConfig(method="lora", lora={"chunk_tokens": 8, "targets": ("q", "k", "v", "o", "mlp", "head")}),
    ],
    ids=lambda ttt: "plain" if ttt is None else ttt.method,
)
@pytest.mark.parametrize("streams", [4, 20])
def test_texts_come_back(
    ttt: TTTConfig | None, streams: int, on_gpu: CodecModel, letters: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_steps, "_LEAST_REACH", 4)
    coded = compress_bytes(letters, on_gpu, streams=streams, ttt=ttt)
    assert coded.text.platform["dtype"] == "bfloat16"
    assert decompress_bytes(coded.data, on_gpu) == letters
    assert compress_bytes(letters, on_gpu, streams=streams, ttt=ttt).data == coded.data


def test_hundreds_of_streams_come_back(on_gpu: CodecModel, letters: bytes) -> None:
    coded = compress_bytes(letters, on_gpu, streams=400)
    assert decompress_bytes(coded.data, on_gpu) == letters


def test_a_cpu_refuses_what_a_gpu_coded(on_gpu: CodecModel, model: CodecModel, letters: bytes) -> None:
    coded = compress_bytes(letters[:100], on_gpu)
    with pytest.raises(ArtifactError, match="coded on another platform"):
        decompress_bytes(coded.data, CodecModel(model.packed, on_gpu.sha256))
