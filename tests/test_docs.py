"""Pages point at what exists: links, anchors, files, settings; and they explain every check of the audit."""

import re
import shlex
from pathlib import Path

import pytest
from tiny_run import PRESET, cli, documents, done

from bitgolf.cli import parse
from bitgolf.config import all_settings, load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FILES = (".json", ".jsonl", ".log", ".bitgolf", ".html")  # files of a run directory, such as score.json
# Entries of the notebook keep the names that files and settings had at their commit.
CURRENT = [page for page in PAGES if page.name != "lab-notebook.md"]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Explicit anchors, and those that GitHub makes from headings."""
    text = prose(page)
    headings = (
        re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    )
    made = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_anchors(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        destination = (page.parent / path).resolve() if path else page
        assert destination.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(destination), f"{page.name}: {target}"


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    for name in re.findall(
        r"(?<![\w/])((?:bitgolf|tests|benchmarks)/[\w/.-]+\.(?:py|toml|md))", page.read_text("utf-8")
    ):
        assert (ROOT / name).is_file(), f"{page.name}: {name}"


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_functions_that_a_page_points_to_exist(page: Path) -> None:
    """A pointer is the name of a file, a colon and a function or class in it."""
    missing = [
        f"{name}:{function}"
        for name, function in re.findall(
            r"`((?:bitgolf|tests|benchmarks)/[\w/.-]+\.py):(\w+)`", page.read_text("utf-8")
        )
        if not re.search(rf"^ *(?:def|class) {function}\b", (ROOT / name).read_text("utf-8"), re.MULTILINE)
    ]
    assert not missing, f"{page.name} points to functions that have another name or place now"


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_settings_that_a_page_names_exist(page: Path) -> None:
    settings = set(all_settings())
    groups = {key.rsplit(".", depth)[0] for key in settings for depth in (1, 2, 3)}
    sections = "|".join(sorted({key.split(".")[0] for key in settings if "." in key}))
    in_prose = re.findall(rf"`((?:{sections})\.[a-z0-9_.]+)", prose(page))
    in_commands = re.findall(rf"--((?:{sections})\.[a-z0-9_.]+)", page.read_text(encoding="utf-8"))
    for name in in_prose + in_commands:
        assert name in settings | groups or name.endswith(FILES), f"{page.name}: {name}"


def test_rules_explains_every_check_and_code() -> None:
    """`register("flip", "C1, C3", ...)` in the package: the check is in the page, and each code is an anchor."""
    page = ROOT / "docs" / "rules.md"
    text, targets = page.read_text(encoding="utf-8"), anchors(page)
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "bitgolf").rglob("*.py")))
    rules = re.findall(r'\bregister\(\s*"([a-z-]+)",\s*"([^"]+)"', sources)
    assert len(rules) >= 40
    for check, codes in rules:
        assert f"| {check} |" in text, check
        for code in re.split(r", |(?<=C\d)-(?=C\d)", codes):
            assert code.lower().replace(" ", "-") in targets, (check, code)


def test_glossary_lists_every_term_once() -> None:
    page = ROOT / "docs" / "glossary.md"
    index, _, tables = page.read_text(encoding="utf-8").partition("\n## ")
    listed = re.findall(r"\]\(#([^)]+)\)", index)
    defined = re.findall(r'^\| <a id="([^"]+)">', tables, re.MULTILINE)
    assert sorted(listed) == sorted(defined)
    assert len(set(defined)) == len(defined)


def commands(page: Path) -> list[list[str]]:
    """The words of every `bitgolf ...` line in the code blocks of a page."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    matches = [re.match(r"(?:torchrun .* )?bitgolf (.*)", line) for line in lines]
    return [shlex.split(match[1], comments=True) for match in matches if match]


COMMANDS = [(page.name, words) for page in CURRENT for words in commands(page)]


def test_the_commands_of_the_pages_are_recognized() -> None:
    assert len(COMMANDS) > 40
    assert {words[0] for _, words in COMMANDS} >= {"run", "prepare", "pack", "audit", "compare", "submit", "compress"}


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_printed_command_is_accepted(page: str, words: list[str]) -> None:
    arguments = parse(words)
    preset = getattr(arguments, "preset", "demo")
    load_config("demo" if preset.endswith(".toml") else preset, arguments.overrides)


RUNNABLE = [
    words
    for _, words in COMMANDS
    if words[0] in ("doctor", "presets", "settings", "completion", "sample", "compress", "decompress")
    or (words[0] == "score" and "--model" in words)
]


def test_printed_commands_that_are_cheap_work(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("demo", "mine"):
        (tmp_path / "runs" / name).symlink_to(tiny_run)
    (tmp_path / "notes.txt").write_text(documents()[0][:200])
    for words in RUNNABLE:
        reduced = ["presets", "show", "demo"] if words[:2] == ["presets", "show"] else words
        done(*reduced, *(["--max-tokens", "5"] if words[0] == "sample" else []))


def test_the_first_command_for_packing_works_at_reduced_size(corpus: Path, tmp_path: Path) -> None:
    run, pack, *_ = commands(ROOT / "docs" / "packing.md")
    changes = {"demo": str(PRESET), "runs/rate": str(tmp_path / "rate"), "600000": "250000", "620000": "260000"}
    small = (
        "--data.source",
        f"jsonl:{corpus}",
        "--train.max_steps",
        "5",
        "--report.samples",
        "0",
        "--data.val_fraction",
        "0.02",
    )
    cli(*(changes.get(word, word) for word in run), *small)
    assert (tmp_path / "rate" / "score.json").exists()
    done(*(changes.get(word, word) for word in pack))
