"""Rows of the report against the files that they are made of."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from synthetic_run import SyntheticRun, audit_json, pack_json

from bitgolf.errors import RunError
from bitgolf.report import sections
from bitgolf.report.products import Products
from bitgolf.report.report import Texts, render
from bitgolf.run.seal import sealed


def read(finished: SyntheticRun) -> Products:
    return Products.read(finished.run)


def number(text: str) -> float:
    return float(re.sub(r"[^\d.]", "", text))


def test_byte_groups_add_up_to_the_artifact(finished: SyntheticRun) -> None:
    pack = pack_json(finished.run.config)
    rows = sections.byte_groups(pack)
    assert sum(number(row.value) for row in rows) == pack["total_bytes"]
    assert [number(r.value) for r in rows] == sorted((number(r.value) for r in rows), reverse=True)
    assert rows[0].percent == 100 and sum(number(row.note) for row in rows) == pytest.approx(100, abs=0.6)
    query = sum(t["bytes"] for name, t in pack["tensors"].items() if ".attention.query." in name)
    assert {row.label: number(row.value) for row in rows}["attention, query"] == query
    assert {"token embedding", "MLP, up", "gains and mixers", "tokenizer", "header", "code"} <= {r.label for r in rows}


def test_groups_of_small_tensors_are_shown_together(finished: SyntheticRun) -> None:
    """A group of 8,192 elements in its largest tensor, not in all, is small; what has a title is never hidden."""
    pack = pack_json(finished.run.config)
    shapes = {"small": [8, 1024], "large": [8_193], "attention.key": [2]}
    pack["group_bytes"] = dict(zip(shapes, (3, 5, 7), strict=True))
    pack["tensors"] = {
        f"{group}.{n}": {"shape": shape, "group": group} for group, shape in shapes.items() for n in range(2)
    }
    rows = {row.label: row for row in sections.byte_groups(pack)}
    assert [rows[label].value for label in ("gains and mixers", "large", "attention, key")] == ["3", "5", "7"]
    assert {label for label, row in rows.items() if row.kind == "code"} == {"code"}


def test_stages_carry_their_differences(finished: SyntheticRun) -> None:
    score = read(finished).score
    assert score is not None
    rows = {row.label: row for row in sections.bpb_bars(score)}
    assert list(rows) == ["float weights, chunked", "artifact, chunked", "artifact, sliding", "zstd-22", "xz-9"]
    assert rows["artifact, chunked"].note.startswith("+0.0048")
    assert rows["artifact, sliding"].note.startswith("\N{MINUS SIGN}0.0468")
    assert rows["artifact, sliding"].kind == "headline"
    assert rows["zstd-22"].percent == 100
    without_float = sections.bpb_bars(score | {"float": {}, "compressors": {}})
    assert [row.note for row in without_float] == ["", "\N{MINUS SIGN}0.0468 by more context"]


def test_meters_show_use_cap_and_overspending(finished: SyntheticRun) -> None:
    artifact, train, evaluation = sections.budget_meters(read(finished))
    assert (train.used, train.cap, train.share, train.over) == ("74.3 s", "75.0 s", "99.1%", False)
    assert sum(s.percent for s in train.segments) == pytest.approx(100 * 74.3 / 75)
    assert [s.label for s in evaluation.segments] == ["read and decompress", "chunked", "sliding"]
    assert not artifact.command
    finished.run.budget().charge("train_seconds", "train", "to the cap", 0.7)
    assert not sections.budget_meters(read(finished))[1].over
    finished.run.budget().charge("train_seconds", "train", "too much", 75.0)
    over = sections.budget_meters(read(finished))[1]
    assert over.over and over.share == "200.0%" and over.cap_percent == pytest.approx(50)
    assert sum(s.percent for s in over.segments) == pytest.approx(100)


def test_nothing_charged_names_the_command(finished: SyntheticRun) -> None:
    (finished.run / "budget.json").unlink()
    assert [m.command.split()[1] for m in sections.budget_meters(read(finished))] == ["pack", "train", "score"]


@pytest.mark.parametrize(
    ("outcomes", "state", "word"),
    [
        (("PASS", "PASS"), "pass", "PASS"),
        (("PASS", "NOT RUN"), "open", "INCOMPLETE"),
        (("NOT RUN", "FAIL"), "fail", "FAIL"),
    ],
)
def test_verdict(finished: SyntheticRun, outcomes: tuple[str, ...], state: str, word: str) -> None:
    checks = [{**audit_json()["checks"][0], "verdict": outcome} for outcome in outcomes]
    finished.write("audit.json", {"passed": "FAIL" not in outcomes, "checks": checks})
    verdict = sections.verdict(read(finished))
    assert (verdict[0], verdict[2]) == (state, word)
    (finished.run / "audit.json").unlink()
    assert sections.verdict(read(finished))[2] == "NOT RUN"


def test_products_that_do_not_belong_together_are_named(finished: SyntheticRun) -> None:
    assert sections.warnings(read(finished)) == []
    finished.write("pack.json", pack_json(finished.run.config) | {"model_sha256": "cd" * 32})
    texts = sections.warnings(read(finished))
    assert len(texts) == 2 and "bitgolf score" in texts[0] and "bitgolf audit" in texts[1]
    assert sections.verdict(read(finished))[2] == "OUTDATED"
    (finished.run / "audit.json").unlink()
    assert read(finished).outdated() == {"score": "pack"}


@pytest.mark.parametrize(
    ("changed", "outdated"),
    [("nothing", set()), ("train", {"pack", "audit"}), ("pack", {"score", "audit"}), ("score", {"audit"})],
)
def test_seals_tell_what_is_outdated(finished: SyntheticRun, changed: str, outdated: set[str]) -> None:
    trained = sealed({"event": "end"})
    packed = sealed(pack_json(finished.run.config), trained["seal"])
    scored = sealed(read(finished).score or {}, packed["seal"])
    audit = read(finished).audit or {}
    if changed == "train":
        trained = sealed({"event": "end", "step": 1})
    if changed == "pack":
        packed = sealed(packed | {"seconds": 1.0}, trained["seal"])
    finished.write("audit.json", audit | {"score_seal": scored["seal"]})
    if changed == "score":
        scored = sealed(scored | {"evaluation_seconds": 9.0}, packed["seal"])
    finished.write("pack.json", packed)
    finished.write("score.json", scored)
    products = replace(read(finished), events=[trained])
    assert set(products.outdated()) == outdated
    assert (sections.verdict(products)[2] == "OUTDATED") == (changed != "nothing")


def test_damaged_products_are_errors_that_say_what_to_run(finished: SyntheticRun) -> None:
    (finished.run / "score.json").write_text('{"methods": ')
    with pytest.raises(RunError, match=r"score\.json is damaged.*bitgolf score"):
        read(finished)
    (finished.run / "score.json").write_text("[1]")
    with pytest.raises(RunError, match="it is a list, it must be an object"):
        read(finished)


def test_every_value_that_is_read_has_the_kind_that_it_must_have(finished: SyntheticRun) -> None:
    """Each record with one wrong value after the other: an error that names the value, or it makes no difference."""
    for name, keys in {
        "score.json": ("methods", "headline", "headline_bpb", "float", "compressors", "val_bytes"),
        "pack.json": ("total_bytes", "tensors", "group_bytes", "stream_bytes", "code_bytes", "header_bytes"),
        "audit.json": ("checks", "passed"),
    }.items():
        text = (finished.run / name).read_text()
        for key in keys:
            for value in (None, 7, "x", [[]], {"a": None}, -1e300, True):
                record = json.loads(text)
                if type(record[key]) is type(value) or {type(record[key]), type(value)} == {int, float}:
                    continue
                (finished.run / name).write_text(json.dumps(record | {key: value}))
                with pytest.raises(RunError, match=rf"{name} is damaged: .*"):
                    read(finished)
        (finished.run / name).write_text(text)
    read(finished)


def places(value: Any) -> Iterator[tuple[str | int, ...]]:
    """Paths of all values of a JSON document, of lists and of objects of more than eight entries the first two."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else []))
    for key, inner in items[: 2 if isinstance(value, list) or len(items) > 30 else None]:
        yield (key,)
        yield from ((key, *rest) for rest in places(inner))


@pytest.mark.parametrize("name", ["score.json", "pack.json", "audit.json", "budget.json"])
def test_no_value_of_a_record_ends_a_page_in_a_traceback(
    finished: SyntheticRun, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor without `kind`, or with a text for its error, did: it is either read and checked, or not read."""
    monkeypatch.setattr("bitgolf.report.charts.draw", lambda chart: "")
    text = (finished.run / name).read_text()
    for path in places(json.loads(text)):
        for value in (None, "x", {"a": []}, [], "missing"):
            record = json.loads(text)
            inner = record
            for key in path[:-1]:
                inner = inner[key]
            if value == "missing":
                del inner[path[-1]]
            else:
                inner[path[-1]] = value
            (finished.run / name).write_text(json.dumps(record))
            with contextlib.suppress(RunError):
                render(read(finished), Texts())
    (finished.run / name).write_text(text)
    render(read(finished), Texts())


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"event": "step", "step": 1, "loss": ' + "9" * 5_000 + "}\n{}",
        '{"event": "step", "step": 1, "loss": null}\n{}',
        '{"event": "step", "step": 1}\n{}',
        '{"event": ["step"]}\n{}',
        '{"event": "end", "step": 1, "tokens": "many"}\n{}',
        '{"event": "held_out", "loss": "x", "elapsed_seconds": 1.0}\n{}',
        '{"event": "held_out", "loss": 1.0, "elapsed_seconds": {}}\n{}',
        "null\n{}",
        "\n{}",
    ],
    ids=lambda text: text[:30],
)
def test_a_damaged_line_within_the_log_is_an_error(finished: SyntheticRun, text: str) -> None:
    log = finished.run / "train.jsonl"
    log.write_text(log.read_text() + text + "\n{}\n")
    with pytest.raises(RunError, match=r"train\.jsonl is damaged: .*bitgolf train"):
        read(finished)


@pytest.mark.parametrize(
    ("name", "place", "first", "beyond"),
    [
        ("pack.json", ("total_bytes",), 1, 0),
        ("pack.json", ("header_bytes",), 0, -1),
        ("pack.json", ("code_bytes",), 10**15, 10**15 + 1),
        ("pack.json", ("bits_per_weight",), -1e15, -1.1e15),
        ("pack.json", ("bits_per_weight",), 1e15, 1.1e15),
        ("pack.json", ("tensors", "embedding", "shape"), [1], [0]),
        ("pack.json", ("tensors", "embedding", "shape"), [2**31, 3], [2**31 + 1, 3]),
        ("pack.json", ("tensors", "embedding", "hessian_error"), None, "x"),
        ("pack.json", ("stream_bytes", "tokenizer"), 0, -1),
        ("score.json", ("headline_bpb",), 1e-12, 0),
        ("score.json", ("headline_bpb",), 1e6, 1.1e6),
        ("score.json", ("compressors", "xz-9"), 1e-12, 0),
        ("score.json", ("float", "chunked", "tokens"), 0, -1),
        ("score.json", ("methods", "sliding", "bpb"), 1e-12, 0),
        ("score.json", ("world_size",), 0, -1),
        ("audit.json", ("counts", "PASS"), 0, -1),
    ],
    ids=str,
)
def test_values_of_records_have_bounds(
    finished: SyntheticRun, name: str, place: tuple[str, ...], first: object, beyond: object
) -> None:
    record = json.loads((finished.run / name).read_text())
    inner = record
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = first
    finished.write(name, record)
    read(finished)
    inner[place[-1]] = beyond
    finished.write(name, record)
    with pytest.raises(RunError, match=rf"{name} is damaged: .*{place[-1]}"):
        read(finished)


@pytest.mark.parametrize("event", ["step", "end"])
def test_trainings_of_no_step_or_token_are_damaged(finished: SyntheticRun, event: str) -> None:
    log = finished.run / "train.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    key = "tokens" if event == "step" else "step"
    for value in (1, 0):
        changed = [line | {key: value} if line["event"] == event else line for line in lines]
        log.write_text("".join(json.dumps(line) + "\n" for line in changed))
        with pytest.raises(RunError, match="from 1 to") if value == 0 else contextlib.nullcontext():
            read(finished)


def test_groups_and_allocated_tensors_are_described(finished: SyntheticRun) -> None:
    packed = json.loads((finished.run / "pack.json").read_text())
    allocation = {"predicted_nats": 0.1, "passes": [], "tensors": {"unknown": {"predicted_nats": 0.1}}}
    for change, words in (
        ({"group_bytes": {"nowhere": 1}}, "no tensor is of group 'nowhere'"),
        ({"allocation": allocation}, "unknown is missing"),
    ):
        finished.write("pack.json", packed | change)
        with pytest.raises(RunError, match=words):
            read(finished)


def test_long_evidence_is_cut_and_says_so() -> None:
    audit = {"checks": [{**audit_json()["checks"][0], "evidence": {"digits": "7" * 9_000}}]}
    (row,) = sections.audit_rows(audit, 100)
    assert len(row["evidence"]) < 200 and "audit.json" in row["evidence"]


def test_charts_show_resumptions_and_held_out_losses(finished: SyntheticRun) -> None:
    products = read(finished)
    more = [
        {"event": "resume", "step": 40, "elapsed_seconds": 3.2},
        {"event": "held_out", "loss": 4.5, "elapsed_seconds": 3.5},
        {"event": "held_out", "loss": 3.25, "elapsed_seconds": 7.5},
    ]
    charts = {chart.key: chart for chart in sections.training_charts(replace(products, events=products.events + more))}
    assert (
        list(charts["loss-time"].dots) == [(3.5, 4.5), (7.5, 3.25)]
        and "3.250 at the end" in charts["loss-time"].summary
    )
    assert list(charts) == ["loss-time", "loss-tokens", "rate", "speed"]
    assert {key for key, chart in charts.items() if chart.dots} == {"loss-time"}
    marked = {"loss-time", "rate", "speed"}  # against time
    assert {key for key, chart in charts.items() if list(chart.marks) == [(3.2, "resumed")]} == marked
    assert {key for key, chart in charts.items() if chart.log_x} == {"loss-tokens"}
    assert {key for key, chart in charts.items() if chart.from_zero} == {"rate", "speed"}
    steps = [event for event in products.events if event["event"] == "step"]
    for key, horizontal, vertical in (
        ("loss-time", "elapsed_seconds", "loss"),
        ("loss-tokens", "tokens", "loss"),
        ("rate", "elapsed_seconds", "lr_scale"),
    ):
        assert list(charts[key].x) == [event[horizontal] for event in steps]
        assert list(charts[key].y) == [event[vertical] for event in steps]
    assert list(charts["speed"].x) == [event["elapsed_seconds"] for event in steps[1:]]
    assert list(charts["speed"].y) == [event["tokens_per_second"] for event in steps[1:]]
    (only,) = (chart for chart in sections.training_charts(replace(products, events=steps[:1])) if chart.key == "speed")
    assert (list(only.x), list(only.y)) == ([steps[0]["elapsed_seconds"]], [steps[0]["tokens_per_second"]])
    assert sections.training_charts(replace(products, events=more)) == []


def test_bars_of_other_weights_and_of_adaptation(finished: SyntheticRun) -> None:
    score = read(finished).score or {}
    adapted = score["methods"]["sliding"] | {"bpb": 1.5}
    score |= {"last": {"chunked": {"bpb": 3.0}}, "methods": score["methods"] | {"chunked+ttt": adapted}}
    rows = {row.label: row for row in sections.bpb_bars(score)}
    assert list(rows)[:2] == ["last weights, chunked", "float weights, chunked"]
    assert (rows["last weights, chunked"].value, rows["last weights, chunked"].percent) == ("3.0000", 100)
    assert rows["artifact, chunked"].note == "+0.0048 by packing"  # of the float weights, not of the last ones
    assert rows["artifact, chunked+ttt"].note == "\N{MINUS SIGN}0.5243 by adaptation"
    assert rows["zstd-22"].note == "1.09 times the headline"  # 2.2105 / 2.0243
    assert rows["zstd-22"].percent == pytest.approx(100 * 2.2105 / 3)
    kinds = {row.label: row.kind for row in rows.values()}
    assert [label for label, kind in kinds.items() if kind == "headline"] == ["artifact, sliding"]
    assert {kinds["float weights, chunked"], kinds["xz-9"], kinds["artifact, chunked"]} == {
        "reference",
        "other",
        "model",
    }


def test_rows_of_the_ledger_and_of_the_audit(finished: SyntheticRun) -> None:
    rows = sections.ledger_rows(read(finished).budget.charges)
    assert rows[0] == ("train", "train", "optimizer steps", "73.2 s")
    assert rows[3] == ("artifact", "pack", "code", "41,000 bytes")
    assert rows[4] == ("untimed", "pack", "quantize and compress", "3.2 s")
    check = {"rule": "B1", "title": "t", "verdict": "PASS", "evidence": "x" * 100}
    audit = {"checks": [check, check | {"verdict": "FAIL", "reason": "r", "evidence": "x" * 101}]}
    audit["checks"].append({"rule": "C1", "title": "u", "verdict": "NOT RUN", "evidence": None})
    passed, failed, open_ = sections.audit_rows(audit, 100)
    assert [row["state"] for row in (passed, failed, open_)] == ["pass", "fail", "open"]
    assert len({row["symbol"] for row in (passed, failed, open_)}) == 3
    assert passed["evidence"] == "x" * 100 and failed["evidence"].startswith("x" * 100 + "\n")
    assert (failed["reason"], passed["reason"], open_["evidence"]) == ("r", "", "")


def test_every_fact_of_a_finished_run(finished: SyntheticRun) -> None:
    products = read(finished)
    end = products.last_event("end") | {"peak_memory_mib": 1234.5}
    start = products.last_event("start")
    other = {
        "device": "GPU",
        "world_size": 2,
        "attention": "fa3",
        "torch": "3.0",
        "compiled": True,
        "warm_up_seconds": 5,
    }
    for kind in ("resume", "branch"):
        again = replace(products, events=[*products.events, start | other | {"event": kind}])
        assert [value for _, value in dict(sections.facts(again))["Hardware"]] == ["GPU", "2", "fa3", "3.0", "yes"]
        assert dict(dict(sections.facts(again))["Training"])["compile warm-up (untimed)"] == "5.0 s"
    assert "peak GPU memory" not in dict(dict(sections.facts(products))["Training"])
    facts = dict(sections.facts(replace(products, events=[*products.events, end])))
    assert list(facts) == ["Training", "Hardware", "Model", "Validation text"]
    assert [value for _, value in facts["Training"]] == [
        "900", "3,686,400", "0.90", "50,381", "65,536", "1,234 MiB", "1.9 s",
    ]  # fmt: skip
    assert [value for _, value in facts["Hardware"]] == ["cpu <x86_64>", "1", "math", "2.11.0", "no"]
    assert [value for _, value in facts["Model"]] == [
        "4 × 128", "4, 2", "1,024", "674,000", "6.41", "gptq", "zstd", "abababababababab",
    ]  # fmt: skip
    assert [value for _, value in facts["Validation text"]] == [
        "stdlib", "3", f"{finished.val.num_tokens:,}", "1,234", "original", "256 tokens", "64 tokens", "20.3 s",
    ]  # fmt: skip
    fresh = replace(products, events=[], pack=None, score=None)
    assert [title for title, _ in sections.facts(fresh)] == ["Model", "Validation text"]
    assert len(dict(sections.facts(fresh))["Model"]) == 3
