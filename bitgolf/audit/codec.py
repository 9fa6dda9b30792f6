"""The codec check: validation text coded with the run's own evaluation, decoded again, and weighed.

A decoder has the artifact, the configuration and the tokens that it has decoded so far, nothing else. When it gives the
text back, no prediction can have depended on its own target or on later tokens, adaptation included. When the coded
bytes are those that the losses on record promise, these are the losses of exactly such predictions. The decoder is also
told how many targets there are, how long the whole text is (for the schedule of test-time training), and, where
documents adapt side by side, how many documents there are. Source: docs/rules.md, conditions C1 to C4 (issue 1017 of
openai/parameter-golf); a score is a code length.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from bitgolf.artifact.open import PackedModel
from bitgolf.audit.evidence import Evidence, run_checks
from bitgolf.audit.verdict import Finding, MissingEvidence, failed, judge
from bitgolf.codec.counts import TOTAL
from bitgolf.codec.document_predictor import DocumentPredictor
from bitgolf.codec.exactness import exact_arithmetic
from bitgolf.codec.predictors import fresh_adapters, fresh_predictor
from bitgolf.codec.range_coder import Predictor, Streams, decode_streams, encode_streams
from bitgolf.config import Config, TTTConfig
from bitgolf.data.prepared import PreparedData
from bitgolf.errors import ArtifactError, ConfigError, RunError
from bitgolf.evaluate.window_scorer import Windows
from bitgolf.run.progress import Progress
from bitgolf.run.ranks import device_name

TOLERANCE_SHARE = 0.005  # counts of 2^-24, and kernels that round in another order than those of the score
TOLERANCE_BYTES = 8  # per stream: a payload ends with whole words


@run_checks.register(
    "codec",
    "C1-C4",
    "coded with the run's own evaluation, the text comes back, at the size of its score",
    applies=lambda evidence: bool(evidence.codec_bytes),
)
def codec(evidence: Evidence) -> Finding:
    """C1 to C4: code and decode the beginning of the validation text.

    NOT RUN when the device has no deterministic kernels for the evaluation.
    """
    text = beginning(evidence.data, evidence.nll, evidence.codec_bytes)
    try:
        plan = _Plan(evidence.headline.packed, _scored_with(evidence), text)
        return code_and_decode(plan, text, evidence.progress)
    except ConfigError as error:
        raise MissingEvidence(str(error)) from error


def code_and_decode(plan: _Plan, text: _Text, progress: Progress) -> Finding:
    """Code all streams of the plan, decode them, and judge."""
    total = 2 * plan.num_targets
    decoded: list[np.ndarray] = []
    payloads: list[bytes] = []
    with exact_arithmetic(plan.packed.device, torch.get_num_threads()):
        begin = time.perf_counter()
        for predictor, batch in plan.predictors():
            done = sum(map(len, plan.streams[: batch.start]))
            payloads += encode_streams(predictor, plan.streams[batch], _ticker(progress, done, total))
        middle = time.perf_counter()
        for predictor, batch in plan.predictors():
            tick = _ticker(progress, plan.num_targets + sum(map(len, decoded)), total)
            try:
                decoded += decode_streams(predictor, payloads[batch], plan.limits[batch], plan.stop_token, tick)
            except ArtifactError as error:
                return failed(f"decoding breaks down: {error}", targets=plan.num_targets)
        end = time.perf_counter()
    return _judge(plan, text, payloads, decoded, {"coding": middle - begin, "decoding": end - middle})


@dataclass(frozen=True)
class _Text:
    """The beginning of the validation text: its tokens, (n + 1,) int64, bytes and losses, (n,) float32 nats; and the
    number of targets of the whole text."""

    tokens: np.ndarray
    num_bytes: int
    nll: np.ndarray
    whole_targets: int


class _Plan:
    """The streams of the text, and the predictors that code them, batch after batch.

    Attributes:
        streams: targets of each stream; one stream, or one per document where documents adapt.
        limits: the largest length that the decoder is told for each.
        stop_token: ends a stream before its limit.
    """

    def __init__(self, packed: PackedModel, config: Config, text: _Text) -> None:
        self.packed, self.config = packed, config
        self.num_targets, self.whole_targets = len(text.tokens) - 1, text.whole_targets
        self.first_token, self.bos_id = int(text.tokens[0]), packed.tokenizer.bos_id
        self.documents = config.ttt.method == "lora"
        borders = np.flatnonzero(text.tokens[1:-1] == self.bos_id) + 1 if self.documents else np.zeros(0, np.int64)
        edges = [0, *borders.tolist(), self.num_targets]
        self.streams = [text.tokens[start + 1 : stop + 1] for start, stop in pairwise(edges)]
        self.limits = [self.num_targets] * (len(self.streams) - 1) + [len(self.streams[-1])]
        self.stop_token = self.bos_id if self.documents else None

    def predictors(self) -> Iterator[tuple[Predictor, slice]]:
        """A predictor for each batch of streams, before its first target."""
        ttt, seed = self.config.ttt, self.config.seed
        size = ttt.lora.documents
        a = fresh_adapters(self.packed, ttt.lora, seed, size) if self.documents else None
        for begin in range(0, len(self.streams), size):
            count = min(size, len(self.streams) - begin)
            with fresh_predictor(
                self.packed,
                ttt,
                Windows.of(self.config),
                Streams(count, self.num_targets, self.whole_targets, self.bos_id if begin else self.first_token),
                seed=seed,
                a=None if a is None else [tensor[:count] for tensor in a],
            ) as predictor:
                yield predictor, slice(begin, begin + count)
                if a is not None and ttt.lora.keep_a:
                    assert isinstance(predictor, DocumentPredictor)
                    for tensor, handed in zip(a, predictor.hand_down(), strict=True):
                        tensor[:count] = handed

    @property
    def updates(self) -> int:
        """How many updates learned from coded targets."""
        ttt = self.config.ttt
        if self.documents:
            return sum((len(stream) - 1) // ttt.lora.chunk_tokens for stream in self.streams)
        return (self.num_targets - 1) // ttt.weights.chunk_tokens if ttt.between_chunks else 0


def _ticker(progress: Progress, before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress("codec", before + done, total)


def _judge(
    plan: _Plan, text: _Text, payloads: list[bytes], decoded: list[np.ndarray], seconds: dict[str, float]
) -> Finding:
    """Whether the text comes back, and whether its code has the size that its losses give."""
    coded_bytes = sum(map(len, payloads))
    score_bytes = float(text.nll.sum(dtype=np.float64)) / math.log(2) / 8
    promised = promised_bytes(text.nll, plan.config.model.vocab_size)
    tolerance = promised * TOLERANCE_SHARE + TOLERANCE_BYTES * len(payloads)
    problems = []
    again, expected = np.concatenate(decoded), text.tokens[1:]
    if not np.array_equal(again, expected):
        same = again[: len(expected)] == expected[: len(again)]
        first = int(np.argmin(np.append(same, False)))
        problems.append(f"decoding gives another text from target {first} on")
    if not abs(coded_bytes - promised) <= tolerance:
        problems.append(f"{coded_bytes:,} coded bytes, but the losses on record promise {promised:,.0f}")
    learned = ""
    if plan.documents or plan.config.ttt.between_chunks:
        learned = f", {plan.updates} updates on the way"
        learned = learned if plan.updates else "; nothing was learned on the way, give more bytes"
    share = f"{coded_bytes / score_bytes - 1:+.2%} of the score"
    return judge(
        problems,
        f"{text.num_bytes:,} bytes of text coded in {coded_bytes:,} ({share}), decoded exactly{learned}",
        text_bytes=text.num_bytes,
        targets=plan.num_targets,
        streams=len(payloads),
        updates=plan.updates,
        coded_bytes=coded_bytes,
        score_bytes=score_bytes,
        promised_bytes=promised,
        tolerance_share=TOLERANCE_SHARE,
        tolerance_bytes_per_stream=TOLERANCE_BYTES,
        device=device_name(plan.packed.device),
        coding_seconds=seconds["coding"],
        decoding_seconds=seconds["decoding"],
    )


def promised_bytes(nll: np.ndarray, vocab_size: int) -> float:
    """Bytes of code for targets with the losses `nll`, in nats.

    The coder gives every token of the vocabulary one of its `TOTAL` counts and divides the others by probability, so no
    token costs more than 24 bits, however large its loss is.
    """
    share = 1 / TOTAL + (1 - vocab_size / TOTAL) * np.exp(-nll.astype(np.float64))
    return float(-np.log2(share).sum()) / 8


def beginning(data: PreparedData, nll: np.ndarray, num_bytes: int) -> _Text:
    """The first `num_bytes` of the validation text (all of it when there is less) with its losses, nll (N-1,)."""
    if nll.shape != (data.val.num_tokens - 1,):
        raise RunError(f"nll.npy has {len(nll):,} losses, not one for each of {data.val.num_tokens - 1:,} targets")
    taken = min(num_bytes + 1, data.val.num_tokens)
    while True:  # tokens of no bytes, such as BOS, may make more necessary
        tokens = data.val.read(0, taken)
        sizes = np.cumsum(data.tokenizer.byte_costs(tokens), dtype=np.int64)
        if sizes[-1] >= num_bytes or taken == data.val.num_tokens:
            break
        taken = min(2 * taken, data.val.num_tokens)
    targets = min(len(sizes), int(np.searchsorted(sizes, num_bytes)) + 1)
    return _Text(tokens[: targets + 1].astype(np.int64), int(sizes[targets - 1]), nll[:targets], len(nll))


def _scored_with(evidence: Evidence) -> Config:
    """The configuration of the headline: the adapted pass, or a plain method."""
    config, headline = evidence.config, evidence.headline
    if headline.adapted:
        return config
    score = config.score.model_copy(update={"methods": (headline.method,)})
    return config.model_copy(update={"score": score, "ttt": TTTConfig()})
