"""`python -m bitgolf` is the command line (what `torchrun -m bitgolf` starts on every rank)."""

from bitgolf.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
