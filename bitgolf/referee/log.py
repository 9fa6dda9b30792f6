"""A training log of the challenge as data: settings, losses, clocks, sizes, each with the number of its line.

The formats are those of the public records, from the first baseline to phased test-time training, and our own. A line
of another form is ignored; one whose figure is no number is listed in `damaged`. Many logs contain the source of the
script, which is kept apart. A figure that the log does not give is None or missing from its list.

The work is linear in the length of the log: lines are cut, and no pattern looks at a character more than a few times.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from bitgolf.errors import ForeignError
from bitgolf.foreign import MAX_INTEGER, parse_number, printable

_METRIC = re.compile(
    r"^(?P<label>.*?)\bval_loss[:=]\s*(?P<loss>\d+\.\d+),?\s+val_bpb[:=]\s*(?P<bpb>\d+\.\d+)(?P<rest>.*)$"
)
_STEP = re.compile(
    r"^(?:step[: ]\s*)?(?P<step>\d+)/\d+\s+train_loss:\s*(?P<loss>[\d.]+)"
    r"(?:\s+train_time:\s*(?P<time>[\d.]+)(?P<unit>ms|m|s))?"
)
_OUR_STEP = re.compile(
    r"^\[step\] step:(?P<step>\d+) loss:(?P<loss>[\d.]+).*\belapsed_seconds:(?P<time>[\d.e+-]+)(?P<unit>)"
)
_STOP = re.compile(r"^stopping_early: (?P<why>\S+) train_time:\s*(?P<ms>[\d.]+)ms step:\s*(?P<step>\d+)")
_OUR_STOP = re.compile(r"^stopping: step:(?P<step>\d+) train_time:(?P<ms>[\d.]+)ms")
_NO_LOSS = re.compile(r"(?i)\b(val|train)_(loss|bpb)[:=]\s*(nan|[-+]?inf|-\d)\w*")
_EVAL_MS = re.compile(r"\beval_time:\s*(?P<ms>[\d.]+)\s*ms")
_TOTAL_EVAL = re.compile(r"^(?:total_eval_time:\s*(?P<seconds>[\d.]+)\s*s|eval_time_total:\s*(?P<ms>[\d.]+)ms)")
_SCORED = re.compile(r"\btokens:(?P<tokens>\d+) bytes:(?P<bytes>\d+)\b")
_TOML_KEY, _TOML_SECTION = re.compile(r"^(?P<key>[a-z_]\w*) = (?P<value>.+)$"), re.compile(r"^\[(?P<name>[a-z_]\w*)\]$")
_SETTING = re.compile(r"^ {2}(?P<key>[A-Za-z_]\w*): ?(?P<value>.*)$")
_PAIR = re.compile(r"(?<![\w.])(?P<key>[a-z_][a-z0-9_]*):(?P<value>[^\s:]+)(?=\s|$)")
_SIZE = re.compile(
    r"^(?P<what>Code size|Serialized model|Total submission size)(?P<how>[^:]*):\s*(?P<bytes>[\d,]+) bytes"
)
_COUNTS = {
    "val_tokens": re.compile(r"\bval_tokens:\s*([\d,_]+)"),
    "target_tokens": re.compile(r"\b(?:target_tokens|scored_tokens|total_targets):\s*([\d,_]+)"),
    "documents": re.compile(
        r"\b(?:total_docs|docs|val_docs|num_val_docs|num_docs|eval_docs)[:=]\s*([\d,_]+)"
        r"|^documents(?: kept| scored| evaluated)?: ([\d,_]+)$"
    ),
}
_LOADER_TOKENS = re.compile(r"\btokens:([\d,_]+)")  # on a line with `val_loader:`
_CALIBRATION = re.compile(r"(?i)(hessian|calibrat)")
_SECONDS = re.compile(r"\bin ([\d.]+)\s*s\b")
_RULE = re.compile(r"^={50,}$")
_CODE = re.compile(r"(import|from|def|class) \w")
_CODE_LINES = 3  # that make a block of lines a program
_SEED_NAME = re.compile(r"seed[_-]?(\d+)")
_UNIT = {"ms": 1e-3, "s": 1.0, "m": 60.0, "": 1.0}
_LONGEST_LINE = 2_000  # characters that are looked at
# Characters of a line that the checks search by patterns: the work of some grows with the square of the length.
SEARCHED_CHARACTERS = 300


@dataclass(frozen=True)
class Metric:
    """A pair of validation figures."""

    label: str  # the text before them
    loss: float
    bpb: float
    decimals: int  # digits of bpb after the point
    line: int
    eval_seconds: float | None
    counts: tuple[int, int] | None = None  # targets and bytes that were scored, if the line gives them

    @property
    def constant(self) -> float:
        return self.bpb / self.loss

    @property
    def in_training(self) -> bool:
        """Whether it was measured between two steps."""
        return self.step >= 0

    @property
    def step(self) -> int:
        """The step at which it was measured; -1 for one after training."""
        match = re.match(r"(?:step[: ]\s*)?(\d{1,18})/\d+", self.label)
        return int(match[1]) if match else -1


@dataclass(frozen=True)
class Step:
    """A line of training progress; `seconds` on the training clock, if the line gives them."""

    step: int
    loss: float
    seconds: float | None
    text: str


@dataclass(frozen=True)
class Stop:
    """Where and why training ended."""

    why: str
    seconds: float
    step: int
    line: int


@dataclass(eq=False)
class Log:
    name: str
    lines: dict[int, str]  # by number from 1, without the script's source
    source: str  # the script's source, "" without it
    settings: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    stop: Stop | None = None
    calibration: list[tuple[int, float | None]] = field(default_factory=list)  # line, and seconds if it gives them
    sizes: dict[str, list[tuple[str, int]]] = field(default_factory=dict)  # by what is stored: how it is stored, bytes
    counts: dict[str, list[int]] = field(default_factory=dict)
    total_eval_seconds: float | None = None
    damaged: dict[int, str] = field(default_factory=dict)  # lines whose figure is no number, with the reason

    @cached_property
    def seed(self) -> str | None:
        """The seed, from the settings or the name of the file."""
        named = _SEED_NAME.search(self.name)
        return self.settings.get("seed") or (named[1] if named else None)

    @cached_property
    def final(self) -> Metric | None:
        """The last validation figures after training: what the run claims."""
        after = [metric for metric in self.metrics if not metric.in_training] or self.metrics
        exact = [metric for metric in after if metric.decimals >= 6]
        return (exact or after)[-1] if after else None

    @cached_property
    def sealed_line(self) -> int:
        """Number of the line that gives the size of the artifact; 0 without one."""
        return max((number for number, line in self.lines.items() if line.startswith("Serialized model")), default=0)

    @property
    def eval_seconds(self) -> float | None:
        """Of the pass that gave `final`: the total or the time on its line, whichever is longer.

        A line named `..._exact` has no time; the line of the same name without `_exact` has it.
        """
        times = [self.total_eval_seconds]
        if self.final is not None:
            name = self.final.label.removesuffix("_exact")
            same = [metric.eval_seconds for metric in self.metrics if metric.label == name]
            times += [self.final.eval_seconds or next((took for took in reversed(same) if took is not None), None)]
        return max((took for took in times if took is not None), default=None)

    @property
    def total_bytes(self) -> int | None:
        """Artifact and code together, of the compressed model."""
        return self._last_size("Total submission size")

    @property
    def model_bytes(self) -> int | None:
        """Of the compressed model."""
        return self._last_size("Serialized model")

    @property
    def code_bytes(self) -> int | None:
        """Of the code as it is counted: compressed where the log says so."""
        return self._last_size("Code size", "", "(compressed)")

    def _last_size(self, what: str, *how: str) -> int | None:
        sizes = [size for stored, size in self.sizes.get(what, []) if not how or stored in how]
        return sizes[-1] if sizes else None

    def first_line(self, matches: Callable[[str], object]) -> int | None:
        """Number of the first line that matches, or None."""
        return next((number for number, line in self.lines.items() if matches(line)), None)


def parse_log(name: str, text: str) -> Log:
    source, lines = _set_source_aside(text)
    log = Log(name, lines, source)
    section = ""  # of a TOML configuration, with a dot
    for number, line in lines.items():
        try:
            _read_figures_(log, number, line)
            if not log.steps and not log.metrics:
                section = _read_setting_(log, line, section)
        except ForeignError as error:
            log.damaged[number] = str(error)
    return log


def _read_figures_(log: Log, number: int, line: str) -> None:
    """Enter the figures of a line. Raises ForeignError for a line of a known form whose figure is no number."""
    if broken := _NO_LOSS.search(line):
        raise ForeignError(f"{printable(broken[0])} is no loss")
    if metric := _METRIC.match(line):
        log.metrics.append(_metric(metric, number))
    elif step := _STEP.match(line) or _OUR_STEP.match(line):
        seconds = parse_number(step["time"]) * _UNIT[step["unit"]] if step["time"] else None
        log.steps.append(Step(_count(step["step"]), parse_number(step["loss"]), seconds, line.strip()))
    elif stop := _STOP.match(line) or _OUR_STOP.match(line):
        why = stop.groupdict().get("why", "wallclock_cap")
        log.stop = Stop(why, parse_number(stop["ms"]) / 1000, _count(stop["step"]), number)
    elif line.startswith("stopping_early:"):
        raise ForeignError(f"{printable(line[:60])} gives no time")
    elif size := _SIZE.match(line):
        log.sizes.setdefault(size["what"], []).append((size["how"].strip(), _count(size["bytes"])))
    elif total := _TOTAL_EVAL.match(line):
        value = parse_number(total["seconds"] or total["ms"])
        log.total_eval_seconds = value if total["seconds"] else value / 1000
    elif _CALIBRATION.search(line) and not line.startswith("  "):
        took = _SECONDS.search(line)
        log.calibration.append((number, parse_number(took[1]) if took else None))
    for what, pattern in _COUNTS.items():
        log.counts.setdefault(what, []).extend(_count(count[count.lastindex or 1]) for count in pattern.finditer(line))
    if "val_loader:" in line and (tokens := _LOADER_TOKENS.search(line)):
        log.counts["val_tokens"].append(_count(tokens[1]))


def _read_setting_(log: Log, line: str, section: str) -> str:
    """Enter the settings of a line before the first step. Returns the section of the next line."""
    if header := _TOML_SECTION.match(line):
        return f"{header['name']}."
    if setting := _TOML_KEY.match(line):
        log.settings[section + setting["key"]] = setting["value"]
    elif setting := _SETTING.match(line):
        log.settings[setting["key"]] = setting["value"].strip()
    elif not line.startswith((" ", "[")):
        log.settings.update({pair["key"]: pair["value"] for pair in _PAIR.finditer(line)})
    return section


def _metric(match: re.Match[str], number: int) -> Metric:
    took = _EVAL_MS.search(match["rest"])
    decimals = len(match["bpb"].partition(".")[2])
    seconds = parse_number(took["ms"]) / 1000 if took else None
    scored = _SCORED.search(match["rest"])
    counts = (_count(scored["tokens"]), _count(scored["bytes"])) if scored else None
    loss, bpb = parse_number(match["loss"]), parse_number(match["bpb"])
    if not (loss > 0 and bpb > 0):
        raise ForeignError(f"a loss of {loss:g} nats and {bpb:g} bits per byte is none")
    return Metric(match["label"].strip(), loss, bpb, decimals, number, seconds, counts)


def _count(text: str) -> int:
    """A whole number. Raises ForeignError for one of more digits than any count has."""
    digits = text.replace(",", "").replace("_", "")
    if not digits.isdecimal() or len(digits) > len(str(MAX_INTEGER)):
        raise ForeignError(f"{printable(text)!r} is no count")
    return int(digits)


def _set_source_aside(text: str) -> tuple[str, dict[int, str]]:
    """The script's source, between ruled lines or before the first, and the other lines by number,
    cut in length and without empty ones."""
    lines = text.split("\n")
    edges = [-1, *(index for index, line in enumerate(lines) if _RULE.match(line)), len(lines)]
    blocks = [range(before + 1, after) for before, after in pairwise(edges)]
    programs = (block for block in blocks if sum(bool(_CODE.match(lines[i])) for i in block) >= _CODE_LINES)
    source = next(programs, range(0))
    rest = {
        index + 1: line.rstrip("\r")[:_LONGEST_LINE]
        for index, line in enumerate(lines)
        if index not in source and line.strip()
    }
    return "\n".join(lines[index] for index in source), rest
