"""Evaluations that two processes share, run once for all tests of them: starting processes is slow."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from ranks import fork
from tiny_gpt import BOS, WINDOW, adapted, config, free_port, text, tiny_gpt
from toy_models import CausalModel, toy_tokens

from bitgolf.evaluate import ScoreTape, evaluate
from bitgolf.evaluate.document_scorer import DocumentScorer, evaluate_documents
from bitgolf.evaluate.window_scorer import Windows
from bitgolf.run.ranks import World

# Three rows per chunk, in batches of two and one; a clip that binds, so that it matters what is clipped.
_LEARNING = config(
    method="full",
    weights={
        "lr": 0.05,
        "chunk_tokens": 50,
        "batch_rows": 2,
        "grad_clip": 0.2,
        "step_cosine_floor": 0.1,
        "freeze_blocks": 1,
    },
)
_DOCUMENTS = config(method="lora", lora={"documents": 5, "keep_a": True})


def windows(world: World) -> np.ndarray:
    """Losses by sliding windows, in two chunks."""
    scorer = Windows("sliding", 16, 3, 64).scorer(CausalModel(), world)
    return evaluate(ScoreTape(toy_tokens(333)), scorer, chunk_targets=150)


def chunks(world: World) -> np.ndarray:
    """Losses with weights that learn between chunks, and then these weights."""
    model, tape = tiny_gpt(), ScoreTape(text(171))
    adapted(_LEARNING, model, 170, world=world).run(tape)
    return np.concatenate([tape.nll, model.embedding.detach().numpy().ravel()])


def documents(world: World) -> np.ndarray:
    """Losses with adapters per document that hand their A down."""
    tape = ScoreTape(text(240, seed=4))
    lora = _DOCUMENTS.ttt.lora
    evaluate_documents(tape, DocumentScorer(tiny_gpt(), lora, window=WINDOW, bos_id=BOS, seed=5, world=world))
    return tape.nll


EVALUATIONS = {"windows": windows, "chunks": chunks, "documents": documents}


def _on_rank(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    world = World(rank, 2, torch.device("cpu"))
    for name, evaluation in EVALUATIONS.items():
        np.save(Path(folder) / f"{name}-{rank}.npy", evaluation(world))
    dist.destroy_process_group()


def run_on_two_ranks(folder: Path) -> dict[str, list[np.ndarray]]:
    """The result of each evaluation on each of two ranks."""
    assert fork(2, _on_rank, free_port(), str(folder)) == [0, 0]
    return {name: [np.load(folder / f"{name}-{rank}.npy") for rank in (0, 1)] for name in EVALUATIONS}
