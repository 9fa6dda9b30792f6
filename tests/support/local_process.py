"""A sealed process that is neither sealed nor a process: its server runs in a thread of the test, without walls.

It speaks the same protocol over pipes, so what crosses them is what crosses them in earnest; starting it costs nothing.
What real walls do is tested in test_sandbox.py.
"""

from __future__ import annotations

import contextlib
import threading
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from bitgolf.audit.sandbox import client
from bitgolf.audit.sandbox.process import Server
from bitgolf.audit.sandbox.walls import Walls


class PaperWalls(Walls):
    """Walls that say they stand."""

    def close_files(self) -> None:
        self.closed = True


class LocalProcess(client.SealedProcess):
    """Starts a thread instead of a process."""

    def _start(
        self, artifact: Path, settings: dict[str, Any], secrets: list[Path], num_threads: int, evaluation: str
    ) -> None:
        requests, self._requests = Pipe(duplex=False)
        self._answers, answers = Pipe(duplex=False)
        server = Server(requests, answers)
        server.walls = PaperWalls(files="namespaces", network=True)
        self.thread = threading.Thread(target=server.serve, daemon=True)
        self.thread.start()
        settings = settings | {"artifact": str(artifact), "num_threads": num_threads}
        self._send({"do": "load", "evaluation": evaluation, "settings": settings})
        self._waiting = [lambda _: None]

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._requests.close()
        self.thread.join()
