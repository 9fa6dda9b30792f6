"""The quick check of a configuration against this machine, before a run starts; and the choice of an "auto" setting.

It refuses a byte cap below the size of the code, a model far above the cap, a model that does not fit in the memory,
and a preset for a GPU on a CPU. It takes no more than a few seconds and allocates nothing.
"""

import torch

from bitgolf.bundle.single_file import MOST_CODE_BYTES, code_bytes
from bitgolf.config import Config
from bitgolf.errors import BudgetError, ConfigError
from bitgolf.plan.memory import USABLE, Memory, at_most, free_memory, predict_memory, total_memory
from bitgolf.plan.size import predict_model_bytes
from bitgolf.plan.speed import estimated_step_seconds
from bitgolf.run.ranks import World

LEAST_MODEL_BYTES = 10_000  # header, tokenizer and tensors of the smallest useful model
_TOLERANCE = 1.4  # predicted bytes / cap, beyond which a file is called too large (see `size`)
_LEAST_STEPS = 10  # in the training budget of a CPU, by the estimate
FORCE = "--anyway"


def require_fit(config: Config, world: World, *, anyway: bool = False) -> None:
    """Raise BudgetError if the run of `config` cannot work on this machine. `anyway`: check only the byte cap."""
    require_room_for_code(config)
    if anyway:
        return
    for problem in size_problems(config):
        raise BudgetError(f"{problem}; start it with {FORCE} to train all the same")
    problems = [*memory_problems(config, world), *speed_problems(config, world)]
    if problems:
        raise BudgetError(
            f"{config.name!r} does not fit this machine: {'; '.join(problems)}; {_way_out(config, world)}"
        )


def require_room_for_code(config: Config) -> None:
    """Raise BudgetError if the cap is used up by the code. It is counted, for seconds, only if the cap is small."""
    cap = config.budget.artifact_bytes
    if cap < MOST_CODE_BYTES + LEAST_MODEL_BYTES and cap < (code := code_bytes(config)) + LEAST_MODEL_BYTES:
        raise BudgetError(
            f"budget.artifact_bytes = {cap:,} is too small: the code that counts against it has {code:,} bytes, and a "
            f"model needs at least {LEAST_MODEL_BYTES:,} more; set budget.artifact_bytes to {_round_up(code)} or more"
        )


def size_problems(config: Config) -> list[str]:
    """A sentence about an artifact that is predicted to be far larger than the cap; empty if it may fit.

    Method `rate` and `pack.fit.prune` make the file fit where that is possible, so they have no such problem.
    """
    cap, grid = config.budget.artifact_bytes, config.pack.grid
    model = predict_model_bytes(config, MOST_CODE_BYTES)
    if config.pack.fit.prune or MOST_CODE_BYTES + model <= _TOLERANCE * cap:
        return []
    code = code_bytes(config)
    model = predict_model_bytes(config, code)
    return [
        f"the artifact is too large: about {model:,} bytes of model + {code:,} of code, and budget.artifact_bytes is "
        f"{cap:,}; lower pack.grid.matrix_bits (now {grid.matrix_bits}) or pack.grid.embed_bits (now "
        f"{grid.embed_bits}), or make the model smaller"
    ]


def memory_problems(config: Config, world: World) -> list[str]:
    """Sentences about the memory that training lacks; empty if it fits."""
    sharing = world.size if world.device.type == "cpu" else 1  # ranks on one CPU share its memory
    room = USABLE * free_memory(world.device) / sharing
    if at_most(config) < room:
        return []
    memory = predict_memory(config, world.device, world.size)
    if memory.training_bytes < room:
        return []
    advice = advised_micro_batch(config, memory, room, world.size)
    return [
        f"training needs about {_gigabytes(memory.training_bytes)} of memory with train.micro_batch_tokens "
        f"{memory.micro_batch_tokens}, and may take {_gigabytes(room)}: {USABLE:.0%} of what is free on "
        f"{_name(world.device)}, which has {_gigabytes(total_memory(world.device))} ({advice})"
    ]


def speed_problems(config: Config, world: World) -> list[str]:
    """Sentences about a CPU that is far too slow for the configuration; empty if it is fast enough."""
    budget, max_steps = config.budget, config.train.max_steps
    if world.device.type != "cpu" or budget.min_steps:  # a budget with least steps is extended
        return []
    seconds = estimated_step_seconds(config, world) / 2  # in favor of the machine
    num_steps = int(budget.train_seconds / seconds)
    if num_steps >= min(max_steps or _LEAST_STEPS, _LEAST_STEPS):
        return []
    return [
        f"one step takes about {2 * seconds:,.0f} s on {torch.get_num_threads()} CPU threads, so budget.train_seconds "
        f"{budget.train_seconds:g} holds about {int(num_steps / 2)} steps; batches of {config.train.batch_tokens:,} "
        "tokens are made for a GPU"
    ]


def settled(config: Config, world: World, earlier: Config | None = None) -> Config:
    """The configuration with a number for `train.micro_batch_tokens = "auto"`: the most that fits in the memory.

    The choice depends on the size of the memory, not on how much of it is free, so that a run can be repeated. A run
    that is resumed keeps the number of its `earlier` configuration.
    """
    if config.train.micro_batch_tokens:
        return config
    if earlier is not None and earlier.train.micro_batch_tokens:
        return config.updated({"train.micro_batch_tokens": earlier.train.micro_batch_tokens})
    memory = predict_memory(config, world.device, world.size)
    tokens = memory.largest_micro_batch(config, _room_of_auto(world.device), world.size)
    if not tokens:
        least = memory.fixed_bytes + memory.bytes_per_token * config.train.seq_len
        raise ConfigError(
            f"train.micro_batch_tokens auto: one row of train.seq_len {config.train.seq_len} needs {_gigabytes(least)} "
            f"and {_name(world.device)} has {_gigabytes(total_memory(world.device))}; make the model or train.seq_len "
            "smaller"
        )
    return config.updated({"train.micro_batch_tokens": tokens})


def advised_micro_batch(config: Config, memory: Memory, room_bytes: float, world_size: int) -> str:
    """What to set so that training fits."""
    tokens = memory.largest_micro_batch(config, room_bytes, world_size)
    return f"set train.micro_batch_tokens {tokens}" if tokens else "make the model or train.seq_len smaller"


def _room_of_auto(device: torch.device) -> float:
    """Other programs share the memory of a CPU, so half of it is left to them."""
    return (0.85 if device.type == "cuda" else 0.5) * total_memory(device)


def _way_out(config: Config, world: World) -> str:
    if world.device.type != "cpu":
        return f"start it with {FORCE} to try all the same"
    needs = predict_memory(config, torch.device("cuda"), world.size).training_bytes
    return (
        f"it needs a GPU with about {_gigabytes(needs)} of free memory, or smaller values of train.batch_tokens and of "
        f"the model, as in preset 'demo'; start it with {FORCE} to try all the same"
    )


def _name(device: torch.device) -> str:
    return "this machine" if device.type == "cpu" else str(device)


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"


def _round_up(code: int) -> str:
    return f"{-(-(code + LEAST_MODEL_BYTES) // 10_000) * 10}KB"
