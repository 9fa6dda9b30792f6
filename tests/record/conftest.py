"""Makes the fixture `finished` (see `synthetic_run`) known to every test of the record package."""

from synthetic_run import finished  # noqa: F401
