"""Reading a submission's files: logs of every published form, README, packed scripts; and what is no violation."""

import ast
import base64
import bz2
import json
import lzma
import random
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_submission import CODE, Folder, claimed, judged
from tiny_run import cli, done, refused, tree_digest

from bitgolf.bundle.single_file import shifted_literal
from bitgolf.config import BudgetConfig
from bitgolf.errors import RunError
from bitgolf.referee import code, patterns
from bitgolf.referee.code import read_script
from bitgolf.referee.decimals import Figure, figure_of, figures, is_number
from bitgolf.referee.folder import Submission, submission_checks
from bitgolf.referee.log import parse_log
from bitgolf.referee.readme import Readme
from bitgolf.referee.run import audit_submission, is_submission

BASELINE_LOG = """\
val_bpb:enabled tokenizer_kind=sentencepiece tokenizer_path=./data/tokenizers/fineweb_1024_bpe.model
train_loader:dataset:fineweb10B_sp1024 train_shards:25
val_loader:shards pattern=./data/datasets/fineweb10B_sp1024/fineweb_val_*.bin tokens:62021632
train_batch_tokens:524288 train_seq_len:1024 iterations:20000 warmup_steps:20 max_wallclock_seconds:600.000
seed:1337
warmup_step:1/20
step:1/20000 train_loss:6.9320 train_time:43ms step_avg:43.42ms
step:1000/20000 train_loss:2.3541 train_time:43532ms step_avg:43.53ms
step:1000/20000 val_loss:2.3194 val_bpb:1.3737 train_time:43550ms step_avg:43.55ms
stopping_early: wallclock_cap train_time:600038ms step:13780/20000
Serialized model: 67224983 bytes
Code size: 47642 bytes
Total submission size: 67272625 bytes
Serialized model int8+zlib: 15815847 bytes (payload:17178912 raw_torch:17224025 payload_ratio:3.91x)
Total submission size int8+zlib: 15863489 bytes
final_int8_zlib_roundtrip val_loss:2.0727 val_bpb:1.2244 eval_time:1401ms
final_int8_zlib_roundtrip_exact val_loss:2.07269931 val_bpb:1.22436570
"""


def test_a_log_of_the_first_baseline() -> None:
    log = parse_log("train.log", BASELINE_LOG)
    assert log.seed == "1337" and log.settings["train_seq_len"] == "1024"
    assert [(step.step, step.loss) for step in log.steps] == [(1, 6.932), (1000, 2.3541)]
    assert [step.seconds for step in log.steps] == pytest.approx([0.043, 43.532])
    assert log.stop is not None and (log.stop.why, log.stop.seconds, log.stop.step) == ("wallclock_cap", 600.038, 13780)
    assert (log.model_bytes, log.code_bytes, log.total_bytes) == (15_815_847, 47_642, 15_863_489)
    assert log.final is not None and (log.final.loss, log.final.bpb) == (2.07269931, 1.2243657)
    assert [metric.in_training for metric in log.metrics] == [True, False, False]
    assert log.eval_seconds == 1.401, "the exact line has no time, the line of the same name does"
    assert log.counts["val_tokens"] == [62_021_632] and log.calibration == []


def test_a_log_of_phased_adaptation(tmp_path: Path) -> None:
    folder = Submission(Folder().write(tmp_path / "stack"))
    log = next(log for log in folder.logs if log.seed == "42")
    assert folder.tokenizer == "caseops" and set(folder.by_seed) == {"42", "0", "1234"}
    assert log.settings["ttt_lora_rank"] == "80" and log.total_eval_seconds == 488.2
    assert log.final is not None and log.final.label == "quantized_ttt_phased" and log.final.bpb == 1.06123451
    assert [took for _, took in log.calibration] == [None, 3.5]
    assert log.counts["documents"] == [50_000] and log.steps[0].step == 1 and len(log.steps) == 5 + 9


@pytest.mark.parametrize("ruled", [False, True])
def test_source_in_a_log_is_set_aside(ruled: bool) -> None:
    """At its beginning, or between ruled lines: what the script would print is not what it printed."""
    source = CODE + '\n    log0("stopping_early: wallclock_cap train_time:1ms step:1/2")\n'
    line = "=" * 100
    text = "\n".join([line, "Hyperparameters:", "  seed: 7", line, "Source code:", line, source, line, BASELINE_LOG])
    log = parse_log("a.log", text if ruled else "\n".join([source, line, BASELINE_LOG]))
    assert log.source.strip() == source.strip() and log.stop is not None and log.stop.step == 13_780
    assert log.lines[log.stop.line].startswith("stopping_early")


@pytest.mark.parametrize(
    "text", ["", "\n\n", "\0\xff", "val_loss: val_bpb:", "1/2 train_loss: x", "=" * 80, "seed:\n" * 9]
)
def test_logs_that_say_nothing(text: str) -> None:
    log = parse_log("x.log", text)
    assert log.metrics == [] and log.steps == [] and log.final is None and log.total_bytes is None


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=300))
def test_no_text_breaks_the_readers(text: str) -> None:
    parse_log("x.log", text + "\n" + text)
    readme = Readme(text)
    assert isinstance(readme.tables, list) and isinstance(readme.assigned, dict)
    figures(text)
    assert isinstance(read_script("train_gpt.py", text.encode("utf-8", errors="replace")).settings, set)


def test_a_script_that_the_parser_warns_of_is_read_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    script = read_script("train_gpt.py", b"import os\nDEPTH = int(os.environ.get('DEPTH', 1if 2else 3))\nx = '\\d'\n")
    assert script.settings == {"DEPTH"} and not recwarn.list


# --- figures and README ----------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.floats(0.001, 1e6), st.integers(0, 8))
def test_a_rounded_figure_equals_what_it_was_rounded_from(value: float, decimals: int) -> None:
    written = f"{value:,.{decimals}f}"
    (figure,) = figures(f"| {written} bpb")
    assert figure.decimals == decimals and figure.equals(value)
    assert not figure.equals(value + 2.5 * 10.0**-decimals)


def test_figures_in_cells() -> None:
    assert figures("**1.05989** (\u22120.0021)") == [Figure(1.05989, 5), Figure(-0.0021, 4)]
    assert figures("15,897,259 bytes") == [Figure(15_897_259, 0)]
    assert figures("v1.2.3, 8xH100, 4/5") == [] and figures("2026-04-27") == [Figure(2026, 0)]
    assert figure_of(1.0810) == Figure(1.081, 3) and figure_of(1e-07).decimals == 12 and figure_of(42) == Figure(42, 0)
    assert is_number(1) and not is_number(True) and not is_number("1") and not is_number(float("nan"))


README = """# A stack

The MLP is not SwiGLU; we use **LeakyReLU** squared.

| Seed | val_bpb | note |
|------|:-------:|---|
| 42 | **1.0599** | `x` |
| 0 | 1.0612 | |

no | table

```bash
export DATA_PATH=./data
SEED=42 MATRIX_LR="0.026" \\
  TTT_MASK='no_qv' torchrun train_gpt.py
```

| a | b |
|---|
## Credits and lineage
- PR 1: SwiGLU by somebody
"""


def test_readme() -> None:
    readme = Readme(README)
    assert readme.tables[0].header == ("Seed", "val_bpb", "note")
    assert readme.tables[0].rows == (("42", "1.0599", "x"), ("0", "1.0612", ""))
    assert readme.assigned == {"DATA_PATH": "./data", "SEED": "42", "MATRIX_LR": "0.026", "TTT_MASK": "no_qv"}
    assert readme.claims("LeakyReLU") == "", "a line that denies something claims nothing"
    assert Readme(README.replace("is not SwiGLU; we", "")).claims("LeakyReLU").startswith("The MLP")
    assert readme.claims("SwiGLU") == "", "denied, or said of others"


# --- scripts ---------------------------------------------------------------------------------------------------------

_RAW = [{"id": lzma.FILTER_LZMA2}]
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lzma.compress,
    "raw lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_RAW, filters=_RAW),
    "bz2": bz2.compress,
    "zlib": zlib.compress,
}
TEXTS: dict[str, Callable[[bytes], str]] = {
    "base85": lambda data: repr(base64.b85encode(data).decode()),
    "base64": lambda data: repr(base64.b64encode(data).decode()),
    "bytes": repr,
    "shifted": shifted_literal,  # of bitgolf itself
}


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("text", TEXTS)
def test_packed_scripts_are_unpacked_and_never_run(compressor: str, text: str) -> None:
    bomb = "\nraise SystemExit('a submission was executed')\n"
    wrapper = (
        f"import x\nexec(x.decompress(x.decode({TEXTS[text](COMPRESSORS[compressor]((CODE + bomb).encode()))})))\n"
    )
    wrapper = f"#coding:latin1\n{wrapper}"
    script = read_script("train_gpt.py", wrapper.encode("latin1"))
    assert script.packed and script.source == CODE + bomb and script.size == len(wrapper)
    assert {"SEED", "MATRIX_LR", "TTT_LORA_RANK"} <= script.settings and "torch.nn" in script.imports
    inner = base64.b85encode(zlib.compress(wrapper.encode()))
    again = read_script("twice.py", f"exec(d({inner!r}))".encode())
    assert again.packed and again.source == CODE + bomb


def test_what_cannot_be_unpacked_is_left_as_it_is() -> None:
    noise = base64.b85encode(random.Random(0).randbytes(3000)).decode()
    script = read_script("train_gpt.py", f"exec(secret({noise!r}))".encode())
    assert not script.packed and script.names == {"exec", "secret"}
    assert read_script("x.py", b"def broken(:").tree is None


def test_code_that_was_counted_with_more_bytes_than_ship_is_noted(tmp_path: Path) -> None:
    counted = len(CODE.encode()) + 500
    check = judged("artifact-bytes", tmp_path, lambda folder: setattr(folder, "counted_code", counted))
    notes = check.evidence["notes"]
    assert check.verdict == "PASS" and len(notes) == 3 and notes[0] in check.reason
    assert f"counts {counted:,} bytes of code" in notes[0]


def test_a_script_is_read_up_to_a_number_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, excess in (("one", 0), ("two", 1)):
        source = f"{name} = 1 + 2\n"
        monkeypatch.setattr(code, "_MOST_NODES", sum(1 for _ in ast.walk(ast.parse(source))) - excess)
        assert (read_script("x.py", source.encode()).tree is None) == bool(excess)


def test_an_unreadable_script_is_not_run_with_the_reason(tmp_path: Path) -> None:
    noise = base64.b85encode(random.Random(0).randbytes(3000)).decode()
    folder = Folder(shipped_code=f"exec(secret({noise!r}))".encode())
    verdict = audit_submission(folder.write(tmp_path / "stack"))
    for name in ("settings-read", "claims-agree", "causal", "self-contained"):
        assert verdict[name].verdict == "NOT RUN" and "cannot be read" in verdict[name].reason
    for seed in folder.seeds:
        seed.log_source = CODE
    verdict = audit_submission(folder.write(tmp_path / "with_source_in_the_logs"))
    assert verdict["settings-read"].verdict == "PASS", "the logs hold the source"


def test_our_own_bundle_is_readable() -> None:
    """The form that `bitgolf submit` writes: sections in one Latin-1 literal."""
    rng = random.Random(0)
    names = "".join(f"name_{rng.random()} = os.environ\n".replace("0.", "") for _ in range(40))
    sections = "\0".join(["import sys\nPARTS = 1\n", '{"config": {}}', f"bitgolf.train\nimport os\n{names}"])
    body = repr(lzma.compress(sections.encode(), format=lzma.FORMAT_ALONE).decode("latin1"))
    program = f"#coding:latin1\nexec(lzma.decompress({body}.encode('latin1')))"
    script = read_script("train_gpt.py", program.encode("latin1"))
    assert script.packed and script.tree is not None and "environ" in script.names


DIAGNOSTIC = """
    def rescore(model, tokens, t):
        return {"bpb": score(model / t, tokens).bpb, "label": "second pass"}
    def main(model, tokens):
        results = {"first": score(model, tokens)}
        notes = {}
        if temperature:
            notes["again"] = rescore(model, tokens, temperature)
        save("score.json", {"methods": results, "bpb": results["first"].bpb, "notes": notes})
    def save(path, value):
        open(path, "w").write(json.dumps(value))
"""
# Pieces of DIAGNOSTIC, each with the replacement that lets the second pass decide the result.
DECIDES = {
    "the better of the two": (
        'notes["again"] =',
        "results['first'] = min(results['first'],",
        "temperature)",
        "temperature))",
    ),
    "printed": ('notes["again"] = rescore(model, tokens, temperature)', "print('final', rescore(model, tokens, 1))"),
    "stored over the first": ('notes["again"]', 'results["first"]'),
    "read from the diagnostics": ('results["first"].bpb, "notes"', 'notes["again"]["bpb"], "notes"'),
    "read after the loop over all": ("    save(", "    print(min(v['bpb'] for v in notes.values())); save("),
    "read from the file": ('"w").write(json.dumps(value))', '"w").write(str(value["notes"]))'),
    "printed by the pass itself": ("return {", "print(tokens); return {"),
    "its value is not used": ('notes["again"] = rescore', "rescore"),
    "handed on as a function": ("rescore(model, tokens, temperature)", "apply(rescore, model)"),
    "its arguments are changed": ("return {", "tokens['best'] = 1; return {"),
    "an entry of a computed name": ('notes["again"]', "notes[name]"),
}


HONEST = {
    "a second pass that is only a diagnostic": DIAGNOSTIC,
    "a diagnostic in a record with a digest": DIAGNOSTIC.replace(
        "open(path", 'value["digest"] = digest([1, {**value, "digest": 0}])\n        open(path'
    )
    + """
    def digest(value):
        return sha256(json.dumps(value)).hexdigest()
""",
    "hashed bigrams of the input": """
        def bigram_hash(t, mod):
            return (36313 * t[..., 1:] ^ 27191 * t[..., :-1]) % mod
    """,
    "token hints from contexts": """
        def ngram_hint(table, context):
            key = (hash64(context) * 31) & table.mask
            return table.best[key]
    """,
    "bytes of the target, to weigh its loss": """
        def eval_val_ngram(x, tgt, has_leading_space, is_boundary_token):
            return base[tgt] + (has_leading_space[tgt] & ~is_boundary_token[x])
    """,
    "learning after the artifact is made": """
        def main(h):
            train_model(h)
            serialize(h)
            model = deserialize(h)
            eval_val_ttt(model, val_tokens)
            deserialize(h)
        def eval_val_ttt(model, val_tokens):
            model(val_tokens).backward()
            opt.step()
    """,
    "a training loop that logs validation": """
        def train_model(h, val_data):
            loss(train_loader.next_batch()).backward()
            opt.step()
            eval_val(val_data)
        def run(h):
            train_model(h, val_data)
            serialize(h)
    """,
    "a warm-up on random tokens": """
        def warm_up_ttt(model, vocab):
            model(torch.randint(0, vocab, (2, 64))).backward()
            opt.step()
    """,
    "windows that are whole": "starts = [s for s in range(0, n, stride) if s + seq_len <= n]",
    "a quantizer that keeps its best clip": """
        if error < best_error:
            best_error, best_scale = error, scale.clone()
    """,
    "a whole validation split": "parser.add_argument('--val-docs', type=int, default=50000)",
    "chunks that end with the document": """
        def ttt_chunks(doc_len, chunk_size):
            if doc_len <= chunk_size:
                return 1
            return -(-doc_len // chunk_size)
    """,
}


@pytest.mark.parametrize("what", HONEST)
def test_honest_code_is_not_mistaken(what: str) -> None:
    script = read_script("train_gpt.py", ("import torch\n" + textwrap.dedent(HONEST[what])).encode())
    assert script.tree is not None
    for pattern in (
        patterns.validation_before_seal,
        patterns.several_passes,
        patterns.peeking,
        patterns.not_a_distribution,
        patterns.small_validation_split,
    ):
        assert list(pattern(script)) == []


@pytest.mark.parametrize("how", DECIDES)
def test_a_second_pass_that_decides_the_result_is_recognized(how: str) -> None:
    """C4: what matters is where the result of the second pass goes, not what it is called."""
    source = textwrap.dedent(DIAGNOSTIC)
    for old, new in zip(DECIDES[how][::2], DECIDES[how][1::2], strict=True):
        assert old in source
        source = source.replace(old, new)
    script = read_script("train_gpt.py", source.encode())
    assert script.tree is not None
    (match,) = patterns.several_passes(script)
    assert "scored a second time" in match.what


def test_what_the_settings_switch_off_is_no_violation(tmp_path: Path) -> None:
    folder = Folder()
    folder.code += "\ndef slot_score(model, x):\n    loss(model(x)).backward()\n"
    assert audit_submission(folder.write(tmp_path / "on"))["causal"].verdict == "FAIL"
    for seed in folder.seeds:
        seed.settings["slot_enabled"] = False
    assert audit_submission(folder.write(tmp_path / "off"))["causal"].verdict == "NOT RUN"


# --- folders that lack something, and the command line ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "check", "words"),
    [
        ("submission.json", None, "json-schema", "submission.json is missing"),
        ("submission.json", "[1]", "json-schema", "the document is a list"),
        ("submission.json", "{", "numbers-agree", "it is not JSON"),
        ("README.md", None, "settings-read", "README.md is missing"),
        ("train_gpt.py", None, "self-contained", "train_gpt.py is missing"),
    ],
)
def test_missing_and_damaged_files(tmp_path: Path, name: str, content: str | None, check: str, words: str) -> None:
    path = Folder().write(tmp_path / "stack")
    (path / name).unlink()
    if content is not None:
        (path / name).write_text(content)
    verdict = audit_submission(path)
    assert words in verdict[check].reason
    assert verdict[check].verdict == ("NOT RUN" if content is None else "FAIL")
    if content is None:
        assert verdict["files"].verdict == "FAIL" and name in verdict["files"].reason


def test_our_own_submissions_fail_nothing(tiny_run: Path, tmp_path: Path) -> None:
    """What `bitgolf submit` writes is read like any other folder: its figures, its packed script, its logs."""
    done("submit", tiny_run, "--seeds", 1, "--force", "--out", tmp_path, "--author", "A", "--github-id", "a")
    (path,) = tmp_path.iterdir()
    verdict = audit_submission(path)
    assert [made for made in verdict.checks if made.verdict == "FAIL"] == []
    for name in ("artifact-bytes", "numbers-agree", "self-contained", "claims-agree"):
        assert verdict[name].verdict == "PASS", verdict[name]
    assert verdict["identity"].verdict == "NOT RUN", "nobody can check the bytes of a tokenizer that is not known"
    (log,) = Submission(path).logs
    assert log.final is not None and log.final.bpb == Submission(path).metadata["val_bpb"]
    assert log.settings["score.stride"] == "32" and log.stop is not None and log.stop.step == 40
    edited = (path / log.name).read_text().replace("bytes:38928", "bytes:38900")
    (path / log.name).write_text(edited)
    assert "bytes give" in submission_checks.make(Submission(path), only=("identity",))["identity"].reason


def test_a_folder_of_nothing_but_a_script(tmp_path: Path) -> None:
    (tmp_path / "train_gpt.py").write_text(CODE)
    verdict = audit_submission(tmp_path)
    assert {made.verdict for made in verdict.checks} == {"FAIL", "NOT RUN", "PASS"}
    assert verdict["files"].verdict == "FAIL" and verdict["identity"].verdict == "NOT RUN"
    with pytest.raises(RunError, match="is no submission"):
        audit_submission(tmp_path / "nothing")


@pytest.mark.parametrize(
    "claims",
    [
        {"val_bpb": "1.06"},
        {"val_loss": None},
        {"val_bpb": 0.0935},
        {"bytes_total": True},
        {"author": 7},
        {"seeds": [1, 2, 3]},
    ],
)
def test_fields_of_the_wrong_kind(tmp_path: Path, claims: dict[str, object]) -> None:
    check = judged("json-schema", tmp_path, claimed(**claims))
    assert check.verdict == "FAIL" and next(iter(claims)).partition("_")[0] in check.reason


def test_entries_of_other_tracks_have_no_clock(tmp_path: Path) -> None:
    folder = Folder(claims={"track": "track_non_record_16mb"})
    folder.seeds[0].stop_ms = 5_000_000
    verdict = audit_submission(folder.write(tmp_path / "stack"))
    assert verdict["train-clock"].verdict == verdict["eval-clock"].verdict == "NOT RUN"
    shorter = audit_submission(Folder().write(tmp_path / "other"), BudgetConfig(train_seconds=500))
    assert shorter["train-clock"].verdict == "FAIL"


def test_the_command_line_audits_folders(tmp_path: Path) -> None:
    path = Folder().write(tmp_path / "stack")
    before = tree_digest(path)
    assert is_submission(path) and not is_submission(tmp_path)
    outcome = cli("audit", path, "--json", "--out", tmp_path / "verdict.json")
    printed = outcome.json
    assert outcome.status == 3
    assert printed["passed"] and not printed["complete"]
    assert json.loads((tmp_path / "verdict.json").read_text()) == printed
    assert tree_digest(path) == before, "nothing is written into somebody's folder"
    bad = Folder(claims={"val_bpb": "[/bold]"}).write(tmp_path / "bad [x]")
    outcome = cli("audit", bad)
    assert outcome.status == 1 and "[/bold]" in outcome.stdout, "their words are no markup of ours"
    assert "--codec is for run directories" in refused("audit", path, "--codec", 100)
    assert "not a run directory" in refused("audit", tmp_path)


def test_a_script_of_few_names_that_runs_a_string_is_not_the_program(tmp_path: Path) -> None:
    """Twenty names are enough, those of `exec` and of its argument among them."""
    for count, unread in ((17, True), (18, False)):
        code = "exec(secret)\n" + "".join(f"x{number} = 1\n" for number in range(count))
        made = judged("self-contained", tmp_path / str(count), lambda folder, code=code: setattr(folder, "code", code))
        assert ("cannot be read" in made.reason) == unread and (made.verdict == "NOT RUN") == unread
