"""Comparisons: documents against a loop, the bootstrap against its definition, and what is refused."""

import html
import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import BROWSER, NO_BROWSER, look_at
from html_page import Page, assert_loads_nothing, drawn_points
from hypothesis import given
from hypothesis import strategies as st
from run_family import Family, documents_by_hand, texts
from tiny_run import cli, done, refused

from bitgolf.commands.output import make_table
from bitgolf.config import load_config
from bitgolf.data.prepare import open_data
from bitgolf.errors import ConfigError, RunError
from bitgolf.report.comparison import bootstrap as bootstrap_module
from bitgolf.report.comparison.bootstrap import Interval, bootstrap, resample
from bitgolf.report.comparison.compare import _notes, _require_same_bytes, compare
from bitgolf.report.comparison.compare_page import _draw_by_size, _draw_sorted, _limits, _num_outside, render
from bitgolf.report.comparison.compare_rows import contrast_rows, p_value, signed
from bitgolf.report.comparison.contrasts import Contrast, DocumentContrast, RunSet, Settings
from bitgolf.report.comparison.document_losses import document_losses, document_starts, require_same_text
from bitgolf.report.comparison.scored_runs import config_differences, label_paths, read_runs
from bitgolf.report.comparison.t_tests import Sample, TTest

FEW = Settings(resamples=200)
BOS = 1


# Documents


@given(st.lists(st.tuples(st.sampled_from([BOS, 5, 6, 7]), st.integers(0, 3)), min_size=2, max_size=60))
def test_documents_start_after_their_bos(pairs: list[tuple[int, int]]) -> None:
    tokens = np.array([token for token, _ in pairs])
    costs = np.array([0 if token == BOS else cost for token, cost in pairs[1:]])
    documents: list[list[int]] = [[]]  # targets of each
    for target in range(len(tokens) - 1):
        if tokens[target] == BOS and documents[-1]:
            documents.append([])
        documents[-1].append(target)
    whole: list[list[int]] = []
    for document in documents:  # without bytes: part of the one before
        if sum(costs[target] for target in document) or not whole:
            whole.append(list(document))
        else:
            whole[-1] += document
    if len(whole) > 1 and not sum(costs[target] for target in whole[0]):  # or of the one after
        first = whole.pop(0)
        whole[0] = first + whole[0]
    if not costs.sum():
        whole = []
    assert document_starts(tokens, BOS, costs).tolist() == [document[0] for document in whole]


def test_losses_by_document_are_those_of_a_loop(family: Family, letters: Path) -> None:
    run = read_runs([family.run("a", letters)])[0]
    losses = document_losses(run)
    bits, sizes = documents_by_hand(open_data(letters), np.load(run.run / "nll.npy"))
    assert len(sizes) == len(texts()) and sizes == [len(text.encode()) for text in texts()]
    assert losses.bytes.tolist() == sizes
    assert losses.bits == pytest.approx(bits, rel=1e-12)
    assert losses.bits_per_byte == pytest.approx(run.bpb, rel=1e-9)


def edit_losses(run: Path) -> None:
    nll = np.load(run / "nll.npy")
    nll[7] += 30
    np.save(run / "nll.npy", nll)


def shorten_losses(run: Path) -> None:
    np.save(run / "nll.npy", np.load(run / "nll.npy")[:-1])


def edit_tape(run: Path) -> None:
    (run / "tape.json").write_text('{"tokens_sha256": "0"}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_losses, "nll.npy adds up to"),
        (shorten_losses, "losses, the validation text has"),
        (edit_tape, "was scored on other tokens"),
        (lambda run: (run / "nll.npy").unlink(), "nll.npy is missing"),
        (lambda run: (run / "nll.npy").write_bytes(b"\x93NUMPY"), "nll.npy is damaged"),
        (lambda run: np.save(run / "nll.npy", np.arange(5)), "holds int64, not losses"),
        (
            lambda run: (run / "nll.npy").write_bytes(b"\x93NUMPY\x01\x00\x40\x00" + b"{'descr': (\n".ljust(64)),
            "is damaged",
        ),
        (lambda run: (run / "tape.json").unlink(), "tape.json is missing"),
    ],
)
def test_losses_that_are_not_those_of_the_score(
    family: Family, letters: Path, damage: Callable[[Path], None], message: str
) -> None:
    path = family.run("a", letters)
    damage(path)
    with pytest.raises(RunError, match=message) as error:
        document_losses(read_runs([path])[0])
    assert f"bitgolf score {path}" in str(error.value)


# The bootstrap


def some_documents(count: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(6, 1, count).astype(np.int64) + 1
    return sizes * rng.normal(-0.002, 0.03, count), sizes


def test_a_resample_is_a_ratio_of_sums_over_drawn_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    bits, sizes = some_documents(23)
    rng = np.random.default_rng(9)
    expected = []
    for _ in range(150):
        drawn = [int(rng.integers(23)) for _ in range(23)]
        expected.append(sum(bits[i] for i in drawn) / sum(sizes[i] for i in drawn))
    assert resample(bits, sizes, 150, 9) == pytest.approx(expected, rel=1e-12)
    for draws in (1, 100, 1_000):  # however many are drawn at a time
        monkeypatch.setattr(bootstrap_module, "_DRAWS", draws)
        assert resample(bits, sizes, 150, 9) == pytest.approx(expected, rel=1e-12)


def test_the_interval_is_that_of_the_resamples() -> None:
    bits, sizes = some_documents(50)
    interval = bootstrap(bits, sizes, resamples=1_000, seed=2)
    drawn = sorted(resample(bits, sizes, 1_000, 2).tolist())
    assert interval.difference_bpb == pytest.approx(sum(bits.tolist()) / sum(sizes.tolist()), rel=1e-12)
    assert drawn[24] <= interval.low <= drawn[25] and drawn[974] <= interval.high <= drawn[975]
    assert interval.share_better == sum(value < 0 for value in drawn) / 1_000
    assert interval.excludes_zero == (interval.low > 0 or interval.high < 0)


@pytest.mark.parametrize(
    ("resamples", "words"), [(99, "99 resamples"), (10_000_001, "10,000,001 resamples are more than the 10,000,000")]
)
def test_too_few_and_too_many_resamples_are_refused(family: Family, letters: Path, resamples: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compare([family.run("a", letters), family.run("b", letters)], settings=Settings(resamples=resamples))


# Comparisons


def test_two_systems_over_three_seeds(family: Family, letters: Path) -> None:
    old = [family.run(f"old-{seed}", letters, seed=seed) for seed in (1, 2, 3)]
    new = [
        family.run(f"new-{seed}", letters, seed=seed, shift=-0.03, train__average__ema_decay=0.9) for seed in (1, 2, 3)
    ]
    comparison = compare([*old, *new], settings=FEW)
    assert [group.name for group in comparison.sets] == ["old (3 runs)", "new (3 runs)"]
    assert comparison.differences == {"train.average.ema_decay": [0.8, 0.9]} and comparison.notes == ()
    (contrast,) = comparison.contrasts
    assert (contrast.candidate, contrast.baseline) == ("new (3 runs)", "old (3 runs)")
    means = [np.mean([json.loads((p / "score.json").read_text())["headline_bpb"] for p in runs]) for runs in (new, old)]
    assert contrast.difference_bpb == pytest.approx(means[0] - means[1])
    constant = comparison.runs[0].bpb_per_nat
    assert contrast.difference_nats == pytest.approx(contrast.difference_bpb / constant)
    assert contrast.margin_bpb == pytest.approx(0.005 * constant)
    assert isinstance(contrast.welch, TTest) and isinstance(contrast.paired, TTest)
    assert isinstance(contrast.documents, DocumentContrast)
    assert contrast.welch.p < 0.01 and contrast.paired.p < 0.01  # the gap is 0.043 bpb, the bar about 0.002
    data = open_data(letters)
    by_hand = [
        np.mean([documents_by_hand(data, np.load(path / "nll.npy"))[0] for path in runs], axis=0) for runs in (new, old)
    ]
    assert contrast.documents.difference_bits == pytest.approx(by_hand[0] - by_hand[1], rel=1e-9)
    assert contrast.documents.interval.difference_bpb == pytest.approx(contrast.difference_bpb, rel=1e-6)
    better = by_hand[0] < by_hand[1]
    assert contrast.documents.share_of_documents_better == better.mean()
    assert contrast.documents.share_of_bytes_better == pytest.approx(
        contrast.documents.bytes[better].sum() / contrast.documents.bytes.sum()
    )


def test_seeds_of_one_system_are_compared_with_the_first(family: Family, letters: Path) -> None:
    paths = [family.run(f"s{seed}", letters, seed=seed) for seed in (4, 5, 6)]
    comparison = compare(paths, settings=FEW)
    (group,) = comparison.sets
    assert isinstance(group.sample, Sample) and group.sample.count == 3
    assert [(c.candidate, c.baseline) for c in comparison.contrasts] == [("s5", "s4"), ("s6", "s4")]
    assert all("s5 has 1 seed" in str(c.welch) for c in comparison.contrasts[:1])
    assert all(isinstance(c.documents, DocumentContrast) for c in comparison.contrasts)


def test_a_run_against_its_copy_differs_by_nothing(family: Family, letters: Path) -> None:
    (contrast,) = (compare([family.run("a", letters)], baseline=[family.run("b", letters)], settings=FEW)).contrasts
    assert isinstance(contrast.documents, DocumentContrast)
    interval = contrast.documents.interval
    assert (interval.difference_bpb, interval.low, interval.high, interval.share_better) == (0, 0, 0, 0)
    assert not interval.excludes_zero


def test_tokenizers_compare_by_document(family: Family, letters: Path, letters_again: Path) -> None:
    one, other = family.run("one", letters), family.run("other", letters_again, shift=0.01)
    comparison = compare([one, other], settings=FEW)
    (contrast,) = comparison.contrasts
    assert isinstance(contrast.documents, DocumentContrast)
    bits = [
        documents_by_hand(open_data(data), np.load(run / "nll.npy"))[0]
        for data, run in ((letters, one), (letters_again, other))
    ]
    assert contrast.documents.difference_bits == pytest.approx(np.subtract(bits[1], bits[0]), rel=1e-9)
    assert contrast.margin_bpb == pytest.approx(0.005 * comparison.runs[1].bpb_per_nat)
    assert any("tokenizers differ" in note for note in comparison.notes)


@pytest.mark.parametrize("kind", ["lossless", "challenge"])
def test_documents_known_by_tokens_alone_are_decoded(family: Family, kind: str) -> None:
    shards = []
    for vocab_size in (320, 352):
        source = family.data(f"text-{vocab_size}", texts(), tokenizer=kind, vocab_size=vocab_size)
        shards.append(family.shards(f"shards-{vocab_size}", source, vocab_size))
    one, other = (family.run(f"run-{i}", data) for i, data in enumerate(shards))
    identities = [run.text for run in read_runs([one, other])]
    assert identities[0].same_val_text(identities[1]) is None
    (contrast,) = compare([one, other], settings=FEW).contrasts
    assert isinstance(contrast.documents, DocumentContrast) and len(contrast.documents.bytes) == len(texts())
    changed = [text.replace("river", "delta", 1) if index == 17 else text for index, text in enumerate(texts())]
    assert changed != texts()
    source = family.data("changed", changed, tokenizer=kind, vocab_size=352)
    third = family.run("third", family.shards("changed-shards", source, 352))
    with pytest.raises(RunError, match=r"run-0 and third were scored on different texts: document 17 has .* '17: "):
        compare([one, third])
    fewer = family.shards("fewer-shards", family.data("fewer", texts()[:-2], tokenizer=kind, vocab_size=352), 352)
    with pytest.raises(RunError, match="40 documents, and 38"):
        compare([one, family.run("fourth", fewer)])


def test_other_texts_are_refused_by_name(family: Family, letters: Path) -> None:
    others = family.data("others", texts()[::-1])
    with pytest.raises(RunError, match=r"a and b were scored on different texts: 40 documents of 'stdlib' \("):
        compare([family.run("a", letters), family.run("b", others)])
    lossy = family.data("lossy", texts(), tokenizer="challenge")
    with pytest.raises(RunError, match="a2 counts bytes by 'original' accounting, c by 'challenge'"):
        compare([family.run("a2", letters), family.run("c", lossy)])


def test_a_baseline_can_be_named(family: Family, letters: Path) -> None:
    old = [family.run(f"old-{seed}", letters, seed=seed) for seed in (1, 2)]
    new = [
        family.run(f"new-{seed}", letters, seed=seed, shift=0.05, train__average__ema_decay=0.9) for seed in (7, 8, 9)
    ]
    (contrast,) = compare(new, baseline=old, settings=FEW).contrasts
    assert contrast.baseline == "old (2 runs)" and contrast.difference_bpb > 0
    assert isinstance(contrast.welch, TTest) and contrast.welch.p > 0.9
    assert contrast.paired == "the seeds of the two are not the same"
    assert isinstance(contrast.documents, DocumentContrast) and contrast.documents.interval.low > 0
    with pytest.raises(
        RunError, match=r"old-1 and new-7 are not two seeds of one configuration: .* train.average.ema_decay"
    ):
        compare([new[1]], baseline=[old[0], new[0]])


def test_published_numbers_as_baseline(family: Family, letters: Path) -> None:
    paths = [family.run(f"new-{seed}", letters, seed=seed) for seed in (1, 2, 3)]
    comparison = compare(paths, published=Sample.from_values("PR 1", [2.0, 2.01, 1.99]), settings=FEW)
    (contrast,) = comparison.contrasts
    assert isinstance(contrast.welch, TTest) and contrast.welch.clears_bar and isinstance(contrast.documents, str)
    assert "published" in contrast.documents and "cannot be checked" in comparison.notes[0]
    assert contrast.documents in html.unescape(render(comparison))
    one = compare(paths[:1], published=Sample.from_summary("PR 1", 2.0, 0.01, 3), settings=FEW).contrasts[0]
    assert "new-1 has 1 seed" in str(one.welch)
    assert one.difference_bpb == pytest.approx(comparison.runs[0].bpb - 2.0)


def test_another_score_than_the_headline_has_no_documents(family: Family, letters: Path) -> None:
    paths = [family.run("a", letters), family.run("b", letters, shift=0.1)]
    comparison = compare(paths, settings=Settings("float-chunked"))
    (contrast,) = comparison.contrasts
    raw = [json.loads((path / "score.json").read_text())["float"]["chunked"]["bpb"] for path in paths]
    assert contrast.difference_bpb == pytest.approx(raw[1] - raw[0])
    assert "leave out --method" in str(contrast.documents)


def test_a_single_document_is_not_resampled(family: Family) -> None:
    data = family.data("single", texts(1))
    (contrast,) = compare([family.run("a", data), family.run("b", data, shift=0.1)], settings=FEW).contrasts
    assert "single document" in str(contrast.documents)


def test_branches_of_one_training_are_not_taken_for_independent_in_silence(family: Family, letters: Path) -> None:
    paths = [family.run(name, letters) for name in "ab"]
    assert not any("branches" in note for note in compare(paths, settings=FEW).notes)
    log = paths[1] / "train.jsonl"
    first, *others = log.read_text().splitlines(keepends=True)
    branch = json.loads(first) | {"event": "branch", "step": 1}
    log.write_text("".join([first, json.dumps(branch) + "\n", *others]))
    assert any("branches of one training" in note for note in compare(paths, settings=FEW).notes)
    log.write_text(log.read_text().replace('"seed": ', '"seed": 1', 1))
    assert not any("branches" in note for note in compare(paths, settings=FEW).notes)


def test_what_a_reader_must_know_is_a_note(family: Family, letters: Path) -> None:
    paths = [family.run(name, letters, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    score = json.loads((paths[2] / "score.json").read_text())
    score |= {"device": "NVIDIA H200", "world_size": 2}
    (paths[2] / "score.json").write_text(json.dumps(score))
    assert "The training documents differ." not in compare(paths, settings=FEW).notes
    runs = read_runs(paths, "headline")
    other = replace(runs[2], text=replace(runs[2].text, train_hashes="0" * 64))
    assert "The training documents differ." in _notes([RunSet("all", (*runs[:2], other), "none")], None)
    end = f'"tokens": {220 * 4096},'
    log = (paths[2] / "train.jsonl").read_text()
    for tokens, noted in ((946_176, False), (946_177, True)):  # 1.1 times as many as those of seed 1
        (paths[2] / "train.jsonl").write_text(log.replace(end, f'"tokens": {tokens},'))
        assert any("were trained on" in note for note in compare(paths, settings=FEW).notes) == noted
    (paths[2] / "train.jsonl").write_text(log)
    events = (paths[0] / "train.jsonl").read_text().replace(f'"tokens": {210 * 4096},', '"tokens": 430080,')
    (paths[0] / "train.jsonl").write_text(events)
    notes = "\n".join(compare(paths, settings=FEW).notes)
    assert "trained on 430,080 to 901,120 tokens" in notes
    assert "2 × NVIDIA H200" in notes and "a and b both have seed 1" in notes


def test_headlines_of_different_methods_are_noted_and_are_no_set(family: Family, letters: Path) -> None:
    paths = [family.run(name, letters, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    other = family.run("c", letters, seed=3, train__average__ema_decay=0.9)
    for path in (paths[1], other):
        score = json.loads((path / "score.json").read_text())
        score |= {"headline": "chunked", "headline_bpb": score["methods"]["chunked"]["bpb"]}
        (path / "score.json").write_text(json.dumps(score))
    published = Sample.from_values("PR 1", [2.0, 2.01])
    assert any(
        "different methods: chunked, sliding." in note for note in compare([paths[0], other], published=published).notes
    )
    assert not any("different methods" in note for note in compare([other], published=published).notes)
    notes = compare(paths, published=published).notes
    assert any("a is scored by sliding, b by chunked; choose one with --method" in note for note in notes)
    (named,) = compare(paths, published=published, settings=Settings("sliding")).contrasts
    assert isinstance(named.welch, TTest)


def test_a_baseline_whose_seeds_are_equal_has_no_test_but_a_reason(family: Family, letters: Path) -> None:
    old = [family.run(f"old-{name}", letters, seed=1) for name in "ab"]
    new = [family.run(f"new-{seed}", letters, seed=seed, train__average__ema_decay=0.9) for seed in (1, 2)]
    (contrast,) = compare(new, baseline=old, settings=FEW).contrasts
    assert contrast.welch == contrast.paired and "old-a and old-b both have seed 1" in str(contrast.welch)


def test_documents_of_other_bytes_are_not_compared(family: Family, letters: Path) -> None:
    one, other = read_runs([family.run("a", letters), family.run("b", letters)], "headline")
    more = replace(other, text=replace(other.text, bytes=other.text.bytes + 1))
    require_same_text(one, other)
    with pytest.raises(RunError, match=rf"b {more.text.bytes:,} for the same documents"):
        require_same_text(one, more)
    same = np.array([3, 4, 5])
    _require_same_bytes("a", same, "b", same.copy())
    with pytest.raises(RunError, match="a has 3 validation documents with text, b 2"):
        _require_same_bytes("a", same, "b", same[:2])
    with pytest.raises(RunError, match="document 1 counts 4 bytes for a and 6 for b"):
        _require_same_bytes("a", same, "b", np.array([3, 6, 7]))


@pytest.mark.parametrize(("count", "trimmed"), [(199, False), (200, True)])
def test_the_axis_of_many_documents_leaves_out_the_ends(count: int, trimmed: bool) -> None:
    """Of 200 documents the axis shows 99 %; it contains 0 and has a margin of a twentieth at each end."""
    values = np.linspace(1.0, 3.0, count)
    values[-1] = 1_000.0
    low, high = _limits(values)
    top = float(np.quantile(values, 0.995)) if trimmed else 1_000.0
    assert (low, high) == pytest.approx((-0.05 * top, 1.05 * top))
    assert _limits(-values) == pytest.approx((-1.05 * top, 0.05 * top))
    documents = DocumentContrast(Interval(0.0, 0.0, 0.0, 0.0, 0, 0, 0), values, np.ones(count, dtype=int))
    assert _num_outside(documents) == int((values > 1.05 * top).sum()) == int(trimmed)
    assert _limits(np.zeros(3)) == (-0.001, 0.001)


def test_documents_are_drawn_by_their_difference_and_by_their_size() -> None:
    """Bits per byte 0.5, -2, 0.5 and 1 of 2, 1, 1 and 4 bytes of 8."""
    interval = Interval(0.0, 0.0, 0.0, 0.0, 0, 0, 0)
    documents = DocumentContrast(interval, np.array([1.0, -2.0, 0.5, 4.0]), np.array([2, 1, 1, 4]))
    (steps,) = drawn_points(_draw_sorted(documents, "key"))
    corners = list(dict.fromkeys((round(x, 3), round(y, 3)) for x, y in steps))
    middle = round(2.5 / 3, 3)
    assert corners == [(0, 0), (0.125, 0), (0.125, middle), (0.375, middle), (0.5, middle), (0.5, 1), (1, 1)]
    svg = _draw_by_size(documents, "key")
    dots = [
        (float(x), float(y), int(color))
        for x, y, color in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: var\(--series-(\d)', svg)
    ]
    (best,) = (dot for dot in dots if dot[2] == 1)
    left, top, right = best[0], min(y for _, y, _ in dots), max(x for x, _, _ in dots)
    places = sorted(((x - left) / (right - left), (best[1] - y) / (best[1] - top)) for x, y, _ in dots)
    expected = [(0, 0), (0, 2.5 / 3), (0.5, 2.5 / 3), (1, 1)]  # sizes by octaves
    assert [value for place in places for value in place] == pytest.approx(
        [v for place in expected for v in place], abs=1e-4
    )


def test_names_of_sets_are_never_the_same(family: Family, letters: Path) -> None:
    first = [family.run(f"run-{seed}", letters, seed=seed) for seed in (1, 2)]
    second = [family.run(f"run-{seed}", letters, seed=seed, train__average__ema_decay=0.9) for seed in (3, 4)]
    assert [group.name for group in compare([*first, *second], settings=FEW).sets] == ["run-1, run-2", "run-3, run-4"]


def test_nothing_to_compare_is_refused(family: Family, letters: Path) -> None:
    path = family.run("a", letters)
    with pytest.raises(ConfigError, match="no runs given"):
        compare([])
    with pytest.raises(ConfigError, match="no run to be compared with"):
        compare([path])
    with pytest.raises(ConfigError, match="given twice"):
        compare([path, path])
    with pytest.raises(ConfigError, match="give one of them"):
        compare([path], baseline=[path], published=Sample.from_values("x", [1, 2]))
    with pytest.raises(ConfigError, match="margin"):
        compare([path, path], settings=Settings(margin_nats=-1))


def test_differences_of_configurations_are_found_by_key() -> None:
    tiny = str(Path(__file__).parents[1] / "support" / "tiny.toml")
    changed = {"seed": "9", "model.num_layers": "3", "score.methods": '["chunked"]'}
    configs = [load_config(tiny), load_config(tiny, changed), load_config(tiny)]
    differences = config_differences(configs)
    assert differences == {
        "seed": [7, 9, 7],
        "model.num_layers": [2, 3, 2],
        "score.methods": [["chunked", "sliding"], ["chunked"], ["chunked", "sliding"]],
    }
    assert config_differences(configs[:1]) == {}


@pytest.mark.parametrize(
    ("p", "text"), [(0.5, "p = 0.500"), (0.0123, "p = 0.0123"), (0.0001, "p = 0.0001"), (1e-9, "p < 0.0001")]
)
def test_p_values_as_text(p: float, text: str) -> None:
    assert p_value(p) == text
    assert (signed(-0.00312), signed(0.5, 2)) == ("\N{MINUS SIGN}0.0031", "+0.50")


@pytest.mark.parametrize(
    ("p_any", "p", "states"),
    [
        (0.3, 0.4, ("fail", "fail")),
        (0.2, 0.3, ("pass", "fail")),
        (0.001, 0.02, ("pass", "fail")),
        (0.001, 0.002, ("pass", "pass")),
    ],
)
def test_each_question_is_judged_by_its_own_bar(p_any: float, p: float, states: tuple[str, str]) -> None:
    test = TTest("welch", -0.01, 0.01, 4.0, 0.002, 1.0, p, 2.0, p_any)
    contrast = Contrast("b", "a", -0.01, -0.02, 0.005, 0.002, test, "other seeds", "no losses")
    rows = contrast_rows(contrast)
    assert (rows[2].state, rows[3].state) == states
    for row, value, bar in ((rows[2], p_any, "0.25"), (rows[3], p, "0.01")):
        assert row.answer.endswith(f"{'' if value < float(bar) else 'not '}below {bar}")


@pytest.mark.parametrize(
    ("low", "high", "excludes_zero", "state"),
    [(-0.3, -0.1, True, "pass"), (0.1, 0.3, True, "fail"), (-0.1, 0.2, False, "open"), (0.0, 0.2, False, "open")],
)
def test_an_interval_decides_only_without_zero(low: float, high: float, excludes_zero: bool, state: str) -> None:
    interval = Interval((low + high) / 2, low, high, 0.5, 100, 2, 0)
    documents = DocumentContrast(interval, np.array([-1.0, 0.0]), np.array([30, 10]))
    contrast = Contrast("b", "a", 0.0, 0.0, 0.005, 0.002, "one seed", "one seed", documents)
    assert interval.excludes_zero == excludes_zero
    row = contrast_rows(contrast)[1]
    assert row.state == state
    assert "better in 50.0% of the documents (75.0% of the bytes)" in row.detail


# The command


@pytest.fixture
def pair(family: Family, letters: Path) -> list[Path]:
    """Two systems, two seeds each, the second better; the second's name is hostile."""
    old = [family.run(f"old-{seed}", letters, seed=seed) for seed in (1, 2)]
    new = [
        family.run(f"<b>[red]new-{seed}", letters, seed=seed, shift=-0.03, train__average__ema_decay=0.9)
        for seed in (1, 2)
    ]
    return [*old, *new]


def test_names_cannot_turn_the_text_of_a_comparison_around(
    family: Family, letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    runs = [family.run(name, letters, seed=seed) for seed, name in enumerate(("\u202eflog", "x\x1b[31m", "c"))]
    page = family.root / "page.html"
    shown = done("compare", *runs, "--html", page, "--resamples", "100").stdout
    for text in (shown, page.read_text(encoding="utf-8")):
        assert r"\u202eflog" in text and r"x\x1b[31m" in text
        assert "\u202e" not in text and "\x1b" not in text


def test_the_table_shows_what_json_says(pair: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    words = ("compare", *pair, "--resamples", "300", "--seed", "4")
    assert "\n    compare " in cli("--help").stdout and cli("compare", "--help").status == 0
    text, value = done(*words).stdout, done(*words, "--json").json
    contrast = value["contrasts"][0]
    for shown in (
        "<b>[red]new (2 runs) against old (2 runs)",
        f"{signed(contrast['difference_bpb'])} bits per byte",
        f"{signed(contrast['documents']['low'])} to {signed(contrast['documents']['high'])} bits per byte",
        "train.average.ema_decay",
        f"Better by 0.005 nats ({contrast['margin_bpb']:.4f} bpb), Welch",
        p_value(contrast["welch"]["p"]),
        p_value(contrast["paired"]["p_any"]),
        f"{value['sets'][0]['sample']['std']:.5f}",
    ):
        assert shown in text, shown
    for run in value["runs"]:
        assert f"{run['bpb']:.5f}" in text
    assert contrast["documents"]["resamples"] == 300 and contrast["documents"]["seed"] == 4
    assert value["config_differences"] == {"train.average.ema_decay": [0.8, 0.9]}
    assert value == json.loads(json.dumps(value, allow_nan=False))


def test_tables_without_content_are_left_out(
    family: Family, letters: Path, pair: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    value, text = (done("compare", *pair, "--resamples", "100", *more).stdout for more in (["--json"], []))
    titles = ["runs", "over seeds", "configuration, where it differs"]
    assert [title for title in titles if title in map(str.strip, text.splitlines())] == titles
    after = text[text.index("over seeds") :]
    for group in json.loads(value)["sets"]:
        assert f"{group['sample']['mean']:.5f}" in after and f"{group['sample']['std']:.5f}" in after
    twins = [family.run(f"twin-{name}", letters, seed=1) for name in "ab"]
    text = done("compare", *twins, "--resamples", "100").stdout
    assert [title for title in titles if title in map(str.strip, text.splitlines())] == ["runs"]
    assert "\nnote: twin (2 runs): twin-a and twin-b both have seed 1" in text


def test_a_baseline_on_the_command_line(pair: list[Path]) -> None:
    *old, new, newer = pair
    named = done("compare", new, newer, "--baseline", *old, "--json", "--resamples", "100").json
    assert named["contrasts"][0]["baseline"] == "old (2 runs)"
    values = done("compare", new, newer, "--published", "1.31", "1.32", "1.30", "--json").json
    moments = done("compare", new, newer, "--published-summary", "1.31", "0.01", "3", "--json").json
    assert values["contrasts"][0]["welch"]["p"] == pytest.approx(moments["contrasts"][0]["welch"]["p"])
    assert values["published"]["std"] == pytest.approx(moments["published"]["std"]) == 0.01


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--published", "1.2", "x"), "'x' is not a number"),
        (("--published", "nan", "1"), "nan is not a score"),
        *((("--published-summary", "1.2", "0.1", count), "a number of seeds") for count in ("2.5", "inf", "nan")),
        (("--published", "1", "2", "--published-summary", "1", "0.1", "3"), "give one of them"),
        (("--method", "guess"), "its methods: headline, float-chunked, chunked, sliding"),
        (("--seed", "-1"), "give 0 or more"),
        (("--html", "."), "is a directory"),
    ],
)
def test_arguments_that_make_no_sense(pair: list[Path], words: tuple[str, ...], message: str) -> None:
    assert message in refused("compare", pair[0], pair[2], *words)


def test_a_refusal_leaves_the_earlier_page(pair: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("earlier")
    edit_losses(pair[1])
    assert "adds up to" in refused("compare", *pair, "--html", page)
    assert "is not a run directory" in refused("compare", pair[0], tmp_path, "--html", page)
    assert page.read_text() == "earlier" and not list(tmp_path.glob(".page*"))


def test_the_page_goes_to_pipes_and_through_links(pair: list[Path], tmp_path: Path) -> None:
    words = ("compare", *pair, "--resamples", "100", "--html")
    (tmp_path / "link").symlink_to("page")
    done(*words, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "page").read_text().startswith("<!DOCTYPE html>")
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    done(*words, tmp_path / "pipe")
    assert reader.communicate()[0].startswith(b"<!DOCTYPE html>") and (tmp_path / "pipe").is_fifo()


def test_the_page_shows_the_comparison_and_loads_nothing(pair: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "out" / "page.html"
    assert f"page: {page}" in done("compare", *pair, "--html", page, "--resamples", "200").stdout
    html = page.read_text(encoding="utf-8")
    assert_loads_nothing(html)
    parsed = Page(html)
    text = parsed.visible_text()
    comparison = compare(pair, settings=FEW)
    for row in contrast_rows(comparison.contrasts[0]):
        assert row.question in text and row.answer in text and row.detail in text
    for expected in (
        "<b>[red]new-1",
        "train.average.ema_decay",
        "0.9",
        "Each point is a document",
        "percent of the text",
    ):
        assert expected in text, expected
    assert sum(tag == "svg" for tag, _ in parsed.tags) == 2
    assert not any(tag == "b" for tag, _ in parsed.tags)


def test_of_many_documents_few_are_drawn(family: Family) -> None:
    data = family.data("many", texts(900, seed=8))
    paths = [family.run("a", data), family.run("b", data, seed=2)]
    page = family.root / "page.html"
    done("compare", *paths, "--html", page, "--resamples", "100")
    html = page.read_text(encoding="utf-8")
    text = Page(html).visible_text()
    assert "600 of 900 documents" in text
    outside = re.search(r"by size\. Below 0 b is better\. (\d+) documents lie outside", text)
    assert outside and 0 < int(outside[1]) <= 10  # the axis leaves out half a percent at each end, and has some room
    assert len(html) < 250_000


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_the_page_in_a_browser(pair: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done("compare", *pair, "--html", page, "--resamples", "200")
    sort = """
      const table = page.querySelector("table.board"), button = table.tHead.rows[0].cells[4].firstElementChild;
      const column = () => [...table.tBodies[0].rows].map((row) => row.cells[4].dataset.value).join(" ");
      button.click(); found.up = column(); button.click(); found.down = column();
    """
    seen = look_at(page, tmp_path, script=sort)
    assert seen["cut"] == "", "text that only sideways scrolling shows"
    assert int(seen["width"]) <= 360 and seen["small"] == "" and not seen["messages"]
    up = [float(value) for value in seen["up"].split()]
    assert len(up) == 4 and up == sorted(up)
    assert [float(value) for value in seen["down"].split()] == sorted(up, reverse=True)


def test_a_loop_of_links_is_an_error_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match="given twice"):
        label_paths([tmp_path / "loop", tmp_path / "loop"])


@pytest.mark.parametrize(("difference", "detail"), [
    (-0.01, "b is better"), (0.01, "b is worse"), (0.0, "the scores are equal"),
])  # fmt: skip
def test_the_lower_score_is_the_better_one(difference: float, detail: str) -> None:
    contrast = Contrast("b", "a", difference, 2 * difference, 0.005, 0.002, "one seed", "one seed", "no losses")
    assert contrast_rows(contrast)[0].detail == detail


def test_validation_tokens_without_text_have_no_documents(
    family: Family, letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = read_runs([family.run("a", letters)])[0]
    module = "bitgolf.report.comparison.document_losses"
    monkeypatch.setattr(f"{module}.document_starts", lambda *arguments: np.array([], dtype=int))
    with pytest.raises(RunError, match="contain no text"):
        document_losses(run)


def test_the_last_columns_of_a_comparison_are_numbers(
    family: Family, letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables: dict[str, tuple[str, ...]] = {}

    def noted(title: str, columns: Sequence[str], rows: Sequence[Any], numeric: int = 0) -> Any:
        tables[title] = tuple(columns[len(columns) - numeric :])
        return make_table(title, columns, rows, numeric=numeric)

    monkeypatch.setattr("bitgolf.commands.compare.make_table", noted)
    done("compare", *(family.run(str(seed), letters, seed=seed) for seed in (1, 2)))
    assert tables["runs"] == ("bits per byte", "nats per token") and tables["over seeds"] == ("n", "mean bpb", "std")
