"""What the compiler does to a training: graph breaks in the warm-up, and compilations after it, which cost the clock.

The warm-up makes every kind of step, so nothing should be compiled afterwards. If something is, the log gets an event
`recompile` with the reasons that the compiler gives, and the run goes on. The counts are those of PyTorch's Dynamo.
"""

import logging

from torch._dynamo.utils import counters, get_compilation_metrics

from bitgolf.train.metrics import TrainLog

log = logging.getLogger(__name__)


class Recompiles:
    """Counts compiled graphs from the end of the warm-up on.

    Args:
        train_log: gets the event `compiled` now, with the number of graphs and the reasons of graph breaks so far.
        step, seconds: of the run, so far.
    """

    def __init__(self, train_log: TrainLog, step: int, seconds: float) -> None:
        self.log, self._graphs, self._compilations = train_log, _num_graphs(), len(get_compilation_metrics())
        breaks = [_without_advice(reason) for reason in counters["graph_break"]]
        if breaks:
            log.warning("the compiler breaks the training step into several graphs: %s", "; ".join(breaks))
        train_log.write("compiled", step=step, elapsed_seconds=seconds, graphs=self._graphs, graph_breaks=breaks)

    def after_step(self, step: int, seconds: float) -> None:
        """Log what was compiled since the last call. Without a compilation this takes a microsecond."""
        graphs = _num_graphs()
        if graphs == self._graphs:
            return
        new = get_compilation_metrics()[self._compilations :]
        reasons = [_first_line(f"{metrics.co_name}: {metrics.recompile_reason or 'first call'}") for metrics in new]
        log.warning("the training step was compiled again, on the clock: %s", "; ".join(reasons))
        self.log.write("recompile", step=step, elapsed_seconds=seconds, graphs=graphs - self._graphs, reasons=reasons)
        self._graphs, self._compilations = graphs, self._compilations + len(new)


def _without_advice(reason: str) -> str:
    """What broke a graph, and where."""
    context = [line.strip() for line in str(reason).splitlines() if "Developer debug context:" in line]
    return "; ".join([_first_line(reason), *context])


def _first_line(reason: str) -> str:
    return str(reason).partition("\n")[0]


def _num_graphs() -> int:
    return int(counters["stats"]["unique_graphs"])
