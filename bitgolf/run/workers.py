"""How ranks and worker processes end. Workers end with the process that started them; only that one gets signals of a
terminal."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import NoReturn

# A cluster manager or a terminal that is closed ends a process with these.
END_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


def leave(status: int) -> NoReturn:
    """End this process. One of several ranks skips the teardown of Python and PyTorch if its work succeeded.

    On a busy CPU, about one of 80 ranks aborts while Python and PyTorch 2.13 tear down their threads ("terminate called
    without an active exception"), and torchrun then ends rank 0 in the middle of its last work. After an error the
    teardown leaves rank 0 the time to print it.
    """
    if status == 0 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)


def end_in_order() -> None:
    """Let the signals end this process as an exception does, so that temporary files are removed."""
    for number in END_SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` has SIGHUP ignored
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def end_with_parent() -> None:
    """For a worker's initializer: end this process as soon as its parent has ended, however that happened."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Processes that start meanwhile get no Ctrl-C and no hang-up: they inherit the signal mask.

    Make a pool of processes inside too. It starts Python's resource tracker, which a hang-up would end with traces.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
