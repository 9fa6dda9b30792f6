"""Which means of isolation this system grants, tried in separate processes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_TRIES = {
    "namespaces": "from bitgolf.audit.sandbox import namespaces as n; import tempfile; from pathlib import Path;"
    "n.enter(n.View((Path('/usr'),), Path(tempfile.mkdtemp()), ()))",
    "landlock": "from bitgolf.audit.sandbox import landlock; landlock.enter((), ())",
    "seccomp": "from bitgolf.audit.sandbox import system_calls; system_calls.refuse_files()",
}


def granted(means: str) -> bool:
    """Whether this system grants namespaces, Landlock or filters of system calls."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {_TRIES[means]}"
    return subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL, check=False).returncode == 0


GRANTED = {means: granted(means) for means in _TRIES}
needs_isolation = pytest.mark.skipif(
    not (GRANTED["seccomp"] and (GRANTED["namespaces"] or GRANTED["landlock"])),
    reason="this system grants no isolation: neither namespaces nor Landlock, or no seccomp filters",
)
