"""The command line itself: how arguments become settings, who speaks, and what the exit status says."""

import errno
import importlib.metadata
import importlib.util
import json
import logging
import lzma
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from tiny_run import cli, documents, done, environment, refused

import bitgolf.commands.console
from bitgolf.audit.verdict import Check, Verdict
from bitgolf.cli import COMMANDS, SafeFormatter, parse
from bitgolf.commands import doctor
from bitgolf.commands.command import Command
from bitgolf.commands.console import ConsoleProgress
from bitgolf.commands.help import build_parser
from bitgolf.commands.output import make_table, plain
from bitgolf.commands.tables import audit_table, data_table, doctor_table, score_table
from bitgolf.config import all_settings, load_config, preset_names, resolve
from bitgolf.config.overrides import parse_overrides
from bitgolf.errors import ArtifactError, BudgetError, ConfigError, DataError, RunError
from bitgolf.language_model import load
from bitgolf.run.directory import RunDirectory
from bitgolf.version import __version__

CHECK_KEYS = ("rule", "title", "verdict", "reason")


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bitgolf.commands.console, "time", clock)
    return clock


def reported(clock: Clock, enabled: bool, calls: Callable[[ConsoleProgress], None], **console: bool) -> str:
    stream = StringIO()
    with ConsoleProgress(Console(file=stream, width=120, **console), enabled) as progress:
        calls(progress)
    return stream.getvalue()


def test_overrides_come_with_a_space_or_an_equals_sign() -> None:
    words = ["--train.matrix_lr", "0.02", "--name=a=b", "--seed=-1", "--data.source", "--odd"]
    assert parse_overrides(words) == {
        "train.matrix_lr": "0.02",
        "name": "a=b",
        "seed": "-1",
        "data.source": "--odd",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed"], "--seed needs a value"),
        (["--seed", "1", "--seed=2"], "--seed is given twice"),
        (["seed", "1"], "unexpected argument 'seed'"),
    ],
)
def test_wrong_overrides_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_overrides(words)


def test_a_setting_for_a_command_that_takes_none_is_named_as_such() -> None:
    for words in (["--score.methods", "chunked"], ["--score-methods"], ["--score.methods=chunked"]):
        message = refused("score", "runs/mine", *words)
        assert ("is a setting, and `score` takes none" in message) == (words[0] != "--score-methods")


@pytest.mark.parametrize(
    ("words", "near"),
    [
        ("scor runs/mine", "score"),
        ("sample runs/mine --tokens 4", "--max-tokens"),
        ("sample runs/mine --temprature=1", "--temperature"),
        ("run demo --oot runs/mine", "--out"),
        ("run demo --out runs/mine --resme", "--resume"),
    ],
)
def test_a_misspelled_command_or_option_is_named_with_the_right_one(words: str, near: str) -> None:
    assert f"did you mean {near}?" in refused(*words.split())


def test_the_version_and_the_help_are_printed() -> None:
    assert cli("--version").stdout.strip() == f"bitgolf {__version__}"
    text = cli("--help").stdout
    for command in "run prepare train pack score audit report sample presets doctor".split():  # noqa: SIM905
        assert f"\n    {command} " in text


def test_alone_it_says_what_it_is_and_what_to_type_first() -> None:
    text = done().stdout
    assert "best language model that fits" in text
    first = [line.split("  ")[1] for line in text.splitlines() if line.startswith("  bitgolf ")]
    assert [command.split()[1] for command in first] == ["doctor", "run", "sample"]
    for command in first:
        parse(shlex.split(command)[1:])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_help_of_a_command_has_a_sentence_settings_and_examples(command: Command) -> None:
    text = cli(command.name, "--help").stdout
    assert f"\n{command.text[0].upper()}" in text and command.examples
    for key in command.settings:
        assert f"--{key} " in text
    for line, meaning in command.examples:
        assert f"  bitgolf {line}\n      {meaning}" in text
        arguments = parse(shlex.split(line.partition(" > ")[0]))
        assert arguments.run_command is command.run or command.name == "prepare"
        resolve({}, {key: value for key, value in arguments.overrides.items() if key != "data.val_bytes"})


def test_hyphens_and_underscores_are_the_same() -> None:
    arguments = parse(["sample", "m", "--max_tokens", "5", "--top_p=0.5"])
    assert (arguments.max_tokens, arguments.top_p) == (5, 0.5)
    assert parse(["run", "demo", "--out", "r", "--train.matrix-lr", "1"]).overrides == {"train.matrix_lr": "1"}
    words = parse(["run", "my_preset", "--out", "my_run", "--data.source", "dir:my_notes", "--model.vocab_size=9"])
    assert (words.preset, words.out, words.overrides["data.source"]) == ("my_preset", Path("my_run"), "dir:my_notes")
    assert words.overrides["model.vocab_size"] == "9"
    with pytest.raises(ConfigError, match="given twice"):
        parse_overrides(["--train.matrix-lr", "1", "--train.matrix_lr", "1"])


def test_settings_are_searched_by_name_pattern_and_meaning() -> None:
    def names(*words: str) -> list[str]:
        return [setting["key"] for setting in done("settings", *words, "--json").json]

    assert names() == list(all_settings())
    assert names("train.*_lr") == ["train.matrix_lr", "train.embed_lr", "train.scalar_lr", "train.min_lr"]
    assert "score.stride" in names("window") and "train.muon.steps" in names("newton")
    assert names("artifact-bytes") == ["budget.artifact_bytes"]
    (row,) = done("settings", "budget.artifact_bytes", "--json").json
    assert (
        row["allowed"] == "integer >= 1, or text with a unit, as 300KB"
        and row["default"] == 16_000_000
        and "largest size" in row["description"]
    )
    text = done("settings", "budget.*").stdout
    assert "budget.train_seconds" in text and "600" in text and "number > 0" in text
    assert "did you mean 'train.matrix_lr'" in refused("settings", "train.lr")
    assert "lists all of them" in refused("settings", "dropout")


def test_settings_are_completed_for_the_commands_that_take_them() -> None:
    for with_settings in (False, True):
        _, options = build_parser(COMMANDS, with_settings=with_settings)
        for command in COMMANDS:
            completed = {key for key in all_settings() if f"--{key}" in options[command.name]} - {
                "device",
                "name",
                "seed",
            }
            every = set(all_settings()) - {"device", "name", "seed"}  # which are also options of some commands
            assert completed == (every if with_settings and command.takes_overrides else set()), command.name
            assert {"--json", "--help"} <= options[command.name]


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shells_complete_commands_options_and_settings(shell: str) -> None:
    script = done("completion", shell).stdout
    assert "compress" in script and "train.matrix_lr" in script and "max-tokens" in script


def test_a_shell_completes_a_setting(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    script = tmp_path / "completion"
    script.write_text(done("completion", "bash").stdout)
    lines = f"source {script}; COMP_WORDS=(bitgolf run --train.mat); COMP_CWORD=2; _shtab_bitgolf; echo $COMPREPLY"
    answer = subprocess.run([bash, "-c", lines], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "--train.matrix_lr"


def test_a_table_of_scores_needs_the_packing_record_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[Path] = []
    monkeypatch.setattr("bitgolf.evaluate.score.score", lambda run, *_, **__: scored.append(run.path))
    run = RunDirectory.create(tmp_path / "run", load_config("demo"))
    assert "pack.json" in refused("score", run.path) and not scored
    assert "score.json" in refused("score", run.path, "--json") and scored == [run.path]


def test_a_text_file_is_scored_beside_compressors(tiny_run: Path, tmp_path: Path) -> None:
    text = "".join(documents()[:3])
    path = tmp_path / "notes.txt"
    path.write_text(text, encoding="utf-8")
    values = done("score", path, "--model", tiny_run, "--device", "cpu", "--json").json
    assert values["score"]["bpb"] == load(tiny_run / "model.bitgolf", device="cpu").bits_per_byte(text)
    assert values["bytes"] == values["score"]["bytes"] == len(text.encode())
    assert values["compressors"]["xz-9"] == 8 * len(lzma.compress(text.encode(), preset=9)) / len(text.encode())
    shown = done("score", path, "--model", tiny_run / "model.bitgolf").stdout
    assert f"{values['score']['bpb']:.4f}" in shown and "xz-9" in shown and "zstd-22" in shown
    assert "name the model that scores it with --model" in refused("score", path)
    path.write_bytes(b"abc\xff")
    assert "is not UTF-8 text: byte 3 is 0xFF" in refused("score", path, "--model", tiny_run)
    path.write_bytes(b"")
    assert "empty text" in refused("score", path, "--model", tiny_run)
    assert "holds no model.bitgolf" in refused("score", path, "--model", tmp_path)


def test_presets_are_listed_with_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = done("presets").stdout
    rows = done("presets", "--json").json
    assert [row["name"] for row in rows] == preset_names()
    for row in rows:
        assert row["name"] in text
        assert f"{row['parameters']:,}" in text


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_shown_as_toml_that_can_be_used(name: str, tmp_path: Path) -> None:
    text = done("presets", "show", name).stdout
    assert resolve(tomllib.loads(text), {}) == load_config(name)
    assert "# Muon learning rate" in text
    assert done("presets", "show", name, "--json").json == load_config(name).model_dump(mode="json")


def test_a_preset_is_shown_with_its_overrides() -> None:
    shown = done("presets", "show", "demo", "--train.matrix_lr", "0.017", "--json").json
    assert shown["train"]["matrix_lr"] == 0.017


def test_the_doctor_says_what_each_missing_thing_costs() -> None:
    report = done("doctor", "--json").stdout
    json.loads(report)
    assert "torch" in report
    assert "bitgolf doctor" in done("doctor").stdout


@pytest.mark.parametrize("error", [ConfigError, DataError, ArtifactError, BudgetError, RunError])
def test_errors_of_the_user_are_one_line_and_status_2(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, error("width [bold]7[/bold] is odd; choose an even one " + "x" * 300))
    assert refused("doctor") == "width [bold]7[/bold] is odd; choose an even one " + "x" * 300


def test_errors_of_the_system_name_the_file_and_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, OSError(28, "No space left on device", "/data/model.bitgolf"))
    message = refused("doctor")
    assert message == "No space left on device (/data/model.bitgolf); files written earlier are intact"
    fail_with(monkeypatch, OSError(28, "No space left on device"))
    assert refused("doctor") == "No space left on device; files written earlier are intact"


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    outcome = cli("doctor")
    assert outcome.status == 130
    assert "--resume" in outcome.stderr


def test_bugs_are_not_dressed_up_as_errors_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        cli("doctor")


HOSTILE = "[/x] [bold]b[/] :smile: \x1b[31mred \x07 \x9b2J \u202egolf"
SAFE = "[/x] [bold]b[/] :smile: \\x1b[31mred \\x07 \\x9b2J \\u202egolf"


def shown(renderable: object) -> str:
    """What a wide terminal without colors shows."""
    stream = StringIO()
    Console(file=stream, width=300, emoji=False).print(renderable)
    return stream.getvalue()


@pytest.mark.parametrize(
    "table",
    [
        make_table(HOSTILE, ["column"], []),
        make_table("title", [HOSTILE], [["value"]]),
        make_table("title", ["column"], [[HOSTILE]]),
        make_table("title", ["column"], [[plain(HOSTILE)]]),
        audit_table({"passed": True, "complete": True, "checks": [dict.fromkeys(CHECK_KEYS, HOSTILE)]}),
        data_table(HOSTILE, {"splits": {}}),
        doctor_table([dict.fromkeys(("kind", "name", "ok", "detail", "cost"), HOSTILE)]),
    ],
    ids=["title", "heading", "cell", "styled cell", "audit", "data", "doctor"],
)
def test_tables_show_text_of_others_as_it_is_and_without_control_characters(table: object) -> None:
    assert "".join(SAFE.split()) in "".join(shown(table).split())  # titles wrap


def test_lines_of_the_command_line_hold_no_control_characters(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    fail_with(monkeypatch, ConfigError(HOSTILE + "\nsecond"))
    assert refused("doctor") == SAFE + "\\nsecond"
    fail_with(monkeypatch, OSError(2, "No such file", HOSTILE))
    assert SAFE in refused("doctor")

    def work(progress: ConsoleProgress) -> None:
        progress("train", 0, 1)
        clock.now += 20
        progress("train", 0, 1, HOSTILE)

    for terminal in (False, True):
        line = reported(clock, True, work, force_terminal=terminal)
        assert "[/x] [bold]b[/]" in line and "\x07" not in line and "\u202e" not in line
    record = logging.LogRecord("bitgolf", logging.WARNING, "file", 1, HOSTILE, None, None)
    assert SafeFormatter().format(record) == SAFE


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("settings seed --json >&-", 0, ""),
        ("prepare - --out data <&-", 2, "error: Bad file descriptor"),
        ("presets show none 2>&-", 2, ""),
        ("presets show none 2>/dev/full", 2, ""),
        ("presets >/dev/full", 2, "No space left on device (standard output)"),
        ("--version >/dev/full", 2, "No space left on device (standard output)"),
        ("settings --markdown | true", 0, ""),
    ],
)
def test_closed_and_full_standard_streams(line: str, status: int, words: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -m bitgolf {line}"
    buffered = environment() | {"PYTHONUNBUFFERED": ""}
    result = subprocess.run(command, shell=True, cwd=tmp_path, env=buffered, capture_output=True, text=True, timeout=60)
    assert result.returncode == status and words in result.stderr and result.stderr.count("\n") == bool(words)
    assert not list(tmp_path.glob("data/*"))


@pytest.mark.parametrize("words", [["presets"], ["--help"]])
def test_a_pipe_that_nobody_reads_ends_the_program_as_a_signal_would(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "bitgolf", *words]
    buffered = environment() | {"PYTHONUNBUFFERED": ""}
    result = subprocess.run(command, env=buffered, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


def test_progress_that_cannot_be_printed_ends_no_work(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Console, "print", full)
    ended = []

    def work(progress: ConsoleProgress) -> None:
        progress("train", 0, 1)
        clock.now += 20
        progress("train", 0, 1)
        ended.append(True)

    reported(clock, True, work)
    assert ended


def test_nobody_reads_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("bitgolf.commands.presets.print_json", fail)
    result = cli("presets", "--json")
    assert (result.status, result.stderr) == (141, "")


@pytest.mark.parametrize("columns", ["0", "1"])
def test_a_terminal_without_width_shows_the_table(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert "demo" in done("presets").stdout


def test_the_name_of_a_run_is_not_markup(run_copy: Path) -> None:
    config = (run_copy / "config.toml").read_text()
    (run_copy / "config.toml").write_text(config.replace('name = "tiny"', 'name = "[/x]"'))
    assert done("report", run_copy).status == 0
    score, pack = (json.loads((run_copy / name).read_text()) for name in ("score.json", "pack.json"))
    assert "[/x]: " in shown(score_table("[/x]", score, pack))


def test_a_terminal_without_unicode_shows_escapes() -> None:
    command = [sys.executable, "-m", "bitgolf", "report", "caf\u00e9"]
    outcome = subprocess.run(
        command, env=environment() | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 2 and "error: caf\\xe9 is not a run directory" in outcome.stderr


def test_the_doctor_gives_a_cost_to_what_is_missing_and_to_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = {"flash": "", "cudnn": "needs a GPU"}
    monkeypatch.setattr("bitgolf.model.backends.available_backends", lambda case: attention)
    packages = {"lzma": None, "range": "constriction"}
    monkeypatch.setattr("bitgolf.artifact.compressors.compressor_names", lambda: tuple(packages))
    monkeypatch.setattr("bitgolf.artifact.compressors.missing_package", packages.get)
    is_there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: is_there(name) if name != "jinja2" else None)
    findings = {(one.kind, one.name): one for one in doctor.examine()}
    missing = {("attention", "cudnn"), ("compressor", "range"), ("library", "jinja2")}
    expected = missing | {("attention", "flash"), ("compressor", "lzma"), ("library", "rich"), ("library", "torch")}
    assert findings.keys() >= expected and {key for key in expected if not findings[key].ok} == missing
    for finding in findings.values():
        assert bool(finding.cost) != finding.ok
    assert findings["attention", "cudnn"].detail == "needs a GPU"
    assert findings["library", "rich"].detail == importlib.metadata.version("rich")
    assert findings["system", "cpu"].detail.startswith(f"{os.cpu_count()} cores, {torch.get_num_threads()} ")


def test_the_doctor_describes_each_gpu_or_says_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (none,) = doctor._gpus()
    assert (none.kind, none.name, none.ok) == ("device", "cuda", False) and "CPU" in none.cost
    about = SimpleNamespace(name="H0", total_memory=80 * 2**30, major=9, minor=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: about)
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    assert [(one.kind, one.name, one.ok, one.detail, one.cost) for one in doctor._gpus()] == [
        ("device", f"cuda:{index}", True, "H0, 80 GiB, capability 9.1, CUDA 12.9", "") for index in range(2)
    ]


def test_the_doctor_prints_whole_commands() -> None:
    costs = [cost for _, cost in doctor._PACKAGES.values()]
    assert any("pip install 'bitgolf[hub]'" in shown(make_table("", ["cost"], [[cost]])) for cost in costs)


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `bitgolf doctor` raise `error`."""

    def fail() -> None:
        raise error

    monkeypatch.setattr("bitgolf.commands.doctor.examine", fail)


@pytest.mark.parametrize("words", [("presets",), ("presets", "--json"), ("doctor",), ("presets", "show", "demo")])
def test_other_ranks_print_nothing(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    outcome = cli(*words)
    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, "", "")


@pytest.mark.parametrize("words", [("presets", "show", "nothing"), ("rnu",), ("train", "nowhere", "--quick")])
def test_other_ranks_fail_in_silence(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    outcome = cli(*words)
    assert (outcome.status, outcome.stdout, outcome.stderr) == (2, "", "")


_WARNS = """
import logging, os
from bitgolf.cli import main
from bitgolf.commands import doctor

def examine():
    logging.getLogger("bitgolf.any").warning("a red %s", chr(27) + "[31m")
    os._exit(0)

doctor.examine = examine
main(["doctor"])
"""


def test_rank_0_alone_shows_warnings_and_without_control_characters() -> None:
    shown = []
    for rank in "01":
        command, variables = [sys.executable, "-c", _WARNS], environment() | {"RANK": rank}
        shown.append(subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stderr)
    assert shown[0].startswith("WARNING a red ") and "\x1b" not in shown[0] and shown[1] == ""


def test_an_audit_without_all_checks_is_status_3(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def incomplete(*_: object, **__: object) -> Verdict:
        return Verdict((Check("a", "B1", "t", "PASS", ""), Check("b", "B1", "t", "NOT RUN", "no GPU")))

    monkeypatch.setattr("bitgolf.audit.run.audit_run", incomplete)
    outcome = cli("audit", run_copy)
    assert outcome.status == 3
    assert "INCOMPLETE" in outcome.stdout


def test_the_options_of_an_audit_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.create(tmp_path / "run", load_config("demo")).path
    given: list[dict[str, object]] = []

    def audited(run: RunDirectory, *, progress: object, **options: object) -> Verdict:
        given.append(options)
        return Verdict((Check("a", "B1", "t", "FAIL" if options["quick"] else "PASS", ""),))

    monkeypatch.setattr("bitgolf.audit.run.audit_run", audited)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    none = dict.fromkeys(("wall_seconds", "memory_gib", "processes", "file_mib"))
    assert cli("audit", run, "--quick").status == 1 and cli("audit", run, "--all").status == 0
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ  # only coding needs it
    limits = "--sealed-seconds 1.5min --sealed-gib 2.5 --sealed-processes 7 --sealed-mib 0.5".split()  # noqa: SIM905
    (out,) = json.loads(done("audit", run, "--codec", "3KB", *limits, "--out", "-").stdout)["checks"]
    assert out["verdict"] == "PASS" and os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
    plain = {"quick": False, "everything": False, "codec_bytes": 0, "sealed_limits": none}
    chosen = {"wall_seconds": 90, "memory_gib": 2.5, "processes": 7, "file_mib": 0.5}
    assert given == [
        plain | {"quick": True}, plain | {"everything": True}, plain | {"codec_bytes": 3_000, "sealed_limits": chosen},
    ]  # fmt: skip
    text = done("audit", run, "--out", tmp_path / "verdict.json", "--json").stdout
    assert (tmp_path / "verdict.json").read_text() == text
    folder = tmp_path / "submission"
    folder.mkdir()
    (folder / "submission.json").write_text("{}")
    for option, values in {
        "--sealed-seconds": ("0",), "--sealed-gib": ("0", "-1", "inf", "nan"), "--sealed-processes": ("0", "-1"),
        "--sealed-mib": ("0",),
    }.items():  # fmt: skip
        for value in values:
            assert f"{option} {float(value):g}: give a positive number" in refused("audit", run, f"{option}={value}")
        assert f"{option} is for run directories" in refused("audit", folder, option, "5")
    for words in (("--quick",), ("--all",), ("--codec", "9")):
        assert f"{words[0]} is for run directories" in refused("audit", folder, *words)
    assert "is a directory" in refused("audit", run, "--out", tmp_path)
    assert len(given) == 4


@pytest.mark.parametrize(
    ("words", "stages"),
    [
        ("prepare stdlib --out {new}", ["data.prepare.prepare"]),
        (
            "run demo --out {new} --anyway",
            ["data.prepare.prepare", "train.attended.train_attended", "quantize.pack.pack", "evaluate.score.score",
             "audit.run.audit_run", "report.report.report"],
        ),
        ("train {run} --anyway", ["train.attended.train_attended"]),
        ("pack {run}", ["quantize.pack.pack"]),
        ("pack {run} --pack.prune 0.1", ["quantize.repack.repack"]),
        ("score {run} --json", ["evaluate.score.score"]),
        ("audit {run}", ["audit.run.audit_run"]),
        ("audit {submission}", ["referee.run.audit_submission"]),
        ("report {run}", ["report.report.report"]),
        ("report {run} --out {new}", ["report.site.site.write_site"]),
        ("compare {run} {submission}", ["report.comparison.compare.compare"]),
        ("submit {run} --out {new}", ["submit.submit.submit"]),
        ("plan demo", ["plan.predict.predict"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_every_command_shows_the_progress_of_its_stages(
    tmp_path: Path, words: str, stages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages are replaced by functions that note what they get; the last one ends the command."""
    places = {name: tmp_path / name for name in ("new", "run", "submission")}
    RunDirectory.create(places["run"], load_config("demo"))
    places["submission"].mkdir()
    (places["submission"] / "submission.json").write_text("{}")
    noted: list[str] = []

    def note(stage: str) -> Callable[..., None]:
        def noted_only(*values: object, **named: object) -> None:
            assert [value for value in (*values, *named.values()) if isinstance(value, ConsoleProgress)], stage
            noted.append(stage)
            if stage == stages[-1]:
                raise RunError("that was all")

        return noted_only

    for stage in stages:
        monkeypatch.setattr(f"bitgolf.{stage}", note(stage))
    assert refused(*(word.format(**places) for word in words.split())) == "that was all"
    assert noted == stages


def test_a_sample_repeats_with_its_seed_and_begins_with_the_prompt(tiny_run: Path) -> None:
    words = ("sample", tiny_run / "model.bitgolf", "--prompt", "The [quiet] ", "--max-tokens", "12", "--seed", "4")
    text = done(*words, "--device", "cpu").stdout
    assert text.startswith("The [quiet] ")
    assert done(*words).stdout == text
    answer = done(*words, "--json").json
    assert answer["prompt"] + answer["continuation"] + "\n" == text
    assert done("sample", tiny_run, *words[2:]).stdout == text
    stop = answer["continuation"][5:8]
    stopped = done(*words, "--stop", stop, "--stop", "\0").stdout
    assert stopped == text[: text.index(stop, len("The [quiet] "))] + "\n"
    assert done(*words, "--top-p", "0.0001").stdout == done(*words, "--temperature", "0").stdout


def test_away_from_a_terminal_progress_is_a_plain_line_now_and_then(clock: Clock) -> None:
    def work(progress: ConsoleProgress) -> None:
        for second in range(26):
            clock.now = 100.0 + second
            progress("train", second, 25, f"step {second} [tag]")

    lines = reported(clock, True, work).splitlines()
    assert lines == [
        "[train]   8% 2 s step 2 [tag]",
        "[train]  48% 12 s step 12 [tag]",
        "[train]  88% 22 s step 22 [tag]",
        "[train] 100% 25 s step 25 [tag]",
    ]


def test_short_stages_and_other_ranks_say_nothing(clock: Clock) -> None:
    def short(progress: ConsoleProgress) -> None:
        progress("pack", 0, 1)
        clock.now += 1.9
        progress("pack", 1, 1)

    def long(progress: ConsoleProgress) -> None:
        for _ in range(5):
            clock.now += 60
            progress("train", 1, 2)

    assert reported(clock, True, short) == ""
    assert reported(clock, False, long) == ""
    assert "[train]" in reported(clock, True, long)


def test_a_stage_that_goes_silent_is_shown_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitgolf.commands.console, "_FIRST_SECONDS", 0.05)
    stream = StringIO()
    with ConsoleProgress(Console(file=stream, width=120), True) as progress:
        progress("warm-up", 0, 3, "compiling")
        progress("short", 0, 1)
        progress("short", 1, 1)
        deadline = time.monotonic() + 60
        while not stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert stream.getvalue().splitlines() == ["[warm-up]   0% 0 s compiling"]


def test_on_a_terminal_progress_is_a_bar(clock: Clock) -> None:
    def work(progress: ConsoleProgress) -> None:
        for second in range(6):
            clock.now += second
            progress("train", second, 5, "step")

    shown = reported(clock, True, work, force_terminal=True)
    assert "train" in shown
    assert "100%" in shown
    assert "[train]" not in shown
