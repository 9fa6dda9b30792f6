"""A training log of the challenge as data: settings, losses, clocks, sizes, each with the line it stands on.

The formats are those of the public records, from the first baseline to phased test-time training, and our own; a line
of another form is ignored. Many logs hold the source of the script, which is set aside. Nothing is inferred: a figure
that the log does not give is None or missing from its list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

_METRIC = re.compile(
    r"^(?P<label>.*?)\bval_loss[:=]\s*(?P<loss>\d+\.\d+),?\s+val_bpb[:=]\s*(?P<bpb>\d+\.\d+)(?P<rest>.*)$"
)
_STEP = re.compile(
    r"^(?:step[: ]\s*)?(?P<step>\d+)/\d+\s+train_loss:\s*(?P<loss>[\d.]+)"
    r"(?:\s+train_time:\s*(?P<time>[\d.]+)(?P<unit>ms|m|s))?"
)
_STOP = re.compile(r"^stopping_early: (?P<why>\S+) train_time:\s*(?P<ms>[\d.]+)ms step:\s*(?P<step>\d+)")
_OUR_STOP = re.compile(r"^stopping: step:(?P<step>\d+) train_time:(?P<ms>[\d.]+)ms")
_EVAL_MS = re.compile(r"\beval_time:\s*(?P<ms>[\d.]+)\s*ms")
_OUR_STEP = re.compile(r"^\[step\] step:(?P<step>\d+) loss:(?P<loss>[\d.]+).*\belapsed_seconds:(?P<seconds>[\d.e+-]+)")
_TOTAL_EVAL = re.compile(r"^(?:total_eval_time:\s*(?P<seconds>[\d.]+)\s*s|eval_time_total:\s*(?P<ms>[\d.]+)ms)")
_SCORED = re.compile(r"\btokens:(?P<tokens>\d+) bytes:(?P<bytes>\d+)\b")
_TOML_KEY, _TOML_SECTION = re.compile(r"^(?P<key>[a-z_]\w*) = (?P<value>.+)$"), re.compile(r"^\[(?P<name>[a-z_]\w*)\]$")
_SETTING = re.compile(r"^ {2}(?P<key>[A-Za-z_]\w*): ?(?P<value>.*)$")
_PAIR = re.compile(r"(?<![\w.])(?P<key>[a-z_][a-z0-9_]*):(?P<value>[^\s:]+)(?=\s|$)")
_SIZE = re.compile(
    r"^(?P<what>Code size|Serialized model|Total submission size)(?P<how>[^:]*):\s*(?P<bytes>[\d,]+) bytes"
)
_COUNTS = {
    "val_tokens": re.compile(r"\b(?:val_tokens:\s*|val_loader:.*\btokens:)([\d,_]+)"),
    "target_tokens": re.compile(r"\b(?:target_tokens|scored_tokens|total_targets):\s*([\d,_]+)"),
    "documents": re.compile(r"\b(?:total_docs|docs|val_docs|num_val_docs):\s*([\d,_]+)"),
}
_CALIBRATION = re.compile(r"(?i)(hessian|calibrat)")
_SECONDS = re.compile(r"\bin ([\d.]+)\s*s\b")
_RULE = re.compile(r"^={50,}$")
_CODE = re.compile(r"(import|from|def|class) \w")
_CODE_LINES = 3  # that make a block of lines a program
_SEED_NAME = re.compile(r"seed[_-]?(\d+)")
_UNIT = {"ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Metric:
    """A pair of validation figures: `label` is what stands before it, `decimals` how exactly bpb is given, `counts` the
    targets and bytes that it is of, where the line says so."""

    label: str
    loss: float
    bpb: float
    decimals: int
    line: int
    eval_seconds: float | None
    counts: tuple[int, int] | None = None

    @property
    def in_training(self) -> bool:
        """Whether it was taken between two steps."""
        return bool(re.match(r"(?:step[: ]\s*)?\d+/\d+", self.label))


@dataclass(frozen=True)
class Step:
    """A line of training progress; `seconds` on the training clock, where given."""

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


@dataclass(frozen=True)
class Log:
    """One log file, parsed. `lines` (numbered from 1) leave out the script's source, which is in `source`."""

    name: str
    lines: dict[int, str]
    source: str
    settings: dict[str, str]
    metrics: list[Metric]
    steps: list[Step]
    stop: Stop | None
    calibration: list[tuple[int, float | None]]  # line, seconds where it says so
    sizes: dict[str, list[tuple[str, int]]] = field(default_factory=dict)  # by what: how it is stored, bytes
    counts: dict[str, list[int]] = field(default_factory=dict)
    total_eval_seconds: float | None = None

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

    @property
    def eval_seconds(self) -> float | None:
        """Of the pass that gave `final`: the total where there is one, else what stands on its line, or on the line of
        the same name without `_exact`."""
        if self.total_eval_seconds is not None or self.final is None:
            return self.total_eval_seconds
        if self.final.eval_seconds is not None:
            return self.final.eval_seconds
        name = self.final.label.removesuffix("_exact")
        same = [
            metric.eval_seconds for metric in self.metrics if metric.label == name and metric.eval_seconds is not None
        ]
        return same[-1] if same else None

    @property
    def total_bytes(self) -> int | None:
        """Artifact and code together, of the compressed model."""
        found = self.sizes.get("Total submission size")
        return found[-1][1] if found else None

    @property
    def model_bytes(self) -> int | None:
        """Of the compressed model."""
        found = self.sizes.get("Serialized model")
        return found[-1][1] if found else None

    @property
    def code_bytes(self) -> int | None:
        """Of the code as it is counted: compressed where the log says so."""
        found = [size for how, size in self.sizes.get("Code size", []) if how in ("", "(compressed)")]
        return found[-1] if found else None

    def first_line(self, pattern: str) -> int | None:
        """Number of the first line that matches, or None."""
        wanted = re.compile(pattern)
        return next((number for number, line in self.lines.items() if wanted.search(line)), None)


def parse_log(name: str, text: str) -> Log:
    """Parse the text of a log file."""
    source, numbered = _set_source_aside(text)
    settings: dict[str, str] = {}
    metrics: list[Metric] = []
    steps: list[Step] = []
    stop: Stop | None = None
    calibration: list[tuple[int, float | None]] = []
    sizes: dict[str, list[tuple[str, int]]] = {}
    counts: dict[str, list[int]] = {}
    total_eval: float | None = None
    section = ""
    for number, line in numbered.items():
        if metric := _METRIC.match(line):
            metrics.append(_metric(metric, number))
        elif step := _STEP.match(line):
            seconds = float(step["time"]) * _UNIT[step["unit"]] if step["time"] else None
            steps.append(Step(int(step["step"]), float(step["loss"]), seconds, line.strip()))
        elif step := _OUR_STEP.match(line):
            steps.append(Step(int(step["step"]), float(step["loss"]), float(step["seconds"]), line.strip()))
        elif found := _STOP.match(line):
            stop = Stop(found["why"], float(found["ms"]) / 1000, int(found["step"]), number)
        elif found := _OUR_STOP.match(line):
            stop = Stop("wallclock_cap", float(found["ms"]) / 1000, int(found["step"]), number)
        elif size := _SIZE.match(line):
            sizes.setdefault(size["what"], []).append((size["how"].strip(), _number(size["bytes"])))
        elif total := _TOTAL_EVAL.match(line):
            total_eval = float(total["seconds"]) if total["seconds"] else float(total["ms"]) / 1000
        elif _CALIBRATION.search(line) and not line.startswith("  "):
            took = _SECONDS.search(line)
            calibration.append((number, float(took[1]) if took else None))
        if not steps and not metrics:
            if named := _TOML_SECTION.match(line):
                section = f"{named['name']}."
            elif setting := _TOML_KEY.match(line):
                settings[section + setting["key"]] = setting["value"]
            elif setting := _SETTING.match(line):
                settings[setting["key"]] = setting["value"].strip()
            elif not line.startswith((" ", "[")):
                settings |= {pair["key"]: pair["value"] for pair in _PAIR.finditer(line)}
        for what, pattern in _COUNTS.items():
            counts.setdefault(what, []).extend(_number(count[1]) for count in pattern.finditer(line))
    return Log(name, numbered, source, settings, metrics, steps, stop, calibration, sizes, counts, total_eval)


def _metric(found: re.Match[str], number: int) -> Metric:
    took = _EVAL_MS.search(found["rest"])
    decimals = len(found["bpb"].partition(".")[2])
    seconds = float(took["ms"]) / 1000 if took else None
    scored = _SCORED.search(found["rest"])
    counts = (int(scored["tokens"]), int(scored["bytes"])) if scored else None
    return Metric(found["label"].strip(), float(found["loss"]), float(found["bpb"]), decimals, number, seconds, counts)


def _set_source_aside(text: str) -> tuple[str, dict[int, str]]:
    """The script's source where the log holds it, between ruled lines or before the first, and the rest, numbered."""
    lines = text.splitlines()
    edges = [-1, *(index for index, line in enumerate(lines) if _RULE.match(line)), len(lines)]
    blocks = [range(before + 1, after) for before, after in pairwise(edges)]
    programs = (block for block in blocks if sum(bool(_CODE.match(lines[i])) for i in block) >= _CODE_LINES)
    source = next(programs, range(0))
    rest = {index + 1: line for index, line in enumerate(lines) if index not in source}
    return "\n".join(lines[index] for index in source), rest


def _number(text: str) -> int:
    return int(text.replace(",", "").replace("_", ""))
