"""Check of other batches and ranks: the same losses pass, a model that depends on its batch fails."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_gpt import text
from tiny_run import environment
from toy_models import CausalModel, make_scorer

from bitgolf.audit import other_shapes
from bitgolf.audit.verdict import MissingEvidence
from bitgolf.data.shards import TokenShards
from bitgolf.run.directory import RunDirectory

TOKENS = text(110, seed=3)


def shapes_of(model: Any) -> Any:
    tokens = np.minimum(TOKENS, 12)
    scorer = make_scorer("sliding", CausalModel(), window=16, stride=4, batch_tokens=64)
    nll = scorer.score(lambda a, b: tokens[a:b], 0, len(tokens) - 1)
    return other_shapes.plain_shapes(
        model, tokens, nll, window=16, stride=4, device=torch.device("cpu"), same_kernels=True
    )


def test_other_batches_and_ranks_give_the_same_losses() -> None:
    finding = shapes_of(CausalModel())
    assert finding.verdict == "PASS" and finding.evidence["ranks_with_work"] == 2, finding


def test_a_model_that_looks_at_its_batch_is_caught() -> None:
    class Batchy(CausalModel):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return super().forward(tokens) * (1 + 0.01 * len(tokens))

    assert shapes_of(Batchy()).verdict == "FAIL"


def test_adapted_passes_are_the_same_on_two_ranks(tiny_run: Path) -> None:
    """In earnest: two processes that share gradients, against one; the chunk has an odd number of rows."""
    run = RunDirectory.open(tiny_run)
    changes = {"ttt.method": "full", "ttt.weights.lr": 0.02, "ttt.weights.chunk_tokens": 192}
    tokens = np.array(TokenShards([tiny_run / "data" / "val_000000.bin"]).read(0, 321))
    finding = other_shapes.adapted_shapes(run / "model.bitgolf", run.config.updated(changes), tokens)
    assert finding.verdict == "PASS", finding
    assert (finding.evidence["ranks"], finding.evidence["processes"], finding.evidence["targets"]) == (2, 2, 320)
    assert 0 < float(finding.evidence["largest_nats"]) < 1e-4


def test_ranks_that_cannot_run_are_not_run(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_shapes, "_PROGRAM", "raise SystemExit('no gloo on this machine')")
    run = RunDirectory.open(tiny_run)
    with pytest.raises(MissingEvidence, match="did not work: no gloo on this machine"):
        other_shapes.adapted_shapes(run / "model.bitgolf", run.config, np.arange(40))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux to end with the parent")
def test_ranks_end_when_the_auditor_is_killed(tmp_path: Path) -> None:
    """`kill -9` left the first rank to go on alone, for up to ten minutes."""
    (tmp_path / "rank.py").write_text(
        "import os, time; from pathlib import Path; from bitgolf.audit import other_shapes\n"
        "def hang(*_): Path('pid').write_text(f'{os.getpid()} '); time.sleep(600)\n"
        "other_shapes._adapted = hang; other_shapes.ranks_main()\n"
    )
    (tmp_path / "auditor.py").write_text(
        "from pathlib import Path; from bitgolf.audit import other_shapes\n"
        "other_shapes._PROGRAM = \"exec(open('rank.py').read())\"; Path('request').write_text('{}')\n"
        "other_shapes._score_with_ranks(Path('request'))\n"
    )
    auditor = subprocess.Popen([sys.executable, "auditor.py"], env=environment(), cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith(" "):
        assert auditor.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    rank = int((tmp_path / "pid").read_text())
    auditor.kill()
    auditor.wait()
    while Path(f"/proc/{rank}").exists() and "Z" not in Path(f"/proc/{rank}/stat").read_text().split():
        assert time.monotonic() < deadline, "the rank lives on"
        time.sleep(0.05)


@pytest.mark.parametrize(("chunk_tokens", "chunk"), [(9_999, 3 * 64), (64, 64)])
def test_an_adapted_pass_is_compared_on_a_piece_of_the_text(
    chunk_tokens: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk, a window and a token, from anywhere in the text; the last place counts too."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(other_shapes, "adapted_shapes", lambda *given: calls.append(given))
    highest: list[int] = []
    drawn = SimpleNamespace(integers=lambda high: highest.append(high) or high - 1)
    evidence: Any = SimpleNamespace(
        config=SimpleNamespace(window=64, ttt=SimpleNamespace(weights=SimpleNamespace(chunk_tokens=chunk_tokens))),
        headline=SimpleNamespace(adapted=True, artifact="artifact", with_chunks=lambda size: f"chunks of {size}"),
        tokens=np.arange(500),
        rng=lambda name: drawn,
    )
    for num_tokens in (500, 100):
        evidence.tokens = np.arange(num_tokens)
        other_shapes.other_shapes(evidence)
        artifact, config, piece = calls.pop()
        length = min(num_tokens, chunk + 65)
        assert (artifact, config, highest.pop()) == ("artifact", f"chunks of {chunk}", num_tokens - length + 1)
        assert piece.tolist() == list(range(num_tokens - length, num_tokens))
