"""The audit of a whole run directory: clean runs pass, every planted violation is named, absence is NOT RUN."""

import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from local_process import LocalProcess
from tiny_run import file_digest
from toy_models import BOS, CausalModel, LeakyModel, make_scorer, toy_tokens

from bitgolf.audit.documents import documents
from bitgolf.audit.evidence import Evidence
from bitgolf.audit.headline import sample_blocks
from bitgolf.audit.run import audit_run
from bitgolf.audit.sandbox import evaluation as sealed_evaluation
from bitgolf.audit.sandbox.client import SealedFailure
from bitgolf.audit.sandbox.isolation import Isolation
from bitgolf.config import Config, resolve
from bitgolf.data.split import hash_document
from bitgolf.errors import ArtifactError, ConfigError, RunError
from bitgolf.evaluate import ScoreTape, bits_per_byte, evaluate
from bitgolf.evaluate.adapted_pass import adapted_pass
from bitgolf.evaluate.window_scorer import Windows
from bitgolf.run import atomic
from bitgolf.run.directory import RunDirectory
from bitgolf.run.ranks import World, device_name
from bitgolf.train.metrics import TrainLog

VOCAB = 260
CODE_BYTES = 40_000
TOKENS = toy_tokens(400, seed=5)
TRAIN_TOKENS = toy_tokens(1500, seed=9)
COSTS = np.where(TOKENS[1:] == BOS, 0, 3).astype(np.int32)
EVERY_CHECK = [
    "artifact-bytes", "train-clock", "eval-clock", "artifact-sealed", "data-sealed", "sealed-chain",
    "one-configuration", "train-log", "headline-pass", "disjoint-splits", "one-order", "validation-complete",
    "byte-accounting", "near-duplicates", "scored-once", "score-first", "counts", "identity", "numbers-agree",
    "future-flip", "target-flip", "length-blind", "normalization", "losses-match", "other-shapes", "reproduction",
    "other-passes", "sealed-evaluation",
]  # fmt: skip
NEVER_RUN = ("sealed-chain", "validation-complete", "near-duplicates")
NEED_THE_MODEL = set(EVERY_CHECK[EVERY_CHECK.index("future-flip") :])


class Model(CausalModel):
    def __init__(self) -> None:
        super().__init__(vocab_size=VOCAB)


def config() -> Config:
    return resolve(
        {
            "name": "toy",
            "device": "cpu",
            "model": {"vocab_size": VOCAB},
            "train": {"seq_len": 16, "batch_tokens": 64, "micro_batch_tokens": 64},
            "score": {"stride": 4, "batch_tokens": 48, "methods": ["chunked", "sliding"], "compile": False},
            "budget": {"artifact_bytes": 1_000_000, "train_seconds": 100, "eval_seconds": 50},
        },
        {},
    )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What stands outside the run directory's files: the prepared data, its hashes, the artifact's model."""
    world = SimpleNamespace(model=Model)

    def byte_costs(tokens: np.ndarray) -> np.ndarray:
        return np.where(tokens[1:] == BOS, 0, 3).astype(np.int32)

    tokenizer = SimpleNamespace(
        byte_costs=byte_costs,
        bos_id=BOS,
        lossless=True,
        decode=lambda ids: "abc" * len(ids),
        encode_proven=lambda texts: None,
    )

    def stream(tokens: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(num_tokens=len(tokens), read=lambda a, n: tokens[a : a + n], paths=[])

    def open_data(path: Path) -> SimpleNamespace:
        manifest = json.loads((Path(path) / "manifest.json").read_text())
        return SimpleNamespace(val=stream(TOKENS), train=stream(TRAIN_TOKENS), manifest=manifest, tokenizer=tokenizer)

    def load(
        path: Path, device: object = "cpu", attention: str = "auto", canonical: bool | None = None
    ) -> SimpleNamespace:
        if Path(path).read_bytes()[:7] != b"bitgolf":
            raise ArtifactError(f"{path} does not start with the magic of an artifact")
        return SimpleNamespace(model=world.model(), tokenizer=tokenizer)

    def read_artifact(path: Path) -> SimpleNamespace:
        load(path)
        meta = {"config_sha256": config().digest(), "preset": "toy", "window": 16}
        model_config = config().model.model_dump(mode="json")
        return SimpleNamespace(meta=meta, model_config=model_config, tokenizer=b"")

    monkeypatch.setattr("bitgolf.audit.evidence.open_data", open_data)
    monkeypatch.setattr("bitgolf.audit.documents.check_disjoint", lambda path: (40, 7, 0))
    monkeypatch.setattr("bitgolf.audit.headline.open_model", load)
    monkeypatch.setattr(sealed_evaluation, "open_model", load)
    monkeypatch.setattr("bitgolf.audit.evidence.read_artifact", read_artifact)
    monkeypatch.setattr("bitgolf.audit.sealed_run.SealedProcess", LocalProcess)
    monkeypatch.setattr("bitgolf.audit.budgets.code_bytes", lambda config: CODE_BYTES)
    return world


def score_all(model: CausalModel, method: str) -> ScoreTape:
    tape = ScoreTape(TOKENS)
    evaluate(tape, make_scorer(method, model, window=16, stride=4, batch_tokens=48))
    return tape


@pytest.fixture
def run(tmp_path: Path, world: SimpleNamespace) -> RunDirectory:
    """A run directory of a toy model, as the stages leave it but without seals (test_seals.py has those)."""
    run = RunDirectory.create(tmp_path / "run", config())
    (run / "data").mkdir()
    hashes = [hash_document(part.tobytes()) for part in documents(TOKENS, BOS)]
    (run / "data" / "val.hashes").write_bytes(np.array(hashes, dtype="<u8").tobytes())
    digest = file_digest(run / "data" / "val.hashes")
    for name in ("tokenizer.model", "val_000000.bin"):
        (run / "data" / name).write_bytes(b"nothing reads this")
    shard = {"file": "val_000000.bin", "sha256": file_digest(run / "data" / "val_000000.bin")}
    split = {"tokens": 400, "documents": int((TOKENS == BOS).sum()), "raw_bytes": int(COSTS.sum())}
    atomic.write_json(
        run / "data" / "manifest.json",
        {
            "accounting": "original",
            "document_hashes": {"val": {"file": "val.hashes", "sha256": digest, "of": "uint16 tokens"}},
            "splits": {"val": {**split, "shards": [shard]}},
            "tokenizer": {"sha256": file_digest(run / "data" / "tokenizer.model")},
        },
    )
    artifact = b"bitgolf" + bytes(993)
    atomic.write_bytes(run / "model.bitgolf", artifact)
    total = 1000 + CODE_BYTES
    atomic.write_json(run / "pack.json", {"model_bytes": 1000, "code_bytes": CODE_BYTES, "total_bytes": total})
    log = TrainLog(run.path, True)
    log.begin()
    log.write("start", step=0, elapsed_seconds=0.0, config_sha256=config().digest(), seed=1337, vocab_size=VOCAB)
    log.write("step", step=9, loss=3.0, tokens=576, elapsed_seconds=60.0)
    log.write("calibration", step=20, tokens=128, elapsed_seconds=98.0)
    log.write("end", step=20, tokens=1280, elapsed_seconds=98.0)
    (run / "train.jsonl").write_text(re.sub(r', "seal": "\w+"', "", (run / "train.jsonl").read_text()))
    tapes = {method: score_all(Model(), method) for method in ("chunked", "sliding")}
    methods = {method: {**bits_per_byte(tape.nll, COSTS).to_json(), "seconds": 10.0} for method, tape in tapes.items()}
    atomic.write_json(
        run / "score.json",
        {
            "methods": methods,
            "headline": "sliding",
            "val_tokens": 400,
            "val_bytes": int(COSTS.sum()),
            "headline_bpb": methods["sliding"]["bpb"],
            "model_sha256": hashlib.sha256(artifact).hexdigest(),
            "window": 16,
            "stride": 4,
            "evaluation_seconds": 20.5,
            "device": device_name(torch.device("cpu")),
        },
    )
    save_losses(run, tapes["sliding"].nll)
    save_losses(run, tapes["chunked"].nll, "nll-chunked.npy")
    atomic.write_json(run / "tape.json", tapes["sliding"].event_log)
    budget = run.budget()
    budget.charge("artifact_bytes", "pack", "model and code", total)
    budget.charge("train_seconds", "train", "steps and calibration", 98.0)
    budget.charge("eval_seconds", "score", "all methods", 21.0)
    return run


def save_losses(run: RunDirectory, nll: np.ndarray, name: str = "nll.npy") -> None:
    with atomic.atomic_path(run / name) as path, path.open("wb") as handle:
        np.save(handle, nll)


def edit(run: RunDirectory, name: str, change) -> None:
    value = json.loads((run / name).read_text())
    change(value)
    atomic.write_json(run / name, value)


def passes_but(*not_run: str) -> dict[str, str]:
    """PASS for every check but `not_run` and those of what the toy run does not have: seals, a source, words."""
    return {check: "NOT RUN" if check in (*NEVER_RUN, *not_run) else "PASS" for check in EVERY_CHECK}


def outcomes(run: RunDirectory, quick: bool = True) -> dict[str, str]:
    return {check.name: check.verdict for check in audit_run(run, quick=quick).checks}


def test_clean_run_passes_everything(run: RunDirectory) -> None:
    reports = []
    verdict = audit_run(run, progress=lambda *event: reports.append(event))
    assert {check.name: check.verdict for check in verdict.checks} == passes_but(), verdict
    assert verdict.passed and not verdict.complete and verdict.exit_code == 3
    number = len(EVERY_CHECK)
    assert reports[0][1:3] == (0, number) and reports[-1][1:3] == (number, number)
    stored = json.loads((run / "audit.json").read_text())
    assert stored["passed"] and stored["counts"] == {"PASS": number - 3, "FAIL": 0, "NOT RUN": 3}
    assert not stored["quick"] and int(stored["entropy"]) >= 0
    assert stored["checks"][0]["evidence"]["model_bytes"] == 1000
    assert verdict["identity"].rule == "identity"
    with pytest.raises(KeyError):
        verdict["no-such-check"]


def test_empty_run_passes_nothing(tmp_path: Path) -> None:
    verdict = audit_run(RunDirectory.create(tmp_path / "run", config()))
    assert [check.verdict for check in verdict.checks] == ["NOT RUN"] * len(EVERY_CHECK)
    assert "model.bitgolf is missing; run `bitgolf pack" in verdict["artifact-bytes"].reason
    assert verdict.passed and not verdict.complete


@pytest.mark.parametrize(
    "name, not_run",
    [
        ("model.bitgolf", {"artifact-bytes", "artifact-sealed", "one-configuration", *NEED_THE_MODEL}),
        ("pack.json", {"artifact-bytes", "numbers-agree"}),
        ("budget.json", {"artifact-bytes", "train-clock", "eval-clock", "numbers-agree"}),
        ("train.jsonl", {"train-clock", "one-configuration", "train-log", "numbers-agree"}),
        ("train.log", {"numbers-agree"}),
        ("nll.npy", {"scored-once", "identity", "reproduction", "sealed-evaluation"}),
        ("tape.json", {"scored-once", "score-first"}),
        ("data/val.hashes", {"data-sealed", "disjoint-splits", "one-order"}),
    ],
)
def test_what_is_missing_is_not_run(run: RunDirectory, name: str, not_run: set[str]) -> None:
    (run / name).unlink()
    assert outcomes(run) == passes_but(*not_run)


def test_another_number_of_bytes_is_found_by_three_checks(run: RunDirectory) -> None:
    def change(score):
        for entry in score["methods"].values():
            entry["bytes"] += 50
            entry["bpb"] *= (entry["bytes"] - 50) / entry["bytes"]
        score["val_bytes"] += 50
        score["headline_bpb"] = score["methods"]["sliding"]["bpb"]

    edit(run, "score.json", change)
    verdict = audit_run(run, quick=True)
    assert {check.name for check in verdict.checks if check.verdict == "FAIL"} == {"counts", "identity", "other-passes"}
    assert verdict.exit_code == 1 and not json.loads((run / "audit.json").read_text())["passed"]


def test_leaking_artifact_is_caught(run: RunDirectory, world: SimpleNamespace) -> None:
    class Leaky(LeakyModel):
        def __init__(self) -> None:
            super().__init__(vocab_size=VOCAB)

    world.model = Leaky
    finding = outcomes(run)
    assert (finding["future-flip"], finding["target-flip"], finding["normalization"]) == ("FAIL", "FAIL", "PASS")


@pytest.mark.parametrize(
    "name, content, checks",
    [
        ("score.json", b"{", {"eval-clock", "artifact-sealed", "counts", "identity", "reproduction"}),
        ("score.json", b'{"methods": {}, "headline": "sliding"}', {"eval-clock", "counts", "identity"}),
        ("tape.json", b"[]", {"scored-once", "score-first"}),
        ("nll.npy", b"\x93NUMPY\x01", {"scored-once", "identity", "reproduction"}),
        ("train.jsonl", b'{"event": "start"\n', {"train-clock"}),
        ("budget.json", b"{}", {"artifact-bytes", "train-clock", "eval-clock"}),
        ("model.bitgolf", b"not an artifact", {"artifact-bytes", "future-flip", "target-flip", "reproduction"}),
    ],
)
def test_damaged_products_fail_their_checks(run: RunDirectory, name: str, content: bytes, checks: set[str]) -> None:
    (run / name).write_bytes(content)
    finding = outcomes(run)
    assert {finding[check] for check in checks} == {"FAIL"}


HOSTILE = {
    "deep nesting": "[" * 100_000,
    "deep objects": '{"a":' * 3_000 + "1" + "}" * 3_000,
    "5000 digits": '{"headline": 1' + "0" * 5_000 + "}",
    "null": "null",
    "nulls": '{"methods": null, "headline": null, "events": null, "charges": null, "event": null, "limits": null}',
    "lists": '{"methods": [1], "headline": [], "events": {"a": 1}, "charges": {"a": []}, "splits": [], "event": []}',
    "surrogates": '{"headline": "\\ud800", "event": "\\udfff", "methods": {"\\ud800": {}}}',
    "strange numbers": '{"val_tokens": 1e400, "events": [1.5], "methods": {"a": {"bpb": NaN}}, "headline": "a"}',
    "wrong kinds": '{"methods": {"a": 7}, "headline": "a", "charges": [7], "events": [[]], "event": 5, "seal": 3}',
    "methods of methods": '{"methods": {"sliding": {"bpb": "1", "tokens": [], "seconds": "s"}}, "headline": "sliding"}',
    "control characters": '{"event": "\\u001b[2J\\u202e", "headline": "\\u001b]0;x\\u0007", "methods": {}}',
    "binary": "\0\1\2" * 100,
    "nothing": "",
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("name", ["score.json", "pack.json", "tape.json", "budget.json", "train.jsonl"])
def test_hostile_records_end_in_a_verdict(run: RunDirectory, name: str, what: str) -> None:
    """Every check is made; those that need the record fail or are not run, and say why in one printable line."""
    (run / name).write_text(HOSTILE[what])
    verdict = audit_run(run, quick=True)
    assert [check.name for check in verdict.checks] == EVERY_CHECK
    assert all(check.reason.isprintable() for check in verdict.checks)
    assert json.loads((run / "audit.json").read_text())["counts"]["PASS"] >= 5
    if what not in ("nothing",):
        assert not verdict.passed


def test_unknown_method_is_not_run(run: RunDirectory) -> None:
    def change(score):
        score["methods"]["two-pass"] = score["methods"].pop("sliding")
        score["headline"] = "two-pass"

    edit(run, "score.json", change)
    finding = outcomes(run)
    assert {name for name, verdict in finding.items() if verdict == "NOT RUN"} == NEED_THE_MODEL | set(NEVER_RUN)
    assert finding["headline-pass"] == "FAIL"


@pytest.mark.parametrize(
    "num_targets, block, num_blocks", [(1, 4, 1), (4, 4, 1), (5, 4, 2), (399, 16, 4), (399, 16, 99)]
)
def test_sampled_blocks_hold_both_ends(num_targets: int, block: int, num_blocks: int) -> None:
    blocks = sample_blocks(num_targets, block, num_blocks, np.random.default_rng(0))
    assert len(blocks) == max(min(2, -(-num_targets // block)), min(num_blocks, -(-num_targets // block)))
    assert blocks[0][0] == 0 and blocks[-1][1] == num_targets
    assert all(0 < stop - start <= block and start % block == 0 for start, stop in blocks)
    assert all(a[1] <= b[0] for a, b in pairwise(blocks))


def test_the_end_of_an_adapted_pass_is_scored_again_or_not_run(run: RunDirectory) -> None:
    """Its losses depend on all before them: a sample is not enough, and a beginning proves nothing about the end."""
    learning = {"ttt.method": "full", "ttt.weights.chunk_tokens": 32, "ttt.weights.lr": 0.01}
    run = RunDirectory(run.path, run.config.updated(learning))
    model = Model()
    again = adapted_pass(
        run.config.ttt, Windows.of(run.config), model, model, num_targets=399, bos_id=BOS, seed=0,
        world=World(0, 1, torch.device("cpu")),
    )  # fmt: skip
    nll = again.run(ScoreTape(TOKENS))

    def change(score):
        score["methods"]["sliding+ttt"] = score["methods"]["sliding"]
        score |= {"headline": "sliding+ttt", "world_size": 1}

    edit(run, "score.json", change)
    for end, quick, whole in ((1.0, "NOT RUN", "PASS"), (0.7, "NOT RUN", "FAIL")):
        nll[-20:] *= end
        save_losses(run, nll)
        assert audit_run(run, quick=True, only=("reproduction",))["reproduction"].verdict == quick
        assert audit_run(run, only=("reproduction",))["reproduction"].verdict == whole
    nll[:40] *= 0.7
    save_losses(run, nll)
    assert audit_run(run, quick=True, only=("reproduction",))["reproduction"].verdict == "FAIL"


def test_the_sample_is_drawn_when_the_audit_is_made(run: RunDirectory) -> None:
    """Losses outside one sample are inside another: no seed of the run says which ones are looked at."""
    nll = np.load(run / "nll.npy")
    blocks = sample_blocks(len(nll), 16, 4, Evidence(run, entropy=7).rng("blocks"))
    inside = np.concatenate([np.arange(start, stop) for start, stop in blocks])
    outside = np.setdiff1d(np.arange(len(nll)), inside)
    nll[outside] *= 0.7
    save_losses(run, nll)
    assert audit_run(run, quick=True, entropy=7, only=("reproduction",))["reproduction"].verdict == "PASS"
    verdicts = [audit_run(run, quick=True, only=("reproduction",))["reproduction"] for _ in range(2)]
    assert [check.verdict for check in verdicts] == ["FAIL", "FAIL"]
    assert len({check.evidence["entropy"] for check in verdicts}) == 2


def test_no_record_widens_the_tolerance(run: RunDirectory) -> None:
    """Another name of the device allows for other kernels, by constants: noise in the losses buys nothing."""
    edit(run, "score.json", lambda score: score.update(device="NVIDIA H200"))
    nll = np.load(run / "nll.npy")
    noise = np.random.default_rng(0).choice([-0.9, 0.9], size=len(nll)).astype(np.float32)
    save_losses(run, nll + noise - np.float32(0.05))
    finding = audit_run(run, everything=True, only=("reproduction",))["reproduction"]
    assert finding.verdict == "FAIL" and "on average" in finding.reason


def test_audit_leaves_torch_as_it_was(run: RunDirectory) -> None:
    state = torch.random.get_rng_state()
    audit_run(run, quick=True)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()


def test_everything_scores_every_target_again(run: RunDirectory) -> None:
    nll = np.load(run / "nll.npy")
    quick = audit_run(run, quick=True)["reproduction"].evidence
    assert quick["targets"] < len(nll) and not quick["whole"]
    finding = audit_run(run, everything=True)
    assert finding["reproduction"].evidence["targets"] == len(nll) and finding["reproduction"].evidence["whole"]
    assert finding["sealed-evaluation"].evidence["targets"] == len(nll)
    blocks = sample_blocks(len(nll), 16, 4, Evidence(run, entropy=7).rng("blocks"))
    missed = next(t for t in range(len(nll)) if not any(start <= t < stop for start, stop in blocks))
    nll[missed] -= 0.5
    save_losses(run, nll)
    assert audit_run(run, quick=True, entropy=7)["reproduction"].verdict == "PASS", "not in the sample"
    assert audit_run(run, everything=True)["reproduction"].verdict == "FAIL"


def test_some_checks_alone_leave_the_audit_on_record(run: RunDirectory) -> None:
    audit_run(run, quick=True)
    before = (run / "audit.json").read_bytes()
    finding = audit_run(run, only=("identity", "counts"))
    assert [check.name for check in finding.checks] == ["counts", "identity"]
    assert (run / "audit.json").read_bytes() == before
    with pytest.raises(ConfigError, match=r"there are no checks luck; those here are artifact-bytes, "):
        audit_run(run, only=("luck",))


class NotIsolated(LocalProcess):
    """A process that cannot load when it is isolated, as where libraries lie in unusual places."""

    def close_off(self) -> None:
        if self.isolated:
            raise SealedFailure("the artifact cannot be evaluated in the sealed process: ImportError")
        super().close_off()
        self.isolation = Isolation().to_json()


def test_an_evaluation_that_cannot_run_isolated_is_scored_and_not_passed(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitgolf.audit.sealed_run.SealedProcess", NotIsolated)
    verdict = audit_run(run, quick=True)
    assert verdict["reproduction"].verdict == "PASS" and verdict.passed and not verdict.complete
    check = verdict["sealed-evaluation"]
    assert check.verdict == "NOT RUN" and "isolated, the artifact cannot be evaluated" in check.reason


def test_an_error_in_isolation_on_a_cpu_is_a_violation(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks(Model):
        calls = 0

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            type(self).calls += 1
            if type(self).calls > 1:  # after the warm-up
                raise PermissionError(13, "Permission denied", "/data/val.bin")
            return super().forward(tokens)

    loaded = SimpleNamespace(model=Breaks())
    monkeypatch.setattr(sealed_evaluation, "open_model", lambda *arguments: loaded)
    check = audit_run(run, quick=True)["reproduction"]
    assert check.verdict == "FAIL" and "PermissionError" in check.reason and "/data/val.bin" in check.reason


def test_a_score_has_an_entry_for_its_headline() -> None:
    entry = {"methods": {"sliding": {"bpb": 1.1}}, "headline": "sliding"}
    changes = ({"headline": "x"}, {"headline": 7}, {"methods": []}, {"methods": {"sliding": 1}})
    others = [entry | change for change in changes]
    for score in (entry, {"headline": "sliding"}, *others):
        evidence: Any = SimpleNamespace(run=SimpleNamespace(path="runs/mine"), _json=lambda name, score=score: score)
        if score is entry:
            assert Evidence.score.func(evidence) is score
            continue
        with pytest.raises(RunError, match=r"no method of the name of its headline .* `bitgolf score runs/mine` again"):
            Evidence.score.func(evidence)


def test_the_text_of_a_run_lies_in_its_data_its_shards_and_its_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    split = lambda name: SimpleNamespace(paths=[tmp_path / name])  # noqa: E731
    evidence: Any = SimpleNamespace(
        run=RunDirectory(tmp_path / "run", Config()),
        data=SimpleNamespace(train=split("train"), val=split("val")),
        config=Config().updated({"data.source": "shards:/made/elsewhere", "data.val_source": f"file:{tmp_path}/a.txt"}),
    )
    run, corpus = tmp_path / "run", [Path("/made/elsewhere"), tmp_path / "a.txt"]
    assert Evidence.text_sources(evidence) == [run, run / "data", *corpus]
    (run / "data").mkdir(parents=True)
    assert Evidence.text_sources(evidence) == [run, run / "data", tmp_path / "train", tmp_path / "val", *corpus]
    evidence.config = Config().updated({"data.source": f"file:{tmp_path}/gone.txt"})
    assert Evidence.text_sources(evidence)[4:] == []
