"""A tiny corpus, a tiny configuration, and functions that run the command line on them.

The corpus is 400 KB of artificial English: about 120 words of skewed frequency in a few sentence patterns. Training the
model takes seconds on one core. Everything is deterministic.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from bitgolf.cli import main
from bitgolf.data.shards import TokenShards
from bitgolf.run.lock import LOCK_FILES
from bitgolf.train.checkpoint import state_digest

PRESET = Path(__file__).with_name("tiny.toml")
NUM_DOCUMENTS = 640
MAX_STEPS = 40  # of the preset
_NOUNS = [
    "river", "lantern", "garden", "harbor", "miller", "window", "orchard", "letter", "bridge", "winter", "candle",
    "market", "captain", "forest", "meadow", "engine", "village", "teacher", "mountain", "kettle",
]  # fmt: skip
_VERBS = [
    "finds", "carries", "paints", "follows", "opens", "remembers", "crosses", "mends", "watches", "leaves", "keeps",
    "answers",
]  # fmt: skip
_ADJECTIVES = ["quiet", "golden", "broken", "distant", "narrow", "patient", "hollow", "bright", "early", "heavy"]
_PLACES = ["behind the mill", "near the old harbor", "under the bridge", "across the valley", "at the end of the road"]
_ENDINGS = ["and nobody asks why", "because the evening is long", "before the bells ring", "until the rain comes"]


@functools.cache
def documents() -> tuple[str, ...]:
    """The corpus: `NUM_DOCUMENTS` different texts of about 600 bytes."""
    rng = random.Random(20260)
    return tuple(_document(rng, index) for index in range(NUM_DOCUMENTS))


def _document(rng: random.Random, index: int) -> str:
    sentences = [f"Letter {index} from the {_skewed(rng, _NOUNS)}."]
    while sum(map(len, sentences)) < 540 + index % 120:
        noun, verb = _skewed(rng, _NOUNS), _skewed(rng, _VERBS)
        sentence = f"The {_skewed(rng, _ADJECTIVES)} {noun} {verb} the {_skewed(rng, _NOUNS)}"
        if rng.random() < 0.6:
            sentence += f" {_skewed(rng, _PLACES)}"
        if rng.random() < 0.4:
            sentence += f", {_skewed(rng, _ENDINGS)}"
        sentences.append(sentence + ("." if rng.random() < 0.9 else " — déjà vu!"))  # not ASCII alone
        if rng.random() < 0.15:
            sentences.append("\n\n")
    return " ".join(sentences)


def _skewed(rng: random.Random, words: list[str]) -> str:
    return words[min(int(rng.expovariate(0.35)), len(words) - 1)]


def write_jsonl(path: Path, texts: tuple[str, ...] | None = None) -> Path:
    """Write the corpus (or `texts`) as JSON lines."""
    lines = (json.dumps({"text": text}) + "\n" for text in texts or documents())
    path.write_text("".join(lines), encoding="utf-8")
    return path


def settings(corpus: Path, **changes: Any) -> list[str]:
    """The preset and the overrides of a run on `corpus`. `changes` are written as `train__max_steps=5`."""
    values = {"data.source": f"jsonl:{corpus}"} | {key.replace("__", "."): value for key, value in changes.items()}
    return [str(PRESET), *(word for key, value in values.items() for word in (f"--{key}", _as_toml(value)))]


def _as_toml(value: Any) -> str:
    if isinstance(value, bool | list):
        return json.dumps(value)
    return str(value)


@dataclass(frozen=True)
class Outcome:
    """What one command did: exit status and both streams."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The standard output as one JSON document."""
        return json.loads(self.stdout)


def cli(*arguments: str | Path) -> Outcome:
    """Run a command in this process, as `bitgolf ARGUMENTS` would."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse
            status = int(error.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


def done(*arguments: str | Path) -> Outcome:
    """`cli`, which must succeed."""
    outcome = cli(*arguments)
    assert outcome.status == 0, outcome.stderr + outcome.stdout
    return outcome


# Settings of a preset at reduced size.
_SMALL: dict[str, object] = {
    "data.val_fraction": 0.01,
    "model.vocab_size": 384,
    "model.num_heads": 4,
    "train.batch_tokens": 512,
    "train.micro_batch_tokens": 512,
    "train.checkpoint.seconds": 0,
    "pack.small_tensor": 256,
    "score.batch_tokens": 2048,
    "score.compressors": "false",
    "report.samples": 0,
}


def run_preset(preset: str, run: Path, corpus: Path, changes: dict[str, object]) -> Outcome:
    """`bitgolf run` of a preset at reduced size; the audit must pass."""
    settings = _SMALL | {"data.source": f"jsonl:{corpus}"} | changes
    outcome = done("run", preset, *(f"--{key}={value}" for key, value in settings.items()), "--out", run, "--json")
    assert outcome.json["audit_passed"]
    return outcome


def shard(run: Path, split: str) -> np.ndarray:
    """The tokens of the only shard of a split."""
    stream = TokenShards([run / "data" / f"{split}_000000.bin"])
    return np.array(stream.read(0, stream.num_tokens))


def change_artifact(run: Path) -> None:
    """Flip the last bit of model.bitgolf."""
    data = bytearray((run / "model.bitgolf").read_bytes())
    data[-1] ^= 1
    (run / "model.bitgolf").write_bytes(data)


def refused(*arguments: str | Path) -> str:
    """`cli`, which must end with status 2 and print only one line of error. Returns that line.

    Lines of progress, which long work prints, are allowed before it.
    """
    outcome = cli(*arguments)
    lines = [line for line in outcome.stderr.strip().splitlines() if not re.match(r"\[[\w -]+\] +\d+% ", line)]
    assert outcome.status == 2, (outcome.status, outcome.stderr)
    assert outcome.stdout == ""
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def environment() -> dict[str, str]:
    """Environment variables of a process that runs bitgolf with one thread per rank."""
    here = str(Path(__file__).resolve().parents[2])
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return kept | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": here, "TERM": "dumb"}


def start(
    *arguments: str | Path, ranks: int = 1, program: tuple[str, ...] = ("-m", "bitgolf")
) -> subprocess.Popen[str]:
    """Start `bitgolf ARGUMENTS`, or another `program`, in new processes, with torchrun if there are several ranks."""
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return subprocess.Popen(
        [*launch, *program, *map(str, arguments)],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def tree_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files of `folder`, without those of its lock."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in LOCK_FILES:
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of one file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path: Path) -> Any:
    """Parsed contents of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """Events of one kind of a run's train.jsonl."""
    lines = (json.loads(line) for line in (run / "train.jsonl").read_text().splitlines())
    return [event for event in lines if event["event"] == kind]


def weights_digest(run: Path) -> str:
    """Hash of the float weights of a run, without the metadata of the file."""
    return state_digest(load_file(run / "weights.safetensors"))
