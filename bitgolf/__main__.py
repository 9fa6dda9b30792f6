"""`python -m bitgolf` is the command line (what `torchrun -m bitgolf` starts on every rank)."""

import os
import sys

from bitgolf.cli import main

if __name__ == "__main__":
    status = main()
    if status == 0 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # On a busy CPU, about one of 80 ranks aborts while Python and PyTorch 2.13 tear down their threads ("terminate
        # called without an active exception"), and torchrun then ends rank 0 in the middle of its audit. After an error
        # the teardown leaves rank 0 the time to print it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)
