"""How small a model codes a text, how near that is to its score, and how fast, beside general-purpose compressors.

    python benchmarks/codec/text.py MODEL TEXT [--bytes 65536] [--streams 1,0] [--device cpu] [--ttt.method lora ...]

Codes and decodes the first bytes of TEXT (a file) with MODEL (an artifact), once a number of streams; 0 is the
automatic choice. "score" is what the scorer charges for the same tokens in the same streams, window by window and with
the same adaptation; several streams that share what a chunk teaches have no such score. `--ttt.KEY VALUE` sets any
key of the [ttt] section. Decoding is checked against the text.
"""

from __future__ import annotations

import argparse
import logging
import lzma
import math
import time
from pathlib import Path

import numpy as np
import torch
import zstandard

from bitgolf.codec import CodecModel, compress_bytes, decompress_bytes
from bitgolf.codec.tokens import split_bytes, tokenize
from bitgolf.commands.codec import ask_for_reproducible_cublas
from bitgolf.config import Config, resolve
from bitgolf.evaluate.adapters import adapted_evaluation, preserved
from bitgolf.evaluate.scorers import make_scorer
from bitgolf.evaluate.tape import ScoreTape, evaluate
from bitgolf.run.ranks import World


def main() -> None:
    logging.basicConfig(format="%(levelname)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--bytes", type=int, default=65_536)
    parser.add_argument("--streams", default="1,0")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    arguments, rest = parser.parse_known_args()
    overrides = {key.removeprefix("--"): value for key, value in zip(rest[::2], rest[1::2], strict=True)}
    ask_for_reproducible_cublas()
    with arguments.text.open("rb") as handle:
        text = handle.read(arguments.bytes)
    model = CodecModel.load(arguments.model, arguments.device)
    language_model = model.packed
    scoring = {"seq_len": language_model.window, "stride": language_model.stride, "methods": ["sliding"]}
    config = resolve({"model": language_model.model.config.model_dump(mode="json"), "score": scoring}, overrides)
    print(f"{len(text):,} bytes, {language_model.device}, {torch.get_num_threads()} threads, {overrides or 'no ttt'}")
    print("streams  tokens     file  header   score  over score     bpb  coding B/s  decoding B/s")
    for asked in map(int, arguments.streams.split(",")):
        begin = time.perf_counter()
        coded = compress_bytes(text, model, streams=asked, ttt=config.ttt)
        coded_at = time.perf_counter()
        decoded = decompress_bytes(coded.data, model)
        decoded_at = time.perf_counter()
        assert decoded == text
        streams = len(coded.text.streams)
        charged = score_bytes(text, model, config, streams)
        score, over = "-", "-"
        if charged:
            score, over = f"{charged:.0f}", f"{coded.text.payload_bytes / charged - 1:+.3%}"
        print(
            f"{streams:7}  {coded.num_tokens:6}  {len(coded.data):7}  {len(coded.data) - coded.text.payload_bytes:6}  "
            f"{score:>6}  {over:>10}  {coded.bpb:.4f}  {len(text) / (coded_at - begin):10,.0f}  "
            f"{len(text) / (decoded_at - coded_at):12,.0f}",
            flush=True,
        )
    for name, size in general_purpose(text).items():
        print(f"{name:<10} {size:9} bytes  {8 * size / len(text):.4f} bpb")


def score_bytes(text: bytes, model: CodecModel, config: Config, streams: int) -> float:
    """Bytes that the scorer charges for the streams; 0 when the streams share what they learn."""
    if config.ttt.between_chunks and streams > 1:
        return 0.0
    language_model = model.packed
    bos_id, device = language_model.tokenizer.bos_id, language_model.device
    total = 0.0
    for stream in tokenize(split_bytes(text, streams), language_model.tokenizer):
        tape = ScoreTape(np.concatenate([[bos_id], stream.tokens]))
        with preserved(language_model.model):
            if config.ttt.enabled:
                gpt, world = language_model.model, World(0, 1, device)
                adapted_evaluation(config, gpt, gpt, num_targets=tape.num_targets, bos_id=bos_id, world=world).run(tape)
            else:
                scorer = make_scorer(
                    "sliding",
                    language_model.model,
                    window=config.window,
                    stride=config.score.stride,
                    batch_tokens=16 * config.window,
                    device=device,
                )
                evaluate(tape, scorer)
        total += float(tape.nll.sum(dtype=np.float64))
    return total / math.log(2) / 8


def general_purpose(text: bytes) -> dict[str, int]:
    """Bytes of the text by each compressor that is installed."""
    long_window = zstandard.ZstdCompressionParameters.from_level(22, window_log=27)
    sizes = {
        "zstd-22": len(zstandard.ZstdCompressor(compression_params=long_window).compress(text)),
        "xz-9": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)),
    }
    try:
        import brotli
    except ImportError:
        print("brotli is not installed: no figure for it")
    else:
        sizes["brotli-11"] = len(brotli.compress(text, quality=11, lgwin=24))
    return sizes


if __name__ == "__main__":
    main()
