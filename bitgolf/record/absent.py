"""Stands in a packed program for code that its settings never reach: every name is a class that cannot be made.

`isinstance` against it is False, which is true; a call says what is missing.
"""

from __future__ import annotations


def __getattr__(name: str) -> type:
    """A stand-in for the function, class or module `name`."""

    def refuse(*_: object, **__: object) -> None:
        raise ImportError(f"this train_gpt.py was made without {name}: its settings do not use it")

    return type(name, (), {"__new__": refuse})
