"""The page in a real browser: no console message, no sideways scrolling on a phone, the script runs."""

from pathlib import Path

import pytest
from browser import BROWSER, NO_BROWSER, look_at
from synthetic_run import SyntheticRun

from bitgolf.report.report import report

CLICK_A_TOKEN = """
  const token = page.querySelector(".passage [title]");
  token.click();
  found.note = page.getElementById("surprisal-note").textContent;
  found.title = token.title;
"""


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_in_a_browser(finished: SyntheticRun, tmp_path: Path) -> None:
    seen = look_at(report(finished.run), tmp_path, script=CLICK_A_TOKEN)
    assert int(seen["width"]) <= 360
    assert seen["small"] == "", "letters below 12 px on a phone"
    assert seen["cut"] == "", "text that only sideways scrolling shows"
    assert seen["note"].endswith(seen["title"]) and "bits" in seen["title"]
    assert not seen["messages"]
