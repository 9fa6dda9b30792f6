"""A stand-in for the sealed process: its server runs in a thread of the test, without isolation.

It uses the same protocol over the same kind of pipes, and starts at once. test_sandbox.py tests the real isolation.
"""

import contextlib
import pickle
import threading
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from bitgolf.audit.sandbox import client
from bitgolf.audit.sandbox.isolation import Isolation
from bitgolf.audit.sandbox.process import Server


class Claimed(Isolation):
    """An isolation that is only claimed."""

    def close_files(self) -> None:
        self.closed = True


class LocalProcess(client.SealedProcess):
    """Starts a thread instead of a process."""

    def _start(
        self, artifact: Path, settings: dict[str, Any], secrets: list[Path], num_threads: int, evaluation: client.Build
    ) -> None:
        requests, self._requests = Pipe(duplex=False)
        self._answers, answers = Pipe(duplex=False)
        server = Server(requests, answers)
        server.isolation = Claimed(files="namespaces", network=True, user=65534)
        self.thread = threading.Thread(target=server.serve, daemon=True)
        self.thread.start()
        settings = settings | {"artifact": str(artifact), "num_threads": num_threads}
        self._send({"do": "load", "settings": settings}, pickle.dumps(evaluation))
        self._waiting = 1

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._requests.close()
        self.thread.join()
