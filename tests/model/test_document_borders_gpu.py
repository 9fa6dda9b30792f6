"""Attention within documents and windows with the kernels of a GPU: compiled and eager, against `math`, bit by bit."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bitgolf.config import ModelConfig
from bitgolf.model import GPT
from bitgolf.model.backends import AttentionCase, available_backends
from bitgolf.model.document_borders import BOS, DOCUMENT_BACKENDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = torch.device("cuda")
CONFIG = ModelConfig().updated(
    {
        "vocab_size": 512,
        "num_layers": 4,
        "model_dim": 256,
        "num_heads": 4,
        "num_kv_heads": 2,
        "attention.within_documents": True,
        "bigram.rows": 64,
        "smear.gate": "v1",
        "smear.document_mask": True,
        "attention.value_residual": True,
        "value_embedding.layers": (1, 3),
        "attention.xsa_layers": 2,
    }
)


@pytest.fixture(scope="module")
def working() -> dict[str, str]:
    return available_backends(
        AttentionCase(DEVICE, torch.bfloat16, 64, heads=4, kv_heads=2, documents=True, window=300)
    )


def model_with(backend: str, window: int = 0) -> GPT:
    changes = {"attention.window": window, "attention.full_layers": (1,) if window else ()}
    model = (
        GPT(CONFIG.updated(changes), 512, compute_dtype=torch.bfloat16)
        .initialize_(torch.Generator().manual_seed(0))
        .to(DEVICE)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, 0.05, generator=torch.Generator(DEVICE).manual_seed(parameter.numel()))
        model.embedding.mul_(100)
    model.set_attention_backend(backend)
    return model


def rows(seed: int) -> Tensor:
    """(3, 513) tokens in documents of about 60."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 512, (3, 513))
    tokens[rng.random(tokens.shape) < 1 / 60] = BOS
    return torch.from_numpy(tokens).to(DEVICE)


def test_flex_attention_works_on_every_gpu(working: dict[str, str]) -> None:
    assert (working["flex"], working["math"]) == ("", "")
    assert working["flash"], "SDPA's flash kernel does not support masks on a GPU"


@pytest.mark.filterwarnings("ignore")  # of torch, while it traces
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("window", [0, 1, 20, 128])
@pytest.mark.parametrize("backend", [name for name in DOCUMENT_BACKENDS if name not in ("math", "flash")])
def test_a_training_step_is_that_of_math(working: dict[str, str], backend: str, window: int, compiled: bool) -> None:
    if working[backend]:
        pytest.skip(working[backend])
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model, reference = model_with(backend, window), model_with("math", window)
    step = torch.compile(model, dynamic=False) if compiled else model
    for seed in range(3):
        tokens = rows(seed)
        loss, expected = step(tokens[:, :-1], tokens[:, 1:]), reference(tokens[:, :-1], tokens[:, 1:])
        assert float(loss) == pytest.approx(float(expected), abs=0.01)
        ours = torch.autograd.grad(loss, list(model.parameters()))
        theirs = torch.autograd.grad(expected, list(reference.parameters()))
        for (name, parameter), a, b in zip(model.named_parameters(), ours, theirs, strict=True):
            if parameter.ndim > 1:  # the terms of a scalar's gradient cancel, so only bf16 noise is left
                assert float((a - b).norm()) <= 0.05 * float(b.norm()), name
    if compiled and backend != "fa3":  # only some versions of FlashAttention 3 can be traced
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("backend", [name for name in DOCUMENT_BACKENDS if name != "flash"])
def test_no_bit_comes_from_further_back_than_all_windows_reach(working: dict[str, str], backend: str) -> None:
    if working[backend]:
        pytest.skip(working[backend])
    model = model_with(backend, window=33)
    for block in model.blocks:
        block.attention.has_window = True
    tokens = torch.full((1, 512), 7, device=DEVICE) + torch.arange(512, device=DEVICE) % 300
    changed = tokens.clone()
    changed[0, 100] = 400
    with torch.no_grad():
        moved = (model(tokens) != model(changed)).any(-1)[0]
    # Layers reach 32 tokens back each, and the smear and the bigram before them two.
    assert not moved[:100].any() and moved[100:110].all() and not moved[100 + 4 * 32 + 3 :].any()


@pytest.mark.parametrize("backend", [name for name in DOCUMENT_BACKENDS if name != "flash"])
def test_no_bit_crosses_a_border(working: dict[str, str], backend: str) -> None:
    if working[backend]:
        pytest.skip(working[backend])
    model, tokens = model_with(backend), rows(5)[:, :512].clone()
    tokens[1] = torch.where(tokens[1] == BOS, 7, tokens[1])
    tokens[1, 200] = BOS
    changed = tokens.clone()
    changed[1, :200] = (changed[1, :200] + 41) % 500 + 2
    with torch.no_grad():
        moved = (model(tokens) != model(changed)).any(-1)
    assert moved[1, :200].all() and not moved[1, 200:].any() and not moved[[0, 2]].any()
