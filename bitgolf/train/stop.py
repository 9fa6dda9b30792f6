"""Ctrl-C, SIGTERM or SIGHUP during the optimizer steps: the step is finished, a checkpoint is written, training ends.

Cluster managers send SIGTERM before they take a machine away, terminals SIGHUP when they are closed. Rank 0 decides
after a step. Other ranks ignore the signal for a while, because a rank that ends first would leave rank 0 waiting for
it. A second Ctrl-C ends at once.
"""

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from bitgolf.run.ranks import World
from bitgolf.run.workers import END_SIGNALS
from bitgolf.train.checkpoint_times import Checkpoints
from bitgolf.train.loop import AfterStep
from bitgolf.train.metrics import StepReport

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, *END_SIGNALS)
_PATIENCE_SECONDS = 20.0  # of the other ranks


class StopOnSignal:
    """Catches the signals for the length of the block, whose value is `after_step`.

    `work`: what else is done after each step, before the training may end.
    """

    def __init__(self, checkpoints: Checkpoints, report: StepReport, world: World, work: AfterStep) -> None:
        self.checkpoints, self.report, self.world, self.work = checkpoints, report, world, work
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> AfterStep:
        if threading.current_thread() is threading.main_thread():  # only there Python allows handlers
            caught = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # by `nohup`
            self._before = {number: signal.signal(number, self._note) for number in caught}
        return self.after_step

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def after_step(self, step: int, looped: bool) -> None:
        """After a signal: save the state after `step` steps and end the training.

        Raises KeyboardInterrupt after SIGINT, SystemExit with status 128 + N after signal N.
        """
        self.work(step, looped)
        if self.received is None or not self.world.is_main:
            return
        self.report.drain()
        self.checkpoints.save(step, keep=False)
        self.checkpoints.store.close()
        name = signal.Signals(self.received).name
        log.warning("%s: a checkpoint of step %d is written; continue with --resume", name, step)
        raise KeyboardInterrupt if self.received == signal.SIGINT else SystemExit(128 + self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()  # a second signal ends the process at once
        if not self.world.is_main:
            timer = threading.Timer(_PATIENCE_SECONDS, os._exit, (128 + number,))
            timer.daemon = True
            timer.start()
            for other in _SIGNALS:
                signal.signal(other, signal.SIG_IGN)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
