"""The entropy coder: every bit comes back, the size is near the ideal one, and hostile messages are refused."""

import doctest
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import memory_below

from bitgolf.artifact import entropy_coder as coder
from bitgolf.artifact import float_coder, integer_coder, scale_model
from bitgolf.artifact.entropy_coder import Matrix, decode_floats, decode_matrices, encode_floats, encode_matrices
from bitgolf.artifact.frequency import Law
from bitgolf.artifact.message import Reader, WorkBudget, Writer
from bitgolf.artifact.parities import quantizers_of
from bitgolf.artifact.scale_model import ScaleModel
from bitgolf.artifact.sizes import entropy_bits
from bitgolf.artifact.symbol_counts import Integers
from bitgolf.artifact.trellis import trellis_levels
from bitgolf.errors import ArtifactError
from bitgolf.quantize.viterbi import trellis_quantize

# Existing artifacts are written in this format, so these messages must decode to the same numbers for ever.
GOLDEN_MATRICES = (
    "16fefdcaa019a59fbab8189f5e025dc1a04c701126cf6dea40aee4cfadee15ccc58eab05b7f2b99cf2449538c5424f50f42c"
    "59e432b275be53971a41832886883e5ceab3092b6f7bacfd0fa7c7b7bdfdbb8c2422e4a0107319b4a2e40508212ee854c972"
    "ac10c6626f86f60b4dd8826165a3282ee50f50620c5589376e2af3769cc7c46e998ad3a505e0a3c7639f710b466060920449"
    "4ca01b4f303847d0c2449d73da307f30d5ddb467609cc77ebd4310cbd019cb3597ec94b9b478e91651ac4dccfad26983fed7"
    "68871031e42147e396a6f32cb4214162c21066fe93463f99d74888da4f5d4b1473c35242ad50cd0c129d15318e46050d1a97"
    "5c1cacd9e6e3f2a804721018e0e2d7c5fb0f8b195b98a8864b44050471d97257dfaf3d00f6690f05c285d24403a2d50f6080"
    "9574ba2967452c754bf8ed84e28a1ae084a15a3a8db7b1093a957412fee4649066901f9630855202"
)
GOLDEN_FLOATS = (
    "7dfbf34c9264c037938b53004fab08835e020004e66f1ec6721745e0550876b03d7bd9c8ef35f9e125bebf3ea2fdb0a9215a"
    "83829b7e5bc15daeb04d10ca3f1ca8120000406d00ffff0f80aa02"
)


def gaussian(
    rows: int, columns: int, sigma: float, by_row: float = 0.0, by_column: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rounded Gaussians whose scales vary by row and by column (deviation of the logarithm), and those scales."""
    rng = np.random.default_rng(seed)
    r = np.exp(rng.normal(0, by_row, rows))
    c = np.exp(rng.normal(0, by_column, columns))
    deviations = sigma * r[:, None] * c
    return np.rint(rng.normal(0, 1, (rows, columns)) * deviations).astype(np.int32), deviations


def ideal_bits(codes: np.ndarray, deviations: np.ndarray) -> float:
    """Bits of a coder that knows the deviation of every single weight."""
    tail = np.vectorize(lambda x: 0.5 * math.erfc(x / math.sqrt(2)))
    outer, inner = (np.abs(codes) + 0.5) / deviations, (np.abs(codes) - 0.5) / deviations
    return float(-np.log2(tail(inner) - tail(outer)).sum())


def back(data: bytes, matrices: list[Matrix]) -> list[tuple[np.ndarray, np.ndarray | None]]:
    shapes: list[Any] = [matrix.codes.shape for matrix in matrices]
    return list(decode_matrices(data, shapes, [matrix.num_states for matrix in matrices]))


def require_round_trip(matrices: list[Matrix]) -> bytes:
    data = encode_matrices(matrices)
    for matrix, (codes, quantizers) in zip(matrices, back(data, matrices), strict=True):
        assert codes.dtype in (np.int16, np.int32) and np.array_equal(codes, matrix.codes)
        assert (quantizers is None) == (matrix.num_states == 0)
        if quantizers is not None:
            levels = trellis_levels(torch.from_numpy(codes), matrix.num_states).numpy()
            assert np.array_equal(2 * codes.astype(np.int32) + quantizers, levels)
    return data


def integers_of(kind: str, rows: int, columns: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """A matrix of integers up to `size`, of one of seven kinds."""
    shape = (rows, columns)
    if kind == "uniform":
        return rng.integers(-size, size + 1, shape)
    if kind == "sparse":
        return rng.integers(-size, size + 1, shape) * (rng.random(shape) < 0.05)
    if kind == "outlier":
        codes = rng.integers(-1, 2, shape)
        codes[rng.integers(rows), rng.integers(columns)] = size
        return codes
    if kind == "multiples":
        return np.clip(rng.integers(-9, 10, shape) * 8 + 3, -size, size)
    if kind == "one sign":
        return rng.integers(size // 2, size + 1, shape)
    if kind == "rank one":
        product = np.outer(rng.normal(0, 1, rows), rng.normal(0, 1, columns)) * size / 8
        return np.clip(np.rint(product + rng.normal(0, 0.5, shape)), -size, size)
    scales = np.exp(rng.normal(0, 1, (rows, 1))) * np.exp(rng.normal(0, 1, (1, columns)))
    return np.clip(np.rint(rng.normal(0, 1, shape) * scales * size / 50), -size, size)


@settings(max_examples=12, deadline=None)
@given(
    layout=st.lists(
        st.tuples(
            st.sampled_from(["uniform", "sparse", "outlier", "multiples", "one sign", "rank one", "scales"]),
            st.integers(1, 24),
            st.integers(1, 24),
            st.sampled_from([1, 2, 31, 31, 127, 127, 2047]),
            st.sampled_from([0, 8]),
        ),
        max_size=2,
    ),
    seed=st.integers(0, 10**6),
)
def test_any_integers_come_back(layout: list[tuple[str, int, int, int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrices = [
        Matrix(integers_of(kind, rows, columns, size, rng).astype(np.int16), states)
        for kind, rows, columns, size, states in layout
    ]
    require_round_trip(matrices)


@pytest.mark.parametrize("states", [0, 8])
@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((300, 200), dtype=np.int8),
        np.full((30, 20), -7, dtype=np.int8),
        np.full((3, 5), 32767, dtype=np.int16),
        np.full((3, 5), -32767, dtype=np.int16),
        np.array([[1]], dtype=np.int8),
        np.array([[0]], dtype=np.int16),
        np.arange(-32767, 32768, 5, dtype=np.int16)[None],
        np.arange(-32767, 32768, 5, dtype=np.int16)[:, None],
        np.array([[-32767, 32767]] * 3, dtype=np.int16),
        np.eye(70, dtype=np.int8) * 127,
        np.kron(np.eye(2, dtype=np.int16), np.full((600, 7), 900, dtype=np.int16)),
        gaussian(600, 40, 3.0)[0].astype(np.int8)[::-2, ::3],
        np.asfortranarray(gaussian(64, 80, 3.0)[0].astype(np.int8)),
        gaussian(64, 80, 3.0)[0].astype(np.int8).T,
    ],
    ids=lambda codes: f"{codes.dtype}{codes.shape}",
)
def test_odd_matrices(codes: np.ndarray, states: int) -> None:
    require_round_trip([Matrix(codes, states)])


def test_constant_matrices_take_a_few_bytes() -> None:
    assert len(encode_matrices([Matrix(np.zeros((2048, 512), dtype=np.int8))])) <= 4
    assert len(encode_matrices([Matrix(np.full((2048, 512), 31, dtype=np.int8))])) <= 6
    dead = gaussian(256, 256, 8.0)[0]
    dead[:, 64:] = 0
    assert len(encode_matrices([Matrix(dead)])) < 1.02 * entropy_bits(dead[:, :64]) / 8 + 40
    assert encode_matrices([]) == b"" and list(decode_matrices(b"", [], [])) == []


@pytest.mark.parametrize(
    ("sigma", "by_row", "by_column", "side_bits"),
    [
        (2.4, 0.0, 0.0, 0.0015),
        (9.0, 0.0, 0.0, 0.0015),
        (39.0, 0.0, 0.0, 0.0015),
        (2.4, 0.25, 0.0, 0.009),
        (2.4, 0.0, 0.25, 0.009),
        (2.4, 0.25, 0.25, 0.017),
        (9.0, 0.25, 0.15, 0.017),
        (0.6, 0.25, 0.25, 0.017),
        (0.35, 0.25, 0.0, 0.009),
        (2.4, 1.0, 0.0, 0.015),
        (2.4, 0.0, 1.0, 0.017),
        (1.2, 0.7, 0.3, 0.025),
        (0.8, 0.7, 0.1, 0.018),
    ],
)
def test_size_is_near_that_of_a_coder_that_knows_every_scale(
    sigma: float, by_row: float, by_column: float, side_bits: float
) -> None:
    codes, deviations = gaussian(384, 512, sigma, by_row, by_column, seed=3)
    size = 8 * len(encode_matrices([Matrix(codes)]))
    # Storing a class of a row or column takes about 3.5 bits: 0.009 bits per weight for rows of 512 or columns of 384.
    # It takes more if scales differ by octaves, down to rows of zeros.
    assert -0.002 < size / codes.size - ideal_bits(codes, deviations) / codes.size < side_bits


def test_within_three_thousandths_of_the_models_own_code_length() -> None:
    matrices = [Matrix(gaussian(256, 128, s, 0.3, 0.3, seed=i)[0]) for i, s in enumerate((1.0, 3.0, 12.0))]
    bits = 0.0
    for matrix in matrices:
        bits += scale_model.fit(Integers(matrix.codes)).bits
    size = 8 * len(encode_matrices(matrices))
    side = 8 * sum(math.ceil((256 + 128) * 4.2 / 8 + 24) for _ in matrices)
    assert bits < size < 1.003 * bits + side


def adaptive_bits(values: np.ndarray) -> float:
    """Ideal adaptive coding without any knowledge: each symbol by its count so far plus 1/2 (Krichevsky, Trofimov)."""
    values = values.reshape(-1) - values.min()
    num_symbols, bits = int(values.max()) + 1, 0.0
    counts = np.full(num_symbols, 0.5)
    for value in values:
        bits -= math.log2(counts[value] / counts.sum())
        counts[value] += 1
    return bits


@pytest.mark.parametrize("rows", [4, 16, 64])
def test_small_odd_tensors_beat_plain_adaptive_coding(rows: int) -> None:
    rng = np.random.default_rng(rows)
    for codes in (
        gaussian(rows, 32, 1.5, seed=rows)[0],
        np.rint(rng.laplace(0, 8, (rows, 32))).astype(np.int32),
        rng.choice([-5, 0, 0, 0, 3, 11], (rows, 32)),
    ):
        assert 8 * len(encode_matrices([Matrix(codes)])) < adaptive_bits(codes) + 120  # of which 60 describe the law


def test_a_learned_table_is_used_where_the_law_does_not_fit() -> None:
    codes = np.random.default_rng(0).choice([-9, -4, 0, 5, 12], (1, 4000), p=[0.1, 0.3, 0.1, 0.2, 0.3])
    assert 8 * len(encode_matrices([Matrix(codes)])) < 1.03 * entropy_bits(codes) + 100


def test_pruned_and_clipped_weights_have_spikes() -> None:
    codes = gaussian(256, 256, 12.0)[0].clip(-31, 31)
    codes[np.random.default_rng(1).random(codes.shape) < 0.1] = 0
    law = scale_model.fit(Integers(codes)).law
    assert law.spike_at == 0 and abs(law.spike / 2**16 - 0.1) < 0.02
    assert law.ends / 2**16 == pytest.approx(2 * 0.9 * 0.5 * math.erfc(31.5 / 12 / math.sqrt(2)), rel=0.2)
    assert 8 * len(encode_matrices([Matrix(codes)])) < 1.003 * entropy_bits(codes)


def test_a_mean_that_leaves_nothing_is_not_used() -> None:
    """The format has no mean beside a constant."""
    rng = np.random.default_rng(0)
    mean = np.append(127, rng.integers(-127, 128, 63))
    codes = np.outer(rng.integers(-20, 21, 300), mean)
    rank_one = scale_model._rank_one(codes)
    assert rank_one is not None and np.array_equal(scale_model.predict(*rank_one), codes)
    require_round_trip([Matrix(codes)])
    codes[7, 9] += 1
    assert len(require_round_trip([Matrix(codes)])) < 400


def test_a_mean_direction_is_found() -> None:
    """Embedding rows of tokens that never occurred in training are nearly the same."""
    rng = np.random.default_rng(2)
    codes = rng.normal(0, 30, (400, 96))
    codes[:150] = rng.normal(0, 20, 96) + rng.normal(0, 1, (150, 96))
    codes = np.rint(codes).astype(np.int32)
    model = scale_model.fit(Integers(codes))
    assert model.mean is not None and model.coefficients is not None
    assert np.count_nonzero(model.coefficients[:150]) == 150 > 4 * np.count_nonzero(model.coefficients[150:])
    data = require_round_trip([Matrix(codes)])
    assert 8 * len(data) < 250 * 96 * 7.0 + 150 * 96 * 2.7


@pytest.mark.parametrize("step", [0.3, 0.8, 2.0])
def test_trellis_codes_take_their_entropy_given_the_quantizer(step: float) -> None:
    x = torch.randn(700, 128, generator=torch.Generator().manual_seed(1))
    levels = trellis_quantize((x / (step / 2)).T.contiguous(), 8).T.to(torch.int32)
    codes = (levels >> 1).numpy().astype(np.int16)
    data = require_round_trip([Matrix(codes, 8)])
    given_quantizer = sum(entropy_bits(codes[(levels & 1).numpy() == z]) for z in (0, 1))
    assert 8 * len(data) < given_quantizer + 0.002 * codes.size + 200


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 1200), st.integers(1, 5), st.integers(0, 10**6))
def test_quantizers_follow_from_parities(rows: int, columns: int, seed: int) -> None:
    codes = torch.randint(-9, 10, (rows, columns), generator=torch.Generator().manual_seed(seed))
    expected = trellis_levels(codes, 8) - 2 * codes
    assert np.array_equal(quantizers_of((codes & 1).numpy(), 8), expected.numpy())


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["any bits", "gains", "normal", "octaves", "few", "positive"]),
            st.sampled_from([(), (1,), (7,), (64,), (2, 16), (2, 3, 20), (1, 1, 1, 1), (5, 1)]),
        ),
        max_size=4,
    ),
    st.integers(0, 10**6),
)
def test_any_floats_come_back(layout: list[tuple[str, tuple[int, ...]]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    tensors = []
    for kind, shape in layout:
        if kind == "any bits":  # infinities, NaN, subnormals, both zeros
            values = rng.integers(0, 1 << 16, shape).astype("<u2").view("<f2")
        elif kind == "octaves":
            values = np.float32(0.37) * 2.0 ** np.rint(rng.normal(0, 4, shape) / 8)
        elif kind == "few":
            values = rng.choice([-1.0, -0.0, 0.0, 1.0], shape)
        else:
            values = rng.normal(0, 0.1, shape) + (kind == "gains")
            values = np.abs(values) if kind == "positive" else values
        tensors.append(np.asarray(values, dtype="<f2").reshape(shape))
    data = encode_floats(tensors)
    restored = decode_floats(data, [tensor.shape for tensor in tensors])
    for before, after in zip(tensors, restored, strict=True):
        assert after.dtype == np.dtype("<f2") and after.shape == before.shape
        assert before.tobytes() == after.tobytes()


def test_floats_of_any_layout_in_memory() -> None:
    values = np.random.default_rng(0).normal(0, 1, (6, 40)).astype("<f2")
    for tensor in (values.T, values[::-2, ::3], np.asfortranarray(values), values[:, :1], values[:1]):
        (restored,) = decode_floats(encode_floats([tensor]), [tensor.shape])
        assert np.array_equal(restored, tensor)


def test_floats_take_the_bits_of_their_noise() -> None:
    rng = np.random.default_rng(0)
    gains = [rng.normal(1, 0.01, 512).astype("<f2") for _ in range(8)]
    above, below = math.log2(10.24 * 4.13), math.log2(20.48 * 4.13)  # steps are 2^-10 above 1, 2^-11 below
    assert 8 * len(encode_floats(gains)) / 4096 < 0.5 * (above + below) + 0.3
    assert 8 * len(encode_floats([np.ones(2048, dtype="<f2")])) <= 64
    octaves = (0.0137 * 2.0 ** (np.rint(rng.normal(0, 3, 512)) / 8)).astype("<f2")
    assert 8 * len(encode_floats([octaves])) < 512 * math.log2(3 * 4.13) + 350
    half_and_half = np.stack([rng.normal(1, 0.01, 256), rng.normal(0, 1e-3, 256)]).astype("<f2")
    assert len(encode_floats([half_and_half])) < len(encode_floats([half_and_half.reshape(-1)]))


def test_the_example_of_the_module_runs() -> None:
    assert doctest.testmod(coder) == (0, 9)


def test_messages_of_the_format_decode_to_the_same_for_ever() -> None:
    matrices = [Matrix(gaussian(24, 20, 3.0, 0.5, 0.5, seed=5)[0]), Matrix(gaussian(40, 9, 1.2, seed=6)[0], 8)]
    floats = [np.linspace(-1, 1, 40).astype("<f2").reshape(2, 20), np.ones(3, dtype="<f2")]
    for (codes, _), matrix in zip(back(bytes.fromhex(GOLDEN_MATRICES), matrices), matrices, strict=True):
        assert np.array_equal(codes, matrix.codes)
    restored = decode_floats(bytes.fromhex(GOLDEN_FLOATS), [tensor.shape for tensor in floats])
    assert all(np.array_equal(before, after) for before, after in zip(floats, restored, strict=True))


def test_more_than_the_bytes_can_hold_is_refused_at_once() -> None:
    data = encode_matrices([Matrix(np.ones((2, 2), dtype=np.int8))])
    with memory_below(1 << 18):
        with pytest.raises(ArtifactError, match="cannot hold"):
            list(decode_matrices(data, [(1 << 20, 1 << 20)], [0]))
        with pytest.raises(ArtifactError, match="cannot hold"):
            decode_floats(data, [(1 << 40,)])


def demanding_message(num_matrices: int, states: int, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Matrices of 8 x 8 small integers, each coded with a table of 65,536 symbols for either class of row."""
    law = Law(-(1 << 15), (1 << 15) - 1, 16, 1500)
    with monkeypatch.context() as patched:

        def fit(integers: Integers) -> ScaleModel:
            if len(integers.values) == 1:
                return scale_model.fit(integers)
            return ScaleModel(0, 0, law, rows=np.arange(8) % 2)

        patched.setattr(integer_coder, "fit", fit)
        out = Writer()
        for _ in range(num_matrices):
            integer_coder.put_integers(out, SMALL, states)
        assert out.work > (1 << 17) * num_matrices
        return out.finish()


SMALL = np.arange(64).reshape(8, 8) % 5


@pytest.mark.parametrize("states", [0, 8])
def test_computing_is_limited_by_the_length_of_the_message(states: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes can ask for a table that takes milliseconds to compute; a few thousand bytes for many of them."""
    monkeypatch.setattr(coder, "_FREE_WORK", 1 << 20)
    few, many = (demanding_message(n, states, monkeypatch) for n in (2, 9))
    decoded = decode_matrices(few, [(8, 8)] * 2, [states] * 2)
    assert all(np.array_equal(codes, SMALL) for codes, _ in decoded)
    with pytest.raises(ArtifactError, match="more computing than its size allows"):
        list(decode_matrices(many, [(8, 8)] * 9, [states] * 9))


@pytest.mark.parametrize("matrices", [[np.eye(3, dtype=np.int16)], [np.arange(600, dtype=np.int16).reshape(600, 1)]])
def test_writers_and_readers_count_the_same_computing(matrices: list[np.ndarray]) -> None:
    for states in (0, 8):
        out, budget = Writer(), WorkBudget(None)
        for codes in matrices:
            integer_coder.put_integers(out, codes, states)
        inp = Reader(out.finish(), budget)
        for codes in matrices:
            integer_coder.get_integers(inp, codes.shape, states)  # type: ignore[arg-type]
        assert budget.used == out.work >= integer_coder._MODEL_WORK


def test_a_writer_refuses_messages_that_readers_would_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = [Matrix(np.array([[-32767, 32767], [3, 0]], dtype=np.int16), 8)] * 2
    require_round_trip(wide)
    monkeypatch.setattr(coder, "_FREE_WORK", 1 << 14)
    with pytest.raises(ArtifactError, match="choose another compressor than range"):
        encode_matrices(wide)


def test_large_tables_of_floats_do_not_get_a_model_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model takes 20 ms to fit: minutes for a table of embeddings that is kept in fp16."""
    table = np.random.default_rng(0).normal(0, 1, (256, 64)).astype("<f2")
    fitted: list[int] = []
    put = float_coder.put_integers

    def count(out: Writer, values: np.ndarray) -> None:
        fitted.append(values.size)
        put(out, values)

    monkeypatch.setattr(float_coder, "put_integers", count)
    data = encode_floats([table])
    assert len(fitted) < 10
    assert decode_floats(data, [table.shape])[0].tobytes() == table.tobytes()
    assert 8 * len(data) < 14 * table.size


@pytest.mark.parametrize("states", [0, 8])
def test_garbage_gives_arrays_or_an_error(states: int) -> None:
    """Random messages, and real ones with bytes changed: what is decoded has the right shape and range."""
    rng = np.random.default_rng(states)
    real = encode_matrices([Matrix(gaussian(12, 9, 3.0, 0.5, 0.5)[0], states)])
    shapes = [(12, 9), (1, 5), (40, 1)]
    for attempt in range(200):
        if attempt % 2:
            data = bytearray(real)
            for place in rng.integers(0, len(data), rng.integers(1, 4)):
                data[place] = rng.integers(1, 256)
        else:
            data = bytearray(rng.integers(1, 256, rng.integers(0, 60), dtype=np.uint8))
        try:
            for (codes, _), shape in zip(decode_matrices(bytes(data), shapes[:1], [states]), shapes, strict=False):
                assert codes.shape == shape and np.abs(codes).max() <= coder.MAX_CODE
        except ArtifactError as error:
            assert str(error)
        try:
            assert [x.shape for x in decode_floats(bytes(data), shapes)] == shapes
        except ArtifactError as error:
            assert str(error)


def test_values_beyond_those_of_any_writer_are_refused() -> None:
    """Products of a large mean and large coefficients could leave 32 bits."""
    out = Writer()
    large = np.full(6, 1 << 17)
    law = Law(-3, 4, 16, 700)
    integer_coder._put_model(out, ScaleModel(0, 0, law, np.zeros(6, np.int64), None, large, large), True)
    out.plain(np.zeros(64, dtype=np.int64), 16)
    with pytest.raises(ArtifactError, match="impossible way"):
        list(decode_matrices(out.finish(), [(6, 6)], [0]))


def test_floats_beyond_16_bits_are_refused() -> None:
    out = Writer()
    out.plain(np.array([0]), 2)  # coded as ordered integers
    integer_coder.put_integers(out, np.array([[5, 40_000, 7]]))
    with pytest.raises(ArtifactError, match="impossible way"):
        decode_floats(out.finish(), [(3,)])


def test_a_palette_is_no_larger_than_there_are_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the palette was read")

    monkeypatch.setattr(float_coder, "get_integers", never)
    for size, count in ((1 << 16, 1 << 18), (4, 4)):
        out = Writer()
        out.plain(np.array([3]), 2)  # coded by a palette
        out.number(size, 4)  # one less than its size
        out.signed(0, 12)
        with pytest.raises(ArtifactError, match="impossible way"):
            decode_floats(out.finish(), [(count,)])


def test_a_parity_without_probability_is_refused() -> None:
    out = Writer()
    integer_coder._put_model(out, ScaleModel(0, 0, Law(-4, 3, 16, 700)), True)
    out.plain(np.array([0]), 1)  # one table for all parities
    out.plain(np.array([0]), 16)  # its share of even codes
    out.plain(np.zeros(64, dtype=np.int64), 16)
    with pytest.raises(ArtifactError, match="no probability"):
        list(decode_matrices(out.finish(), [(6, 6)], [8]))


def test_the_mean_is_rounded_to_the_nearest() -> None:
    assert scale_model.predict(np.array([32, 31, -33, 96]), np.array([1, 2])).tolist() == [
        [1, 1],
        [0, 1],
        [-1, -1],
        [2, 3],
    ]


def test_descriptions_that_ask_for_too_much_are_refused() -> None:
    """A writer without checks exceeds each limit of the description."""

    def describe(model: ScaleModel, trellis: int = 0) -> None:
        out = Writer()
        integer_coder._put_model(out, model, True)
        out.plain(np.zeros(64, dtype=np.int64), 16)
        with pytest.raises(ArtifactError, match=r"impossible way|code beyond"):
            list(decode_matrices(out.finish(), [(6, 6)], [trellis]))

    sound = Law(-3, 4, 16, 700)
    describe(ScaleModel(0, 0, sound, rows=np.full(6, 200), columns=np.full(6, 200)))
    classes = np.array([0, 1, 2, 3, 4, 300])
    describe(ScaleModel(1 << 18, 0, Law(0, 0, 16, 0)))
    describe(ScaleModel(40_000, 0, Law(0, 0, 16, 0)))
    describe(ScaleModel(1 << 18, 0, sound))
    describe(ScaleModel(0, 17, sound))
    describe(ScaleModel(0, 0, Law(-3, 4, 16, 700, shift=17)))
    describe(ScaleModel(0, 0, Law(-3, 4, 40, 700)))
    describe(ScaleModel(0, 0, Law(-3, 4, 16, 1900)))
    describe(ScaleModel(0, 0, Law(-3, 1 << 19, 16, 700)))
    describe(ScaleModel(0, 0, Law(1 << 18, (1 << 18) + 5, 16, 700)))
    describe(ScaleModel(0, 0, Law(-3, 4, 16, 700, ends=40_000, spike=20_000, spike_at=0)))
    describe(ScaleModel(0, 0, Law(-3, 4, 16, 700, spike=20, spike_at=5)))
    describe(ScaleModel(0, 0, sound, rows=classes))
    describe(ScaleModel(0, 0, sound, columns=classes - 1))
    describe(ScaleModel(0, 0, Law(-3, 1 << 17, 16, 700), rows=classes.clip(0, 200)))
    for law in (Law(-2, 4, 16, 700), Law(-3, 4, 16, 700), Law(-4, 3, 16, 700, shift=1)):
        describe(ScaleModel(0, 0, law), trellis=8)
    describe(ScaleModel(0, 1, Law(-4, 3, 16, 700)), trellis=8)


# What a header says of a law: the stride, the shift, the lowest symbol from -symbols / 2 on, the power from that of the
# Gaussian on, the scale, the ends and the spike in parts of 2^16, and its place from the lowest symbol on.
LAW = {"stride": 1, "shift": 2, "low": 3, "beta": -4, "scale": 100, "ends": 5, "spike": 6, "spike_at": 7}
PLAIN_LAW = {"stride": 0, "shift": 0, "low": 0, "spike": 0}


@pytest.mark.parametrize(
    ("num_symbols", "changes", "allowed"),
    [
        (255, {}, True),
        (3, PLAIN_LAW | {"stride": 16}, True), (3, PLAIN_LAW | {"stride": 17}, False),
        (3, PLAIN_LAW | {"shift": 16}, True), (3, PLAIN_LAW | {"shift": 17}, False),
        (255, {"beta": -8}, True), (255, {"beta": -9}, False), (255, {"beta": 23}, True), (255, {"beta": 24}, False),
        (255, {"scale": 28 * 64}, True), (255, {"scale": 28 * 64 + 1}, False),
        (1 << 18, PLAIN_LAW, True), ((1 << 18) + 1, PLAIN_LAW, False),
        (255, {"low": 32_640}, True), (255, {"low": 32_641}, False), (255, {"low": -32_640}, True),
        (255, {"low": -32_641}, False),
        (255, {"ends": 49_146}, True), (255, {"ends": 49_147}, False),
        (255, {"spike_at": 254}, True), (255, {"spike_at": 255}, False), (255, {"spike_at": 255, "spike": 0}, True),
    ],
)  # fmt: skip
def test_the_law_of_a_header_has_bounds(num_symbols: int, changes: dict[str, int], allowed: bool) -> None:
    values = LAW | changes
    fields = iter([values[name] for name in ("stride", "shift", "low", "beta", "ends", "spike", "spike_at")])
    reader: Any = SimpleNamespace(
        number=lambda: next(fields), signed=lambda: next(fields), plain=lambda count, bits: [values["scale"]]
    )
    if not allowed:
        with pytest.raises(ArtifactError):
            integer_coder._get_law(reader, num_symbols)
        return
    stride, law = integer_coder._get_law(reader, num_symbols)
    low = values["low"] - num_symbols // 2
    place = low + values["spike_at"] if values["spike"] else 0
    assert (stride, law.low, law.high) == (values["stride"], low, low + num_symbols - 1)
    assert (law.beta, law.scale, law.shift) == (16 + values["beta"], values["scale"], values["shift"])
    assert (law.ends, law.spike, law.spike_at) == (values["ends"], values["spike"], place)


def test_messages_that_readers_would_refuse_are_not_written() -> None:
    """Any file may take 2^24 units of work, and 8 more per byte of its messages."""
    coder.require_readable((1 << 24) + 8_000, 1_000)
    with pytest.raises(ArtifactError, match="would take 16785217 units of computing, and 16785216 are allowed"):
        coder.require_readable((1 << 24) + 8_001, 1_000)
