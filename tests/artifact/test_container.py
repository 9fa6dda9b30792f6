"""The artifact file: contents come back, the same input gives the same bytes, and sizes add up."""

import itertools
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surgery import put_together, take_apart, unbounded

from bitgolf.artifact import container, header, streams
from bitgolf.artifact import entropy_coder as coder
from bitgolf.artifact.compressors import compress, compressor_names, missing_package
from bitgolf.artifact.container import encode_artifact, read_artifact
from bitgolf.artifact.sizes import entropy_bits, share_out
from bitgolf.artifact.stored import StoredTensor
from bitgolf.artifact.streams import Slot
from bitgolf.errors import ArtifactError, BitgolfError, ConfigError
from bitgolf.grids.grid import Grid

# Written by the first version of the format. Such files must stay readable.
VERSION_1 = (
    "93626974676f6c660100ed0000005e0100002345434028b52ffd605e001d0700a24f2e1960770ecc54db66a8b51e989a9161"
    "988ac2eefc08034910045ddd107ffbd298c5f646a98eaa025930dead687413feb55292cd3d5f18aa797ec28a029948f8c645"
    "d1f32fe8a19d01161000376aaac4dcd64bf5755694130e9c1d3446303c1838f39d1f1120d0180ae72c3c79141306c63c0f44"
    "c2ca8589084cb73c1b2f49e2ef24db5ef7dc15c08ba7a87c96c83a0bf1d7b626a565c2a8338c9fa8c3c53f7452b559a476ea"
    "74eeb87879f5743e43a5edf1b6dedbb69a6a732e0f20b0c274eb4211e09d97404b7038703a700bac857066ed99f8776bc31a"
    "1ebd67d38a1f57940178da5bfafdf4622d2d0d1d00158403b378da012000dfffe3f2f3e1fef4ede1f306f2fbfc1f0409ede1"
    "13051707ee160ffee1ec01f7f5fe6ad0144578da636058600f00018300e078dab3bfbace22a2586ba1d8c439bdd9f3650e5b"
    "9a985b595b9b589b99595b181859980300cf020abd78da2bc9cf060002a8014f"
)
BARE: dict[str, Any] = {"model_config": {}, "tokenizer": b"", "tokenizer_meta": {}, "meta": {}}
NAMES = [name for name in compressor_names() if missing_package(name) is None]


@pytest.mark.parametrize("compressor", NAMES)
def test_everything_comes_back(contents: dict[str, Any], tmp_path: Path, compressor: str) -> None:
    path = tmp_path / "model.bitgolf"
    data, sizes = encode_artifact(**contents, compressor=compressor)
    path.write_bytes(data)
    for artifact in (read_artifact(path), read_artifact(str(path)), read_artifact(path.read_bytes())):
        for key in ("model_config", "tokenizer", "tokenizer_meta", "meta"):
            assert getattr(artifact, key) == contents[key]
        assert artifact.compressor == compressor
        assert set(artifact.tensors) == set(contents["tensors"])
        for name, tensor in contents["tensors"].items():
            assert artifact.tensors[name].dtype == torch.float32
            assert torch.equal(artifact.tensors[name], tensor.restore())
            assert artifact.kinds[name] == tensor.kind
    assert sizes.total == path.stat().st_size


@pytest.mark.parametrize("compressor", NAMES)
def test_every_way_to_store_comes_back(rich_contents: dict[str, Any], compressor: str) -> None:
    data, sizes = encode_artifact(**rich_contents, compressor=compressor)
    assert encode_artifact(**rich_contents, compressor=compressor)[0] == data
    artifact = read_artifact(data)
    assert sum(sizes.groups.values()) == len(data) - sizes.header - sizes.streams["tokenizer"]
    for name, tensor in rich_contents["tensors"].items():
        assert torch.equal(artifact.tensors[name], tensor.restore()), name
    assert artifact.kinds["blocks.0.down.weight"] == "int16"


def test_weights_are_level_times_row_scale_times_column_scale() -> None:
    tensor = unbounded(5, 4, 6.0, None, 1, trellis=8)
    assert tensor.scales is not None and tensor.column_scales is not None
    weight = read_artifact(encode_artifact(**BARE, tensors={"w": tensor}, compressor="range")[0]).tensors["w"]
    for column in range(4):
        state = 0
        for row in range(5):
            code, z = int(tensor.values[row, column]), state & 1
            scaled = np.float32(tensor.scales[row]) * np.float32(2 * code + z)
            assert float(weight[row, column]) == float(scaled * np.float32(tensor.column_scales[column]))
            state = (state >> 1) ^ (z * (0o13 >> 1)) ^ ((code & 1) * (0o04 >> 1))


def test_files_of_the_first_version_stay_readable(contents: dict[str, Any]) -> None:
    artifact = read_artifact(bytes.fromhex(VERSION_1))
    assert (artifact.compressor, artifact.tokenizer) == ("zlib", b"tok")
    assert list(artifact.tensors) == ["blocks.0.q.weight", "gain", "skips"]
    for name, tensor in artifact.tensors.items():
        assert torch.equal(tensor, contents["tensors"][name].restore())


def test_range_is_the_smallest_and_its_size_is_predicted(rich_contents: dict[str, Any]) -> None:
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 192, generator=rng) * torch.exp(0.3 * torch.randn(256, 1, generator=rng))
    grid = Grid(6)
    scales = torch.full((256,), 0.125)
    rich_contents["tensors"]["blocks.0.big.weight"] = StoredTensor.quantized(grid.quantize(weight, scales), scales, 6)
    sizes = {name: encode_artifact(**rich_contents, compressor=name)[1] for name in NAMES}
    for name in NAMES:
        assert name == "range" or sizes["range"].total < 0.97 * sizes[name].total
        for stream, size in sizes["range"].streams.items():
            assert stream == "tokenizer" or size <= sizes[name].streams[stream] + 8, (name, stream)


def test_range_falls_back_where_codes_or_floats_repeat() -> None:
    pattern = torch.randint(-20, 21, (64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    tensor = StoredTensor.quantized(pattern.repeat(8, 1), torch.ones(512), 8, "g")
    data, sizes = encode_artifact(**BARE, tensors={"w": tensor}, compressor="range")
    assert sizes.streams["codes/g"] < 1.1 * len(compress("zstd", pattern.numpy().tobytes()))
    assert torch.equal(read_artifact(data).tensors["w"], tensor.restore())
    floats = torch.randn(400, generator=torch.Generator().manual_seed(0)).repeat(30)
    sizes = encode_artifact(**BARE, tensors={"w": StoredTensor.fp16(floats)}, compressor="range")[1]
    assert sizes.streams["fp16"] < 1.2 * 2 * 400


def test_a_coder_that_loses_a_weight_is_caught_when_it_writes(
    rich_contents: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = coder.encode_matrices

    def lossy(matrices: Sequence[coder.Matrix], apply: Any) -> bytes:
        first = matrices[0].codes.copy()
        first[0, 0] ^= 1
        return encode([replace(matrices[0], codes=first), *matrices[1:]])

    monkeypatch.setattr(coder, "encode_matrices", lossy)
    with pytest.raises(AssertionError, match="does not give an array of"):
        encode_artifact(**rich_contents, compressor="range")


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["int2", "int5", "int8", "int9", "int12", "int16", "fp16", "fp32"]),
            st.integers(1, 5),
            st.integers(1, 5),
            st.sampled_from("abc"),
        ),
        max_size=6,
    ),
    st.binary(max_size=50),
    st.integers(0, 1000),
    st.sampled_from(["zlib", "range"]),
)
def test_any_contents_come_back(
    layout: list[tuple[str, int, int, str]], tokenizer: bytes, seed: int, compressor: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for i, (kind, rows, columns, group) in enumerate(layout):
        weight = torch.randn(rows, columns, generator=generator) * 3
        if kind == "int16":
            tensors[f"t{i}"] = unbounded(
                rows, columns, 50.0, group, seed, trellis=(0, 8, 8)[seed % 3], by_column=seed % 2 > 0
            )
        elif kind.startswith("int"):
            grid = Grid(int(kind[3:]))
            scales = grid.scales(weight)
            tensors[f"t{i}"] = StoredTensor.quantized(grid.quantize(weight, scales), scales, grid.bits, group)
        else:
            tensors[f"t{i}"] = getattr(StoredTensor, kind)(weight, group)
    data, sizes = encode_artifact(**BARE | {"tokenizer": tokenizer}, tensors=tensors, compressor=compressor)
    artifact = read_artifact(data)
    assert artifact.tokenizer == tokenizer
    assert all(torch.equal(artifact.tensors[name], tensor.restore()) for name, tensor in tensors.items())
    assert sizes.total == len(data) == sizes.header + sum(sizes.streams.values())
    assert sum(sizes.tensors.values()) == sizes.total - sizes.header - sizes.streams["tokenizer"]
    assert sum(sizes.groups.values()) == sum(sizes.tensors.values())


def test_fp32_is_exact_and_the_quantized_form_is_the_grid(contents: dict[str, Any]) -> None:
    weight = torch.randn(7, 5)
    contents["tensors"] = {"w": StoredTensor.fp32(weight.t())}
    assert torch.equal(read_artifact(encode_artifact(**contents)[0]).tensors["w"], weight.t())


def test_same_input_in_any_order_gives_the_same_bytes(contents: dict[str, Any], artifact: bytes) -> None:
    assert encode_artifact(**contents)[0] == artifact
    for order in itertools.islice(itertools.permutations(contents["tensors"].items()), 0, 5040, 997):
        shuffled = {**contents, "tensors": dict(order), "meta": dict(reversed(contents["meta"].items()))}
        assert encode_artifact(**shuffled)[0] == artifact


def test_streams_of_the_same_tensors_are_taken_from_an_earlier_file(
    rich_contents: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier: container.EncodedStreams = {}
    kept = rich_contents | {"compressor": "range", "earlier": earlier}
    first, sizes = encode_artifact(**kept)
    name, stored = next((n, t) for n, t in kept["tensors"].items() if t.scales is not None)
    changed = kept["tensors"] | {name: replace(stored, values=-stored.values, trellis=0)}
    encoded: list[int] = []
    encode = streams.encode

    def counted(*args: Any) -> bytes:
        encoded.append(1)
        return encode(*args)

    monkeypatch.setattr(streams, "encode", counted)
    assert encode_artifact(**kept) == (first, sizes) and not encoded
    again = encode_artifact(**kept | {"tensors": changed})
    assert len(encoded) == 2  # its codes and the scales
    assert again == encode_artifact(**rich_contents | {"compressor": "range", "tensors": changed})
    assert encode_artifact(**kept)[0] == first


def test_layout_is_the_documented_one(artifact: bytes, contents: Any) -> None:
    assert artifact[:8] == container.MAGIC
    assert int.from_bytes(artifact[8:10], "little") == container.FORMAT_VERSION
    packed = int.from_bytes(artifact[10:14], "little")
    assert int.from_bytes(artifact[18:22], "little") == zlib.crc32(artifact[:18] + artifact[22 : 22 + packed])
    described, streams = take_apart(artifact)
    assert [row[0] for row in described["tensors"]] == [
        "embedding.weight",
        "mix",
        "blocks.0.q.weight",
        "blocks.2.q.weight",
        "blocks.10.q.weight",
        "gain",
        "skips",
    ]
    raw = json.dumps(described).encode()
    decoded = header.decode(raw, file_bytes=len(artifact), max_bytes=1 << 30)
    assert [stream.name for stream in decoded.streams] == [
        "scales",
        "codes/embedding",
        "codes/q",
        "fp32",
        "fp16",
        "tokenizer",
    ]
    assert 22 + packed + sum(len(s) for s in streams) == len(artifact)


def test_byte_planes_invert_and_separate_high_bytes() -> None:
    values = np.array([1.0, -2.0, 3.5], dtype="<f2")
    slots = [Slot(values.dtype, values.shape)]
    planes = streams.to_planes([values], slots)
    assert planes == bytes([v.tobytes()[0] for v in values]) + bytes([v.tobytes()[1] for v in values])
    (restored,) = streams.from_planes(planes, slots)
    assert np.array_equal(restored, values)


def test_files_that_are_no_artifacts(tmp_path: Path) -> None:
    for content, message in [(b"", "empty"), (b"PK\x03\x04", "begins with"), (b"x" * 1000, "not a bitgolf artifact")]:
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=message) as caught:
            read_artifact(path)
        assert str(path) in str(caught.value)
    with pytest.raises(ArtifactError, match=r"missing.bitgolf cannot be read: No such file"):
        read_artifact(tmp_path / "missing.bitgolf")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_artifact(tmp_path)


def test_a_newer_version_says_so(artifact: bytes) -> None:
    future = put_together(*take_apart(artifact), version=container.FORMAT_VERSION + 1)
    with pytest.raises(ArtifactError, match=r"made by a newer bitgolf \(format v2\), this one reads up to v1: upgrade"):
        read_artifact(future)
    with pytest.raises(ArtifactError, match="version 0"):
        read_artifact(put_together(*take_apart(artifact), version=0))


def test_what_cannot_be_read_back_cannot_be_written(contents: dict[str, Any]) -> None:
    one = {"w": StoredTensor.fp32(torch.ones(2))}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"meta": {"loss": float("nan")}}, "JSON"),
        ({"model_config": {"x": object()}}, "JSON"),
        ({"tokenizer_meta": []}, "tokenizer_meta must be an object"),
        ({"meta": {"big": "x" * (header.MAX_HEADER_BYTES + 1)}}, "header takes"),
        ({"tensors": {"a b": one["w"]}}, "name 'a b'"),
        ({"tensors": {"": one["w"]}}, "name ''"),
        ({"tensors": {"../w": one["w"]}}, "name"),
        ({"tensors": {"w" * 201: one["w"]}}, "name"),
        ({"tensors": {"w": StoredTensor.fp32(torch.ones(2), "a/b")}}, "group"),
    ]
    for change, message in cases:
        with pytest.raises(ArtifactError, match=message):
            encode_artifact(**{**contents, **change})
    with pytest.raises(ConfigError, match="unknown compressor 'zpaq'"):
        encode_artifact(**contents, compressor="zpaq")


def test_impossible_tensors_are_refused_when_stored() -> None:
    codes, scales = torch.zeros(2, 3, dtype=torch.int8), torch.ones(2)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: StoredTensor.quantized(codes.float(), scales, 8), "int8 matrix"),
        (lambda: StoredTensor.quantized(codes[0], scales, 8), "int8 matrix"),
        (lambda: StoredTensor.quantized(codes, scales[:1], 8), "2 rows of codes"),
        (lambda: StoredTensor.quantized(codes + 32, scales, 6), "int6 grid"),
        (lambda: StoredTensor.quantized(codes - 128, scales, 8), "int8 grid"),
        (lambda: StoredTensor.quantized(codes, scales * 0, 8), "fp16 numbers > 0"),
        (lambda: StoredTensor.quantized(codes, scales * float("nan"), 8), "fp16 numbers > 0"),
        (lambda: StoredTensor.quantized(codes, scales * 1.0001, 8), "fp16 numbers > 0"),
        (lambda: StoredTensor.quantized(codes, scales, 13), "2 to 12"),
        (lambda: StoredTensor.quantized(codes, scales, 16), "int16 matrix"),
        (lambda: StoredTensor.quantized(codes.short() - 32768, scales, 16), "int16 grid of .-32767"),
        (lambda: StoredTensor.quantized(codes, scales, 8, column_scales=torch.ones(2)), "3 columns of codes"),
        (lambda: StoredTensor.quantized(codes, scales, 8, column_scales=torch.zeros(3)), "column scales must be"),
        (lambda: StoredTensor.quantized(codes, scales, 8, column_scales=torch.full((3,), 1.0001)), "column scales"),
        (lambda: StoredTensor.quantized(codes, scales, 8, trellis=2), "trellis of 2 states"),
        (lambda: StoredTensor.fp16(torch.tensor([1e6])), "for float16; keep it in fp32$"),
        (lambda: StoredTensor.fp16(torch.tensor([float("nan")])), "NaN, infinite or too large values for float16$"),
        (lambda: StoredTensor.fp32(torch.tensor([float("inf")])), "NaN, infinite or too large values for float32$"),
        (lambda: StoredTensor.fp32(torch.ones(0)), "1 or more elements"),
        (lambda: StoredTensor.fp32(torch.ones(1, 1, 1, 1, 1)), "4 dimensions"),
        (lambda: StoredTensor.fp32(torch.ones(2, dtype=torch.int64)), "float"),
    ]
    for build, message in cases:
        with pytest.raises(BitgolfError, match=message):
            build()


def test_the_largest_remainders_get_the_bytes_that_are_left() -> None:
    assert share_out(1, [0.2, 0.8]) == [0, 1] and share_out(10, [1, 1, 1.6]) == [3, 3, 4]
    assert share_out(5, [0, 0]) in ([2, 3], [3, 2])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**7), st.lists(st.floats(0, 1e9), min_size=1, max_size=40))
def test_shares_sum_exactly_and_are_within_one(total: int, weights: list[float]) -> None:
    parts = share_out(total, weights)
    assert sum(parts) == total and min(parts) >= 0
    scale = sum(weights)
    for part, weight in zip(parts, weights, strict=True):
        exact = total * (weight / scale) if scale else total / len(weights)
        assert abs(part - exact) <= 1 + 1e-6


def test_shares_follow_entropy_inside_a_code_stream(contents: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randint(-100, 100, (64, 64), generator=generator, dtype=torch.int8)
    calm = torch.randint(-1, 2, (64, 64), generator=generator, dtype=torch.int8)
    tensors = {
        "noisy": StoredTensor.quantized(noisy, torch.ones(64), 8, "g"),
        "calm": StoredTensor.quantized(calm, torch.ones(64), 8, "g"),
    }
    sizes = encode_artifact(**{**contents, "tensors": tensors})[1]
    scale_bytes = sizes.streams["scales"] / 2
    ratio = (sizes.tensors["noisy"] - scale_bytes) / (sizes.tensors["calm"] - scale_bytes)
    assert ratio == pytest.approx(entropy_bits(noisy.numpy()) / entropy_bits(calm.numpy()), rel=0.01)
    assert ratio > 4
