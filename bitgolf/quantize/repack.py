"""Packing trained weights again with other settings, and the record of it that the audit checks.

Training does not use the settings of packing, so a smaller cap or another grid needs no new training. The new settings
go into config.toml. `pack.json` then has an entry `repacked`: the configuration at packing, the values that the changed
settings had when the model was trained, and the earlier packings. From them anybody can compute the digest of the
trained configuration, which the training log names.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError

from bitgolf.bundle.single_file import code_bytes
from bitgolf.config import Config, resolve
from bitgolf.errors import ConfigError, ForeignError
from bitgolf.foreign import as_object, field, read_json
from bitgolf.quantize.pack import pack
from bitgolf.run import atomic
from bitgolf.run.directory import RunDirectory, writes_run
from bitgolf.run.progress import Progress, silent
from bitgolf.run.seal import PACK_SETTINGS, last_seal, sealed, settings_of

# Settings that quantization-aware training has used already.
_GRID_SETTINGS = ("pack.grid.", "pack.small_tensor", "pack.passthrough", "pack.method")


@writes_run
def repack(
    run: RunDirectory, device: torch.device, overrides: Mapping[str, str], *, progress: Progress = silent
) -> None:
    """Pack with `overrides` (text by dotted key), and write them to config.toml. If packing fails, nothing changes.

    Raises ConfigError for a setting that packing does not use, or that the training has used; otherwise as `pack`.
    """
    changed = _changed(run.config, overrides)
    earlier = _record(run)
    before = as_object(earlier.get("repacked", {}), "repacked")
    trained = {key: run.config.flat()[key] for key in changed} | dict(before.get("trained_settings", {}))
    config = resolve(run.config.model_dump(mode="json"), overrides)
    again = RunDirectory(run.path, config)
    pack(again, device, code_bytes(config), progress=progress)
    again.replace_config_(config)
    packings = [*before.get("earlier", [])]
    if earlier:
        kept = ("settings", "model_sha256", "model_bytes", "total_bytes", "seal")
        packings.append({key: earlier.get(key) for key in kept})
    entry = {
        "config": config.model_dump(mode="json"),
        "trained_settings": {key: value for key, value in trained.items() if config.flat()[key] != value},
        "earlier": packings,
    }
    record = _record(again) | {"repacked": entry}
    atomic.write_json(run / "pack.json", sealed(record, last_seal(run / "train.jsonl")))


def _changed(config: Config, overrides: Mapping[str, str]) -> list[str]:
    for key in overrides:
        if not key.startswith(PACK_SETTINGS):
            raise ConfigError(f"`pack` does not use --{key}; it takes --pack.KEY and --budget.artifact_bytes")
        if config.qat.enabled and key.startswith(_GRID_SETTINGS):
            raise ConfigError(
                f"--{key}: quantization-aware training (qat) has used this setting; train again, or change only other "
                "settings of packing, such as budget.artifact_bytes"
            )
    return list(overrides)


def _record(run: RunDirectory) -> dict[str, Any]:
    """The pack.json of a run; empty if there is none or it is damaged."""
    try:
        return as_object(read_json(run / "pack.json"), "pack.json")
    except (FileNotFoundError, ForeignError):
        return {}


def is_repacked(run: RunDirectory) -> bool:
    """Whether pack.json records that the weights were packed with other settings than they were trained with."""
    return "repacked" in _record(run)


def trained_digest(config: Config, pack_record: Mapping[str, Any]) -> str:
    """Digest of the configuration that the weights were trained with.

    `config` is that of the packing. Raises ForeignError if the entry `repacked` of pack.json is malformed or changes
    more than settings of packing.
    """
    entry = pack_record.get("repacked")
    if entry is None:
        return config.digest()
    settings = as_object(field(as_object(entry, "repacked"), "trained_settings"), "trained_settings")
    if others := [key for key in settings if not key.startswith(PACK_SETTINGS)]:
        raise ForeignError(f"repacked changes {', '.join(others)}, which is no setting of packing")
    try:
        return config.updated(settings).digest()
    except (ValidationError, TypeError, AttributeError) as error:
        raise ForeignError("repacked has impossible settings") from error


def packed_config(pack_record: Mapping[str, Any]) -> Config | None:
    """The configuration that pack.json says was packed again; None without a repacking. Raises ForeignError."""
    entry = pack_record.get("repacked")
    if entry is None:
        return None
    try:
        config = Config.model_validate(as_object(field(as_object(entry, "repacked"), "config"), "config"))
    except ValidationError as error:
        raise ForeignError("repacked has an impossible configuration") from error
    if settings_of(config, PACK_SETTINGS) != pack_record.get("settings"):
        raise ForeignError("repacked has other settings of packing than pack.json itself")
    return config
