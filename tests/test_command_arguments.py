"""What the command line makes of its words: every argument of every command, with its type and its default."""

from pathlib import Path
from typing import Any

import pytest
from tiny_run import refused

from bitgolf.cli import COMMANDS, parse

A, B, C, D = map(Path, "abcd")
COMMON = {"commands", "json", "overrides", "run_command", "takes_overrides"}

# The shortest line and what it gives, then a line with every option and what is different.
LINES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    (
        "run x --out a", {"preset": "x", "out": A, "resume": False, "branch": "", "anyway": False},
        "run x --out a --resume --branch b --anyway", {"resume": True, "branch": "b", "anyway": True},
    ),
    ("plan x", {"preset": "x"}, "plan y", {"preset": "y"}),
    ("prepare x --out a", {"source": "x", "out": A}, "prepare x --out b", {"out": B}),
    (
        "train a", {"run": A, "resume": False, "overwrite": False, "branch": "", "anyway": False},
        "train a --resume --overwrite --branch b --anyway",
        {"resume": True, "overwrite": True, "branch": "b", "anyway": True},
    ),
    ("pack a", {"run": A}, "pack b", {"run": B}),
    (
        "score a", {"target": A, "model": None, "device": "auto"},
        "score a --model b --device cpu", {"model": B, "device": "cpu"},
    ),
    (
        "audit a",
        {"run": A, "quick": False, "all": False, "codec": 0, "sealed_seconds": None, "sealed_gib": None,
         "sealed_processes": None, "sealed_mib": None, "out": None},
        "audit a --quick --all --codec 7 --sealed-seconds 1.5 --sealed-gib 2.5 --sealed-processes 3 --sealed-mib 4 "
        "--out b",
        {"quick": True, "all": True, "codec": 7, "sealed_seconds": 1.5, "sealed_gib": 2.5, "sealed_processes": 3,
         "sealed_mib": 4.0, "out": B},
    ),
    ("report a", {"run": A, "more": [], "out": None}, "report a b c --out d", {"more": [B, C], "out": D}),
    (
        "compare a",
        {"runs": [A], "baseline": [], "published": None, "published_summary": None, "method": "headline",
         "margin_nats": 0.005, "resamples": 10_000, "seed": 0, "html": None},
        "compare a b --baseline c d --published 1.25 1.5 --published-summary 1.25 0.5 3 --method chunked "
        "--margin-nats 0.01 --resamples 9 --seed 4 --html d",
        {"runs": [A, B], "baseline": [C, D], "published": [1.25, 1.5], "published_summary": [1.25, 0.5, 3.0],
         "method": "chunked", "margin_nats": 0.01, "resamples": 9, "seed": 4, "html": D},
    ),
    (
        "submit a --out b",
        {"runs": [A], "out": B, "seeds": 3, "force": False, "name": "", "author": "", "github_id": "", "track": "",
         "date": ""},
        "submit a b --out c --seeds 2 --force --name d --author e --github-id f --track g --date h",
        {"runs": [A, B], "out": C, "seeds": 2, "force": True, "name": "d", "author": "e", "github_id": "f",
         "track": "g", "date": "h"},
    ),
    (
        "sweep a --data b --out c", {"study": A, "data": B, "out": C, "storage": ""},
        "sweep a --data b --out c --storage x", {"storage": "x"},
    ),
    (
        "sample a",
        {"model": A, "prompt": "", "max_tokens": 200, "temperature": 0.8, "top_k": 0, "top_p": 1.0, "stop": [],
         "seed": None, "device": "auto"},
        "sample a --prompt b --max-tokens 3 --temperature 2 --top-k 4 --top-p 0.25 --stop c --stop d --seed 6 "
        "--device cuda",
        {"prompt": "b", "max_tokens": 3, "temperature": 2.0, "top_k": 4, "top_p": 0.25, "stop": ["c", "d"], "seed": 6,
         "device": "cuda"},
    ),
    (
        "serve a", {"model": A, "host": "127.0.0.1", "port": 8000, "name": [], "device": "auto"},
        "serve a --host b --port 9 --name c --name d --device cpu",
        {"host": "b", "port": 9, "name": ["c", "d"], "device": "cpu"},
    ),
    (
        "compress a -o b --model c",
        {"file": A, "output": B, "model": C, "device": "auto", "streams": 0, "stride": 0, "ttt": False, "config": None,
         "verify": False},
        "compress a --output b --model c --device cpu --streams 2 --stride 3 --ttt --config d --verify",
        {"device": "cpu", "streams": 2, "stride": 3, "ttt": True, "config": "d", "verify": True},
    ),
    (
        "decompress a -o b --model c",
        {"file": A, "output": B, "model": C, "device": "auto", "allow_platform_mismatch": False,
         "allow_unchecked": False},
        "decompress a --output b --model c --device cuda --allow-platform-mismatch --allow-unchecked",
        {"device": "cuda", "allow_platform_mismatch": True, "allow_unchecked": True},
    ),
    ("export a --to onnx b", {"model": A, "to": "onnx", "out": B}, "export a --to transformers b",
     {"to": "transformers"}),
    ("presets", {"action": "list", "name": None}, "presets show x", {"action": "show", "name": "x"}),
    ("settings", {"pattern": "", "markdown": False}, "settings x --markdown", {"pattern": "x", "markdown": True}),
    ("doctor", {}, "doctor", {}),
    (
        "bench", {"preset": "demo", "steps": 20, "run": None, "profile": None, "summary": None},
        "bench x --steps 6 --run b --profile c --summary d",
        {"preset": "x", "steps": 6, "run": B, "profile": C, "summary": D},
    ),
    ("completion bash", {"shell": "bash"}, "completion tcsh", {"shell": "tcsh"}),
]  # fmt: skip


@pytest.mark.parametrize(("short", "values", "long", "changes"), LINES, ids=lambda value: str(value).split()[0])
def test_every_argument_has_its_type_and_default(
    short: str, values: dict[str, Any], long: str, changes: dict[str, Any]
) -> None:
    for line, expected, json in ((short, values, False), (f"{long} --json", values | changes, True)):
        parsed = vars(parse(line.split()))
        assert parsed["json"] is json and parsed["overrides"] == {}
        own = {name: value for name, value in parsed.items() if name not in COMMON}
        assert sorted(map(repr, own.items())) == sorted(map(repr, expected.items())), line


def test_the_table_has_all_commands_and_those_that_take_settings() -> None:
    assert [short.split()[0] for short, *_ in LINES] == [command.name for command in COMMANDS]
    taking = [short.split()[0] for short, *_ in LINES if parse(short.split()).takes_overrides]
    assert taking == ["run", "plan", "prepare", "pack", "compress", "presets", "bench"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prepare stdlib --out {}/x --data.source jsonl:y", "the argument after `prepare`; leave out --data.source"),
        ("prepare stdlib --out {}/x --train.seq_len 64", "`prepare` does not use --train.seq_len; it takes --data.KEY"),
        ("prepare stdlib --out {}/x --model.num_layers 2", "`prepare` does not use --model.num_layers"),
        ("export {} --to onnx {}/x", "{}/x: the ONNX format is one file; give a name that ends in .onnx"),
        ("export {} --to onnx {}", "{}: the ONNX format is one file; give a name that ends in .onnx"),
    ],
)
def test_words_that_a_command_does_not_use_are_refused_before_the_work(line: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "f.onnx"
    folder.mkdir()
    assert message.replace("{}", str(folder)) in refused(*line.replace("{}", str(folder)).split())
    assert not any(folder.iterdir())
