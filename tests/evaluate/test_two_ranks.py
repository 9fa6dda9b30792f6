"""Two ranks score and learn as one: the same losses on both, and those of a single process."""

import numpy as np
import pytest
from tiny_gpt import ALONE
from two_ranks import EVALUATIONS, run_on_two_ranks


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    return run_on_two_ranks(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", EVALUATIONS)
def test_two_ranks_evaluate_as_one(name: str, shared: dict[str, list[np.ndarray]]) -> None:
    first, second = shared[name]
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, EVALUATIONS[name](ALONE), rtol=0, atol=1e-5)
