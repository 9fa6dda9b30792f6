"""Check of the evaluation in other batch sizes and on another number of ranks: the losses must be the same.

Plain methods: the windows of a piece of text are scored in other batches, once by one rank and once as the shares of
two ranks, which add up. Adapted passes share gradients, so they are run by two real processes (gloo, on the CPU) and
compared with one process on the same CPU: an adaptation whose batch is defined for each rank is another algorithm on
another number of GPUs. Source: docs/rules.md, test 7.

Legend: n targets of a piece of text.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from bitgolf.artifact.open import open_model
from bitgolf.audit.evidence import Evidence, run_checks
from bitgolf.audit.reproduction import compare_losses
from bitgolf.audit.sandbox import kernel
from bitgolf.audit.sandbox.client import import_path
from bitgolf.audit.scratch import scratch_folder
from bitgolf.audit.verdict import Finding, MissingEvidence
from bitgolf.config import Config
from bitgolf.evaluate.adapted_pass import AdaptedPass, adapted_pass
from bitgolf.evaluate.split_model import Model
from bitgolf.evaluate.tape import ScoreTape
from bitgolf.evaluate.window_scorer import Windows, WindowScorer
from bitgolf.run.ranks import World

_ROWS_OF_ONE, _ROWS_OF_TWO = 4, 3  # windows in a batch of one process, and of each of two
_PROGRAM = "import sys; sys.path[:] = {path!r}; from bitgolf.audit.other_shapes import ranks_main; ranks_main()"
_CPU = torch.device("cpu")
_TIMEOUT_SECONDS = 600
_SHARED_ROWS = 3  # rows of a chunk that two ranks learn from: an odd number, so that one of them has more
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package


@run_checks.register("other-shapes", "re-run", "another batch size and another number of ranks give the same losses")
def other_shapes(evidence: Evidence) -> Finding:
    """Test 7: the passage in other batches and on two ranks; for adapted passes a piece of the validation text."""
    config, headline = evidence.config, evidence.headline
    if headline.adapted:
        chunk = min(_SHARED_ROWS * config.window, config.ttt.weights.chunk_tokens)
        length = min(chunk + config.window + 1, len(evidence.tokens))
        start = int(evidence.rng("other-shapes").integers(len(evidence.tokens) - length + 1))
        text = evidence.tokens[start : start + length]
        return adapted_shapes(headline.artifact, headline.with_chunks(chunk), text)
    return plain_shapes(
        headline.packed.model,
        headline.passage.tokens,
        headline.shown.nll,
        window=config.window,
        stride=headline.stride,
        device=headline.device,
        same_kernels=headline.device.type == "cpu",
    )


class _Share(WindowScorer):
    """What one rank of several computes by itself: the losses of its windows, zeros elsewhere."""

    def _gather(self, out: Tensor) -> Tensor:
        return out


def plain_shapes(
    model: Model,
    tokens: np.ndarray,  # (n + 1,) a piece of text
    nll: np.ndarray,  # (n,) float32, its losses in the batches of the audit's other tests
    *,
    window: int,
    stride: int,
    device: torch.device,
    same_kernels: bool,
) -> Finding:
    """Plain methods: score `tokens` in other batches, and by two ranks, and compare with `nll`."""

    def losses(rows: int, ranks: int) -> list[np.ndarray]:
        return [
            _Share(model, Windows("sliding", window, stride, rows * window), World(rank, ranks, device)).score(
                lambda start, stop: tokens[start:stop], 0, len(nll)
            )
            for rank in range(ranks)
        ]

    (alone,), shares = losses(3, 1), losses(1, 2)
    gaps = [alone.astype(np.float64) - nll, np.sum(shares, axis=0, dtype=np.float64) - nll]
    busy = sum(bool(share.any()) for share in shares)
    return compare_losses(np.concatenate(gaps), same_kernels, ranks=2, ranks_with_work=busy, processes=1)


def adapted_shapes(
    artifact: Path,
    config: Config,  # with chunks short enough for the text
    tokens: np.ndarray,  # (n + 1,) a piece of text
) -> Finding:
    """Adapted passes: one process, then two, on this machine's CPU."""
    with scratch_folder("bitgolf-ranks-") as folder:
        request_file = folder / "request.json"
        request = {
            "artifact": str(artifact.absolute()),
            "config": config.model_dump(mode="json"),
            "tokens": tokens.tolist(),
            "threads": max(1, torch.get_num_threads() // 2),
        }
        request_file.write_text(json.dumps(request))
        _score_with_ranks(request_file)
        one, two = (np.load(folder / f"{name}.npy") for name in ("one", "two"))
    return compare_losses(two.astype(np.float64) - one, True, ranks=2, processes=2, device="cpu")


def _score_with_ranks(request_file: Path) -> None:
    """Run `ranks_main` on a request. Raises MissingEvidence with the last line of what it said when it fails."""
    if not hasattr(os, "fork"):
        raise MissingEvidence(f"{sys.platform} cannot fork a process, so the text is not scored with several ranks")
    path = [str(_PACKAGE_ROOT), *import_path()]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    # Both processes are on this machine; the name of the host need not resolve. One thread until they part.
    environment |= {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM.format(path=path), str(request_file)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MissingEvidence(f"several ranks did not score the text within {_TIMEOUT_SECONDS} s") from error
    if done.returncode:
        lines = done.stdout.decode("utf-8", errors="replace").strip().splitlines()
        raise MissingEvidence(f"scoring with several ranks did not work: {lines[-1] if lines else 'it said nothing'}")


def ranks_main() -> None:
    """The program: score the text alone, then once more as one of two ranks, and write both.

    The other rank is forked when the libraries are loaded and nothing is computed yet: so they are loaded once.
    """
    with suppress(kernel.Unavailable):
        kernel.die_with_parent()
    request_file = Path(sys.argv[1])
    request = json.loads(request_file.read_text())
    _adapted(request, _ROWS_OF_ONE, World(0, 1, _CPU))  # loads what optimizers load late
    other = os.fork()
    rank = 1 if other == 0 else 0
    if rank:
        with suppress(kernel.Unavailable):
            kernel.die_with_parent()
    torch.set_num_threads(request["threads"])
    if rank == 0:
        np.save(request_file.parent / "one.npy", _losses(request, _ROWS_OF_ONE, World(0, 1, _CPU)))
    store, timeout = dist.FileStore(str(request_file.parent / "store"), 2), timedelta(seconds=_TIMEOUT_SECONDS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timeout)
    losses = _losses(request, _ROWS_OF_TWO, World(rank, 2, _CPU))
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        np.save(request_file.parent / "two.npy", losses)
        os.waitpid(other, 0)
    os._exit(0)  # the teardown of PyTorch may abort (see `bitgolf.run.workers.leave`)


def _losses(request: dict[str, Any], rows: int, world: World) -> np.ndarray:
    return _adapted(request, rows, world).run(ScoreTape(np.array(request["tokens"], dtype=np.uint16)))


def _adapted(request: dict[str, Any], rows: int, world: World) -> AdaptedPass:
    config = Config.model_validate(request["config"])
    packed = open_model(request["artifact"], world.device, canonical=config.score.canonical)
    return adapted_pass(
        config.ttt,
        Windows.of(config, batch_tokens=rows * config.window),
        packed.model,
        packed.model,
        num_targets=len(request["tokens"]) - 1,
        bos_id=packed.tokenizer.bos_id,
        seed=config.seed,
        world=world,
    )
