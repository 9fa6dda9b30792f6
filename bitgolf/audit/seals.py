"""Checks of the seals: digests that were recorded when a product was made, computed again from the files of the run.

`bitgolf.run.seal` describes the chain. Each problem names the link that is broken: the record, and what in it differs.
Rule B7 (docs/rules.md): training data, weights, artifact and scores are those that belong together.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitgolf.audit.evidence import Evidence, run_checks
from bitgolf.audit.verdict import Finding, MissingEvidence, judge
from bitgolf.config import Config
from bitgolf.config.config import digest_of
from bitgolf.run import seal


@run_checks.register("artifact-sealed", "B7", "the artifact is the one that was scored")
def artifact_sealed(evidence: Evidence) -> Finding:
    """B7: the artifact on disk is bit for bit the one that score.json belongs to."""
    on_disk, scored = evidence.artifact_sha256, str(evidence.score.get("model_sha256"))
    problems = []
    if on_disk != scored:
        problems.append(
            f"model.bitgolf has SHA-256 {on_disk[:12]}..., the scores belong to {scored[:12]}...: it was changed after "
            "scoring"
        )
    reason = f"SHA-256 {on_disk[:12]}... on disk and in score.json"
    return judge(problems, reason, file_sha256=on_disk, scored_sha256=scored)


@run_checks.register("data-sealed", "B7", "tokenizer, shards and lists of documents are those that were prepared")
def data_sealed(evidence: Evidence) -> Finding:
    """B7: every file that manifest.json names has the digest that it had when the data was prepared."""
    root, manifest = evidence.require("data"), evidence.data.manifest
    digests = {"tokenizer.model": manifest["tokenizer"]["sha256"]}
    digests |= {shard["file"]: shard["sha256"] for split in manifest["splits"].values() for shard in split["shards"]}
    digests |= {entry["file"]: entry["sha256"] for entry in manifest.get("document_hashes", {}).values()}
    missing = [name for name in digests if not (root / name).is_file()]
    problems = [
        f"{name} was changed after it was prepared: its SHA-256 is not the one in manifest.json"
        for name, sha256 in digests.items()
        if name not in missing and seal.file_digest(root / name) != sha256
    ]
    if "seal" in manifest and manifest["seal"] != seal.seal_of(manifest):
        problems.append("manifest.json was changed after the data was prepared: its seal is not that of its content")
    if missing and not problems:
        raise MissingEvidence(f"{root} lacks {', '.join(missing[:3])}, which manifest.json names")
    return judge(problems[:8], f"{len(digests)} files have the SHA-256 that manifest.json names", files=len(digests))


@run_checks.register("sealed-chain", "B7", "data, settings, weights, artifact and scores are those that were sealed")
def sealed_chain(evidence: Evidence) -> Finding:
    """B7: the seals of train.jsonl, artifact, pack.json and score.json follow from their contents and each other.

    Other code than today's is reported, not failed: the program may have been updated since.
    """
    events, pack, score, config = evidence.events, evidence.pack, evidence.score, evidence.config
    records = {"train.jsonl": events[-1] if events else {}, "pack.json": pack, "score.json": score}
    unsealed = [name for name, record in records.items() if "seal" not in record]
    if len(unsealed) == len(records):
        raise MissingEvidence("the run was made by a version that did not seal its products; run it again")
    problems = [f"{name} has no seal" for name in unsealed]
    problems += _training(evidence, events, config)
    problems += _packing(evidence, pack, events, config)
    problems += _scoring(evidence, score, pack, config)
    if not problems and "config" not in pack and config.digest() != evidence.artifact_facts[0].get("config_sha256"):
        raise MissingEvidence(
            "config.toml was changed after packing, by a version that did not record the settings of then; pack again"
        )
    made = {"train": _begin(events), "pack": pack, "score": score}
    codes = {name: record.get("code_sha256") for name, record in made.items()} | {"audit": seal.code_digest()}
    note = "" if len(set(codes.values())) == 1 else "; the code is not the same in all stages and now"
    reason = f"{len(events)} lines of train.jsonl, the artifact, pack.json and score.json are sealed in one chain{note}"
    return judge(problems[:8], reason, num_problems=len(problems), code_sha256=codes)


def _begin(events: list[dict[str, Any]]) -> Mapping[str, Any]:
    """The last line that began or continued the training, which describes it."""
    return next((event for event in reversed(events) if "settings" in event), {})


def _training(evidence: Evidence, events: list[dict[str, Any]], config: Config) -> Iterator[str]:
    before = ""
    for number, event in enumerate(events, 1):
        if event.get("seal") != seal.seal_of(event, before):
            name = event.get("event")
            yield f"line {number} of train.jsonl (`{name}`) does not follow: a line was changed or is missing"
            break
        before = event["seal"]
    begin = _begin(events)
    if "seal" in begin and begin.get("data_seal") != seal.seal_of(evidence.data.manifest):
        yield "the data is not the data that was trained on: manifest.json has another seal than train.jsonl names"
    yield from _changed_settings(begin, config, seal.TRAIN_SETTINGS, "trained")
    prepared: Mapping[str, Any] = evidence.data.manifest.get("settings", {})
    for key, value in config.data.model_dump(mode="json").items():
        if key != "val_fraction" and prepared.get(key, value) != value:  # a share of 0 stands for one that was chosen
            yield f"data.{key} was {prepared[key]!r} when the data was prepared, it is {value!r} in config.toml"
    end = events[-1] if events else {}
    if "products" in end:
        yield from _changed_files(end["products"], evidence.run.path, "after training")


def _packing(
    evidence: Evidence, pack: Mapping[str, Any], events: list[dict[str, Any]], config: Config
) -> Iterator[str]:
    if "seal" not in pack:
        return
    last = str(events[-1].get("seal")) if events else ""
    if pack["seal"] != seal.seal_of(pack, last):
        yield "pack.json was changed after packing, or it does not follow this train.jsonl"
    packed = pack.get("config")
    if isinstance(packed, Mapping) and digest_of(packed) != evidence.artifact_facts[0].get("config_sha256"):
        yield "the header of model.bitgolf names another configuration than pack.json"
    elif isinstance(packed, Mapping) and seal.settings_of(
        Config.model_validate(packed), seal.PACK_SETTINGS
    ) != pack.get("settings"):
        yield "pack.json has other settings than its configuration"
    if evidence.artifact_facts[0].get("inputs_sha256") != seal.digest(pack.get("inputs", {})):
        yield "the header of model.bitgolf names other weights or statistics than pack.json"
    if evidence.artifact_facts[2] != evidence.data.tokenizer.sha256:
        yield "the tokenizer in model.bitgolf is not the tokenizer of the data"
    products = events[-1].get("products", {}) if events else {}
    if pack.get("inputs", {}) != products:
        yield "pack.json names other weights or statistics than the end of train.jsonl"
    if pack.get("model_sha256") != evidence.artifact_sha256:
        yield "model.bitgolf is not the artifact that pack.json describes"
    yield from _changed_files(pack.get("inputs", {}), evidence.run.path, "after packing")
    yield from _changed_settings(pack, config, seal.PACK_SETTINGS, "packed")


def _scoring(evidence: Evidence, score: Mapping[str, Any], pack: Mapping[str, Any], config: Config) -> Iterator[str]:
    if "seal" not in score:
        return
    if score["seal"] != seal.seal_of(score, str(pack.get("seal", ""))):
        yield "score.json was changed after scoring, or it does not follow this pack.json"
    if score.get("data_seal") != seal.seal_of(evidence.data.manifest):
        yield "the data is not the data that was scored: manifest.json has another seal than score.json names"
    losses = {entry["file"]: entry["sha256"] for entry in score.get("losses", {}).values()}
    losses["tape.json"] = score.get("tape_sha256")
    yield from _changed_files(losses, evidence.run.path, "after scoring")
    yield from _changed_settings(score, config, seal.SCORE_SETTINGS, "scored")


def _changed_files(digests: Mapping[str, Any], folder: Path, when: str) -> Iterator[str]:
    """Files that are missing or have another digest, and files of training that no digest covers."""
    for name, sha256 in digests.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing: it was sealed {when}"
        elif seal.file_digest(path) != sha256:
            yield f"{name} was changed {when}"
    if any(name.startswith("calibration/") for name in digests):
        for name in sorted(seal.file_digests(folder, *seal.TRAIN_PRODUCTS).keys() - digests.keys()):
            yield f"{name} was added {when}"


def _changed_settings(record: Mapping[str, Any], config: Config, prefixes: tuple[str, ...], verb: str) -> Iterator[str]:
    """Settings of config.toml that differ from those in a record."""
    current, recorded = seal.settings_of(config, prefixes), record.get("settings")
    if isinstance(recorded, Mapping):
        for key in sorted(recorded.keys() & current.keys()):
            if recorded[key] != current[key]:
                yield f"{key} was {recorded[key]!r} when the model was {verb}, it is {current[key]!r} in config.toml"
