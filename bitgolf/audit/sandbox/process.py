"""The program inside the sealed process: isolate itself, load, warm up, close the file system, then score what arrives.

It talks over two pipes. A request is a JSON object and, for some requests, a block of bytes (tokens, or the function
that builds the evaluation); an answer is a JSON object and possibly a block of losses. The order is fixed: `load`
(libraries and artifact are read), `close` (no file can be opened any more), then `score` and `update`, each with the
tokens that may be known by then and never more. Before the isolation is complete, only the standard library is
imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bitgolf.audit.sandbox import kernel, namespaces, process_limits
from bitgolf.audit.sandbox.isolation import Isolation, enter

if TYPE_CHECKING:
    import numpy as np

    from bitgolf.evaluate.tape import Adapter, Scorer


class SealedEvaluation(Protocol):
    """An evaluation that has not seen a token yet, as `evaluation.build` makes it."""

    scorer: Scorer
    adapter: Adapter | None

    def warm_up(self) -> None:
        """Run once on random tokens, so that everything is loaded, and restore the state from before."""
        ...


def main(requests: int, answers: int) -> None:
    """Serve until the other side hangs up. Arguments: descriptors of the pipes."""
    with contextlib.suppress(kernel.Unavailable, OSError):
        kernel.die_with_parent()
        kernel.adopt_orphans()
    server = Server(Connection(requests, writable=False), Connection(answers, readable=False))
    server.isolate()
    server.serve()
    os._exit(0)  # exit handlers of the libraries may need files, which can no longer be opened


class Server:
    """Answers requests; one that fails is answered with the error, and the server goes on."""

    def __init__(self, requests: Connection, answers: Connection) -> None:
        self.requests, self.answers = requests, answers
        self.isolation, self.isolated = Isolation(), True
        self.evaluation: SealedEvaluation | None = None
        self.origin, self.tokens = 0, _empty

    def isolate(self) -> None:
        """The first request: which files to show, and which must not be reachable."""
        request = json.loads(self.requests.recv_bytes())
        visible, hidden = (tuple(map(Path, request[key])) for key in ("visible", "hidden"))
        view = namespaces.View(visible, Path(request["writable"]), hidden)
        os.chdir(view.writable)
        self.isolated = request["isolated"]
        if self.isolated:
            self.isolation = enter(view, request["secrets"], request["limits"])
        else:
            process_limits.apply(request["limits"])
        self._answer({"isolation": self.isolation.to_json()})

    def serve(self) -> None:
        """Answer until the pipe ends."""
        operations: dict[str, Callable[[dict[str, Any]], tuple[dict[str, Any], bytes]]] = {
            "load": self._load,
            "close": self._close,
            "score": self._score,
            "update": self._update,
            "end": lambda request: ({"attempts": self.isolation.attempts}, b""),
        }
        while True:
            try:
                request = json.loads(self.requests.recv_bytes())
            except EOFError:
                return
            try:
                answer, block = operations[request["do"]](request)
            except Exception as error:  # the auditor judges all errors of the evaluation
                frames = traceback.extract_tb(error.__traceback__)
                where = f"{frames[-1].filename}:{frames[-1].lineno}"
                answer = {"error": type(error).__name__, "message": str(error), "where": where}
                answer["attempts"], block = self.isolation.attempts, b""
            self._answer(answer, block)

    def _answer(self, answer: dict[str, Any], block: bytes = b"") -> None:
        self.answers.send_bytes(json.dumps(answer | {"block": len(block)}).encode())
        if block:
            self.answers.send_bytes(block)

    def _load(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        build: Callable[[dict[str, Any]], SealedEvaluation] = pickle.loads(self.requests.recv_bytes())
        self.evaluation = build(request["settings"])
        self.evaluation.warm_up()
        return {}, b""

    def _close(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        if self.isolated:
            self.isolation.close_files()
            if os.getpid() == 1:  # of its own namespace; elsewhere the auditor does this
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)  # what it started while it loaded could still open files
        return {"isolation": self.isolation.to_json()}, b""

    def _score(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        assert self.evaluation is not None
        start, stop = request["start"], request["stop"]
        self._receive(request)
        losses = self.evaluation.scorer.score(self._reader(stop + 1), start, stop)
        return {}, losses.astype("<f4").tobytes()

    def _update(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        assert self.evaluation is not None and self.evaluation.adapter is not None
        self.evaluation.adapter.update(self._reader(request["stop"] + 1), request["start"], request["stop"])
        return {}, b""

    def _receive(self, request: dict[str, Any]) -> None:
        """Take in tokens from position `request["origin"]` on: a continuation of what is there, or a new block."""
        import numpy as np

        block = np.frombuffer(self.requests.recv_bytes() if request["tokens"] else b"", dtype="<u2")
        if self.tokens is not _empty and request["origin"] == self.origin + len(self.tokens):
            self.tokens = np.concatenate([self.tokens, block])
        else:
            self.origin, self.tokens = request["origin"], block

    def _reader(self, limit: int) -> Callable[[int, int], np.ndarray]:
        """`TokenReader` of what has arrived, up to token `limit` - 1."""

        def read(start: int, stop: int) -> np.ndarray:
            if not self.origin <= start <= stop <= min(limit, self.origin + len(self.tokens)):
                raise PermissionError(
                    f"tokens {start}..{stop - 1} are not in the sealed process, which has {self.origin}..{limit - 1}"
                )
            part: np.ndarray = self.tokens[start - self.origin : stop - self.origin].copy()
            return part

        return read


_empty: Any = ()
