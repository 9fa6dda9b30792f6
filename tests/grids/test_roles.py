"""The grid of each tensor, and the weights that pruning removes."""

import pytest
import torch

from bitgolf.config import PackConfig
from bitgolf.config.pack import GridConfig
from bitgolf.grids.grid import Grid
from bitgolf.grids.roles import grid_of, is_table, role
from bitgolf.quantize.prune import prune


def test_every_role_gets_its_bits() -> None:
    config = PackConfig(
        grid=GridConfig(matrix_bits=7, attention_bits=6, mlp_bits=5, embed_bits=8, scale_floor=True, clip_sigmas=12.0)
    )
    big = (512, 512)
    assert grid_of("embedding", big, config) == Grid(8)
    assert grid_of("bigram.table", big, config) == Grid(8)
    assert grid_of("bigram.project.weight", big, config) == Grid(7, 1 / 63, 12.0)
    assert grid_of("blocks.3.attention.query.weight", big, config) == Grid(6, 1 / 31, 12.0)
    assert grid_of("blocks.3.mlp.up.weight", big, config) == Grid(5, 1 / 15, 12.0)
    assert grid_of("blocks.3.mlp.up.weight", (64, 128), config) is None
    assert grid_of("blocks.3.attn_scale", (10_000,), config) is None
    assert grid_of("embedding", big, PackConfig(method="lossless")) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embedding", "embedding"),
        ("blocks.3.mlp.up.weight", "mlp.up"),
        ("blocks.11.attention.query.weight", "attention.query"),
        ("blocks.0.attn_scale", "attn_scale"),
        ("skip_weights", "skip_weights"),
        ("bigram.table", "bigram.table"),
        ("value_embedding.project.weight", "value_embedding.project"),
        ("blocks.0.weight", "blocks.0.weight"),
    ],
)
def test_a_role_is_the_name_without_the_layer(name: str, expected: str) -> None:
    assert role(name) == expected


def test_tables_are_told_by_their_names() -> None:
    assert is_table("value_embedding.table") and is_table("embedding")
    assert not is_table("value_embedding.project.weight")


def test_pruning_zeroes_the_smallest_of_large_matrices_only() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(300, 300, generator=generator) for name in ("blocks.0.mlp.up.weight", "embedding")}
    weights["blocks.0.attention.key.weight"] = torch.randn(10, 10, generator=generator)
    pruned = prune(weights, 0.05)
    up, before = pruned["blocks.0.mlp.up.weight"], weights["blocks.0.mlp.up.weight"]
    assert int((up == 0).sum()) == int(0.05 * up.numel())
    assert before[up == 0].abs().max() <= before[up != 0].abs().min()
    assert torch.equal(up[up != 0], before[up != 0])
    assert pruned["embedding"] is weights["embedding"]
    assert pruned["blocks.0.attention.key.weight"] is weights["blocks.0.attention.key.weight"]
    assert all(torch.equal(weights[name], tensor) for name, tensor in prune(weights, 0.0).items())
