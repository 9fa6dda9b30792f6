"""Packing again with other settings: recorded, sealed, and accepted by the audit only if it is what it says."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import done, read_json, refused, tree_digest, weights_digest

from bitgolf.audit.budgets import artifact_bytes
from bitgolf.audit.configuration import one_configuration
from bitgolf.audit.evidence import Evidence
from bitgolf.audit.seals import sealed_chain
from bitgolf.config import load_config
from bitgolf.errors import ConfigError
from bitgolf.quantize.repack import _changed
from bitgolf.run.directory import RunDirectory
from bitgolf.run.seal import last_seal, seal_of


def verdicts(run: Path) -> dict[str, str]:
    """The reasons of the checks that do not pass."""
    evidence = Evidence(RunDirectory.open(run))
    checks = {"configuration": one_configuration, "chain": sealed_chain, "bytes": artifact_bytes}
    findings = {name: check(evidence) for name, check in checks.items()}
    return {name: finding.reason for name, finding in findings.items() if finding.verdict != "PASS"}


def rewrite(run: Path, **repacked: Any) -> None:
    """Change the record of the repacking, with new seals for pack.json and score.json, as a forger would."""
    pack = read_json(run / "pack.json")
    pack["repacked"] |= repacked
    pack["seal"] = seal_of(pack, last_seal(run / "train.jsonl"))
    (run / "pack.json").write_text(json.dumps(pack))
    score = read_json(run / "score.json")
    score["seal"] = seal_of(score, pack["seal"])
    (run / "score.json").write_text(json.dumps(score))


def test_weights_are_packed_again_without_training(run_copy: Path) -> None:
    first = read_json(run_copy / "pack.json")
    before = weights_digest(run_copy)
    smaller = f"{first['total_bytes'] - 1}B"
    done("pack", run_copy, "--budget.artifact_bytes", smaller, "--pack.grid.matrix_bits", "5")
    packed = read_json(run_copy / "pack.json")
    assert weights_digest(run_copy) == before
    assert packed["model_bytes"] < first["model_bytes"] and packed["cap_bytes"] == first["total_bytes"] - 1
    config = load_config(str(run_copy / "config.toml"))
    assert (config.budget.artifact_bytes, config.pack.grid.matrix_bits) == (first["total_bytes"] - 1, 5)
    entry = packed["repacked"]
    assert entry["trained_settings"] == {"budget.artifact_bytes": 1_000_000, "pack.grid.matrix_bits": 6}
    assert [each["seal"] for each in entry["earlier"]] == [first["seal"]]

    done("score", run_copy)
    assert verdicts(run_copy) == {}
    rewrite(run_copy, trained_settings={"pack.grid.matrix_bits": 6})
    assert "not their difference" in verdicts(run_copy)["configuration"]
    rewrite(run_copy, trained_settings=entry["trained_settings"] | {"train.matrix_lr": 0.5})
    assert "train.matrix_lr, which is no setting of packing" in verdicts(run_copy)["configuration"]
    other = {**entry["config"], "seed": 8}
    rewrite(run_copy, trained_settings=entry["trained_settings"], config=other)
    assert "not their difference" in verdicts(run_copy)["configuration"]
    rewrite(run_copy, config=entry["config"])
    assert verdicts(run_copy) == {}

    # Back to the first settings: the same artifact but for the digest in its header, and the history stays.
    done("pack", run_copy, "--budget.artifact_bytes", "1MB", "--pack.grid.matrix_bits", "6")
    again = read_json(run_copy / "pack.json")
    assert again["model_sha256"] == first["model_sha256"]
    assert again["repacked"]["trained_settings"] == {} and len(again["repacked"]["earlier"]) == 2
    done("pack", run_copy)
    assert len(read_json(run_copy / "pack.json")["repacked"]["earlier"]) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.matrix_lr", "1"], "`pack` does not use --train.matrix_lr"),
        (["--budget.artifact_bytes", "0"], "greater than or equal to 1"),
        (["--budget.artifact_bytes", "1000"], "over the cap of 1,000"),
        (["--budget.artifact_bytes", "many"], "artifact_bytes 'many' is not a size"),
        (["--pack.method", "rate"], "needs train.measure.fisher_tokens"),
    ],
)
def test_a_refused_repacking_changes_nothing(tiny_run: Path, words: list[str], message: str) -> None:
    before = tree_digest(tiny_run)
    words = [word if word != "rate" else '"rate"' for word in words]
    assert message in refused("pack", tiny_run, *words).replace("divides the bytes by curvature: set", "needs")
    assert tree_digest(tiny_run) == before


def test_what_training_has_used_and_what_packing_does_not_use_cannot_be_changed() -> None:
    plain, faked = load_config("demo"), load_config("demo", {"qat.mode": "ste", "qat.start_fraction": "0.5"})
    allowed = {"pack.prune": "0.1", "budget.artifact_bytes": "5"}
    assert _changed(faked, allowed) == list(allowed)
    assert _changed(plain, {"pack.grid.matrix_bits": "5"}) == ["pack.grid.matrix_bits"]
    with pytest.raises(ConfigError, match=r"^--pack.grid.matrix_bits: quantization-aware training \(qat\) has used"):
        _changed(faked, allowed | {"pack.grid.matrix_bits": "5"})
    for key in ("train.matrix_lr", "budget.train_seconds", "seed"):
        with pytest.raises(ConfigError, match=f"`pack` does not use --{key}; it takes --pack.KEY and --budget"):
            _changed(plain, allowed | {key: "1"})
