"""The commands and programs of the pages for newcomers, at reduced size; and what the pages claim."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import zstandard
from run_family import Family, texts
from test_docs import commands
from tiny_run import cli, documents, done

from bitgolf.cli import parse
from bitgolf.commands.settings import markdown
from bitgolf.config import load_config

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SMALL = {
    "model.num_layers": 2, "model.model_dim": 64, "model.vocab_size": 384, "model.bigram.rows": 96, "train.seq_len": 64,
    "train.batch_tokens": 1024, "train.micro_batch_tokens": 1024, "train.max_steps": 12, "train.warmup_steps": 1,
    "train.measure.calibration_tokens": 4096, "score.stride": 32, "score.batch_tokens": 2048, "report.samples": 1,
    "report.sample_tokens": 8, "report.surprisal_tokens": 40, "device": "cpu", "data.workers": 1,
}  # fmt: skip
SMALLER = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]


def reduced(words: list[str], changes: dict[str, object] = SMALL) -> list[str]:
    """A command with `changes`, in place of its own values of these settings."""
    own = {i for i, word in enumerate(words) if word.removeprefix("--") in changes}
    kept = [word for i, word in enumerate(words) if i not in own and i - 1 not in own]
    return kept + [word for key, value in changes.items() for word in (f"--{key}", str(value))]


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text file, which is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("\n\n".join(documents()[:90]), encoding="utf-8")
    return tmp_path


def test_a_corpus_of_ones_own_from_end_to_end(workplace: Path) -> None:
    """Every command of the page in its order; `serve` and `export` have tests of their own."""
    lines = [words for words in commands(DOCS / "own-corpus.md") if words[0] not in ("serve", "export")]
    assert [words[0] for words in lines] == [
        "plan", "run", "sample", "sample", "score", "compress", "decompress", "pack", "score", "audit",
    ]  # fmt: skip
    for words in lines:
        reduced = SMALLER if words[0] in ("plan", "run") else []
        outcome = cli(*words, *reduced)
        assert outcome.status in ((0, 1, 3) if words[0] in ("run", "audit") else (0,)), (words, outcome.stderr)
    assert (workplace / "same.txt").read_bytes() == (workplace / "notes.txt").read_bytes()
    assert (workplace / "runs" / "mine" / "report.html").exists()


def test_the_commands_of_the_page_about_comparing(workplace: Path) -> None:
    family = Family(workplace / "runs")
    family.root.mkdir()
    data = family.data("data", texts())
    for name, seed, shift in (("a", 1, 0.1), ("a-1", 1, 0.1), ("a-2", 2, 0.1), ("a-3", 3, 0.1), ("b", 1, 0.0),
                              ("b-1", 1, 0.0), ("b-2", 2, 0.0), ("b-3", 3, 0.0)):  # fmt: skip
        family.run(name, data, seed=seed, shift=shift, **({"train__matrix_lr": 0.03} if name[0] == "b" else {}))
    lines = commands(DOCS / "comparing.md")
    assert [words[0] for words in lines] == ["compare"] * 6 + ["report"]
    for words in lines:
        done(*(path for word in words for path in (sorted(Path().glob(word)) if "*" in word else [word])))
    assert Path("compare.html").exists() and Path("site/index.html").exists()


def test_the_commands_that_prepare_files_of_ones_own(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(workplace))
    for name in ("notes", "corpus"):
        Path(name).mkdir()
    for number, text in enumerate(documents()[:200]):
        Path(f"notes/{number}.txt").write_text(text, encoding="utf-8")
    for name, part in (("train-1", documents()[:200]), ("val", documents()[200:240])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in part)
        Path(f"corpus/{name}.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    lines = [words for words in commands(DOCS / "data.md") if words[:2] != ["prepare", "stdlib"]]
    local = [words for words in lines if words[0] == "prepare" and words[1].startswith(("dir:", "jsonl:"))]
    assert len(local) == 2
    for words in local:
        done(*reduced(words, {"model.vocab_size": 384, "data.workers": 1}))
    trained = next(words for words in lines if "shards:data/notes" in words)
    assert cli(*reduced(trained)).status in (0, 1)
    assert Path("runs/second/report.html").exists()


def test_the_commands_that_predict_and_measure_speed(workplace: Path) -> None:
    """`plan` and `bench` of all pages that use the preset demo, and the run that is watched while it trains."""
    pages = [words for page in ("running.md", "sizes.md") for words in commands(DOCS / page)]
    lines = [words for words in pages if words[0] in ("plan", "bench") and words[1] == "demo"]
    assert len(lines) == 3
    for words in lines:
        # A few steps of a smaller model; `plan` says by its status whether that model fits.
        assert cli(*reduced(words), *(["--steps", "5"] if words[0] == "bench" else [])).status in (0, 1)
    (watched,) = (words for words in pages if "runs/watched" in words)
    assert cli(*reduced(watched), "--data.source", "notes.txt").status in (0, 1)
    assert Path("runs/watched/report.html").exists()


def test_the_programs_of_the_python_page_run(
    tiny_run: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "runs").mkdir()
    shutil.copytree(tiny_run, workplace / "runs" / "mine")
    namespace: dict[str, Any] = {}
    for block in blocks("python.md", "python"):
        exec(compile(block, "python.md", "exec"), namespace)
    assert "bits per byte" in capsys.readouterr().out
    assert namespace["status"] == 0 and namespace["config"].budget.artifact_bytes == 300_000


def test_the_page_of_settings_is_current() -> None:
    """`bitgolf settings --markdown > docs/settings.md` makes it so."""
    assert done("settings", "--markdown").stdout == markdown() + "\n"
    assert (DOCS / "settings.md").read_text("utf-8") == markdown() + "\n", "run the command above"


def messages() -> str:
    """All literal texts of the package, f-strings included, with a line feed between any two."""
    texts = []
    for path in sorted((ROOT / "bitgolf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_the_messages_that_troubleshooting_explains_exist() -> None:
    rows = re.findall(r"^\| ([^|]*`[^|]*) \|", (DOCS / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 12
    texts = messages()
    names = {"xz", "sample", "decompress", "trust_remote_code", "bitgolf: command not found"}
    for text in quoted:
        for part in re.split(r" N\b", text):
            assert part in names or part in texts, text


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_recipes_are_scripts_whose_commands_are_accepted() -> None:
    scripts = blocks("recipes.md", "sh")
    yaml = pytest.importorskip("yaml")
    (task,) = (yaml.safe_load(text) for text in blocks("recipes.md", "yaml"))
    scripts += [task["setup"], task["run"]]
    commands = []
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        for line in script.replace("\\\n", " ").splitlines():
            if match := re.search(r"\bbitgolf ((?:run|serve) [^>]*)", line):
                arguments = parse(shlex.split(match[1].replace("$HOME", "/home/me")))
                commands.append(match[1].split()[0])
                if commands[-1] == "run":
                    load_config(arguments.preset, arguments.overrides)
                    assert arguments.resume
    assert commands == ["run", "serve", "run", "run", "run"]


def test_the_notebook_runs_at_reduced_size(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code cells in their order, on the CPU, with a small text and few steps."""
    display = ModuleType("IPython.display")
    display.HTML = lambda text: text  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    notebook = json.loads((ROOT / "notebooks" / "first-model.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert notebook["nbformat"] == 4 and all(not cell.get("outputs") for cell in notebook["cells"])
    namespace: dict[str, Any] = {}
    for cell in cells:
        exec(compile(cell, "first-model.ipynb", "exec"), namespace)
        if "SETTINGS" in namespace and "options" not in namespace:
            load_config("demo", {key: str(value) for key, value in namespace["SETTINGS"].items()})
            namespace["SETTINGS"].update({"data.source": "notes.txt"} | SMALL)
    assert "<span title=" in namespace["colored"]("The quiet river")
    assert (workplace / "runs" / "notebook-transformers" / "config.json").exists()
    assert (workplace / "runs" / "notebook" / "score.json").exists()
