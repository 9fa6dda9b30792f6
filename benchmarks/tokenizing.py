"""How fast one core turns text into proven tokens: encode, decode check and byte accounting of every document.

    python benchmarks/tokenizing.py [SOURCE] [--tokenizer MODEL] [--megabytes 8]

Without arguments: the embedded corpus and a tokenizer of 1,024 pieces trained on it.
"""

from __future__ import annotations

import argparse
import resource
import time

from bitgolf.data.sources import iterate_documents
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.data.train_tokenizer import train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", default="stdlib")
    parser.add_argument("--tokenizer", help="SentencePiece model; default: train one of 1,024 pieces")
    parser.add_argument("--megabytes", type=float, default=8.0)
    arguments = parser.parse_args()
    texts: list[str] = []
    size = 0
    for text in iterate_documents(arguments.source):
        texts.append(text)
        size += len(text.encode())
        if size >= arguments.megabytes * 1e6:
            break
    if arguments.tokenizer:
        tokenizer = Tokenizer.load(arguments.tokenizer)
    else:
        tokenizer = train_tokenizer(texts[: len(texts) // 4], 1024, True)
    wall, cpu = time.perf_counter(), time.process_time()
    encoded = tokenizer.encode_proven(texts)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{size:,} bytes, {len(texts):,} documents -> {len(encoded.tokens):,} tokens with {tokenizer.name}")
    print(f"{size / 1e6 / cpu:.1f} MB/s of CPU time, {size / 1e6 / wall:.1f} MB/s of wall time, peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()
