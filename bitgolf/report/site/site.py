"""`bitgolf report RUN RUN ... --out DIR`: one static site of many runs.

`index.html` holds the table, the curves and the budgets, and loads nothing. `runs/` holds copies of the runs' own
pages. `runs.json` holds the table as data and marks the folder as a site. The index is written last, so all its links
work. A folder with other content is refused.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from bitgolf.errors import ConfigError, RunError
from bitgolf.report import sections
from bitgolf.report.page import markup, render_page
from bitgolf.report.site import site_rows
from bitgolf.report.site.overlays import draw_overlay, look
from bitgolf.run import atomic
from bitgolf.run.progress import Progress, silent
from bitgolf.version import __version__

MARK = "runs.json"
FORMAT = "bitgolf-site-1"
_DEEPEST = 3  # levels of folders that are searched for runs


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The run directories among `paths`, and those in the folders among `paths`, sorted within each folder.

    Folders are searched three levels deep, without hidden folders and without what is inside a run.
    Raises RunError if a path is neither a run nor a folder that holds one.
    """
    runs: list[Path] = []
    for path in paths:
        new = [path] if (path / "config.toml").is_file() else _runs_in(path, _DEEPEST)
        if not new:
            what = "a folder without runs" if path.is_dir() else "neither a run directory nor a folder of them"
            raise RunError(f"{path} is {what}; start one with `bitgolf run PRESET --out {path}/NAME`")
        runs += new
    return runs


def write_site(paths: Sequence[Path], out: Path, *, progress: Progress = silent) -> list[site_rows.SiteRun]:
    """Write the site of the runs `paths` (see `find_runs`), finished or not, into `out`; returns the runs in order.

    `out` does not exist, is empty, or holds an earlier site, which is replaced. Raises ConfigError if there are no
    runs, a run is given twice, or `out` holds something else, and RunError or DataError if a product is damaged.
    """
    if not paths:
        raise ConfigError("no runs given; `bitgolf report RUN RUN --out DIR`")
    _require_own_folder(out)
    runs = site_rows.read_site_runs(paths)
    index = render_index(runs)
    # First, so that a site whose writing ended early is known as one.
    atomic.write_json(out / MARK, {"format": FORMAT, "bitgolf_version": __version__, "runs": site_rows.as_json(runs)})
    for number, run in enumerate(runs):
        progress("site", number, len(runs), run.label)
        if run.page:
            atomic.write_bytes(out / run.page, (run.products.path / "report.html").read_bytes())
    atomic.write_text(out / "index.html", index)
    kept = {run.page for run in runs}
    for page in (out / "runs").glob("*.html"):
        if f"runs/{page.name}" not in kept:
            page.unlink()
    progress("site", len(runs), len(runs))
    return runs


def render_index(runs: Sequence[site_rows.SiteRun]) -> str:
    overlays = site_rows.overlays(runs)
    trained = {curve.number for chart in overlays for curve in chart.curves}
    tables = site_rows.tables(runs)
    first = tables[0].rows[0][0] if tables else None
    best = first if first is not None and first.headline_bpb is not None else None
    return render_page(
        "site.html",
        style=("report.css", "site.css"),
        script="site.js",
        version=__version__,
        runs=runs,
        tables=tables,
        warnings=site_rows.warnings(runs),
        best=best,
        best_failed=best is not None and sections.verdict(best.products)[0] == "fail",
        verdicts=[sections.verdict(run.products)[0] for run in runs],
        sets=site_rows.seed_sets(runs),
        charts=[{"title": chart.title, "key": chart.key, "svg": markup(draw_overlay(chart))} for chart in overlays],
        legend=[(run, look(run.number)) for run in runs if run.number in trained],
        budgets=[(run, sections.budget_meters(run.products)) for run in runs],
    )


def _runs_in(folder: Path, depth: int) -> list[Path]:
    if not folder.is_dir():
        return []
    runs = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or not entry.is_dir():
            continue
        if (entry / "config.toml").is_file():
            runs.append(entry)
        elif depth > 1:
            runs += _runs_in(entry, depth - 1)
    return runs


def _require_own_folder(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not atomic.entries(out)):
        return
    try:
        mark = json.loads((out / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        mark = None
    if not isinstance(mark, dict) or mark.get("format") != FORMAT:
        raise ConfigError(f"{out} exists and is not a site of bitgolf; choose another --out, or remove it first")
