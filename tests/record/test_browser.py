"""The page in a real browser: no console message, no sideways scrolling on a phone, the script runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from synthetic_run import SyntheticRun

from bitgolf.record.report import report

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None
)

FRAME = """<!DOCTYPE html><iframe id="page" src="report.html" style="width:360px;height:700px;border:0"></iframe>
<pre id="result"></pre><script>
onload = () => {
  const view = document.getElementById("page").contentWindow, root = view.document.documentElement;
  const small = new Set();
  const walker = view.document.createTreeWalker(view.document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const element = node.parentElement, svg = element.closest("svg");
    if (!node.textContent.trim() || element.closest("script")) continue;
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const size = parseFloat(view.getComputedStyle(element).fontSize) * scale;
    if (size < 11.99) small.add(element.tagName + " " + element.className + " " + size.toFixed(2));
  }
  const token = view.document.querySelector(".passage [title]");
  token.click();
  document.getElementById("result").textContent = "width=" + root.scrollWidth + " small=" + [...small].join("|") +
    " note=" + view.document.getElementById("surprisal-note").textContent + " title=" + token.title + " done";
};
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome found")
def test_in_a_browser(finished: SyntheticRun, tmp_path: Path) -> None:
    report(finished.run)
    frame = finished.run / "frame.html"
    frame.write_text(FRAME)
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=800,900",
            "--enable-logging=stderr",
            "--virtual-time-budget=4000",
            "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"width=(\d+) small=(.*?) note=(.*?) title=(.*?) done", done.stdout, flags=re.DOTALL)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    width, small, note, title = found.groups()
    assert int(width) <= 360
    assert small == "", "letters below 12 px on a phone"
    assert note.endswith(title) and "bits" in title
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not messages
