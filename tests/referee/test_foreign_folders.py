"""Foreign submission folders: what must not be missed, and what must never end in anything but a verdict."""

import json
import os
import resource
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from synthetic_submission import CODE, CONSTANT, Folder, Plant, add, claimed, instead, judged, logged, script
from tiny_run import cli

from bitgolf.audit.verdict import Verdict
from bitgolf.referee.log import parse_log
from bitgolf.referee.run import audit_submission


def unknown_tokenizer(folder: Folder, constant: float) -> None:
    for seed in folder.seeds:
        seed.constant, seed.bpb = constant, round(seed.bpb * constant / CONSTANT, 8)
        seed.settings |= {"caseops_enabled": False, "datasets_dir": "./data/mine", "train_files": "./mine/train_*.bin"}


def refine(call: str) -> Plant:
    """Adaptation before the artifact is made, under the name of another parameter."""

    def plant(folder: Folder) -> None:
        add(folder, "def refine(model, stream):\n    model(stream).backward()\n    optimizer.step()")
        folder.code = folder.code.replace("    serialize(h,", f"{call}\n    serialize(h,")

    return plant


def second_pass_before_the_headline(folder: Folder) -> None:
    bpb = folder.seeds[0].bpb + 0.01
    line = f"quantized_ttt_phased val_loss:{bpb / CONSTANT:.8f} val_bpb:{bpb:.8f} eval_time:480000ms"
    folder.seeds[0].in_evaluation = [line]


def seeds_of_one_score(folder: Folder) -> None:
    for seed in folder.seeds:
        seed.bpb = 1.06123451


FROM_A_VARIABLE = "with open(name) as f:\n    text = f.read()\nprogram = compile(text, name, 'exec')\nexec(program)"
ALIAS = "    smooth = torch.from_numpy(val_data.tokens)\n    more = smooth[:100]\n    refine(model, more)"
ADAPTED = "refine trains on validation tokens before main makes the artifact"
CASES: dict[str, tuple[str, str, Plant]] = {  # the check that must fail, words of its reason, what is planted
    # Code and tables that are not counted.
    "a package beside the script": (
        "artifact-bytes", "helpers/__init__.py, helpers/tables.py is imported by train_gpt.py and not counted",
        script("from helpers.tables import WORDS",
               {"helpers/__init__.py": "", "helpers/tables.py": "WORDS = 'the of and'\n" * 40})),
    "a package that a package imports": (
        "artifact-bytes", "lib/inner/deep.py",
        script("import lib", {"lib/__init__.py": "from lib.inner import deep\n", "lib/inner/deep.py": "X = 1\n"})),
    "a module that a module imports": (
        "artifact-bytes", "module.py, second.py is imported",
        script("import module", {"module.py": "import second\n", "second.py": "TABLE = 'x'\n"})),
    "a folder added to the path": (
        "artifact-bytes", "vendor/tricks.py",
        script("import sys\nsys.path.insert(0, 'vendor')\nimport tricks", {"vendor/tricks.py": "TABLE = 'x'\n"})),
    "an executed data file": (
        "artifact-bytes", "executes what it reads", script("exec(open('weights.dat').read())")),
    "executed text of a variable": ("artifact-bytes", "executes what it reads", script(FROM_A_VARIABLE)),
    "a computed import": (
        "artifact-bytes", "imports a module by a computed name",
        script("import importlib\ntools = importlib.import_module('to' + 'ols')")),
    "a computed __import__": (
        "artifact-bytes", "imports a module by a computed name", script("tools = __import__(''.join(['to', 'ols']))")),
    "a module loaded from a path": (
        "artifact-bytes", "loads code from a file",
        script("import importlib.util\nspec = importlib.util.spec_from_file_location('x', 'x.dat')")),
    "a table beside the artifact": (
        "artifact-bytes", "unigrams.npz (3,000 bytes) is read by train_gpt.py and not counted",
        script("table = np.load('unigrams.npz')", {"unigrams.npz": "x" * 3_000})),
    "weights that a pattern covers": (
        "artifact-bytes", "extra/part1.pt (10 bytes) is read",
        script("parts = [torch.load(p) for p in glob.glob('extra/*.pt')]", {"extra/part1.pt": "0123456789"})),
    "a table as text": (
        "artifact-bytes", "hints.txt (5 bytes) is read",
        script("hints = open('hints.txt').read()", {"hints.txt": "a b c"})),
    # Training data, documents, clocks.
    "a training pattern that covers validation": (
        "validation-unseen", "training reads 'fineweb_*.bin'", instead('"fineweb_train_*.bin")', '"fineweb_*.bin")')),
    "a training pattern in the log": (
        "validation-unseen", "training reads ./data/*",
        lambda folder: folder.seeds[1].settings.update(train_files="./data/*")),
    "a training pattern of everything": (
        "validation-unseen", "training reads '*.bin'", instead('"fineweb_train_*.bin")', '"*.bin")')),
    "skipped documents": (
        "tokens-scored", "'eval: skipped 1,204 documents longer than 4096'",
        logged(2, "eval: skipped 1,204 documents longer than 4096")),
    "skipped documents as a count": (
        "tokens-scored", "'ttt docs_skipped:17 total:50000'", logged(0, "ttt docs_skipped:17 total:50000")),
    "a later round of the evaluation": (
        "single-pass", "'round 2: val_bpb 1.05'", logged(0, "round 2: val_bpb 1.05")),
    "a part of the documents": (
        "tokens-scored", "'eval: 49,000 of 50,000 documents'", logged(0, "eval: 49,000 of 50,000 documents")),
    "dropped documents": (
        "tokens-scored", "'312 docs dropped (too hard)'", logged(0, "312 docs dropped (too hard)")),
    "training after the clock": (
        "train-clock", "training goes on to step 5000 after it stopped at step 4912",
        logged(0, "5000/20000 train_loss: 2.4 train_time: 9.9m tok/s: 700000", "before_seal")),
    "a second pass before the headline": (
        "single-pass", "quantized_ttt_phased was made before and gave another score than the headline",
        second_pass_before_the_headline),
    "a second start of the evaluation": (
        "single-pass", "the evaluation was started 2 times",
        logged(1, "ttt_phased: total_docs:50000 prefix_docs:2500 num_phases:3")),
    "bytes of an unknown tokenizer": (
        "identity", "9.62 bytes per token: no tokenizer of at most 65,536 pieces has so many",
        lambda folder: unknown_tokenizer(folder, 0.15)),
    # Adaptation under another name.
    "adaptation under the name of another parameter": (
        "validation-unseen", ADAPTED, refine("    refine(model, val_data)")),
    "adaptation by keyword": ("validation-unseen", ADAPTED, refine("    refine(model, stream=h.val_tokens)")),
    "adaptation through an alias": ("validation-unseen", ADAPTED, refine(ALIAS)),
    # Dates and deviations.
    "a date that does not exist": (
        "json-schema", "date is '2026-02-30', which is no date", claimed(date="2026-02-30")),
    "a date in words": ("json-schema", "which is no date", claimed(date="next Tuesday")),
    "a deviation of zero": (
        "numbers-agree", "val_bpb_std is 0.0 in submission.json", claimed(val_bpb_std=0.0)),
    "a deviation of integer zero": (
        "numbers-agree", "val_loss_std is 0 in submission.json", claimed(val_loss_std=0)),
    "seeds of one score": ("seeds", "3 seeds have the same score 1.06123451", seeds_of_one_score),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_foreign_folders_are_judged(name: str, tmp_path: Path) -> None:
    check, words, plant = CASES[name]
    made = judged(check, tmp_path, plant)
    assert made.verdict == "FAIL" and words in made.reason, made


def test_the_bytes_of_a_plausible_unknown_tokenizer_cannot_be_checked(tmp_path: Path) -> None:
    made = judged("identity", tmp_path, lambda folder: unknown_tokenizer(folder, 0.39))
    assert made.verdict == "NOT RUN" and "3.699 bytes per token" in made.reason


HONEST: dict[str, Plant] = {
    "a later round of training": logged(0, "round 2: val_bpb 1.25", "before_seal"),
    "progress over documents": logged(
        0, "\n".join(f"eval: {part} of 50,000 documents" for part in ("10,000", "30,000", "50,000"))
    ),
    "files that nothing reads": lambda folder: folder.extra.update({"notes/plan.npz": "x", "old/tool.py": "X = 1"}),
    "a tokenizer and pictures": script("sp.load('tok.model')", {"tok.model": "x", "loss.png": "x"}),
    "an exec of its own text": script("exec('x = 1')\neval('2 + 2')"),
    "nothing skipped": logged(0, "eval: skipped 0 documents"),
    "training documents skipped": logged(0, "train loader skipped 12 documents", "before_seal"),
    "a model that validation data was handed to": lambda folder: (
        add(folder, "def polish(model):\n    model(x).backward()\n    optimizer.step()"),
        instead("    serialize(h,", "    model = with_eval(model, val_data)\n    polish(model)\n    serialize(h,")(
            folder
        ),
    ),
    "today's date": claimed(date=datetime.now(UTC).date().isoformat()),
    "a date with a time": claimed(date="2026-04-27T10:00:00Z"),
    "the bytes of a seed that is not the largest": lambda folder: folder.claims.update(
        bytes_total=folder.total(folder.seeds[0])
    ),
}


@pytest.mark.parametrize("what", HONEST)
def test_honest_folders_are_not_mistaken(what: str, tmp_path: Path) -> None:
    folder = Folder()
    HONEST[what](folder)
    verdict = audit_submission(folder.write(tmp_path / "stack"))
    assert [made for made in verdict.checks if made.verdict == "FAIL"] == []


# --- malformed folders: a verdict, never a traceback, and the other checks are still made ----------------------------

DEEP = "[" * 100_000 + "]" * 100_000
MALFORMED: dict[str, tuple[str, str]] = {
    "deep nesting": ("submission.json", DEEP),
    "deep objects": ("submission.json", '{"a":' * 50_000 + "1" + "}" * 50_000),
    "400 digits": ("submission.json", '{"val_bpb": 1' + "0" * 400 + ', "val_loss": 2.3}'),
    "5000 digits": ("submission.json", '{"val_bpb": 1' + "0" * 5000 + "}"),
    "infinity": ("submission.json", '{"val_bpb": Infinity, "val_loss": 1e999}'),
    "not a number": ("submission.json", '{"val_bpb": NaN, "seeds": [NaN]}'),
    "null results": ("submission.json", '{"seed_results": null, "seeds": null, "val_bpb": null}'),
    "lists of results": ("submission.json", '{"seed_results": [1, 2], "seeds": {"a": 1}, "val_bpb": [1.0]}'),
    "nulls for seeds": ("submission.json", '{"seed_results": {"42": null, "0": [], "x": "y"}, "seeds": [null, {}]}'),
    "lone surrogates": ("submission.json", '{"name": "\\ud800", "author": "\\udfff\\ud800"}'),
    "a number alone": ("submission.json", "17"),
    "a byte order mark": ("submission.json", "\ufeff{}"),
    "NUL": ("submission.json", "\0" * 100),
    "keys twice": ("submission.json", '{"val_bpb": 1, "val_bpb": 2}'),
    "track is a list": ("submission.json", '{"track": [], "name": {}, "date": 7, "bytes_total": "x"}'),
    "huge numbers": ("submission.json", '{"bytes_total": 1e308, "val_bpb": 1e-308, "val_loss": -1e308}'),
    "versions for losses": ("train_seed42.log", "1/2 train_loss: 1.2.3.4\nval_loss:1.2.3 val_bpb:4.5.6\n"),
    "points for losses": ("train_seed42.log", "1/2 train_loss: ... train_time: ..ms\nstep:1/2 train_loss:.\n"),
    "long counts": ("train_seed42.log", "val_tokens: " + "9" * 6000 + "\n1/2 train_loss: 2.0\n"),
    "long losses": ("train_seed42.log", "val_loss:" + "9" * 5000 + ".0 val_bpb:1.0\n1/2 train_loss: 2.0\n"),
    "zero losses": ("train_seed42.log", "final val_loss:0.0 val_bpb:0.0\n1/2 train_loss: 2.0\n"),
    "sizes of commas": (
        "train_seed42.log",
        "Code size: ,,,, bytes\nTotal submission size: , bytes\n1/2 train_loss: 1.0",
    ),
    "clocks of points": ("train_seed42.log", "stopping_early: x train_time:...ms step:1\n1/2 train_loss: 1.0\n"),
    "steps of many digits": ("train_seed42.log", "9" * 5000 + "/1 train_loss: 1.0\n1/2 train_loss: 2.0\n"),
    "control characters": ("train_seed42.log", "\x1b[2J\x07\x00 val_loss:1.5 val_bpb:1.0 \u202e\n" * 3),
    "an empty log": ("train_seed42.log", ""),
    "a log of NUL": ("train_seed42.log", "\0" * 4000),
    "a script of brackets": ("train_gpt.py", "(" * 50_000),
    "a script of operators": ("train_gpt.py", "x = " + "-" * 50_000 + "1"),
    "a script of NUL": ("train_gpt.py", "\0" * 500),
    "a script of one long sum": ("train_gpt.py", "x = " + "1+" * 20_000 + "1"),
    "an empty script": ("train_gpt.py", ""),
    "a surrogate in a string": ("train_gpt.py", "x = '\\ud800'\nimport os\n" + CODE),
    "tables of pipes": ("README.md", "|" * 20_000 + "\n" + "|-" * 10_000 + "\n" + "|" * 20_000),
    "fences": ("README.md", "```\n" * 5_001),
    "figures of many digits": ("README.md", "| Seed | bpb |\n|---|---|\n| 42 | " + "1" * 5000 + ".0 |\n"),
    "exponents": ("README.md", "| Seed | bpb |\n|--|--|\n| 42 | 1e999 |\n| 0 | -1e999 |\n| mean | 0x10 |\n"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_folders_end_in_a_verdict(what: str, tmp_path: Path) -> None:
    name, text = MALFORMED[what]
    path = Folder().write(tmp_path / "stack")
    (path / name).write_bytes(text.encode("utf-8", errors="surrogatepass"))
    verdict = audit_submission(path)
    assert len(verdict.checks) == 20
    assert all(made.reason.isprintable() for made in verdict.checks)
    json.dumps(verdict.to_json(), allow_nan=False)
    for made in verdict.checks:
        assert "another form than expected" not in made.reason, made
    untouched = {"submission.json": "train-clock", "README.md": "artifact-bytes"}.get(name, "json-schema")
    assert verdict[untouched].verdict == "PASS" or name == "submission.json"


def test_the_line_that_is_no_number_is_named(tmp_path: Path) -> None:
    path = Folder().write(tmp_path / "stack")
    with (path / "train_seed0.log").open("a") as log:
        log.write("9/20000 train_loss: 1.2.3.4\n")
    made = audit_submission(path)["files"]
    assert made.verdict == "FAIL" and "train_seed0.log line" in made.reason and "1.2.3.4" in made.reason


@pytest.mark.parametrize("kind", ["directory", "link to itself", "fifo"])
def test_special_files_are_no_logs(kind: str, tmp_path: Path) -> None:
    path = Folder().write(tmp_path / "stack")
    (path / "README.md").unlink()
    if kind == "directory":
        (path / "README.md").mkdir()
    elif kind == "fifo":
        os.mkfifo(path / "README.md")
    else:
        (path / "README.md").symlink_to(path / "README.md")
    assert audit_submission(path)["files"].verdict == "FAIL"


def test_the_command_line_prints_no_control_characters(tmp_path: Path) -> None:
    path = Folder(claims={"name": "\x1b[31mred\u202e", "val_bpb": "\x1b]0;title\x07"}).write(tmp_path / "stack")
    printed = cli("audit", path).stdout
    assert "\x1b]0" not in printed and "\u202e" not in printed and "\x07" not in printed


@pytest.mark.parametrize(
    "line",
    [
        "val_loader:" * 4_000,
        "val_loader: " + "tokens" * 8_000,
        "ngram" * 9_000 + " built",
        "beginning " * 5_000,
        "train_time:" + "1." * 20_000 + "ms",
        "a:" * 22_000,
        "skip " * 9_000 + "documents",
        "val_loss:1.0 " * 3_500,
        "1" * 44_000,
        " " * 44_000,
        "=" * 44_000 + "x",
        "pre_quant" * 5_000 + "ttt",
    ],
)
def test_the_work_is_linear_in_the_length_of_a_line(line: str, tmp_path: Path) -> None:
    """A line of 44 KB took 2.2 s, one of 88 KB 7 s. CPU time, so that a busy machine makes no difference."""
    path = Folder().write(tmp_path / "stack")
    with (path / "train_seed0.log").open("a") as log:
        log.write(f"{line}\n" * 20)
    begin = time.process_time()
    verdict: Verdict = audit_submission(path)
    assert time.process_time() - begin < 3.0
    assert len(verdict.checks) == 20
    assert parse_log("x.log", line).steps == []


def test_a_bomb_in_a_script_is_not_unpacked_without_end(tmp_path: Path) -> None:
    bomb = zlib.compress(b"import os\n" + b"x = 1\n" * 10_000_000, 1)
    text = f"exec(d({bomb!r}))\n" + f"y = {zlib.compress(bytes(100_000_000), 1)!r}\n"
    (tmp_path / "train_gpt.py").write_text(text)
    begin, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    audit_submission(tmp_path)
    assert time.process_time() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 700_000, "KiB"
