"""What adapting while scoring is worth to a finished model, one line an arm, on text that no score is claimed for.

    python benchmarks/adaptation.py MODEL SOURCE [--bytes 1000000] [--device cpu] [--arm ''] [--arm 'KEY=VALUE ...'] ...

Scores the first documents of SOURCE (such as jsonl:train-02.jsonl.zst; whole documents until there are as many bytes)
with MODEL (an artifact), once an arm with its keys of the [ttt] section, such as --arm 'method=lora lora_lr=0.003'.
Choose settings here, on training text that the model has not seen, and score the validation text once. --seconds stops
before an arm that begins later.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from bitgolf.config import Config, resolve
from bitgolf.data.sources import iterate_documents
from bitgolf.errors import BitgolfError, ConfigError, DataError
from bitgolf.evaluate.adapters import adapted_evaluation, adapted_name, preserved
from bitgolf.evaluate.bits import bits_per_byte
from bitgolf.evaluate.score import scoring_model
from bitgolf.evaluate.scorers import make_scorer
from bitgolf.evaluate.tape import ScoreTape, evaluate
from bitgolf.language_model import LanguageModel, load
from bitgolf.run.ranks import World, choose_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("source")
    parser.add_argument("--bytes", type=int, default=1_000_000)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--arm", action="append", help="repeatable; '' does not adapt")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    arguments = parser.parse_args()
    try:
        measure(arguments)
    except BitgolfError as error:
        parser.exit(2, f"error: {error}\n")


def measure(arguments: argparse.Namespace) -> None:
    """Score the text once an arm and print its line. Every setting is read before anything is scored."""
    begin = time.perf_counter()
    model = load(arguments.model, choose_device(arguments.device))
    tokens = read_tokens(model, arguments.source, arguments.bytes)
    costs = model.tokenizer.byte_costs(tokens)
    documents = int((tokens == model.tokenizer.bos_id).sum())
    print(f"{documents} documents, {len(tokens) - 1:,} targets, {int(costs.sum()):,} bytes, {model.device}")
    arms = {arm: settings(model, arm) for arm in arguments.arm or [""]}
    print(f"{'bpb':>8} {'change':>8} {'seconds':>8}  arm")
    first = None
    for arm, config in arms.items():
        started = time.perf_counter()
        if started - begin > arguments.seconds:
            print(f"{'-':>8} {'-':>8} {'-':>8}  not begun: {arm}")
            continue
        nll = score(model, config, tokens)
        bpb = bits_per_byte(nll, costs).bpb
        first = bpb if first is None else first
        print(f"{bpb:8.5f} {bpb - first:+8.5f} {time.perf_counter() - started:8.1f}  {arm or 'none'}", flush=True)


def read_tokens(model: LanguageModel, source: str, num_bytes: int) -> np.ndarray:
    """The first documents of a source, each after a BOS, (N,) int64. Raises DataError when there are none."""
    size, pieces = 0, []
    for text in iterate_documents(source):
        pieces.append([model.tokenizer.bos_id, *model.tokenizer.encode(text)])
        size += len(text.encode())
        if size >= num_bytes:
            break
    if not pieces:
        raise DataError(f"{source} holds no document to score")
    return np.concatenate(pieces)


def settings(model: LanguageModel, arm: str) -> Config:
    """The configuration of the artifact's model with the [ttt] keys of an arm, such as "method=lora lora_rank=4"."""
    pairs = [pair.partition("=") for pair in arm.split()]
    for key, equals, _ in pairs:
        if not equals:
            raise ConfigError(f"--arm {arm!r}: {key!r} is no KEY=VALUE of the section [ttt], such as method=lora")
    scoring = {"seq_len": model.window, "stride": model.stride, "methods": ["sliding"]}
    return resolve(
        {"model": model.model.config.model_dump(mode="json"), "score": scoring},
        {f"ttt.{key}": value for key, _, value in pairs},
    )


def score(model: LanguageModel, config: Config, tokens: np.ndarray) -> np.ndarray:
    """Losses of all targets, (N - 1,) nats; the model is left as it was."""
    tape = ScoreTape(tokens)
    forward = scoring_model(model.model, config, model.device)
    with preserved(model.model):
        if adapted_name(config):
            world, bos_id = World(0, 1, model.device), model.tokenizer.bos_id
            adapted = adapted_evaluation(
                config, model.model, forward, num_targets=tape.num_targets, bos_id=bos_id, world=world
            )
            return adapted.run(tape)
        scorer = make_scorer(
            "sliding",
            forward,
            window=config.window,
            stride=config.score.stride,
            batch_tokens=config.score.batch_tokens,
            device=model.device,
        )
        return evaluate(tape, scorer)


if __name__ == "__main__":
    main()
