"""A step of a small model in NumPy gives the logits of the model itself, token by token, for every component."""

import pytest
import torch
from tiny_gpt import BOS, VOCAB, WINDOW, config, tiny_gpt

from bitgolf.model.cache import GenerationCache
from bitgolf.model.small_step import SmallStep, is_small, one_blas_thread

EVERYTHING = config().model
MODELS = {
    "every component": {},
    "plain": {
        "bigram.rows": 0,
        "value_embedding.layers": (),
        "smear.gate": "none",
        "attention.value_residual": False,
        "attention.xsa_layers": 0,
        "skips": False,
    },
    "smear v2 within documents": {"smear.gate": "v2", "smear.document_mask": True},
    "smear v1 within documents": {"smear.document_mask": True},
    "leaky, partial rotation, scaled norms": {
        "mlp.activation": "leaky_relu2",
        "mlp.leaky_slope": 0.3,
        "rope.dims": 4,
        "ln_scale": True,
        "attention.qk_gain": 4.0,
    },
    "gates": {"skip_gates": True, "attention.gate": True, "attention.xsa_layers": 3, "ln_scale": True},
    "window": {"attention.window": 3, "attention.full_layers": (1,)},
    "key offset": {"attention.key_offset": True, "rope.dims": 4, "attention.window": 3, "attention.full_layers": (1,)},
    "loop": {
        "attention.window": 2,
        "attention.full_layers": (2,),
        "num_layers": 4,
        "loop.repeats": 1,
        "loop.first": 1,
        "loop.last": 2,
        "value_embedding.layers": (1, 3),
    },
}


@pytest.mark.parametrize("start", [1, 2, 7])
@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS.keys())
def test_steps_are_the_logits_of_the_model(changes: dict[str, object], start: int) -> None:
    model = tiny_gpt(EVERYTHING.updated(changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # gains and scales too
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        model.blocks[2].attention.value.weight *= 1e-3  # values shorter than any sensible floor of XSA's norm
    tokens = torch.randint(2, VOCAB, (3, WINDOW), generator=generator)
    tokens[:, 0] = tokens[1, 5] = tokens[2, 8] = BOS
    expected = model(tokens).detach()
    assert is_small(model)
    cache, steps = GenerationCache(model.num_positions), SmallStep(model, 3, WINDOW)
    with torch.no_grad(), one_blas_thread():
        model.hidden(tokens[:, :start], cache)
        steps.load(cache)
        for position in range(start, WINDOW):
            logits = torch.from_numpy(steps.step(tokens[:, position].numpy()))
            torch.testing.assert_close(logits, expected[:, position], rtol=0, atol=2e-4)
    assert expected.std() > 0.1


def test_changed_weights_are_read_with_the_next_window() -> None:
    model, steps = tiny_gpt(), None
    tokens = torch.arange(2, 8)[None]
    for _ in range(2):
        cache = GenerationCache(model.num_positions)
        steps = steps or SmallStep(model, 1, WINDOW)
        with torch.no_grad():
            model.hidden(tokens[:, :3], cache)
            steps.load(cache)
            logits = torch.from_numpy(steps.step(tokens[:, 3].numpy()))
            torch.testing.assert_close(logits, model(tokens[:, :4])[:, -1], rtol=0, atol=1e-4)
            for parameter in model.parameters():
                parameter.requires_grad_(True)  # as while the weights learn
                parameter.mul_(1.3)


def test_models_with_lanes_or_documents_or_many_parameters_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = {"attention.within_documents": True, "smear.document_mask": True}
    for changes in (documents, {"lanes_from": 2}):
        assert not is_small(tiny_gpt(EVERYTHING.updated(changes)))
    assert is_small(tiny_gpt(), 128) and not is_small(tiny_gpt(), 129)
    monkeypatch.setattr("bitgolf.model.small_step.MOST_PARAMETERS", 10_000)
    assert not is_small(tiny_gpt())
