"""`bitgolf plan`: what a configuration will need on this machine, and what of it does not fit."""

import math
from typing import Any

from bitgolf.bundle.single_file import code_bytes
from bitgolf.config import Config
from bitgolf.data.prepare_text import validation_share
from bitgolf.data.sources import FILE_KINDS, all_sources, parse_source, source_files
from bitgolf.errors import BitgolfError
from bitgolf.model.gpt import count_parameters
from bitgolf.plan.check import memory_problems, require_room_for_code, settled, size_problems, speed_problems
from bitgolf.plan.memory import free_memory, predict_memory, total_memory
from bitgolf.plan.size import predict_model_bytes
from bitgolf.plan.speed import Speed, after_steps_seconds, estimated_step_seconds, evaluation_seconds, measured_speed
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World, device_name

_FINEWEB_VAL_BYTES = 151_080_891  # of the challenge's 50,000 validation documents


def predict(config: Config, world: World, progress: Progress = silent) -> dict[str, Any]:
    """Predict what a run of `config` needs. Runs a few steps on random tokens if the model fits in the memory."""
    progress("plan", 0, 3, "bytes and memory")
    problems: list[str] = []
    try:
        require_room_for_code(config)
    except BitgolfError as error:
        problems.append(str(error))
    config = settled(config, world)
    memory, code = predict_memory(config, world.device, world.size), code_bytes(config)
    model_bytes = predict_model_bytes(config, code)
    if not problems:
        problems += size_problems(config)
    problems += memory_problems(config, world)
    too_slow = speed_problems(config, world)
    problems += too_slow
    progress("plan", 1, 3, "steps on random tokens")
    measured = not problems or too_slow == problems
    speed = measured_speed(config, world) if measured else _estimated_speed(config, world)
    num_steps, train_seconds, eval_limit = _steps(config, speed)
    val_bytes = validation_bytes(config)
    seconds = None
    if val_bytes is not None:
        seconds = evaluation_seconds(config, speed, int(val_bytes / _bytes_per_token(config.model.vocab_size)))
        if seconds > eval_limit:
            problems.append(
                f"evaluation takes about {seconds:,.0f} s, and budget.eval_seconds is {eval_limit:g}; "
                f"{', '.join(_faster_evaluation(config))}, or set data.val_bytes lower"
            )
    if num_steps < 1 and not too_slow:
        problems.append(f"budget.train_seconds = {train_seconds:g} does not hold one step and the work after the steps")
    progress("plan", 3, 3)
    return {
        "preset": config.name,
        "device": device_name(world.device),
        "parameters": count_parameters(config.model),
        "code_bytes": code,
        "model_bytes": model_bytes,
        "total_bytes": code + model_bytes,
        "cap_bytes": config.budget.artifact_bytes,
        "training_memory_bytes": memory.training_bytes,
        "evaluation_memory_bytes": memory.evaluation_bytes,
        "free_memory_bytes": free_memory(world.device),
        "total_memory_bytes": total_memory(world.device),
        "micro_batch_tokens": memory.micro_batch_tokens,
        "measured": measured,  # else the seconds are estimated from the speed of a matrix product
        "step_seconds": speed.step_seconds,
        "num_steps": num_steps,
        "train_seconds": train_seconds,
        "val_bytes": val_bytes,  # as far as they are known before `prepare`
        "evaluation_seconds": seconds,
        "eval_seconds_limit": eval_limit,
        "problems": problems,  # one sentence for everything that does not fit
        "fits": not problems,
    }


def _faster_evaluation(config: Config) -> list[str]:
    """What makes the evaluation of a configuration take less time."""
    ways = ["raise score.stride", "drop the sliding pass (score.methods)"] if "sliding" in config.score.methods else []
    if config.ttt.method == "lora":
        ways.append(f"raise ttt.lora.chunk_tokens (now {config.ttt.lora.chunk_tokens})")
    if config.ttt.enabled:
        ways.append("set ttt.method 'none'")
    return ways or ["make the model smaller"]


def _estimated_speed(config: Config, world: World) -> Speed:
    seconds = estimated_step_seconds(config, world)
    return Speed(seconds, seconds * world.size / config.train.mean_batch_tokens / 3)


def _steps(config: Config, speed: Speed) -> tuple[int, float, float]:
    """(steps, training seconds, evaluation seconds) of the budget, extended as `budget.min_steps` says."""
    budget, reserve = config.budget, after_steps_seconds(config, speed)
    least = min(budget.min_steps, config.train.max_steps or budget.min_steps)
    seconds = max(budget.train_seconds, float(math.ceil(least * speed.step_seconds + reserve)) if least else 0.0)
    num_steps = max(0, int((seconds - reserve) / speed.step_seconds))
    if config.train.max_steps:
        num_steps = min(num_steps, config.train.max_steps)
    return num_steps, seconds, budget.eval_seconds * seconds / budget.train_seconds


def validation_bytes(config: Config) -> int | None:
    """Raw bytes of the validation text, as far as they are known before it is prepared; None = unknown."""
    data = config.data
    source = all_sources(data)[-1]
    kind, _ = parse_source(source)
    if kind in ("fineweb", "fineweb-docs"):
        size = _FINEWEB_VAL_BYTES
    elif kind in FILE_KINDS and not data.mix:
        total = sum(file.stat().st_size for file in source_files(source))
        size = total if data.val_source else int(validation_share(data) * total)
    else:
        return data.val_bytes or None
    return min(size, data.val_bytes or size)


def _bytes_per_token(vocab_size: int) -> float:
    """Bytes of English text per token: 2.4 with 1,024 tokens and 3.7 with 8,192, as measured on FineWeb."""
    return max(1.0, 2.4 + 0.43 * (math.log2(vocab_size) - 10))
