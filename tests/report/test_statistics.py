"""Statistics over seeds against published tables, closed forms, numpy and textbook data."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_family import Family, texts

from bitgolf.errors import ConfigError, RunError
from bitgolf.report.comparison.scored_runs import ScoredRun, TextIdentity, group_runs, label_paths, read_runs, sample
from bitgolf.report.comparison.student_t import incomplete_beta, upper_tail
from bitgolf.report.comparison.t_tests import (
    AUDIT_P,
    BAR_P,
    MARGIN_NATS,
    Sample,
    TTest,
    margin_in_bpb,
    paired,
    welch,
)

# One-sided critical values of Student's t as textbooks print them: df -> t for each of TABLE_P.
TABLE_P = (0.05, 0.025, 0.01, 0.005, 0.001)
TABLE = {
    1: (6.314, 12.706, 31.821, 63.657, 318.309),
    2: (2.920, 4.303, 6.965, 9.925, 22.327),
    3: (2.353, 3.182, 4.541, 5.841, 10.215),
    4: (2.132, 2.776, 3.747, 4.604, 7.173),
    5: (2.015, 2.571, 3.365, 4.032, 5.893),
    10: (1.812, 2.228, 2.764, 3.169, 4.144),
    20: (1.725, 2.086, 2.528, 2.845, 3.552),
    30: (1.697, 2.042, 2.457, 2.750, 3.385),
    60: (1.671, 2.000, 2.390, 2.660, 3.232),
    120: (1.658, 1.980, 2.358, 2.617, 3.160),
}
# Student's sleep data (1908), hours gained with two drugs by ten patients; R's t.test gives the numbers below.
SLEEP = (
    (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0),
    (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4),
)


@pytest.mark.parametrize("df", TABLE)
def test_the_t_distribution_agrees_with_the_printed_table(df: int) -> None:
    for p, t in zip(TABLE_P, TABLE[df], strict=True):
        assert upper_tail(t + 0.0006, df) < p < upper_tail(t - 0.0006, df)


@given(t=st.floats(-1e6, 1e6))
def test_one_and_two_degrees_of_freedom_have_closed_forms(t: float) -> None:
    size = abs(t)
    cauchy = math.atan2(1, size) / math.pi
    two = 1 / (math.sqrt(2 + size * size) * (math.sqrt(2 + size * size) + size))
    assert upper_tail(size, 1) == pytest.approx(cauchy, rel=1e-11)
    assert upper_tail(size, 2) == pytest.approx(two, rel=1e-11)
    assert upper_tail(-size, 1) == pytest.approx(1 - cauchy, rel=1e-12)


def test_the_ends_of_the_tail() -> None:
    assert upper_tail(0, 3.7) == 0.5
    assert (upper_tail(math.inf, 2), upper_tail(-math.inf, 2)) == (0, 1)
    assert (upper_tail(1e200, 0.5), upper_tail(-1e200, 0.5)) == (0, 1)
    assert upper_tail(1.959964, 1e7) == pytest.approx(0.025, abs=1e-7)  # the normal distribution
    for t, df in ((1.0, 0.0), (1.0, -1.0), (1.0, math.inf), (math.nan, 3.0)):
        with pytest.raises(ValueError, match=r"degrees|number"):
            upper_tail(t, df)


@given(a=st.integers(1, 30), b=st.integers(1, 30), x=st.floats(0, 1))
def test_the_incomplete_beta_is_a_sum_of_binomials(a: int, b: int, x: float) -> None:
    n = a + b - 1
    total = math.fsum(math.comb(n, j) * x**j * (1 - x) ** (n - j) for j in range(a, n + 1))
    assert incomplete_beta(a, b, x) == pytest.approx(total, rel=1e-9, abs=1e-13)


def test_the_incomplete_beta_refuses_what_it_is_not_defined_for() -> None:
    for arguments in ((0, 1, 0.5), (1, -1, 0.5), (1, 1, 1.5), (1, 1, -0.1)):
        with pytest.raises(ValueError, match="I_x"):
            incomplete_beta(*arguments)


@given(values=st.lists(st.floats(0.5, 3), min_size=2, max_size=9))
def test_mean_and_deviation_are_those_of_numpy(values: list[float]) -> None:
    system = Sample.from_values("x", values)
    assert system.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert system.std == pytest.approx(np.std(values, ddof=1), rel=1e-7, abs=1e-14)
    assert (system.std == 0) == (len(set(values)) == 1)
    assert system.count == len(values)


def shifted(values: tuple[float, ...], name: str) -> Sample:
    """The sleep data as scores: above 0, and lower is better, with the patients as seeds."""
    return Sample.from_seeds(name, {patient: 10 - value for patient, value in enumerate(values)})


def test_the_bars_are_those_of_the_challenge() -> None:
    """docs/rules.md, section 4."""
    assert (MARGIN_NATS, BAR_P, AUDIT_P) == (0.005, 0.01, 0.25)
    for p, clears in ((0.0099, True), (0.01, False), (0.2, False)):
        assert TTest("welch", -0.1, 0.1, 4.0, 0.0, 1.0, p, 1.0, 0.001).clears_bar == clears


@pytest.mark.parametrize(
    ("hashes_of", "tokenizers", "hashes", "same"),
    [
        (("utf-8 text", "utf-8 text"), "aa", "xx", True),
        (("utf-8 text", "utf-8 text"), "ab", "xx", True),
        (("utf-8 text", "utf-8 text"), "aa", "xy", False),
        (("uint16 tokens", "uint16 tokens"), "aa", "xx", True),
        (("uint16 tokens", "uint16 tokens"), "aa", "xy", False),
        (("uint16 tokens", "uint16 tokens"), "ab", "xx", None),
        (("uint16 tokens", "utf-8 text"), "aa", "xx", None),
    ],
)
def test_hashes_decide_whether_two_texts_are_equal_only_where_they_can(
    hashes_of: tuple[str, str], tokenizers: str, hashes: str, same: bool | None
) -> None:
    one, other = (
        TextIdentity(hashes[i], "train", hashes_of[i], tokenizers[i], "original", documents=3, bytes=9) for i in (0, 1)
    )
    assert one.same_val_text(other) is same


def test_welch_on_the_data_of_the_textbook() -> None:
    test = welch(shifted(SLEEP[1], "second"), shifted(SLEEP[0], "first"), 0.0)
    assert test.difference_bpb == pytest.approx(-1.58)
    assert test.t == pytest.approx(1.8608, abs=5e-5)
    assert test.df == pytest.approx(17.776, abs=5e-4)
    assert test.p == pytest.approx(0.07939 / 2, abs=5e-6)


def test_paired_on_the_data_of_the_textbook() -> None:
    test = paired(shifted(SLEEP[1], "second"), shifted(SLEEP[0], "first"), 0.0)
    assert test.t == pytest.approx(4.0621, abs=5e-5)
    assert test.df == 9
    assert test.p == pytest.approx(0.002833 / 2, abs=5e-7)
    assert test.clears_bar and not paired(shifted(SLEEP[0], "first"), shifted(SLEEP[1], "second"), 0.0).clears_bar


scores = st.lists(st.floats(0.9, 1.3), min_size=2, max_size=8).filter(lambda v: max(v) - min(v) > 1e-4)


@given(a=scores, b=scores, margin=st.floats(0, 0.05))
def test_welch_is_its_formula(a: list[float], b: list[float], margin: float) -> None:
    test = welch(Sample.from_values("a", a), Sample.from_values("b", b), margin)
    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    t = (np.mean(b) - margin - np.mean(a)) / math.sqrt(va + vb)
    assert test.df == pytest.approx(df, rel=1e-6)
    assert test.t == pytest.approx(t, rel=1e-6, abs=1e-6)
    assert test.p == upper_tail(test.t, test.df) and test.p_any <= test.p + 1e-15
    assert min(len(a), len(b)) - 1 <= test.df * (1 + 1e-9) and test.df <= (len(a) + len(b) - 2) * (1 + 1e-9)


@given(a=scores, b=scores, margin=st.floats(0, 0.05))
def test_a_margin_is_a_handicap_of_the_candidate(a: list[float], b: list[float], margin: float) -> None:
    count = min(len(a), len(b))
    a, b = a[:count], b[:count]
    candidate = Sample.from_seeds("a", dict(enumerate(a)))
    worse = Sample.from_seeds("a", dict(enumerate(value + margin for value in a)))
    base = Sample.from_seeds("b", dict(enumerate(b)))
    for test in (welch, paired):
        try:
            with_margin = test(candidate, base, margin)
        except RunError:  # all differences equal
            continue
        if with_margin.standard_error > 1e-6:
            assert with_margin.p == pytest.approx(test(worse, base, 0.0).p, rel=1e-4, abs=1e-9)


def test_a_published_summary_tests_as_its_values_do() -> None:
    values, other = [1.1194, 1.1187, 1.1201], Sample.from_values("mine", [1.1102, 1.1110, 1.1096])
    summary = Sample.from_summary("theirs", float(np.mean(values)), float(np.std(values, ddof=1)), 3)
    one, two = (welch(other, base, 0.003) for base in (summary, Sample.from_values("theirs", values)))
    assert one.p == pytest.approx(two.p, rel=1e-9)
    assert one.clears_bar


@pytest.mark.parametrize(("constant", "bpb"), [(0.5922, 0.0030), (0.387, 0.0019), (0.45696, 0.0023)])
def test_the_bar_of_the_challenge_in_bits_per_byte(constant: float, bpb: float) -> None:
    assert round(margin_in_bpb(0.005, constant), 4) == bpb


@pytest.mark.parametrize("margin", [-0.001, math.nan, math.inf])
def test_margins_that_make_no_sense(margin: float) -> None:
    with pytest.raises(ConfigError, match="margin"):
        margin_in_bpb(margin, 0.5)


def test_one_seed_is_no_sample() -> None:
    for make in (
        lambda: Sample.from_seeds("mine", {1: 1.2}),
        lambda: Sample.from_values("mine", [1.2]),
        lambda: Sample.from_summary("mine", 1.2, 0.01, 1),
    ):
        with pytest.raises(RunError, match=r"mine has 1 seed: .* at least two"):
            make()


@pytest.mark.parametrize("values", [[1.2, math.nan], [1.2, 0.0], [1.2, -1.0], [1.2, math.inf]])
def test_impossible_scores_are_refused(values: list[float]) -> None:
    with pytest.raises(ConfigError, match="bits per byte"):
        Sample.from_values("mine", values)
    with pytest.raises(ConfigError, match="bits per byte"):
        Sample.from_summary("mine", values[1], 0.1, 3)
    with pytest.raises(ConfigError, match="bits per byte"):
        Sample.from_summary("mine", 1.2, -0.1, 3)


def test_copies_of_one_run_cannot_be_tested() -> None:
    same = Sample.from_seeds("copies", {1: 1.2, 2: 1.2, 3: 1.2})
    moved = Sample.from_seeds("moved", {1: 1.25, 2: 1.25, 3: 1.25})
    for test in (welch, paired):
        with pytest.raises(RunError, match="copies of one run"):
            test(same, moved, 0.0)


def test_a_paired_test_needs_the_same_seeds() -> None:
    a, b = Sample.from_seeds("a", {1: 1.2, 2: 1.3}), Sample.from_seeds("b", {1: 1.2, 3: 1.3})
    unknown = Sample.from_values("b", [1.2, 1.3])
    for candidate, baseline in ((a, b), (a, unknown), (unknown, unknown)):
        with pytest.raises(RunError, match="the seeds of the two are not the same"):
            paired(candidate, baseline, 0.0)


# Sets of runs


def test_a_set_of_seeds_is_the_headline_of_each_run(family: Family, letters: Path) -> None:
    runs = read_runs([family.run(f"s{seed}", letters, seed=seed, description=f"mine {seed}") for seed in (3, 1, 2)])
    system = sample("mine", runs)
    assert system.by_seed == {run.seed: run.score["headline_bpb"] for run in runs}
    assert system.mean == pytest.approx(np.mean([run.bpb for run in runs]))
    assert [len(group) for group in group_runs(runs)] == [3]
    assert [run.label for run in runs] == ["s3", "s1", "s2"]


def test_a_method_can_be_chosen(family: Family, letters: Path) -> None:
    path = family.run("s1", letters)
    by_method = {method: read_runs([path], method)[0] for method in ("sliding", "chunked", "float-chunked")}
    assert by_method["sliding"].bpb < by_method["float-chunked"].bpb < by_method["chunked"].bpb
    assert [run.is_headline for run in by_method.values()] == [True, False, False]
    with pytest.raises(ConfigError, match="'float-sliding'; its methods: headline, float-chunked, chunked, sliding"):
        read_runs([path], "float-sliding")


def refused(runs: list[ScoredRun]) -> str:
    with pytest.raises(RunError) as caught:
        sample("mine", runs)
    return str(caught.value)


def test_mixed_configurations_are_refused_by_key(family: Family, letters: Path) -> None:
    paths = [
        family.run("a", letters),
        family.run("b", letters, seed=2, train__average__ema_decay=0.9, pack__grid__matrix_bits=5),
    ]
    message = refused(read_runs(paths))
    assert "a and b are not two seeds of one configuration" in message
    assert "they differ in train.average.ema_decay, pack.grid.matrix_bits;" in message
    assert [len(group) for group in group_runs(read_runs(paths))] == [1, 1]


def test_other_validation_text_is_refused(family: Family, letters: Path) -> None:
    others = family.data("others", texts()[:-1])
    message = refused(read_runs([family.run("a", letters), family.run("b", others, seed=2)]))
    assert "a and b have different validation documents" in message


def test_another_tokenizer_or_accounting_is_refused(family: Family, letters: Path) -> None:
    a = read_runs([family.run("a", letters)])[0]
    lossy = family.run("b", family.data("lossy", texts(), tokenizer="challenge"), seed=2)
    assert "'original' accounting, b by 'challenge'" in refused([a, *read_runs([lossy])])
    own = family.data("own", texts())
    other = family.run("c", own, seed=2)
    replace_in_manifest(own, a.text.tokenizer_sha256)
    assert "different tokenizers" in refused([a, *read_runs([other])])


def test_other_training_text_is_refused(family: Family, letters: Path) -> None:
    own = family.data("own", texts())
    a = read_runs([family.run("a", letters)])[0]
    run = family.run("b", own, seed=2)
    replace_in_manifest(own, a.text.train_hashes)
    assert "different training documents" in refused([a, *read_runs([run])])


def replace_in_manifest(data: Path, digest: str) -> None:
    """Let the manifest name another digest in its place."""
    manifest = data / "manifest.json"
    assert digest in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(digest, "0" * 64))


def test_runs_are_called_by_what_tells_them_apart() -> None:
    assert label_paths([Path("x/a"), Path("x/b")]) == ["a", "b"]
    assert label_paths([Path("x/a"), Path("y/a"), Path("y/b")]) == ["x/a", "y/a", "y/b"]
    with pytest.raises(ConfigError, match="given twice"):
        label_paths([Path("x/a"), Path("x/../x/a")])
