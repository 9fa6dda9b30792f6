"""The page: complete, self-contained, safe against its own text, and useful before the run is finished."""

import json
import re
import shutil
from importlib import resources

import numpy as np
import pytest
from html_page import Page, assert_loads_nothing
from synthetic_run import SyntheticRun

from bitgolf.errors import RunError
from bitgolf.report.report import Texts, report
from bitgolf.run.directory import RunDirectory
from bitgolf.run.progress import Progress, silent


def page_of(finished: SyntheticRun) -> tuple[str, Page]:
    html = report(finished.run).read_text(encoding="utf-8")
    return html, Page(html)


def test_a_finished_run_has_every_section(finished: SyntheticRun) -> None:
    _, page = page_of(finished)
    text = page.visible_text()
    for expected in (
        "2.0243", "PASS", "Budget", "Bits per byte, stage by stage", "zstd-22", "Where the bytes are", "against time",
        "against tokens", "Learning rate", "Throughput", "What surprised the model", "Continuations", "Audit", "Ledger",
        "optimizer steps", "matrix_lr = 0.04", "545",
    ):  # fmt: skip
        assert expected in text, expected
    assert "Run bitgolf" not in text  # nothing is missing
    assert sum(tag == "svg" for tag, _ in page.tags) == 4


def test_the_page_loads_nothing(finished: SyntheticRun) -> None:
    assert_loads_nothing(page_of(finished)[0])


def test_hostile_text_stays_text(finished: SyntheticRun) -> None:
    html, page = page_of(finished)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert "<script>alert('x')</script>" in page.visible_text()
    assert "<img src=x onerror=alert(1)> seed 1337" in page.visible_text()
    assert "cpu <x86_64>" in page.visible_text() and "all targets, one event <b>" in page.visible_text()
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", html)


OVERRIDE = "\u202eflog\u2066\x9b"  # bidirectional override and isolate, C1 control


@pytest.mark.parametrize("product", ["score.json", "audit.json", "train.jsonl", "config.toml"])
def test_no_product_can_turn_the_text_of_the_page_around(finished: SyntheticRun, product: str) -> None:
    path = finished.run / product
    text = path.read_text(encoding="utf-8")
    value, hostile = {
        "score.json": ("zstd-22", json.dumps(OVERRIDE)[1:-1]),
        "audit.json": ("all targets", json.dumps(OVERRIDE)[1:-1]),
        "train.jsonl": ("2.11.0", json.dumps(OVERRIDE)[1:-1]),
        "config.toml": (finished.run.config.name, "\\u202Eflog\\u2066\\u009B"),
    }[product]
    assert value in text
    path.write_text(text.replace(value, hostile), encoding="utf-8")
    html = report(RunDirectory.open(finished.run.path)).read_text(encoding="utf-8")
    assert r"\u202eflog\u2066\x9b" in html
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x80-\x9f]", html)


def test_a_page_says_that_a_stage_ran_after_it(finished: SyntheticRun) -> None:
    _, page = page_of(finished)
    assert "Outdated" not in page.visible_text()
    for stage in ("score", "audit"):
        finished.run.mark_report_outdated(stage)
    marked = Page((finished.run / "report.html").read_text(encoding="utf-8")).visible_text()
    assert marked.count("Outdated: `bitgolf score` ran after this page was made.") == 1
    assert "Outdated" not in page_of(finished)[1].visible_text()


def test_the_passage_shows_each_token_with_its_bits(finished: SyntheticRun) -> None:
    _, page = page_of(finished)
    spans = [a for tag, a in page.tags if tag == "span" and a.get("title", "").endswith(("bits", "tokens)"))]
    assert 250 <= len(spans) <= 300
    assert all(re.fullmatch(r"\d+\.\d bits( \(\d+ tokens\))?", span["title"]) for span in spans)
    assert {span["class"] for span in spans} >= {"s0", "s1", "s2", "s3"}


def test_samples_are_asked_for_as_configured(finished: SyntheticRun) -> None:
    report(finished.run)
    settings = finished.run.config
    assert [(length, seed) for _, length, seed in finished.model.calls] == [
        (settings.report.sample_tokens, settings.seed + i) for i in range(3)
    ]


@pytest.mark.parametrize(
    ("product", "command"),
    [
        ("score.json", "score"),
        ("nll.npy", "score"),
        ("audit.json", "audit"),
        ("pack.json", "pack"),
        ("model.bitgolf", "pack"),
        ("train.jsonl", "train"),
        ("budget.json", "train"),
        ("data", "run"),
    ],
)
def test_a_missing_product_names_its_command(finished: SyntheticRun, product: str, command: str) -> None:
    path = finished.run / product
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    _, page = page_of(finished)
    assert re.search(rf"Run bitgolf {command} {re.escape(str(finished.run.path))}\b", page.visible_text())


def test_a_run_that_has_only_begun(finished: SyntheticRun) -> None:
    for path in finished.run.path.iterdir():
        if path.name != "config.toml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = page_of(finished)[1].visible_text()
    for command in ("train", "pack", "score", "audit"):
        assert f"Run bitgolf {command}" in text
    assert "not scored" in text and "not packed" in text


def test_losses_of_other_data_are_not_shown(finished: SyntheticRun) -> None:
    np.save(finished.run / "nll.npy", np.ones(7, np.float32))
    text = page_of(finished)[1].visible_text()
    assert "nll.npy holds 7 losses" in text and "Run bitgolf score" in text


def test_a_failed_rule_is_shown_by_symbol_and_word(finished: SyntheticRun) -> None:
    check = {"name": "train-clock", "rule": "B4", "title": "in its budget", "verdict": "FAIL", "reason": "80 s"}
    finished.write("audit.json", {"passed": False, "checks": [check]})
    _, page = page_of(finished)
    assert re.search(r"\N{HEAVY BALLOT X}\s*FAIL\s*1 of 1 checks failed", page.visible_text())


def test_the_earlier_page_survives_a_failure(finished: SyntheticRun) -> None:
    path = report(finished.run)
    before = path.read_bytes()
    (finished.run / "pack.json").write_text("{")
    with pytest.raises(RunError, match=r"pack\.json is damaged"):
        report(finished.run)
    assert path.read_bytes() == before
    assert sorted(p.name for p in finished.run.path.glob(".*")) == []


def luminance(rgb: tuple[float, float, float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_of_every_text_on_its_ground(theme: str) -> None:
    style = resources.files("bitgolf.report").joinpath("templates/report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    colors: dict[str, tuple[float, float, float]] = {}
    for name, value in re.findall(r"--([\w-]+): ([^;]+);", blocks[0] if theme == "light" else blocks[1]):
        digits = [int(value[i : i + 2], 16) for i in (1, 3, 5)] if value.startswith("#") else map(int, value.split())
        colors[name] = tuple(float(d) for d in digits)
    pairs = [("ink", "soft"), ("ink", "track"), ("series-1", "card"), ("fail", "card")]
    pairs += [(text, ground) for text in ("ink", "muted") for ground in ("page", "card")]
    pairs += [(text, f"{state}-soft") for state in ("pass", "fail", "open") for text in (state, "muted", "ink")]
    weak = [pair for pair in pairs if contrast(colors[pair[0]], colors[pair[1]]) < 4.5]
    assert not weak
    for level, alpha in re.findall(r"\.s(\d) \{ background: rgb\(var\(--heat\) / ([\d.]+)\)", style):
        ground = tuple(
            float(alpha) * h + (1 - float(alpha)) * c for h, c in zip(colors["heat"], colors["card"], strict=True)
        )
        assert contrast(colors["ink"], ground) >= 4.5, f"surprisal shade {level}"


def test_the_progress_of_a_report_counts_its_samples_and_charts(
    finished: SyntheticRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[object, ...]] = []

    def collect(*given: object, device: str, progress: Progress = silent) -> Texts:
        progress("report", 0, 9, f"sample 1 on {device}")
        return Texts()

    monkeypatch.setattr("bitgolf.report.report.collect_texts", collect)
    report(RunDirectory.open(finished.run.path), device="mps", progress=lambda *words: calls.append(words))
    total = finished.run.config.report.samples + 1
    charts = [("report", total - 1, total, "charts"), ("report", total, total)]
    assert calls == [("report", 0, 9, "sample 1 on mps"), *charts]
