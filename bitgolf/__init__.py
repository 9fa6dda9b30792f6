"""bitgolf: train the best language model that fits in N bytes, in T seconds, and prove its score."""

from bitgolf.version import __version__

__all__ = ["__version__"]
