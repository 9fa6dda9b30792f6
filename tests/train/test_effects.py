"""Settings without effect are named before training; settings with effect are not."""

import pytest

from bitgolf.config import resolve
from bitgolf.model import GPT
from bitgolf.train.effects import without_effect


def sentences(num_steps: int = 100, begun: float = 0.0, **overrides: str) -> list[str]:
    """The sentences about the defaults with these overrides (`__` for the dot)."""
    config = resolve({}, {key.replace("__", "."): value for key, value in overrides.items()})
    shapes = {name: tuple(p.shape) for name, p in GPT(config.model, 8).named_parameters()}
    return without_effect(config, shapes, num_steps, begun)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"train__replay__epochs": "2", "train__replay__lr": "0.3", "train__warmdown": "0.5"},
        {"train__average__swa_weight": "0.5", "train__warmdown": "0.5"},
        {"train__held_out_tokens": "4096", "train__average__choose": "held_out", "train__average__ema_decay": "0.9"},
        {"train__held_out_tokens": "4096", "train__watch__seconds": "5"},
        {"pack__fit__prune": "true", "pack__fit__margin_bytes": "10"},
        {"pack__passthrough": '["embedding", "blocks.*.attention.key.weight"]'},
        {"qat__mode": "ste", "qat__start_fraction": "0.9"},
        {"train__checkpoint__at": "[0.3]"},
        {"model__attention__window": "1023"},
        {"train__measure__fisher_tokens": "4096", "pack__method": "rate", "pack__rate__hessian": "fisher"},
    ],
    ids=str,
)  # fmt: skip
def test_settings_with_effect_are_not_named(overrides: dict[str, str]) -> None:
    assert sentences(**overrides) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"train__replay__lr": "0.3"}, "train.replay.lr 0.3: train.replay.epochs is 0"),
        ({"train__replay__batches": "7"}, "train.replay.batches 7: "),
        ({"train__held_out_tokens": "4096"}, "train.held_out_tokens 4096: with train.average.choose 'fixed'"),
        ({"train__measure__fisher_tokens": "4096"}, "train.measure.fisher_tokens 4096: pack.method is 'gptq'"),
        ({"pack__fit__margin_bytes": "10"}, "pack.fit.margin_bytes 10: pack.fit.prune is off"),
        ({"pack__fit__prune": "true", "pack__method": "rtn"}, "only GPTQ matrices are pruned"),
        ({"model__attention__window": "1024"}, "training attends to at most 1024 tokens anyway"),
        (
            {
                "model__attention__window": "64",
                "model__attention__within_documents": "true",
                "model__attention__document_tokens": "64",
            },
            "training attends to at most 64 tokens anyway",
        ),
        (
            {"pack__passthrough": '["*.q_gain"]'},
            "pack.passthrough '*.q_gain': all tensors that it matches stay",
        ),
        ({"pack__passthrough": '["embedding"]', "pack__method": "lossless"}, "pack.passthrough 'embedding'"),
    ],
    ids=str,
)
def test_settings_without_effect_are_named(overrides: dict[str, str], words: str) -> None:
    (sentence,) = sentences(**overrides)
    assert words in sentence


def test_parts_of_the_schedule_that_a_short_run_never_reaches_are_named() -> None:
    short = {"train__warmdown": "0.5"}
    # Of four steps the last one starts at fraction 0.75, with multiplier 0.5; of a hundred at 0.02.
    for setting, words in [
        ({"train__replay__epochs": "2"}, "nothing to replay"),
        ({"train__average__swa_weight": "0.5"}, "no snapshot"),
        ({"qat__mode": "ste", "qat__start_lr_scale": "0.3"}, "train plain weights"),
    ]:
        (sentence,) = sentences(4, **(short | setting))
        assert words in sentence
        assert "none of the 4 steps" in sentence
        assert sentences(100, **(short | setting)) == []


def test_checkpoints_before_the_branch_point_are_named() -> None:
    (sentence,) = sentences(begun=0.6, train__checkpoint__at="[0.5, 0.9]")
    assert sentences(begun=0.5, train__checkpoint__at="[0.5]") and not sentences(
        begun=0.49, train__checkpoint__at="[0.5]"
    )
    assert "train.checkpoint.at 0.5" in sentence
    assert "0.6" in sentence
