"""`python -m bitgolf` is the command line (what `torchrun -m bitgolf` starts on every rank)."""

from bitgolf.cli import main
from bitgolf.run.workers import leave

if __name__ == "__main__":
    leave(main())
