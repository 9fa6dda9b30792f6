"""What is read from each form of a line of a log, of an expression of a script, and of a setting."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_submission import CODE, CONSTANT, Folder, Plant, every_seed, for_seed, judged, metric

from bitgolf.audit.verdict import MissingEvidence
from bitgolf.errors import DataError
from bitgolf.referee import patterns
from bitgolf.referee.code import _as_source, read_script
from bitgolf.referee.conduct import _evaluation, _same_setting
from bitgolf.referee.decimals import Figure, figure_of, shown
from bitgolf.referee.folder import Submission
from bitgolf.referee.log import Log, Metric, Step, Stop, parse_log
from bitgolf.referee.readme import Readme
from bitgolf.referee.run import audit_submission, is_submission

SEALED = "Serialized model: 5 bytes\n\nSerialized model int8: 4 bytes"
TOTAL_AND_OWN = "a val_loss:2.4 val_bpb:1.1 eval_time:3000ms\ntotal_eval_time:2.0s"
EXACT = "a val_loss:2.4 val_bpb:1.123456\nb val_loss:2.4 val_bpb:1.12345"
LATE_STEP = "b val_loss:2.4 val_bpb:1.2\n9/9 val_loss:2.4 val_bpb:1.1"


@pytest.mark.parametrize(
    ("text", "read", "expected"),
    [
        ("5/9 val_loss: 2.4 val_bpb: 1.10", lambda log: log.metrics, [Metric("5/9", 2.4, 1.1, 2, 1, None)]),
        ("5/9 val_loss: 2.4 val_bpb: 1.10", lambda log: (log.metrics[0].step, log.metrics[0].in_training), (5, True)),
        ("0/9 val_loss: 2.4 val_bpb: 1.1", lambda log: (log.metrics[0].step, log.metrics[0].in_training), (0, True)),
        ("last val_loss:2.4, val_bpb=1.1", lambda log: (log.metrics[0].step, log.metrics[0].in_training), (-1, False)),
        ("x val_loss:2.0 val_bpb:1.0 eval_time:1500ms tokens:90 bytes:300", lambda log: log.metrics,
         [Metric("x", 2.0, 1.0, 1, 1, 1.5, (90, 300))]),
        ("x val_loss:2.0 val_bpb:1.0", lambda log: log.metrics[0].constant, 0.5),
        ("x val_loss:2.0 val_bpb:0.0", lambda log: (log.metrics, list(log.damaged)), ([], [1])),
        ("x val_loss:nan", lambda log: (log.metrics, list(log.damaged)), ([], [1])),
        ("step:3/9 train_loss:2.5 train_time:4000ms", lambda log: log.steps[0].seconds, 4.0),
        ("3/9 train_loss: 2.5 train_time: 0.5m", lambda log: log.steps[0].seconds, 30.0),
        ("3/9 train_loss: 2.5 train_time: 7s", lambda log: log.steps[0].seconds, 7.0),
        (" \n3/9 train_loss: 2.5 ", lambda log: log.steps, [Step(3, 2.5, None, "3/9 train_loss: 2.5")]),
        ("[step] step:3 loss:2.5 x elapsed_seconds:1.5e1", lambda log: log.steps[0].seconds, 15.0),
        ("stopping_early: why train_time: 5000ms step: 7/9", lambda log: log.stop, Stop("why", 5.0, 7, 1)),
        ("stopping: step:7 train_time:5000ms", lambda log: log.stop, Stop("wallclock_cap", 5.0, 7, 1)),
        ("stopping_early: soon", lambda log: (log.stop, list(log.damaged)), (None, [1])),
        (SEALED, lambda log: (log.model_bytes, log.sealed_line), (4, 3)),
        ("", lambda log: (log.model_bytes, log.sealed_line, log.final, log.eval_seconds), (None, 0, None, None)),
        ("Code size (compressed): 1,234 bytes", lambda log: log.code_bytes, 1234),
        ("Code size (raw): 12 bytes", lambda log: log.code_bytes, None),
        ("Total submission size x: 99 bytes", lambda log: log.total_bytes, 99),
        ("total_eval_time: 2.5s", lambda log: log.total_eval_seconds, 2.5),
        ("eval_time_total: 2500ms", lambda log: log.total_eval_seconds, 2.5),
        (TOTAL_AND_OWN, lambda log: log.eval_seconds, 3.0),
        (TOTAL_AND_OWN.replace("2.0s", "4.0s"), lambda log: log.eval_seconds, 4.0),
        (TOTAL_AND_OWN.split("total")[0] + "a_exact val_loss:2.4 val_bpb:1.1", lambda log: log.eval_seconds, 3.0),
        (EXACT, lambda log: log.final.label, "a"),
        (EXACT.replace("123456", "12346"), lambda log: log.final.label, "b"),
        (LATE_STEP, lambda log: log.final.label, "b"),
        ("1/9 val_loss:2.4 val_bpb:1.2\n9/9 val_loss:2.4 val_bpb:1.1", lambda log: log.final.label, "9/9"),
        ("hessians gathered in 3.5 s", lambda log: log.calibration, [(1, 3.5)]),
        ("calibration done", lambda log: log.calibration, [(1, None)]),
        ("  hessian: 3", lambda log: log.calibration, []),
        ("val_tokens: 1,000", lambda log: log.counts["val_tokens"], [1000]),
        ("target_tokens:5 scored_tokens: 6 total_targets:7", lambda log: log.counts["target_tokens"], [5, 6, 7]),
        ("docs:4 x", lambda log: log.counts["documents"], [4]),
        ("documents kept: 49,000", lambda log: log.counts["documents"], [49_000]),
        ("val_loader: x tokens:12", lambda log: log.counts["val_tokens"], [12]),
        ("loader: x tokens:12", lambda log: log.counts["val_tokens"], []),
        ("  depth: 5 ", lambda log: log.settings, {"depth": "5"}),
        ("depth:5 width:7", lambda log: log.settings, {"depth": "5", "width": "7"}),
        ("[model]\nwidth = 5\n[train]\nwidth = 6", lambda log: log.settings, {"model.width": "5", "train.width": "6"}),
        ("3/9 train_loss: 2.5\n  depth: 5", lambda log: log.settings, {}),
        ("seed:8", lambda log: log.seed, "8"),
        ("x", lambda log: (log.seed, log.lines), ("7", {1: "x"})),
        ("a\n\n \nb\r", lambda log: log.lines, {1: "a", 4: "b"}),
        ("a\nb\nab", lambda log: [log.first_line(lambda line, part=part: part in line) for part in "bc"], [2, None]),
    ],
)  # fmt: skip
def test_lines_of_logs(text: str, read: Callable[[Log], Any], expected: object) -> None:
    assert read(parse_log("train_seed7.log", text)) == expected


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("'part' + '.pt'", "part.pt"), ("f'hint{n}.bin'", "hint*.bin"), ("Path(root) / 'table.npz'", "*/table.npz"),
        ("'a%03d.dat' % n", "a*.dat"), ("'a{}b{x}'.format(x, y)", "a*b*"), ("os.path.join('a', x, 'b')", "a/*/b"),
        ("os.path.join(x, y)", ""), ("os.path.dirname('a/b')", "a"), ("Path('a/b').parent", "a"), ("x.parent", ""),
        ("Path('a/b.c').with_suffix('.d')", "a/b.d"), ("Path('a/b').with_name('c')", "a/c"),
        ("'-'.join(['a', x])", "a-*"),
        ("'a b'.replace('a', 'c')", "c b"), ("'a b'.replace(x, 'c')", ""), ("os.environ.get('X', 'd')", "d"),
        ("os.environ.get('X')", ""), ("str('a')", "a"), ("b'ab'", "ab"), ("7", "7"), ("10.5", ""), ("True", ""),
        ("999_999_999_999_999_999", "9" * 18), ("1_000_000_000_000_000_000", ""), ("__file__", "train_gpt.py"),
        ("x", ""),
        ("'a' - 'b'", ""), ("x + y", ""), ("root.joinpath('a')", "*/a"), ("Path('r').joinpath('a', 'b')", "r/a/b"),
        ("'ab'.encode()", "ab"), ("'ab'.upper()", ""), ("n = 'tab'\nn + 'le'", "table"), ("''.join(x)", ""),
        ("n = 'tab'\nn = 'cha'\nn + 'le'", "*le"), ("n = m = 'tab'\nn + 'le'", "table"),
        ("n = m = 'tab'\nm + 'le'", "*le"),
        ("'a' * 9", ""), ("'x" + "a" * 400 + "'", "x" + "a" * 299),
    ],
)  # fmt: skip
def test_texts_of_expressions(code: str, text: str) -> None:
    script = read_script("train_gpt.py", code.encode())
    assert script.tree is not None and isinstance(script.tree.body[-1], ast.Expr)
    assert script.texts.get(script.tree.body[-1].value, "") == text


def test_what_a_script_imports_calls_and_reads() -> None:
    code = "import a.b as c\nfrom d import e as f\nfrom . import g\nfrom .h import i\nimport importlib as l\n"
    code += "c.run(x, y.z, k=w)\nf()\nl.import_module('m')\nl.import_module(name)\n"
    script = read_script("train_gpt.py", code.encode())
    assert script.imports == {"a.b", "d", "d.e", "g", "h", "h.i", "importlib", "m"}
    assert [script.function(call) for call in script.nodes(ast.Call)][:2] == ["a.b.run", "d.e"]
    assert script.called == {"run", "f", "import_module", "x", "z", "w", "name"}
    assert script.names >= {"c", "x", "y", "z", "k", "w"} and "run" in script.names
    settings = "h = environ['DEPTH_A'], 'AB', 'lower', 'X-Y'\n"
    assert read_script("x.py", settings.encode()).settings == {"DEPTH_A"}
    by_field = settings + "class H:\n    width = 1\nget(name.upper())"
    assert {"DEPTH_A", "WIDTH", "NAME"} <= read_script("x.py", by_field.encode()).settings
    run = read_script("x.py", b"import subprocess as s\ns.run(['ls', x], check=True)\nos.system('a b')\nprint('c')")
    assert [command for _, command in run.commands()] == ["ls *", "a b"]
    for first, letter in ((b"#coding:latin1\n", "\xe9"), (b"# -*- coding: latin-1 -*-\n", "\xe9"), (b"", "\ufffd")):
        assert letter in read_script("x.py", first + b"x = '\xe9'").source


def test_a_script_is_read_up_to_its_most_bytes() -> None:
    most = 2 << 20
    assert read_script("x.py", b"#" * most).size == most
    with pytest.raises(DataError, match=r"x\.py has 2,097,153 bytes; scripts of up to 2,097,152 are"):
        read_script("x.py", b"#" * (most + 1))


def test_a_source_is_read_up_to_600_000_characters() -> None:
    for letters, read in ((599_994, True), (599_995, False)):
        assert (read_script("x.py", f"x = '{'a' * letters}'".encode()).tree is not None) is read


def test_logs_without_losses_are_none_and_logs_of_steps_prove_no_score(tmp_path: Path) -> None:
    path = Folder().write(tmp_path / "stack")
    for log in path.glob("*.log"):
        log.write_text("1/9 train_loss: 2.5\n")
    (path / "train_notes.txt").write_text("nothing\n")
    submission = Submission(path)
    assert [log.name for log in submission.logs] == [f"train_seed{seed}.log" for seed in (0, 1234, 42)]
    assert "no log gives a loss" in audit_submission(path)["identity"].reason
    for log in path.glob("*.log"):
        log.write_text("x val_loss: 2.5 val_bpb: 1.1\n")
    assert len(Submission(path).logs) == 3
    for log in path.glob("*.log"):
        log.write_text("nothing\n")
    with pytest.raises(MissingEvidence, match="has no training log"):
        _ = Submission(path).logs


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("| a | b |\n|---|:-:|\n| 1 | 2 |", [("1", "2")]), ("| a | b |\n|---|---|", None),
        ("a | b\n--|--\n**1** | `2`", [("1", "2")]), ("| a | b |\n|-|-|\n| 1 | 2 |", [("1", "2")]),
        ("| a |\n| 1 |\n| 2 |", None), ("| a |\n|-1|\n| 2 |", None), ("a | b", None),
        ("```\n| a | b |\n|---|---|\n| 1 | 2 |\n```", None),
    ],
)  # fmt: skip
def test_tables(table: str, rows: list[tuple[str, ...]] | None) -> None:
    tables = Readme(table).tables
    assert [list(made.rows) for made in tables] == ([] if rows is None else [rows])


def test_prose() -> None:
    text = "We use EMA.\n# Credits\nand SWA\n# Method\nand XSA, not GPTQ\n" + "\n" * 9
    readme = Readme(text + "val_bpb: 1.0612 std 0.0003")
    assert [readme.claims(word) for word in ("EMA", "SWA", "XSA")] == ["We use EMA.", "", ""]
    assert Readme(text.replace(", not GPTQ", "")).claims("XSA") == "and XSA"
    assert (readme.headline, readme.deviation) == ("1.0612", "0.0003")
    assert Readme(text + "\nval_bpb: 1.0612").headline == "", "too far from the beginning"
    assert Readme("val_bpb 1.06 val_bpb 1.061").headline == "1.061"


def test_figures_as_they_are_shown() -> None:
    assert [shown(value) for value in (999.5, 1000.0, -1234.5678)] == ["999.5", "1,000", "-1,235"]
    assert shown(1.23456789012) == "1.2345679"
    assert figure_of(1e-7) == Figure(1e-7, 12) and figure_of(1e22).decimals == 12
    assert Figure(1.06, 2).equals(1.065) and not Figure(1.06, 2).equals(1.0651)
    assert Figure(1.06, 2).equals(1.07, 1.0) and not Figure(1.06, 2).equals(1.0701, 1.0)


@pytest.mark.parametrize(
    ("assigned", "resolved", "same"),
    [
        ("1", "True", True), ("0", "false", True), ("", "no", True), ("yes", "1", True), ("1", "0", False),
        ("yes", "2", False),
        ("0.026", "0.0260", True), ("1_000", "1000", True), ("1", "1.0", True), ("2", "3", False), ("A", "'a'", True),
        ("a", "b", False), ("true", "a", False), ("a", "true", False),
    ],
)  # fmt: skip
def test_settings_that_are_the_same(assigned: str, resolved: str, same: bool) -> None:
    assert _same_setting(assigned, resolved) is same


def test_names_of_evaluations() -> None:
    labels = ("quantized_ttt_run2", "x_exact", "x-3_exact", "3", "eval v2")
    names = [_evaluation(Metric(label, 1, 1, 1, 1, None)) for label in labels]
    assert names == ["quantized_ttt", "x", "x", "3", "eval"]


def command(**settings: str) -> Plant:
    return lambda folder: folder.command.update(settings)


def prose(line: str) -> Plant:
    return lambda folder: setattr(folder, "readme_add", line)


def epochs(*bpb: float) -> Plant:
    lines = [metric(f"epoch {number}", value, CONSTANT, 5) for number, value in enumerate(bpb, 1)]
    return for_seed(0, in_evaluation=lines)


@pytest.mark.parametrize(
    ("check", "plant", "words"),
    [
        ("settings-read", command(UNREAD_THING="1"), "UNREAD_THING=1 is never read by train_gpt.py"),
        ("settings-read", command(CUDA_VISIBLE_DEVICES="1"), ""),
        ("settings-read", command(VOCAB_SIZE="8192"), ""),  # a setting of the logs
        ("claims-agree", command(MATRIX_LR="0.0260"), ""),
        ("claims-agree", command(MATRIX_LR="0.027"), "README sets MATRIX_LR=0.027, train_seed0.log ran with 0.026"),
        ("claims-agree", command(SEED="7", RUN_ID="x", VOCAB_SIZE="$V"), ""),
        ("logged-source", every_seed(log_source=CODE), ""),
        ("logged-source", every_seed(log_source=CODE.removesuffix("main()\n")), "train_gpt.py at 'its end'"),
        ("logged-source", every_seed(log_source=CODE + "more()\n"), "differs from train_gpt.py at 'more()'"),
        ("logged-source", every_seed(log_source=CODE.replace("0.75", "0.85")), "at 'warmdown_frac = float(os"),
        ("claims-agree", prose("We use XSA."), "README claims XSA ('We use XSA.')"),
        ("claims-agree", prose("We do not use XSA."), ""),
        ("single-pass", epochs(1.07, 1.06123451), "scored in 2 epochs and the score of a later one (1.06123451)"),
        ("single-pass", epochs(1.07, 1.06123451, 1.05), "scored in 3 epochs and the score of a later one (1.06123451)"),
        ("single-pass", epochs(1.06123451), ""),
        ("single-pass", epochs(1.06123451, 1.07), ""),
        ("causal", for_seed(0, in_evaluation=["hints word_gate=0"]), ""),
        ("causal", for_seed(0, in_evaluation=["x word_gate=7 within_gate=0", "x word_gate=8"]), "word_gate=7: hints"),
    ],
)  # fmt: skip
def test_what_was_run(check: str, plant: Plant, words: str, tmp_path: Path) -> None:
    made = judged(check, tmp_path, plant)
    assert (made.verdict == "FAIL", words in made.reason) == (bool(words), True), made.reason
    if check == "single-pass" and words:
        assert made.evidence["recognized"] == [made.reason]
    assert "word_gate=8" not in made.reason, "the first line of a log is enough"
    if check == "claims-agree" and not words:
        assert made.evidence["compared"] == 6, "two settings in each of three logs"


RESCORE = (
    "def rescore(m):\n    return m.loss\ndef save(x, m):\n    x is None\ndef show(m, x):\n    y = x + 1 if m else 0\n"
    "def main(m):\n    "
)


@pytest.mark.parametrize(
    ("code", "decides"),
    [
        ("notes = {'again': rescore(m)}\n    json.dump(notes, f)", False),
        ("notes = {'again': rescore(m)}\n    print(min(notes.values()))", True),
        ("notes = {'again': rescore(m)}\n    more = {**notes}\n    json.dump(more, f)", False),
        ("notes = {'again': rescore(m)}\n    more = {**notes}\n    print(min(more.values()))", True),
        ("notes = {**rescore(m)}", True),
        ("notes = {'final': rescore(m)}", True),
        ("notes = {'again': rescore(m)}\n    notes['again'] = 1", True),
        ("notes = {'again': rescore(m)}\n    print(notes['again'])", True),
        ("notes = {'again': rescore(m)}\n    print(notes.get('again'))", True),
        ("notes = {'again': rescore(m), 'first': 1}\n    print(notes['first'])", False),
        ("x = rescore(m)\n    if x:\n        pass", False),
        ("x = rescore(m)\n    if x is None:\n        pass", False),
        ("x = rescore(m)\n    if x < 1:\n        pass", True),
        ("x = [rescore(m)]", True),
        ("x = [{'again': rescore(m)}]\n    json.dump(x, f)", False),
        ("x = rescore(m) + 1", True),
        ("for x in rescore(m):\n        pass", True),
        ("m.x = rescore(m)", True),
        ("save(rescore(m), m)", False),
        ("show(m, rescore(m))", True),
        ("show(m, x=rescore(m))", True),
        ("show(rescore(m), m)", False),
        ("notes = {'again': rescore(m)} | {'first': 1}\n    json.dump(notes, f)", False),
        ("x = rescore(m)\n    if 0 < x is not None:\n        pass", True),
        ("x = [{'again': rescore(m)}]\n    print(min(x))", True),
        ("show(x=m, m=rescore(m))", False),
    ],
)
def test_where_the_result_of_a_second_pass_goes(code: str, decides: bool) -> None:
    script = read_script("train_gpt.py", f"{RESCORE}{code}".encode())
    assert bool(list(patterns.several_passes(script))) is decides


def test_a_run_of_bitgolf_is_no_submission(tmp_path: Path) -> None:
    answers = {"notes.txt": False, "train_gpt.py": True, "submission.json": True, "config.toml": False}
    for name, answer in answers.items():
        (tmp_path / name).touch()
        assert is_submission(tmp_path) is answer


def test_sections_of_a_bundle_are_joined_where_they_are_programs() -> None:
    """NUL divides sections. A name that is no expression is left out, and so is what is no program."""
    sections = ("import x", "a-b c\nimport y", "notes\n<<<", "", "z = 1")
    assert _as_source("\0".join(sections).encode()) == "import x\nimport y\nz = 1"
    assert _as_source(b"x = 1\0y = 2") == _as_source(b"import x\xff") == _as_source(b"import x y") == ""
    assert _as_source(b"import x") == "import x"
