"""Reading an artifact takes work and memory in proportion to the file, whatever the header declares.

`benchmarks/crafted_files.py artifact` measures seconds and megabytes of larger files. Here function calls, units of
computing and allocated bytes are counted, which do not depend on the machine.
"""

import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import memory_below
from surgery import put_together, take_apart, tiny_contents

from bitgolf.artifact import container, header
from bitgolf.artifact.compressors import compress
from bitgolf.artifact.container import encode_artifact, read_artifact
from bitgolf.artifact.entropy_coder import Matrix, encode_floats, encode_matrices
from bitgolf.artifact.open import open_model
from bitgolf.artifact.stored import StoredTensor
from bitgolf.artifact.streams import CODED
from bitgolf.artifact.tokenizer_bytes import restore
from bitgolf.errors import ArtifactError


def described(tensors: list[list[Any]], compressor: str = "zlib", **fields: Any) -> dict[str, Any]:
    empty = {"meta": {}, "model_config": {}, "tokenizer_meta": {}, "tokenizer_bytes": 0, "streams": []}
    return empty | {"compressor": compressor, "tensors": tensors} | fields


def planes(values: np.ndarray) -> bytes:
    return zlib.compress(values.view(np.uint8).reshape(-1, values.itemsize).T.tobytes())


def groups(count: int) -> bytes:
    """Tensors of one element, each in a stream of its own."""
    scales = planes(np.ones(count, dtype="<f2"))
    tensors = [[f"t{i}", "int8", f"g{i}", [1, 1]] for i in range(count)]
    return put_together(described(tensors), [scales, *[zlib.compress(b"\1")] * count, b""])


def tensors_of_one_stream(count: int) -> bytes:
    tensors = [[f"t{i}", "int8", "g", [1, 1]] for i in range(count)]
    ones = zlib.compress(bytes([1]) * count)
    return put_together(described(tensors), [planes(np.ones(count, dtype="<f2")), ones, b""])


def calls(data: bytes) -> int:
    """Python and C functions called while reading."""
    count = 0

    def see(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        read_artifact(data)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("make", [groups, tensors_of_one_stream])
def test_work_is_linear_in_the_number_of_tensors(make: Callable[[int], bytes]) -> None:
    few, many = make(50), make(200)
    calls(few)  # fills caches
    assert calls(many) < 4.5 * calls(few)


def test_the_number_of_tensors_is_limited() -> None:
    tensors = [[f"t{i}", "fp16", "g", [1]] for i in range(header.MAX_TENSORS + 1)]
    with pytest.raises(ArtifactError, match="4097 tensors, 4096 are allowed"):
        read_artifact(put_together(described(tensors), [b"", b""]))


@pytest.mark.parametrize("kind", ["int8", "int16", "fp16", "fp32"])
def test_the_number_of_elements_is_limited_by_the_bytes(kind: str) -> None:
    rows = 3 + header.FREE_ELEMENTS // 64
    shape = [rows, 64] if kind.startswith("int") else [rows * 64]
    names = ["scales", "codes"] if kind.startswith("int") else ["floats"]
    small = put_together(described([["w", kind, "g", shape]]), [b"x" for _ in names] + [b""])
    with pytest.raises(ArtifactError, match=f"declares {rows * 64} elements"):
        read_artifact(small)
    # A few more bytes allow them; the streams are then read, and refused.
    more = put_together(described([["w", kind, "g", shape]]), [b"x" * 40 for _ in names] + [b""])
    with pytest.raises(ArtifactError, match="stream"):
        read_artifact(more)


def test_a_writer_refuses_what_readers_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "FREE_ELEMENTS", 1000)
    zeros = StoredTensor.quantized(torch.zeros(100, 1000, dtype=torch.int8), torch.ones(100), 8)
    contents = tiny_contents() | {"tensors": {"w": zeros}}
    with pytest.raises(ArtifactError, match="declares 100000 elements"):
        encode_artifact(**contents)
    monkeypatch.undo()
    assert torch.equal(read_artifact(encode_artifact(**contents)[0]).tensors["w"], zeros.restore())


@pytest.mark.parametrize("num_bytes", [header.MAX_TOKENIZER_BYTES + 1, 1 << 40])
def test_the_tokenizer_is_limited(num_bytes: int) -> None:
    with pytest.raises(ArtifactError, match=f"tokenizer of {num_bytes} bytes, 4194304 are allowed"):
        read_artifact(put_together(described([], tokenizer_bytes=num_bytes), [b"x"]))


def test_a_list_of_millions_of_pieces_is_refused_before_it_is_split() -> None:
    separators = b"\x07" * 4_000_000
    data = (3_000_000).to_bytes(4, "little") + b"\x07" + separators
    with memory_below(1 << 16), pytest.raises(ArtifactError, match="3000000 pieces, 65536 are allowed"):
        restore(data)


@pytest.mark.parametrize("compressor", ["range", "zlib"])
@pytest.mark.parametrize(("kind", "trellis"), [("int16", 0), ("int16", 8), ("fp16", 0), ("fp32", 0)])
def test_memory_is_at_most_three_times_that_of_the_weights(
    kind: str, trellis: int, compressor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for block in ("integer_coder._ELEMENTS_AT_ONCE", "container._RESTORED_AT_ONCE", "sizes._COUNTED_AT_ONCE"):
        monkeypatch.setattr(f"bitgolf.artifact.{block}", 1 << 12)
    shape = (100, 1024)
    values = np.random.default_rng(0).normal(0, 2, shape)
    scales = np.ones(shape[0], dtype="<f2")
    if kind.startswith("fp"):
        values = values.astype("<f2" if kind == "fp16" else "<f4")
        streams = [CODED + encode_floats([values])] if compressor == "range" else [planes(values)]
    else:
        values = np.rint(values).astype("<i2")
        coded = CODED + encode_matrices([Matrix(values, trellis)])
        streams = (
            [CODED + encode_floats([scales]), coded] if compressor == "range" else [planes(scales), planes(values)]
        )
    if (kind, compressor) == ("fp32", "range"):
        streams = [compress("range", zlib.decompress(planes(values)))]
    flags = [0, trellis] if trellis else []
    data = put_together(described([["w", kind, "g", list(shape), *flags]], compressor), [*streams, b""])
    finished = 4 * values.size
    read_artifact(data)  # fills caches
    outside = finished if kind.startswith("int") else 0  # allocated by torch, which tracemalloc does not see
    with memory_below(3 * finished + (200 << 10) - outside):
        weights = read_artifact(data).tensors["w"].numpy()
    assert np.array_equal(weights, values) or trellis


def test_computing_is_shared_by_all_streams_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message alone is within the limit, all of them together are not."""
    codes = np.random.default_rng(0).integers(-9, 10, (40, 30))
    message = CODED + encode_matrices([Matrix(codes)])
    scales = CODED + encode_floats([np.ones(40, dtype="<f2")] * 5)
    tensors = [[f"t{i}", "int16", f"g{i}", [40, 30]] for i in range(5)]
    data = put_together(described(tensors, "range"), [scales, *[message] * 5, b""])
    assert len(read_artifact(data).tensors) == 5
    monkeypatch.setattr("bitgolf.artifact.entropy_coder._FREE_WORK", 30_000)
    monkeypatch.setattr("bitgolf.artifact.entropy_coder._WORK_PER_BYTE", 0)
    assert encode_matrices([Matrix(codes)])
    with pytest.raises(ArtifactError, match="more computing than its size allows"):
        read_artifact(data)
    stored = StoredTensor.quantized(torch.from_numpy(codes.astype(np.int8)), torch.ones(40), 8)
    contents = tiny_contents() | {"compressor": "range"}
    encode_artifact(**contents | {"tensors": {"w": stored}})
    with pytest.raises(ArtifactError, match="choose another compressor than range"):
        encode_artifact(**contents | {"tensors": {f"group{i}.x{i}": stored for i in range(9)}})


def test_devices_pipes_and_folders_are_no_artifacts(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", "/dev/null", tmp_path / "pipe", tmp_path):
        with pytest.raises(ArtifactError, match="not a regular file"):
            read_artifact(path)


def test_a_file_that_grows_while_it_is_read_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.bitgolf"
    path.write_bytes(container.MAGIC + bytes(100))
    with pytest.raises(ArtifactError, match="108 bytes, 50 are allowed"):
        read_artifact(path, max_bytes=50)


def test_checksums_do_not_hide_a_bound() -> None:
    """The header of a sound artifact, with one size raised and all checksums repaired."""
    fields, streams = take_apart(encode_artifact(**tiny_contents())[0])
    for row in fields["tensors"]:
        row[3] = [1 << 24, *row[3][1:]]
    with pytest.raises(ArtifactError, match="elements"):
        read_artifact(put_together(fields, streams))


def opened(tmp_path: Path, **changes: Any) -> None:
    path = tmp_path / "model.bitgolf"
    contents = tiny_contents() | {"model_config": {"vocab_size": 384}, "meta": {"window": 64, "stride": 32}} | changes
    path.write_bytes(encode_artifact(**contents)[0])
    open_model(path, "cpu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bigram": {"rows": 10**15, "dim": 10**15}}, "rows"),
        ({"value_embedding": {"layers": [0], "dim": 2**62}}, "dim"),
        ({"num_layers": 10**9}, "num_layers"),
        ({"rope": {"train_length": 2**60}}, "train_length"),
        ({"line\nbreak\x1b[2J": 1}, r"line\\nbreak\\x1b"),
        ({"num_heads": None}, "num_heads"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_in_one_line(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        opened(tmp_path, model_config={"vocab_size": 384} | config)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("window", [0, -1, 1e9, "64", None, 2**62, []])
def test_a_window_that_is_no_number_of_tokens_is_refused(window: object, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"can build \(window"):
        opened(tmp_path, meta={"window": window, "stride": 32})


@pytest.mark.parametrize("stride", [0, 65, -1, 1.5, None])
def test_a_stride_that_no_window_makes_is_refused(stride: object, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"can build \(stride"):
        opened(tmp_path, meta={"window": 64, "stride": stride})


@pytest.mark.parametrize("tokenizer", [b"", bytes(1 << 20), b"\x20\x01" * 5000, b"\x0a\x05\x0a\x03abc" * 66_000])
def test_a_tokenizer_that_is_none_is_refused(tokenizer: bytes, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="the tokenizer inside is unusable"):
        opened(tmp_path, tokenizer=tokenizer)


def test_no_memory_is_taken_for_bytes_that_a_file_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "model.bitgolf"
    path.write_bytes(b"not an artifact")
    with memory_below(4_000_000), pytest.raises(ArtifactError, match="not a bitgolf artifact"):
        read_artifact(path)
