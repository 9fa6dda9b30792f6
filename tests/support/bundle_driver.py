"""Runs train_gpt.py files in a process that cannot import bitgolf: each job is a file, arguments and its outcome.

    python bundle_driver.py JOBS.json     with [[train_gpt.py, [argument, ..]], ..]; writes JOBS.json.out

Every job starts from nothing of the one before: no module of the package, no importer.
"""

import json
import runpy
import sys
import traceback
from pathlib import Path


def run(file: str, arguments: list[str]) -> str:
    """ "" when the file ran to its end, else what it ended with."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not hasattr(finder, "bundle_path")]
    for name in [name for name in sys.modules if name.split(".")[0] == "bitgolf"]:
        del sys.modules[name]
    try:
        __import__("bitgolf")
    except ImportError:
        pass
    else:
        return "bitgolf is installed: nothing is proven"
    sys.argv = [file, *arguments]
    try:
        runpy.run_path(file, run_name="__main__")
    except SystemExit as end:
        return "" if not end.code else str(end.code)
    except BaseException:
        return traceback.format_exc()
    return "it did not end by itself"


if __name__ == "__main__":
    jobs = Path(sys.argv[1])
    outcomes = [run(file, arguments) for file, arguments in json.loads(jobs.read_text())]
    jobs.with_suffix(".out").write_text(json.dumps(outcomes))
