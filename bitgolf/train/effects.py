"""Settings that have no effect in a run, reported before training starts.

`without_effect` joins the settings whose method is switched off (`bitgolf.config.idle`) and those that this run never
reaches, for example a replay after so few steps that the learning rate never falls.
"""

from collections.abc import Mapping

from bitgolf.config import Config
from bitgolf.config.idle import idle_packing, idle_training
from bitgolf.grids.roles import idle_passthrough
from bitgolf.train.schedule import lr_multiplier


def without_effect(
    config: Config,
    shapes: Mapping[str, tuple[int, ...]],  # the model's tensors, name -> shape
    num_steps: int,  # optimizer steps that the run will make, as far as is known
    begun: float = 0.0,  # fraction of the run at which a branch begins; 0 for a run that is not a branch
) -> list[str]:
    """One sentence per setting that has no effect."""
    return [
        *_never_reached(config, num_steps, begun),
        *idle_training(config.train, config.pack),
        *idle_packing(config.pack),
        *idle_passthrough(config.pack, shapes),
    ]


def _never_reached(config: Config, num_steps: int, begun: float) -> list[str]:
    train, qat = config.train, config.qat
    last = (num_steps - 1) / max(1, num_steps)  # fraction of the run at which the last step starts
    lowest = lr_multiplier(last, train.warmdown, train.min_lr)
    sentences = []
    if train.replay.epochs and lowest >= train.replay.lr_scale_below:
        sentences.append(
            f"train.replay.epochs {train.replay.epochs}: none of the {num_steps} steps has a learning-rate multiplier "
            f"below train.replay.lr_scale_below {train.replay.lr_scale_below:g}, so there is nothing to replay"
        )
    if train.average.swa_weight and lowest >= train.average.swa_start:
        sentences.append(
            f"train.average.swa_weight {train.average.swa_weight:g}: none of the {num_steps} steps has a learning-rate "
            f"multiplier below train.average.swa_start {train.average.swa_start:g}, so no snapshot will be taken"
        )
    attention = config.model.attention
    longest = min(attention.document_tokens or train.seq_len, train.seq_len)
    if attention.window >= longest:
        sentences.append(
            f"model.attention.window {attention.window}: training attends to at most {longest} tokens anyway"
        )
    if qat.enabled and not qat.is_on(last, lowest):
        sentences.append(f"qat: none of the {num_steps} steps reaches its start, so all of them train plain weights")
    sentences += [
        f"train.checkpoint.at {at:g}: the branch begins later, at fraction {begun:.3g}"
        for at in train.checkpoint.at
        if at <= begun
    ]
    return sentences
