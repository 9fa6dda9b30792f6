"""A page in a real browser: Chromium or Chrome, headless and offline, where one is installed."""

import re
import shutil
import subprocess
from pathlib import Path

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None
)
NO_BROWSER = "no Chromium or Chrome found"

FRAME = """<!DOCTYPE html><meta charset="utf-8">
<iframe id="page" src="%s" style="width:%dpx;height:700px;border:0"></iframe>
<pre id="result"></pre><script>
onload = () => {
  const view = document.getElementById("page").contentWindow, page = view.document;
  const small = new Set();
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const element = node.parentElement, svg = element.closest("svg");
    if (!node.textContent.trim() || element.closest("script")) continue;
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const size = parseFloat(view.getComputedStyle(element).fontSize) * scale;
    if (size < 11.99) small.add(element.tagName + " " + element.className + " " + size.toFixed(2));
  }
  const found = { width: page.documentElement.scrollWidth, small: [...small].join("|") };
  %s
  for (const details of page.querySelectorAll("details")) details.open = true;
  found.cut = [...page.querySelectorAll("body *")]
    .filter((box) => box.scrollWidth > box.clientWidth + 1 && view.getComputedStyle(box).overflowX !== "visible")
    .map((box) => box.tagName + " " + (box.ariaLabel || box.className)).join("|");
  document.getElementById("result").textContent =
    Object.entries(found).map(([key, value]) => key + "=" + value).join("\\n") + "\\ndone";
};
</script>"""


def look_at(page: Path, tmp_path: Path, *, width: int = 360, script: str = "") -> dict[str, str]:
    """Open a page in a frame `width` pixels wide and say what was found.

    Args:
        page: the file; the frame is written beside it.
        tmp_path: where the browser keeps its profile.
        script: JavaScript that adds to `found`, with `view` and `page` (its document) at hand.
    Returns:
        `width` the page needs, `small` texts below 12 pixels, boxes with text that is `cut` at the side, `messages` of
        the console, and what `script` found.
    """
    assert BROWSER is not None
    frame = page.with_name("frame.html")
    frame.write_text(FRAME % (page.name, width, script), encoding="utf-8")
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
            f"--window-size={width + 100},900",
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
    frame.unlink()
    result = re.search(r'<pre id="result">(.*?)\ndone</pre>', done.stdout, flags=re.DOTALL)
    assert result, done.stdout[-500:] + done.stderr[-500:]
    answers = dict(line.split("=", 1) for line in result[1].split("\n"))
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return answers | {"messages": "\n".join(messages)}
