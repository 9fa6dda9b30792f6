"""The log of one seed in a submission.

It has the run's configuration and training log unchanged, then its sizes and scores in the words of the challenge's
logs (`val_loss`, `val_bpb`, `Total submission size`). Every number of submission.json can be computed again from the
logs.
"""

from bitgolf.errors import ForeignError, RunError
from bitgolf.foreign import read_text
from bitgolf.submit.seed_runs import SeedRun


def seed_log(run: SeedRun, code_bytes: int) -> str:
    """Text of train_seed<N>.log; `code_bytes`: size of the train_gpt.py that ships."""
    return "\n".join(
        [
            "==== config.toml",
            (run.path / "config.toml").read_text(encoding="utf-8").rstrip(),
            "==== train.log",
            _train_log(run),
            "==== results",
            *_results(run, code_bytes),
            "",
        ]
    )


def _train_log(run: SeedRun) -> str:
    path = run.scored.run.require("train.log")
    try:
        return read_text(path).rstrip()
    except ForeignError as error:
        raise RunError(f"{path} is damaged: {error}; submit a run with an undamaged log") from error


def _results(run: SeedRun, code_bytes: int) -> list[str]:
    score, end = run.scored.score, run.end
    milliseconds = 1000 * float(end["elapsed_seconds"])
    lines = [
        f"model_params:{run.pack['num_parameters']}",
        f"stopping: step:{end['step']} train_time:{milliseconds:.0f}ms step_avg:{step_milliseconds(run):.2f}ms",
        f"peak memory allocated: {end['peak_memory_mib']:.0f} MiB",
        f"Serialized model: {run.model_bytes} bytes",
        f"Serialized model sha256: {run.model_sha256}",
        f"Code size: {code_bytes} bytes",
        f"Code size when packed: {run.pack['code_bytes']} bytes",
        f"Total submission size: {run.model_bytes + code_bytes} bytes",
    ]
    for weights in ("last", "float"):
        for name, result in score.get(weights, {}).items():
            lines.append(f"{weights} {name} val_loss:{result['loss_nats']:.8f} val_bpb:{result['bpb']:.8f}")
    for name, result in score["methods"].items():
        lines.append(
            f"{name} val_loss:{result['loss_nats']:.8f} val_bpb:{result['bpb']:.8f} "
            f"eval_time:{1000 * result['seconds']:.0f}ms tokens:{result['tokens']} bytes:{result['bytes']}"
        )
    lines.append(f"eval_time_total:{1000 * run.seconds['eval_seconds']:.0f}ms")
    lines.append(f"final {run.scored.method} val_loss:{run.scored.loss_nats:.8f} val_bpb:{run.scored.bpb:.8f}")
    return lines


def step_milliseconds(run: SeedRun) -> float:
    return 1000 * float(run.end["steps_seconds"]) / int(run.end["step"])
