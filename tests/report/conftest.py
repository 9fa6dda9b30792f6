"""Fixtures of the record tests: a finished synthetic run (see `synthetic_run`) and data to compare runs on."""

from pathlib import Path

import pytest
from run_family import Family, texts
from synthetic_run import finished  # noqa: F401


@pytest.fixture(scope="session")
def shared_family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Where data directories that no test changes are made."""
    return Family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def letters(shared_family: Family) -> Path:
    """Prepared data of 40 documents, lossless; not to be changed."""
    return shared_family.data("letters", texts())


@pytest.fixture(scope="session")
def letters_again(shared_family: Family) -> Path:
    """The same documents with another tokenizer."""
    return shared_family.data("letters-again", texts(), vocab_size=VOCAB_AGAIN)


@pytest.fixture
def family(tmp_path: Path) -> Family:
    """Makes runs for one test."""
    return Family(tmp_path)


VOCAB_AGAIN = 400
