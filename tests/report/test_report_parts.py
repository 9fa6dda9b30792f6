"""The report on real parts: a prepared corpus and an artifact that the library itself wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bitgolf.artifact.container import encode_artifact
from bitgolf.artifact.stored import StoredTensor
from bitgolf.config import resolve
from bitgolf.data.prepare import prepare
from bitgolf.model.gpt import GPT
from bitgolf.report.report import report
from bitgolf.run.directory import RunDirectory

WORDS = [
    "the",
    "a",
    "of",
    "<b>bold</b>",
    "caf\u00e9",
    "model",
    "bytes",
    "&",
    "tokens",
    "'quoted'",
    "\u20ac",
    "five",
    "and",
    "six",
    "seven",
]


def test_report_of_a_small_corpus_and_an_untrained_model(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rng = np.random.default_rng(5)
    for index in range(40):
        text = " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), 400))
        (corpus / f"{index:02d}.txt").write_text(f"Document {index}.\n{text}\n", encoding="utf-8")
    config = resolve(
        {
            "name": "small <run>",
            "data": {"source": f"dir:{corpus}", "val_fraction": 0.2, "workers": 1},
            "model": {"vocab_size": 300, "num_layers": 2, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1},
            "train": {"seq_len": 64, "batch_tokens": 64, "micro_batch_tokens": 64},
            "score": {"stride": 16},
            "report": {"samples": 2, "sample_tokens": 12, "surprisal_tokens": 80},
        },
        {},
    )
    run = RunDirectory.create(tmp_path / "run", config)
    data = prepare(config.data, config.model.vocab_size, run / "data")
    model = GPT(config.model, 64).initialize_(torch.Generator().manual_seed(1))
    artifact, _ = encode_artifact(
        model_config=config.model.model_dump(mode="json"),
        tokenizer=data.tokenizer.model_bytes,
        tokenizer_meta={"lossless": data.tokenizer.lossless, "name": data.tokenizer.name},
        tensors={name: StoredTensor.fp32(p.detach()) for name, p in model.named_parameters()},
        meta={"window": 64, "stride": 16},
    )
    (run / "model.bitgolf").write_bytes(artifact)
    nll = np.full(data.val.num_tokens - 1, np.log(300), np.float32)
    np.save(run / "nll.npy", nll)
    html = report(run).read_text(encoding="utf-8")
    assert "small &lt;run&gt;" in html and "&lt;b&gt;" in html and "<b>bold" not in html
    assert html.count('<mark class="made">') == 2
    assert "Document" in html.split('class="passage"')[1]
    assert f"80 tokens, {np.log2(300):.2f} bits per token" in html
    assert report(run).read_text(encoding="utf-8") == html  # the same run gives the same page
