"""The configuration of a run: one frozen, validated model a stage, read from TOML presets and overrides.

A preset is a TOML file under `bitgolf/presets/` (or any path ending in `.toml`); dotted overrides
(`--train.lr 0.02`) are applied on top; the whole resolved result is written to the run directory, where it
reproduces the run. Unknown keys and impossible values are `ConfigError`s that name the key, the value, what is
allowed and the nearest valid name. What depends on the data too (a sequence longer than the corpus, a tokenizer
of another size) is checked by the stage that reads the data.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bitgolf.errors import ConfigError


class Section(BaseModel):
    """Base of every section: frozen, strict about unknown keys, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """Where the text comes from and how it becomes tokens (stage `prepare`)."""

    source: str = Field("stdlib", description="stdlib | jsonl:PATH | dir:PATH | shards:PATH | fineweb[:VARIANT]")
    val_source: str = Field("", description="a source of its own for validation; empty: split `source` by document")
    val_fraction: float = Field(0.05, gt=0, lt=1, description="share of documents held out when there is no val_source")
    val_bytes: int = Field(0, ge=0, description="stop the validation split after this many raw bytes; 0 = all of it")
    train_bytes: int = Field(0, ge=0, description="stop the training split after this many raw bytes; 0 = all of it")
    tokenizer: str = Field("lossless", description="lossless | challenge (lossy) | path of a SentencePiece .model")
    tokenizer_bytes: int = Field(16_000_000, ge=1_000, description="raw bytes that a new tokenizer is trained on")
    shard_tokens: int = Field(100_000_000, ge=1_024, description="tokens in a full shard file")
    train_shards: int = Field(0, ge=0, description="training shards to fetch (fineweb); 0 = all")
    workers: int = Field(0, ge=0, description="processes that tokenize; 0 = one a core")


class ModelConfig(Section):
    """The network. Defaults are the challenge's baseline. techniques.md section 2; sizes in elements."""

    vocab_size: int = Field(1024, ge=260, le=65_536)
    num_layers: int = Field(9, ge=1, le=256)
    model_dim: int = Field(512, ge=8, le=16_384, description="width D of the residual stream")
    num_heads: int = Field(8, ge=1, description="query heads H; must divide model_dim")
    num_kv_heads: int = Field(4, ge=1, description="key/value heads G; must divide num_heads")
    mlp_multiple: float = Field(2.0, gt=0, le=16, description="MLP hidden width / model_dim")
    activation: Literal["relu2", "leaky_relu2"] = "relu2"
    leaky_slope: float = Field(0.5, ge=0, lt=1, description="slope of leaky_relu2 below zero")
    rope_dims: int = Field(0, ge=0, description="rotated channels of a head (even); 0 = all of them")
    rope_base: float = Field(10_000.0, gt=1)
    rope_train_length: int = Field(0, ge=0, description="beyond it the base grows (NTK); 0 = never")
    qk_gain: float = Field(1.5, gt=0, description="initial per-head gain on normalized queries")
    logit_softcap: float = Field(30.0, gt=0)
    embed_init_std: float = Field(0.005, gt=0)
    init: Literal["uniform", "orthogonal"] = "uniform"
    skips: bool = Field(True, description="U-Net skip connections from the first half to the second")
    skip_gates: bool = Field(False, description="mix stream and skip by a learned gate a channel (starts at one half)")
    ln_scale: bool = Field(False, description="multiply normalized inputs of layer l by 1 / sqrt(l + 1)")
    xsa_layers: int = Field(0, ge=0, description="last layers that remove each token's own value from attention (XSA)")
    value_residual: bool = Field(False, description="mix the first layer's values into every later layer (VRL)")
    bigram_rows: int = Field(0, ge=0, description="rows of the hashed bigram table; 0 = none")
    bigram_dim: int = Field(128, ge=1)
    smear: Literal["none", "v1", "v2"] = Field("none", description="mix in the previous token's embedding")
    smear_gate_init: float = Field(0.0, description="initial logit of the smear gate (v1)")
    smear_document_mask: bool = Field(False, description="no smear over a document start")
    ve_layers: tuple[int, ...] = Field((), description="layers whose values get a shared token embedding")
    ve_dim: int = Field(128, ge=1, description="width of the value embedding table")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.model_dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide model_dim {self.model_dim}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"the head width model_dim / num_heads = {self.head_dim} must be even (rotary pairs)")
        if self.rope_dims % 2 or self.rope_dims > self.head_dim:
            raise ValueError(f"rope_dims {self.rope_dims} must be even and at most the head width {self.head_dim}")
        if self.rope_train_length and self.rotary_dims == 2:
            raise ValueError(
                "rope_dims 2 has no NTK extension (its exponent r/(r-2) is singular); "
                "set rope_train_length 0 or rope_dims >= 4"
            )
        if self.bigram_rows == 1:
            raise ValueError("bigram_rows 1 leaves no row to hash into; use 0 for none, or 2 and more")
        if self.xsa_layers > self.num_layers:
            raise ValueError(f"xsa_layers {self.xsa_layers} is more than the {self.num_layers} layers there are")
        outside = [layer for layer in self.ve_layers if not 0 <= layer < self.num_layers]
        if outside or len(set(self.ve_layers)) != len(self.ve_layers):
            raise ValueError(
                f"ve_layers {list(self.ve_layers)} must be different layers from 0 to {self.num_layers - 1}"
            )
        if self.skip_gates and not self.skips:
            raise ValueError("skip_gates need skips = true")
        return self

    @property
    def head_dim(self) -> int:
        """Head width K."""
        return self.model_dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        """Width of keys and values, G * K."""
        return self.num_kv_heads * self.head_dim

    @property
    def mlp_dim(self) -> int:
        """MLP hidden width F."""
        return int(self.mlp_multiple * self.model_dim)

    @property
    def rotary_dims(self) -> int:
        """Channels of a head that are rotated."""
        return self.rope_dims or self.head_dim


class TrainConfig(Section):
    """The training loop under its wall clock. Schedules are fractions of the run (techniques.md section 3)."""

    seq_len: int = Field(1024, ge=8, description="tokens in a training row")
    batch_tokens: int = Field(65_536, ge=8, description="tokens of one optimizer step over all ranks")
    micro_batch_tokens: int = Field(65_536, ge=8, description="tokens of one forward pass on one rank")
    max_steps: int = Field(0, ge=0, description="stop after this many steps even with time left; 0 = no limit")
    loader: Literal["sequential", "shuffled"] = Field("sequential", description="order of the training rows")
    compile: bool = Field(True, description="torch.compile the step (CUDA only; the CPU runs eagerly)")
    attention: Literal["auto", "fa3", "cudnn", "flash", "efficient", "math"] = "auto"
    matrix_lr: float = Field(0.04, gt=0, description="Muon learning rate")
    embed_lr: float = Field(0.05, gt=0, description="AdamW learning rate of the tied embedding and other tables")
    scalar_lr: float = Field(0.04, gt=0, description="AdamW learning rate of gains, scales and mixers")
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    muon_momentum_start: float = Field(0.85, ge=0, lt=1)
    muon_momentum_warmup: float = Field(0.036, ge=0, le=1, description="fraction of the run over which it rises")
    muon_steps: int = Field(5, ge=1, le=20, description="Newton-Schulz iterations")
    muon_weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    adam_eps: float = Field(1e-8, gt=0)
    adam_weight_decay: float = Field(0.0, ge=0)
    grad_clip: float = Field(0.0, ge=0, description="global gradient norm; 0 = no clipping")
    warmdown: float = Field(0.087, ge=0, le=1, description="last fraction of the budget with a falling rate")
    min_lr: float = Field(0.0, ge=0, lt=1, description="multiplier at the end of the warm-down")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay a step of the averaged weights; 0 = no average")
    warmup_steps: int = Field(3, ge=1, description="untimed compile warm-up steps; all state is restored after them")
    calibration_tokens: int = Field(524_288, ge=8, description="training tokens the Hessians are gathered from")
    calibration_reserve_seconds: float = Field(0.0, ge=0, description="kept for calibration; 0 = measured in warm-up")
    checkpoint_seconds: float = Field(120.0, ge=0, description="wall clock between checkpoints; 0 = none")
    log_every: int = Field(50, ge=1, description="steps between lines of train.jsonl")

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        for key in ("batch_tokens", "micro_batch_tokens"):
            if getattr(self, key) % self.seq_len:
                raise ValueError(f"{key} {getattr(self, key)} is not a multiple of seq_len {self.seq_len}")
        if self.muon_momentum_start > self.muon_momentum:
            raise ValueError(
                f"muon_momentum_start {self.muon_momentum_start} is above muon_momentum {self.muon_momentum}"
            )
        return self


class PackConfig(Section):
    """Quantization grids and the container (techniques.md sections 6-7). Bits are those of one code."""

    matrix_bits: int = Field(8, ge=2, le=12, description="block matrices")
    embed_bits: int = Field(8, ge=2, le=12, description="token embedding and other tables")
    method: Literal["gptq", "rtn", "lossless"] = Field("gptq", description="lossless keeps fp32")
    percentiles: tuple[float, ...] = Field(
        (0.999, 0.9995, 0.9999, 0.99999, 1.0), description="row clips tried; the least squared error wins"
    )
    damping: float = Field(0.01, gt=0, le=1, description="share of the mean diagonal added to the Hessian")
    block_size: int = Field(128, ge=1, description="columns between two lazy updates")
    small_tensor: int = Field(8_192, ge=0, description="tensors up to this many elements stay fp16")
    compressor: Literal["zstd", "lzma", "zlib"] = "zstd"


class ScoreConfig(Section):
    """How validation text is scored (techniques.md section 8)."""

    seq_len: int = Field(0, ge=0, description="context window in tokens; 0 = train.seq_len")
    methods: tuple[Literal["chunked", "sliding"], ...] = ("chunked", "sliding")
    stride: int = Field(64, ge=1, description="targets newly scored by each sliding window")
    batch_tokens: int = Field(131_072, ge=8, description="tokens of one scoring batch")
    float_reference: bool = Field(True, description="also score the float weights (not counted as evaluation)")
    compile: bool = Field(True, description="torch.compile the scorer (CUDA only)")


class BudgetConfig(Section):
    """The three caps."""

    artifact_bytes: int = Field(16_000_000, ge=1, description="code + compressed model")
    train_seconds: float = Field(600.0, gt=0)
    eval_seconds: float = Field(600.0, gt=0)


class ReportConfig(Section):
    """What the report shows besides the numbers."""

    samples: int = Field(3, ge=0, le=20, description="continuations of validation text to sample")
    sample_tokens: int = Field(120, ge=1, le=4_096)
    surprisal_tokens: int = Field(400, ge=2, le=10_000, description="length of the coloured passage")


class Config(Section):
    """Everything that decides a run."""

    name: str = Field("custom", min_length=1)
    description: str = ""
    seed: int = Field(1337, ge=0, lt=2**31)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    pack: PackConfig = PackConfig()
    score: ScoreConfig = ScoreConfig()
    budget: BudgetConfig = BudgetConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        window = self.window
        if self.score.stride > window:
            raise ValueError(
                f"score.stride {self.score.stride} is above the window of {window} tokens: targets would be skipped"
            )
        if self.score.batch_tokens < window:
            raise ValueError(f"score.batch_tokens {self.score.batch_tokens} does not hold one window of {window}")
        return self

    @property
    def window(self) -> int:
        """Context window at evaluation, in tokens."""
        return self.score.seq_len or self.train.seq_len

    def digest(self) -> str:
        """SHA-256 of the resolved configuration: two runs with the same digest were asked to do the same."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """The whole configuration as TOML; `load_config` of the text gives an equal Config."""
        return tomli_w.dumps(self.model_dump(mode="json"))


def preset_names() -> list[str]:
    """Names of the presets that ship with bitgolf, sorted."""
    files = resources.files("bitgolf.presets").iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in files if entry.name.endswith(".toml"))


def load_config(preset: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Resolve a preset name (or the path of a `.toml` file) and dotted overrides into a Config.

    Args:
        preset: a name of `preset_names()` or a path ending in `.toml`.
        overrides: dotted key -> value as text, e.g. `{"train.matrix_lr": "0.02"}`; values are read as TOML
            where they parse (numbers, booleans, lists, quoted strings) and as plain strings otherwise.
    Raises:
        ConfigError: unknown preset or key (with the nearest valid name), or a value out of range.
    """
    if preset.endswith(".toml"):
        path = Path(preset)
        if not path.is_file():
            raise ConfigError(f"configuration file {preset} does not exist")
        text = path.read_text(encoding="utf-8")
    else:
        if preset not in preset_names():
            raise ConfigError(
                f"unknown preset {preset!r}{_nearest(preset, preset_names())}; "
                f"presets: {', '.join(preset_names())}, or the path of a .toml file"
            )
        text = resources.files("bitgolf.presets").joinpath(f"{preset}.toml").read_text(encoding="utf-8")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{preset} is not valid TOML: {error}") from error
    return resolve(values, overrides or {}, origin=preset)


def resolve(values: Mapping[str, Any], overrides: Mapping[str, str], origin: str = "configuration") -> Config:
    """Validate nested `values` with dotted `overrides` on top. Raises ConfigError (see `load_config`)."""
    merged: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    known = known_keys()
    for key, text in overrides.items():
        if key not in known:
            raise ConfigError(f"unknown key {key!r}{_nearest(key, known)}")
        *section, leaf = key.split(".")
        target = merged.setdefault(section[0], {}) if section else merged
        target[leaf] = _parse_value(text)
    for key in _flatten(merged):
        if key not in known:
            raise ConfigError(f"{origin}: unknown key {key!r}{_nearest(key, known)}")
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors())) from error


def known_keys() -> dict[str, str]:
    """Every dotted key with its description."""
    keys: dict[str, str] = {}
    for name, field in Config.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            for leaf, leaf_field in annotation.model_fields.items():
                keys[f"{name}.{leaf}"] = leaf_field.description or ""
        else:
            keys[name] = field.description or ""
    return keys


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        lowered = text.lower()
        return {"true": True, "false": False}.get(lowered, text)


def _flatten(values: Mapping[str, Any]) -> Iterable[str]:
    for name, value in values.items():
        field = Config.model_fields.get(name)
        is_section = field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        if is_section and not isinstance(value, Mapping):
            raise ConfigError(f"{name!r} is a section of settings, not a value; give for example {name}.KEY")
        if isinstance(value, Mapping):
            yield from (f"{name}.{leaf}" for leaf in value)
        else:
            yield name


def _nearest(key: str, known: Iterable[str]) -> str:
    """', did you mean ...?' for the closest known name, trying the last part of a dotted key too."""
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if not close:
        leaves = {name.rsplit(".", 1)[-1]: name for name in names}
        found = difflib.get_close_matches(key.rsplit(".", 1)[-1], leaves, n=1, cutoff=0.6)
        close = [leaves[found[0]]] if found else []
    return f", did you mean {close[0]!r}?" if close else ""


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "value_error":
        return f"{where + ': ' if where else ''}{error['ctx']['error']!s}"
    return f"{where} = {error['input']!r}: {error['msg'][0].lower() + error['msg'][1:]}"
