"""Messages: what is pushed comes back, the length is ideal, and an independent coder reads the same symbols."""

import threading
from bisect import bisect_right

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.artifact import ans
from bitgolf.artifact.compressors import compress, decompress, missing_package
from bitgolf.artifact.entropy_coder import Matrix, decode_matrices, encode_matrices
from bitgolf.artifact.frequency import normalize
from bitgolf.artifact.message import Reader, WorkBudget, Writer
from bitgolf.artifact.plain_ans import PlainDecoder
from bitgolf.errors import ArtifactError, ConfigError


def reader(data: bytes) -> Reader:
    return Reader(data, WorkBudget(None))


def popped_by_hand(data: bytes, tables: list[list[int]]) -> tuple[list[int], int]:
    """Symbols of an ANS stack (64-bit state, 32-bit words, 24-bit tables) and the state that is left."""
    words = list(np.frombuffer(data + bytes(-len(data) % 4), dtype="<u4"))
    state, symbols = 0, []

    def refill() -> None:
        nonlocal state
        while state < 1 << 32 and words:
            state = state << 32 | int(words.pop())

    refill()
    for table in tables:
        lower = np.concatenate([[0], np.cumsum(table)]).tolist()
        quantile = state & 0xFFFFFF
        symbol = bisect_right(lower, quantile) - 1
        state = (state >> 24) * table[symbol] + quantile - lower[symbol]
        symbols.append(symbol)
        refill()
    return symbols, state + len(words)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(2, 400), st.integers(0, 300))
def test_tables_are_taken_over_unchanged(seed: int, num_symbols: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    table = normalize(rng.integers(0, 1 << int(rng.integers(1, 30)), (1, num_symbols)))[0]
    symbols = rng.choice(num_symbols, count, p=table / 2**24)
    out = Writer()
    out.symbols(symbols, table)
    data = out.finish()
    assert popped_by_hand(data, [table.tolist()] * count) == (symbols.tolist(), 0)
    inp = reader(data)
    assert np.array_equal(inp.symbols(count, table), symbols)
    inp.finish()
    assert out.bits == pytest.approx(-np.log2(table[symbols] / 2**24).sum())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("number"), st.integers(0, 1 << 30), st.integers(0, 12)),
            st.tuples(st.just("signed"), st.integers(-(1 << 30), 1 << 30), st.integers(0, 12)),
            st.tuples(st.just("plain"), st.integers(0, 1 << 30), st.integers(0, 16)),
        ),
        max_size=40,
    )
)
def test_anything_comes_back_in_order(pieces: list[tuple[str, int, int]]) -> None:
    out = Writer()
    for kind, value, bits in pieces:
        if kind == "plain":
            out.plain(np.array([value & (1 << bits) - 1] * 3), bits)
        else:
            getattr(out, kind)(value, bits)
    inp = reader(out.finish())
    for kind, value, bits in pieces:
        if kind == "plain":
            assert inp.plain(3, bits).tolist() == [value & (1 << bits) - 1] * 3
        else:
            assert getattr(inp, kind)(bits) == value
    inp.finish()


def test_length_is_the_ideal_one() -> None:
    rng = np.random.default_rng(0)
    table = normalize(rng.integers(0, 1 << 20, (1, 40)))[0]
    out, dry = Writer(), Writer(dry=True)
    for writer in (out, dry):
        writer.symbols(np.random.default_rng(1).choice(40, 200_000, p=table / 2**24), table)
        writer.number(1234, 3)
        writer.plain(np.arange(1000) % 32, 5)
    size = len(out.finish())
    assert out.bits == dry.bits
    assert 0 <= size - out.bits / 8 < 4 + 1e-4 * size
    assert dry.finish() == b""


def test_a_number_takes_about_twice_its_digits() -> None:
    for value, low_bits, bits in [(0, 0, 1), (1, 0, 3), (6, 0, 5), (0, 4, 5), (15, 4, 5), (16, 4, 7), (1 << 20, 0, 41)]:
        out = Writer(dry=True)
        out.number(value, low_bits)
        assert out.bits == bits


def test_messages_that_do_not_end_where_they_should() -> None:
    out = Writer()
    out.plain(np.arange(100) % 16, 4)
    data = out.finish()
    inp = reader(data)
    inp.plain(50, 4)
    with pytest.raises(ArtifactError, match="longer than its contents"):
        inp.finish()
    with pytest.raises(ArtifactError, match="zero byte"):
        reader(data + b"\0")
    assert reader(b"").plain(10, 16).tolist() == [0] * 10  # an empty stack pops zeros


def test_a_budget_is_shared_and_ends() -> None:
    budget = WorkBudget(100)
    first, second = Reader(b"", budget), Reader(b"", budget)
    first.count_work(60)
    second.count_work(40)
    with pytest.raises(ArtifactError, match="more computing than its size allows"):
        first.count_work(1)
    assert (budget.used, WorkBudget(None).limit) == (101, None)


def test_endless_numbers_are_refused() -> None:
    with pytest.raises(ArtifactError, match="endless"):
        reader(b"").number()


def test_panics_become_errors_and_interrupts_do_not() -> None:
    import constriction

    with pytest.raises(ArtifactError, match="damaged"):
        ans._guarded(lambda: constriction.stream.model.Uniform(1))  # panics: a BaseException
    with pytest.raises(ArtifactError, match="damaged"):
        ans._guarded(lambda: constriction.stream.stack.AnsCoder(np.zeros(1, dtype=np.uint32)))
    with pytest.raises(KeyboardInterrupt):
        ans._guarded(_interrupt)


def _interrupt() -> None:
    raise KeyboardInterrupt


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(1, 400), st.integers(0, 300)), max_size=6),
    st.lists(st.integers(0, 2**32 - 1), max_size=3),
)
def test_plain_python_pops_what_constriction_pops(seed: int, sizes: list[tuple[int, int]], damage: list[int]) -> None:
    rng = np.random.default_rng(seed)
    out = Writer()
    tables: list[tuple[ans.Table, int]] = []
    for size, count in sizes:
        table = normalize(rng.integers(1, 1_000, (1, size)) ** rng.integers(1, 4))[0]
        out.symbols(rng.integers(0, size, count), table)
        out.plain(rng.integers(0, 1 << size % 17, count), size % 17)
        tables += [(table, count)] * (size > 1) + [(1 << size % 17, count)] * (size % 17 > 0)
    raw = out.finish()
    words = np.frombuffer(raw + bytes(-len(raw) % 4), dtype="<u4").astype(np.uint32)
    damaged = [np.append(words ^ np.uint32(mask), np.uint32(1)) for mask in damage]
    for changed in (words, np.append(words, np.uint32(7)), *damaged):
        plain, fast = PlainDecoder(changed), ans.decoder(changed)
        assert not isinstance(fast, PlainDecoder)
        for table, count in tables:
            np.testing.assert_array_equal(plain.pop(table, count), fast.pop(table, count))
        assert plain.is_empty() == fast.is_empty()


def test_a_file_is_read_without_constriction(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    codes = np.rint(4 * rng.normal(0, 1, (64, 48))).astype(np.int8)
    coded = encode_matrices([Matrix(codes)])
    text = compress("range", b"some text" * 40)
    monkeypatch.setattr(ans, "constriction", None)
    [(decoded, _)] = decode_matrices(coded, shapes=[(64, 48)], num_states=[0])
    np.testing.assert_array_equal(decoded, codes)
    assert decompress("range", text, 360) == b"some text" * 40
    assert missing_package("range") == "constriction>=0.4"
    with pytest.raises(ConfigError, match="written with constriction, which is not installed"):
        encode_matrices([Matrix(codes)])
    with pytest.raises(ConfigError, match="needs the package constriction"):
        compress("range", b"some text")


def test_messages_of_several_threads_do_not_mix() -> None:
    results: dict[int, bytes] = {}

    def work(seed: int) -> None:
        out = Writer()
        out.plain(np.random.default_rng(seed).integers(0, 256, 20_000), 8)
        results[seed] = out.finish()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, data in results.items():
        assert np.array_equal(reader(data).plain(20_000, 8), np.random.default_rng(seed).integers(0, 256, 20_000))
