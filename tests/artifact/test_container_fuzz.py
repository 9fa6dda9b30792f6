"""Hostile artifacts: whatever the bytes, reading gives an artifact or `ArtifactError`, fast and within bounds."""

import copy
import json
import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from memory import memory_below
from surgery import mutations, put_together, rich_contents, take_apart, tiny_contents

from bitgolf.artifact import compressors, header
from bitgolf.artifact import entropy_coder as coder
from bitgolf.artifact.container import encode_artifact, read_artifact
from bitgolf.artifact.streams import CODED
from bitgolf.errors import ArtifactError, ConfigError


def outcome(data: bytes) -> str:
    """What reading `data` leads to; anything but a sound artifact or ArtifactError fails the test."""
    try:
        artifact = read_artifact(data, max_bytes=1 << 24)
    except ArtifactError as error:
        assert str(error)
        result = str(error)
    else:
        for tensor in artifact.tensors.values():
            assert tensor.dtype == torch.float32 and bool(torch.isfinite(tensor).all())
        result = "valid"
    return result


def test_every_truncation_and_any_extension_is_refused(artifact: bytes) -> None:
    assert outcome(artifact) == "valid"
    for length in range(len(artifact)):
        assert outcome(artifact[:length]) != "valid", length
    assert "followed by other bytes" in outcome(artifact + b"\0")
    assert "followed by other bytes" in outcome(artifact + artifact)


def test_every_single_byte_matters(artifact: bytes) -> None:
    for position in range(len(artifact)):
        for flip in (1, 0x80):
            bad = bytearray(artifact)
            bad[position] ^= flip
            assert outcome(bytes(bad)) != "valid", position


@pytest.mark.parametrize(("compressor", "count"), [("zstd", 1200), ("lzma", 400), ("zlib", 400), ("range", 150)])
def test_mutations_end_in_an_error_or_a_sound_artifact(compressor: str, count: int) -> None:
    """Damaged bytes, headers and streams, half of them with repaired checksums. benchmarks/fuzz.py reads many more."""
    sound = encode_artifact(**rich_contents() if compressor == "range" else tiny_contents(), compressor=compressor)[0]
    damaged = mutations(sound, random.Random(5))
    results = {outcome(sound)} | {outcome(next(damaged)).split(" ")[0] for _ in range(count)}
    assert {"valid", "stream", "header:"} <= results


WEIRD: list[Any] = [
    None, True, False, -1, 0, 1, 7, 2**31, 2**62, 2**70, 1e308, 0.5, "", "int8", "x" * 300, [], {}, [[]],
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of every node of a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, child in children for p in places(child, (*path, key)))]


def test_every_header_field_with_every_weird_value(artifact: bytes) -> None:
    described, streams = take_apart(artifact)
    for path in places(described)[1:]:
        if path[0] in ("meta", "model_config", "tokenizer_meta") and len(path) > 1:
            continue  # free-form
        for value in WEIRD:
            bad = copy.deepcopy(described)
            parent = bad
            for key in path[:-1]:
                parent = parent[key]
            changed = parent[path[-1]] != value or type(parent[path[-1]]) is not type(value)
            parent[path[-1]] = value
            result = outcome(put_together(bad, streams, repair=False))
            if changed and value != {}:  # an empty object is a sound meta, config or tokenizer_meta
                # "int8" is also a possible name or group, and a wider grid holds the same codes.
                renamed = value == "int8" and path[0] == "tensors" and path[-1] in (0, 1, 2)
                assert result != "valid" or renamed, (path, value)


def change(described: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(described), **fields}


def test_contradictions_are_named(artifact: bytes) -> None:
    described, streams = take_apart(artifact)
    rows = described["tensors"]
    position = {row[0]: i for i, row in enumerate(rows)}

    def with_row(name: str, row: Any) -> dict[str, Any]:
        bad = copy.deepcopy(described)
        bad["tensors"][position[name]] = row
        return bad

    missing = change(described)
    del missing["meta"]
    cases: list[tuple[Any, str]] = [
        (change(described, tensors=[*rows, rows[0]]), "occurs twice"),
        (change(described, extra=1), "keys"),
        (missing, "keys"),
        (change(described, compressor="zpaq"), "unknown compressor 'zpaq'"),
        (with_row("mix", ["mix", "int13", "g", [2, 3]]), "unknown kind 'int13'"),
        (with_row("mix", ["mix", "fp32", "g", [2, 3, 0]]), "from 1 to"),
        (with_row("mix", ["mix", "fp32", "g", [2, 3, True]]), "whole number"),
        (with_row("mix", ["mix", "fp32", "g", [1, 1, 1, 1, 24]]), "does not suit"),
        (with_row("mix", ["mix", "int8", "g", [24]]), "does not suit int8"),
        (with_row("mix", ["mix", "fp32", "g", [2, 3, 4], 0, 4]), "do not suit fp32"),
        (with_row("mix", ["mix", "fp32", "g", [2, 3, 4], 1, 0]), "do not suit fp32"),
        (with_row("mix", ["mix", "int8", "g", [2, 12], 2, 0]), "do not suit int8"),
        (with_row("mix", ["mix", "int8", "g", [2, 12], 0, 5]), "do not suit int8"),
        (with_row("mix", ["mix", "int8", "g", [2, 12], True, 0]), "flag True must be a whole number"),
        (with_row("mix", ["mix", "int8", "g", [2, 12], 0, -4]), "flag -4 must be a whole number"),
        (with_row("mix", ["mix", "fp32", "g", [2**61, 2**61]]), "elements, and streams of"),
        (with_row("mix", ["mix", "int8", "g", [1, (1 << 20) + 1]]), "1048577 columns, 1048576 are allowed"),
        (with_row("mix", ["mix", "fp32", "g", [2, 3, 4], 5]), "must be"),
        (with_row("mix", ["m\u0131x", "fp32", "g", [2, 3, 4]]), "characters"),
        (with_row("mix", ["mix\n", "fp32", "g", [2, 3, 4]]), "characters"),
        (with_row("mix", ["mix", "fp32", "../g", [2, 3, 4]]), "characters"),
        (with_row("mix", ["mix", "fp32", "g", [2, 3, 5]]), "stream fp32"),
        (change(described, tokenizer_bytes=1 << 40), "tokenizer of 1099511627776 bytes"),
        (change(described, tokenizer_bytes=5), "stream tokenizer"),
        (b"[" * 200_000, "more than 64 nested"),
        (b'{"meta": NaN}', "NaN"),
        (b'{"meta": 1e999}', "not finite"),
        (b'{"meta": {"a": 1, "a": 2}}', "occurs twice"),
        (b'{"meta": ' + b"9" * 5000 + b"}", "5,000 digits"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"meta": "\\ud800"}', "lone surrogate"),
        (b"3", "keys"),
    ]
    for bad, message in cases:
        assert message in outcome(put_together(bad, streams)), message
    widest = outcome(put_together(with_row("mix", ["mix", "int8", "g", [1, 1 << 20]]), streams))
    assert widest and "columns" not in widest
    assert "streams must list" in outcome(put_together(change(described, streams=[]), streams, repair=False))


def test_bad_values_inside_sound_streams_are_named(artifact: bytes) -> None:
    described, streams = take_apart(artifact)
    decoded = header.decode(json.dumps(described).encode(), file_bytes=len(artifact), max_bytes=1 << 30)
    names, raws = [s.name for s in decoded.streams], {s.name: s.raw_bytes for s in decoded.streams}

    def with_stream(name: str, raw: bytes) -> str:
        bad = list(streams)
        bad[names.index(name)] = compressors.compress("zstd", raw)
        return outcome(put_together(described, bad))

    num_scales = raws["scales"] // 2
    for value in (np.nan, np.inf, 0.0, -1.0):
        planes = np.full(num_scales, value, dtype="<f2").view(np.uint8).reshape(-1, 2).T.tobytes()
        assert "stream scales: tensor embedding.weight has a row scale" in with_stream("scales", planes)
    q = "codes/q"
    assert "code outside the int6 grid" in with_stream(q, bytes([32]) * raws[q])
    assert "code outside the int8 grid" in with_stream("codes/embedding", b"\x80" * raws["codes/embedding"])
    for name in ("fp16", "fp32"):
        assert "holds NaN or infinite" in with_stream(name, b"\xff" * raws[name])
    assert "declared" in with_stream("fp16", bytes(raws["fp16"] + 1))
    assert "stream fp32" in with_stream("fp32", bytes(raws["fp32"] - 1))


def test_bad_values_inside_sound_messages_are_named(rich_contents: dict[str, Any]) -> None:
    data, sizes = encode_artifact(**rich_contents, compressor="range")
    described, streams = take_apart(data)
    names, entries = list(sizes.streams), described["tensors"]

    def with_stream(name: str, stream: bytes) -> str:
        bad = list(streams)
        bad[names.index(name)] = stream
        return outcome(put_together(described, bad))

    def shapes(group: str) -> list[tuple[int, int]]:
        return [tuple(row[3]) for row in entries if row[2] == group and row[1].startswith("int")]

    counts = [n for row in entries if row[1].startswith("int") for n in row[3][: 2 if row[4:] and row[4] else 1]]
    for value in (np.nan, np.inf, 0.0, -1.0):
        scales = [np.full(n, value, dtype="<f2") for n in counts]
        result = with_stream("scales", CODED + coder.encode_floats(scales))
        assert "stream scales: tensor constant.weight has a row scale" in result
    scales = [np.full(n, 1.0, dtype="<f2") for n in counts]
    scales[2][3] = -1.0
    assert "blocks.0.down.weight has a column scale" in with_stream("scales", CODED + coder.encode_floats(scales))
    for group, code, kind in (("embedding", 128, "int8"), ("q", -32, "int6 grid")):
        message = coder.encode_matrices([coder.Matrix(np.full(shape, code)) for shape in shapes(group)])
        assert f"code outside the {kind}" in with_stream(f"codes/{group}", CODED + message)
    too_large = coder.encode_matrices([coder.Matrix(np.full(shape, 40_000)) for shape in shapes("wide")])
    assert "code beyond +-32767" in with_stream("codes/wide", CODED + too_large)
    floats = [np.full(row[3], np.nan, dtype="<f2") for row in entries if row[1] == "fp16"]
    assert "holds NaN or infinite" in with_stream("fp16", CODED + coder.encode_floats(floats))
    longer = coder.encode_floats([*floats, floats[0]])
    assert "longer than its contents" in with_stream("fp16", CODED + longer)
    for name in ("fp32", "tokenizer", "fp16", "scales", "codes/wide"):
        assert f"stream {name}" in with_stream(name, b"")
        assert f"stream {name}" in with_stream(name, b"\7" + bytes(20))
        assert f"stream {name}" in with_stream(name, CODED)


def test_a_header_that_asks_for_terabytes_allocates_nothing(artifact: bytes) -> None:
    described, streams = take_apart(artifact)
    rows = described["tensors"]
    requests = [
        change(described, tensors=[*rows, ["big", "int8", "big", [1 << 20, 1 << 21]]]),
        change(described, tensors=[*rows, ["big", "fp32", "big", [1 << 40]]]),
        change(described, tokenizer_bytes=1 << 42),
    ]
    # Below max_bytes, but more than the streams can hold.
    modest = change(described, tensors=[*rows, ["big", "fp32", "big", [1 << 20]]])
    for bad in (*requests, modest):
        data = put_together(bad, streams)
        with memory_below(1 << 20):
            assert outcome(data) != "valid"
    with pytest.raises(ArtifactError, match=r"asks for .* bytes in memory"):
        read_artifact(artifact, max_bytes=1000)


def test_a_header_larger_than_allowed_is_refused_unread(artifact: bytes) -> None:
    data = put_together(b" " * (header.MAX_HEADER_BYTES + 1), [])
    with memory_below(1 << 18):
        assert "above the limit" in outcome(data)


def test_files_larger_than_allowed_are_refused_unread(artifact: bytes, tmp_path: Any) -> None:
    path = tmp_path / "sparse.bitgolf"
    with path.open("wb") as handle:
        handle.write(artifact)
        handle.truncate(1 << 33)
    with pytest.raises(ArtifactError, match="8589934592 bytes"):
        read_artifact(path)


@pytest.mark.parametrize("compressor", ["zstd", "range"])
def test_mutations_stay_within_the_declared_memory(contents: dict[str, Any], compressor: str) -> None:
    described, streams = take_apart(encode_artifact(**contents, compressor=compressor)[0])
    rng = random.Random(4)
    with memory_below(1 << 20):
        for _ in range(80):
            bad = [bytes(b ^ (rng.randrange(256) if rng.random() < 0.05 else 0) for b in s) for s in streams]
            outcome(put_together(described, bad))


def test_a_compressor_that_is_not_installed_is_named(artifact: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "brotli", None)
    described, streams = take_apart(artifact)
    with pytest.raises(ConfigError, match=r"brotli>=1\.2"):
        read_artifact(put_together(change(described, compressor="brotli"), streams))
