"""The site of several runs: complete, sorted, self-contained, and never in the way of what was there before."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from browser import BROWSER, NO_BROWSER, look_at
from html_page import Page, assert_loads_nothing
from run_family import Family, texts
from synthetic_run import audit_json
from tiny_run import done, refused, tree_digest

from bitgolf.errors import ConfigError, RunError
from bitgolf.report.site.overlays import DASHES, Curve, Overlay, draw_overlay, look
from bitgolf.report.site.site import find_runs, write_site
from bitgolf.report.site.site_rows import overlays, read_site_runs, seed_sets, tables
from bitgolf.run import atomic
from bitgolf.run.directory import RunDirectory


@pytest.fixture
def runs(family: Family, letters: Path) -> list[Path]:
    """Three seeds of one system and a worse one with a hostile name; the order is not that of the scores."""
    return [
        family.run("<b>worse", letters, shift=0.2, train__average__ema_decay=0.9),
        *(family.run(f"mine-{seed}", letters, seed=seed, shift=-0.1 * (seed == 2)) for seed in (1, 2, 3)),
    ]


def index_of(paths: list[Path], out: Path) -> tuple[str, Page]:
    write_site(paths, out)
    html = (out / "index.html").read_text(encoding="utf-8")
    return html, Page(html)


def headlines(paths: list[Path]) -> list[float]:
    return [json.loads((path / "score.json").read_text())["headline_bpb"] for path in paths]


def test_names_cannot_turn_the_text_of_the_index_around(family: Family, letters: Path, tmp_path: Path) -> None:
    html, _ = index_of([family.run("\u202eflog", letters), family.run("plain", letters, seed=2)], tmp_path / "site")
    assert r"\u202eflog" in html and "\u202e" not in html


def test_the_table_has_every_column_and_the_best_run_first(runs: list[Path], tmp_path: Path) -> None:
    html, page = index_of(runs, tmp_path / "site")
    text = page.visible_text()
    columns = "bits per byte|float chunked|chunked|sliding|artifact bytes|train seconds|eval seconds|parameters"
    for column in f"{columns}|preset|seed|hardware|audit".split("|"):
        assert f'data-label="{column}"' in html and column in text
    order = re.findall(r'<th scope="row" data-value="([^"]*)">', html)
    ranked = [path.name for _, path in sorted(zip(headlines(runs), runs, strict=True))]
    assert [label.replace("&lt;", "<").replace("&gt;", ">") for label in order] == ranked
    assert order[0] == "mine-2"
    for expected in (
        "674,000",
        "mine-1, mine-2, mine-3",
        "tiny",
        "PASS",
        "all 3 checks",
        f"{min(headlines(runs)):.4f}",
    ):
        assert expected in text, expected
    assert "<b>worse" in text
    assert not {"b", "button"} & {tag for tag, _ in page.tags}  # without the script the headings are plain text


def test_a_table_is_what_the_files_say(runs: list[Path]) -> None:
    (table,) = tables(read_site_runs(runs))
    assert f"{sum(len(text.encode()) for text in texts()):,} bytes" in table.title and "40 documents" in table.title
    titles = [column.title for column in table.columns]
    for run, cells in table.rows:
        values = dict(zip(titles, [cell.value for cell in cells], strict=True))
        score, pack = (json.loads((run.products.path / f"{name}.json").read_text()) for name in ("score", "pack"))
        charges = json.loads((run.products.path / "budget.json").read_text())["charges"]
        train = sum(charge["amount"] for charge in charges if charge["kind"] == "train_seconds")
        assert values["sliding"] == values["bits per byte"] == score["headline_bpb"]
        assert values["float chunked"] == score["float"]["chunked"]["bpb"]
        assert values["artifact bytes"] == pack["total_bytes"] and values["train seconds"] == train
        assert values["seed"] == run.products.config.seed and values["hardware"] == "cpu <x86_64>"
        assert values["audit"] == "PASS"


def test_the_index_loads_nothing_and_links_to_every_run(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "site"
    html, page = index_of(runs, out)
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert_loads_nothing(html, tuple(links))
    assert len(set(links)) == len(runs) + 1 and "runs.json" in links
    pages = [out / unquote(link) for link in links if link != "runs.json"]
    expected = sorted((path / "report.html").read_bytes() for path in runs)
    assert sorted(path.read_bytes() for path in pages) == expected
    assert not list(out.rglob(".*"))
    listed = json.loads((out / "runs.json").read_text())["runs"]
    assert [run["headline_bpb"] for run in listed] == headlines(runs)
    assert {run["page"] for run in listed} == {unquote(link) for link in links} - {"runs.json"}


def test_pages_of_like_named_runs_are_kept_apart(family: Family, letters: Path, tmp_path: Path) -> None:
    paths = [family.run(name, letters, seed=seed) for seed, name in enumerate(("a b", "a+b", "A-b", "x/a b", "é"))]
    out = tmp_path / "site"
    runs = write_site(paths, out)
    assert len({run.page.lower() for run in runs}) == 5
    for run, path in zip(runs, paths, strict=True):
        assert re.fullmatch(r"runs/[A-Za-z0-9._-]+\.html", run.page)
        assert (out / run.page).read_bytes() == (path / "report.html").read_bytes()


def test_seeds_are_summarized(runs: list[Path]) -> None:
    (row,) = seed_sets(read_site_runs(runs))
    values = headlines(runs[1:])
    assert (row.name, row.seeds) == ("mine-1, mine-2, mine-3", "1, 2, 3")
    assert (row.mean, row.std) == (f"{np.mean(values):.5f}", f"{np.std(values, ddof=1):.5f}")


def test_a_seed_twice_has_no_mean_but_a_reason(family: Family, letters: Path) -> None:
    (row,) = seed_sets(read_site_runs([family.run("a", letters), family.run("b", letters)]))
    assert (row.name, row.seeds, row.mean, row.std) == ("a, b", "1, 1", "", "") and "both have seed 1" in row.reason


def test_curves_are_overlaid(runs: list[Path], tmp_path: Path) -> None:
    by_time, by_tokens = overlays(read_site_runs(runs))
    assert [curve.number for curve in by_time.curves] == [0, 1, 2, 3]
    for path, curve, other in zip(runs, by_time.curves, by_tokens.curves, strict=True):
        events = [json.loads(line) for line in (path / "train.jsonl").read_text().splitlines()]
        steps = [event for event in events if event["event"] == "step"]
        late = [event for event in steps if event["elapsed_seconds"] >= 0.05 * steps[-1]["elapsed_seconds"]]
        assert list(curve.y) == list(other.y) == [event["loss"] for event in late]
        assert list(curve.x) == [event["elapsed_seconds"] for event in late]
        assert list(other.x) == [event["tokens"] for event in late]
    html, _ = index_of(runs, tmp_path / "site")
    for number in range(4):
        assert f'id="time-run-{number}"' in html and f'id="tokens-run-{number}"' in html
        assert f'<li data-run="{number}">' in html


def test_curves_of_many_runs_look_different() -> None:
    looks = [look(number) for number in range(8 * len(DASHES))]
    assert len(set(looks)) == len(looks)
    assert [one.color for one in looks[:9]] == [1, 2, 3, 4, 5, 6, 7, 8, 1]
    assert [one.dash for one in looks[::8]] == ["", "10 4", "3 3", "14 4 3 4"]
    curves = [Curve(number, list(range(1000)), [number + 1 / (i + 1) for i in range(1000)]) for number in range(9)]
    svg = draw_overlay(Overlay("many", "Many", 'all "nine"', "steps", curves))
    assert {f"var(--curve-{color})" for color in range(1, 9)} <= set(re.findall(r"var\(--curve-\d\)", svg))
    assert "stroke-dasharray" in svg[svg.index('id="many-run-8"') :]
    assert not re.search(r"#0([1-9a-f])0\1", svg), "a placeholder color is left"
    assert max(len(re.findall("[ML] ", path)) for path in re.findall(r' d="([^"]*)"', svg)) <= 300


def test_a_curve_of_one_point_is_a_dot_and_longer_ones_are_lines_alone() -> None:
    for count in (1, 2, 3):
        curves = [Curve(0, range(1, count + 1), [1.0] * count), Curve(1, [1, 2], [2.0, 3.0])]
        svg = draw_overlay(Overlay("key", "", "", "steps", curves))
        first, second = (svg.index(f'id="key-run-{number}"') for number in (0, 1))
        assert svg[first:second].count("<use ") == (count == 1) and svg[first:second].count("\nL ") == count - 1
        assert "<use " not in svg[second : svg.index("</g>", second)]
        assert "stroke-dasharray" not in svg[first:second]


def test_unfinished_runs_are_listed_last_with_what_is_missing(runs: list[Path], tmp_path: Path) -> None:
    for name in ("score.json", "nll.npy", "audit.json", "report.html", "pack.json", "budget.json", "train.jsonl"):
        (runs[2] / name).unlink()  # the best one
    (runs[0] / "data").unlink()
    os.mkfifo(runs[2] / "report.html")
    html, page = index_of(runs, tmp_path / "site")
    text = page.visible_text()
    assert f"mine-2 has no page of its own yet; run `bitgolf report {runs[2]}`" in text
    assert "not scored" in text and "NOT RUN" in text and "nothing charged yet" in text
    assert "Runs without data" in text
    first = html[html.index("<tbody>") : html.index("</tbody>")]
    assert re.findall(r'<th scope="row" data-value="([^"]*)">', first)[-1] == "mine-2"
    assert "data-value" not in first[first.index("not scored") - 40 : first.index("not scored")]


def test_a_site_without_a_scored_run_has_no_best(runs: list[Path], tmp_path: Path) -> None:
    for path in runs:
        for name in ("score.json", "train.jsonl"):
            (path / name).unlink()
    html, page = index_of(runs, tmp_path / "site")
    assert "nothing scored yet" in page.visible_text() and "<title>bitgolf: 4 runs</title>" in html
    (table,) = tables(read_site_runs(runs))
    assert [run.number for run, _ in table.rows] == [0, 1, 2, 3] and overlays(read_site_runs(runs)) == []
    listed = json.loads((tmp_path / "site" / "runs.json").read_text())["runs"]
    assert {(run["headline"], run["headline_bpb"], str(run["bpb"])) for run in listed} == {(None, None, "{}")}


def test_the_hardware_is_that_of_training_or_else_of_scoring(runs: list[Path], tmp_path: Path) -> None:
    log = runs[1] / "train.jsonl"
    resumed = {"event": "resume", "elapsed_seconds": 1.0, "device": "GPU B", "world_size": 8}
    begun = {"train_tokens_available": 1, "torch": "2"}
    log.write_text(log.read_text() + json.dumps(resumed | begun) + "\n")
    (runs[2] / "train.jsonl").unlink()
    score = json.loads((runs[2] / "score.json").read_text())
    (runs[2] / "score.json").write_text(json.dumps(score | {"device": "GPU C", "world_size": 2}))
    for name in ("train.jsonl", "score.json", "budget.json", "pack.json", "audit.json"):
        (runs[3] / name).unlink()
    index_of(runs, tmp_path / "site")
    listed = json.loads((tmp_path / "site" / "runs.json").read_text())["runs"]
    assert [run["hardware"] for run in listed] == ["cpu <x86_64>", "8 × GPU B", "2 × GPU C", ""]
    digests = [RunDirectory.open(path).config.digest() for path in runs]
    text = listed[1]["validation_text"]
    assert listed[1] == {
        "label": "mine-1", "page": "runs/mine-1.html", "preset": "tiny", "seed": 1, "config_sha256": digests[1],
        "headline": "sliding", "headline_bpb": headlines(runs[:2])[1],
        "bpb": {**listed[1]["bpb"], "sliding": headlines(runs[:2])[1]},
        "total_bytes": json.loads((runs[1] / "pack.json").read_text())["total_bytes"], "num_parameters": 674_000,
        "train_seconds": 71.0, "eval_seconds": 16.0, "hardware": "8 × GPU B", "audit": "PASS", "validation_text": text,
    }  # fmt: skip
    assert list(listed[1]["bpb"]) == ["float-chunked", "chunked", "sliding"] and re.fullmatch("[0-9a-f]{64}", text)
    unknown = {"headline", "headline_bpb", "total_bytes", "num_parameters", "train_seconds", "eval_seconds"}
    assert {key for key, value in listed[3].items() if value is None} == unknown
    assert (listed[3]["bpb"], listed[3]["audit"]) == ({}, "NOT RUN")


def test_other_texts_are_tables_of_their_own(runs: list[Path], family: Family, tmp_path: Path) -> None:
    other = family.run("other", family.data("others", texts(30, seed=9)), seed=4)
    _, page = index_of([*runs, other], tmp_path / "site")
    text = page.visible_text()
    assert "different validation texts" in text
    assert "(of the first table)" in text
    assert text.count("Best first; press a heading to sort.") == 2
    assert "40 documents" in text and "30 documents" in text


def test_tokenizers_share_a_table(runs: list[Path], family: Family, letters_again: Path) -> None:
    assert len(tables(read_site_runs([*runs, family.run("other", letters_again)]))) == 1


def test_what_is_over_its_cap_or_failed_is_marked(runs: list[Path], tmp_path: Path) -> None:
    pack = json.loads((runs[0] / "pack.json").read_text())
    (runs[0] / "pack.json").write_text(json.dumps(pack | {"total_bytes": 1_000_001}))
    checks = [{**audit_json()["checks"][0], "verdict": "FAIL"}]
    (runs[0] / "audit.json").write_text(json.dumps({"passed": False, "checks": checks}))
    RunDirectory.open(runs[1]).mark_report_outdated("score")
    html, page = index_of(runs, tmp_path / "site")
    text = page.visible_text()
    assert "mine-2, whose audit failed" not in text
    assert "1,000,001" in text and "over the cap" in text and 'class="num over"' in html
    states = [
        [cell.state for cell in cells if cell.small == "over the cap"]
        for _, cells in tables(read_site_runs(runs))[0].rows
    ]
    assert sorted(states) == [[], [], [], ["fail"]]
    assert "1 of 1 checks failed" in text and "3 of 4 passed, 1 failed" in text
    assert "mine-1: its page is outdated" in text
    (runs[2] / "audit.json").write_text(json.dumps({"passed": False, "checks": checks}))
    assert "mine-2, whose audit failed" in index_of(runs, tmp_path / "site")[1].visible_text()


# Finding runs


def test_runs_are_found_in_folders(family: Family, letters: Path) -> None:
    for name in ("b/deep/run", "b/a", "c", ".hidden/run", "b/1/2/3/too-deep"):
        family.run(name, letters)
    (family.root / "b" / "a" / "inner").mkdir()
    shutil.copy(family.root / "c" / "config.toml", family.root / "b" / "a" / "inner" / "config.toml")
    root = family.root
    assert find_runs([root]) == [root / "b" / "a", root / "b" / "deep" / "run", root / "c"]
    assert find_runs([root / "c", root / "b"]) == [root / "c", root / "b" / "a", root / "b" / "deep" / "run"]
    empty = root / "empty"
    empty.mkdir()
    with pytest.raises(RunError, match="a folder without runs"):
        find_runs([root / "c", empty])
    with pytest.raises(RunError, match="neither a run directory nor a folder"):
        find_runs([root / "nowhere"])


# Where it is written


def test_an_earlier_site_is_replaced(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "site"
    write_site(runs, out)
    (out / "CNAME").write_text("example.org")
    write_site(runs[1:3], out)
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["mine-1.html", "mine-2.html"]
    assert "worse" not in (out / "index.html").read_text() and (out / "CNAME").exists()
    digest = tree_digest(out)
    write_site(runs[1:3], out)
    assert tree_digest(out) == digest


@pytest.mark.parametrize("name", ["runs.json", "mine-1.html", "index.html"])
def test_a_site_whose_writing_failed_can_be_written_again(
    runs: list[Path], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(destination: Path, data: bytes, write: object = atomic.write_bytes) -> None:
        if Path(destination).name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(destination))
        write(destination, data)  # type: ignore[operator]

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            write_site(runs, tmp_path / "site")
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site" / ".runs.json.999999999.tmp").touch()  # of a process that was killed
    write_site(runs, tmp_path / "site")


@pytest.mark.parametrize("content", ["config.toml", "index.html", "runs.json"])
def test_a_folder_with_other_content_is_refused(runs: list[Path], tmp_path: Path, content: str) -> None:
    out = tmp_path / "other"
    out.mkdir()
    write_site(runs[:1], out)  # an empty folder will do
    shutil.rmtree(out)
    out.mkdir()
    (out / content).write_text("{}")
    with pytest.raises(ConfigError, match="exists and is not a site of bitgolf"):
        write_site(runs, out)
    assert [path.name for path in out.iterdir()] == [content]
    with pytest.raises(ConfigError, match="not a site"):
        write_site(runs, runs[0])


def test_a_damaged_run_is_refused_before_anything_is_written(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "site"
    write_site(runs, out)
    before = tree_digest(out)
    (runs[1] / "report.html").write_text("changed")
    (runs[3] / "pack.json").write_text("{")
    with pytest.raises(RunError, match=r"mine-3/pack\.json is damaged"):
        write_site(runs, out)
    assert tree_digest(out) == before
    with pytest.raises(RunError, match="is damaged"):
        write_site(runs, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="given twice"):
        write_site([runs[0], runs[0]], tmp_path / "new")
    with pytest.raises(ConfigError, match="no runs"):
        write_site([], tmp_path / "new")


# The command


def test_report_of_several_runs_is_a_site(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "site"
    assert f"site of 4 runs: {out}/index.html" in done("report", *runs, "--out", out).stdout
    digest = tree_digest(out)
    (runs[0] / "report.html").unlink()
    value = done("report", runs[0].parent, "--out", tmp_path / "again", "--json").json
    assert value == {"site": f"{tmp_path}/again/index.html", "runs": sorted(path.name for path in runs)}
    assert "<b>worse has no page yet: bitgolf report" in done("report", *runs, "--out", tmp_path / "third").stdout
    assert tree_digest(out) == digest
    assert len(json.loads((out / "runs.json").read_text())["runs"]) == 4
    assert done("report", runs[1], "--out", tmp_path / "one").stdout.startswith("site of 1 runs")


def test_report_of_several_runs_needs_a_place(runs: list[Path], tmp_path: Path) -> None:
    assert "choose its folder with --out DIR" in refused("report", *runs)
    assert "neither a run directory" in refused("report", tmp_path / "nothing", runs[0], "--out", tmp_path / "x")
    assert "not a site of bitgolf" in refused("report", *runs, "--out", tmp_path)
    assert not (tmp_path / "x").exists()


def test_report_of_one_run_is_its_page(run_copy: Path) -> None:
    before = (run_copy / "report.html").read_text()
    (run_copy / "report.html").unlink()
    assert done("report", run_copy).stdout.strip() == f"report: {run_copy}/report.html"
    assert (run_copy / "report.html").read_text().count("\n") == before.count("\n")
    assert done("report", run_copy, "--json").json == {"report": f"{run_copy}/report.html"}


# In a browser

CLICKS = """
  const table = page.querySelector("table.board"), heads = [...table.tHead.rows[0].cells];
  const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].dataset.value).join("|");
  const press = (title) => heads.find((h) => h.textContent === title).firstElementChild.click();
  found.first = names();
  press("seed"); found.seed = names(); press("seed"); found.seedDown = names();
  press("run"); found.run = names();
  press("bits per byte"); found.bpb = names(); press("bits per byte"); found.bpbDown = names();
  found.sorted = heads.filter((h) => h.hasAttribute("aria-sort")).map((h) => h.textContent).join("|");
  const dimmed = () => [...page.querySelectorAll("g.dim")].map((g) => g.id).sort().join("|");
  const legend = page.querySelectorAll(".curves button");
  legend[1].click(); found.dimmed = dimmed(); found.pressed = legend[1].getAttribute("aria-pressed");
  legend[1].click(); found.undimmed = dimmed();
"""


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_the_site_in_a_browser_on_a_phone(runs: list[Path], tmp_path: Path) -> None:
    (runs[1] / "score.json").unlink()  # mine-1: unknown scores stay last
    out = tmp_path / "site"
    write_site(runs, out)
    seen = look_at(out / "index.html", tmp_path, script=CLICKS)
    assert seen["cut"] == "", "text that only sideways scrolling shows"
    assert int(seen["width"]) <= 360 and seen["small"] == "" and not seen["messages"]
    assert seen["first"] == seen["bpb"] == "mine-2|mine-3|<b>worse|mine-1".replace("<", "&lt;").replace(">", "&gt;")
    assert seen["bpbDown"].replace("&lt;b&gt;", "") == "worse|mine-3|mine-2|mine-1"
    assert seen["seed"].split("|")[-2:] == ["mine-2", "mine-3"]
    assert seen["seedDown"].split("|")[:2] == ["mine-3", "mine-2"]
    assert seen["run"].endswith("mine-1|mine-2|mine-3")
    assert seen["sorted"] == "bits per byte"
    assert seen["dimmed"] == "|".join(f"{chart}-run-{n}" for chart in ("time", "tokens") for n in (0, 2, 3))
    assert seen["pressed"] == "true" and seen["undimmed"] == ""


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_the_site_in_a_browser_on_a_desk(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "site"
    write_site(runs, out)
    script = "found.table = page.querySelector('table.board').parentElement.scrollWidth; "
    script += "found.room = page.querySelector('table.board').parentElement.clientWidth;"
    seen = look_at(out / "index.html", tmp_path, width=1400, script=script)
    assert int(seen["width"]) <= 1400 and not seen["messages"]
    assert int(seen["table"]) <= int(seen["room"])  # no column is out of sight
