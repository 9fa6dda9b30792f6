"""The version of the package; the artifact format has its own (`bitgolf.artifact.container`)."""

__version__ = "0.1.0"
