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
    train_shards: int = Field(0, ge=0, description="at most this many training shards (fineweb, shards); 0 = all")
    workers: int = Field(0, ge=0, description="processes that tokenize; 0 = one a core, at most 8")


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
    swa_weight: float = Field(0.0, ge=0, le=1, description="share of the snapshot mean in what is shipped; 0 = none")
    swa_start: float = Field(0.2, gt=0, le=1, description="snapshots while the learning-rate multiplier is below this")
    swa_spacing: float = Field(0.0075, gt=0, lt=1, description="fraction of the run between two snapshots")
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


class QATConfig(Section):
    """Quantization-aware training on the export grid, and CROWN-Q (techniques.md section 5)."""

    mode: Literal["none", "ste", "soft_round"] = Field("none", description="how the forward pass rounds")
    start_lr_scale: float = Field(0.0, ge=0, le=1, description="on once the rate multiplier is below this; 0 = never")
    start_fraction: float = Field(1.0, ge=0, le=1, description="on from this fraction of the run; 1 = never")
    sharpness_start: float = Field(1.0, gt=0, description="of soft rounding when it begins")
    sharpness_end: float = Field(16.0, gt=0, description="of soft rounding at the end of the run")
    refresh_steps: int = Field(50, ge=1, description="steps between two searches of the row clips")
    crown_lambda: float = Field(0.0, ge=0, description="weight of the CROWN-Q penalty while training is quantized")
    crown_levels: int = Field(15, ge=1, description="levels of the grid that CROWN-Q prices")

    @property
    def enabled(self) -> bool:
        """Whether anything changes when the start is reached."""
        return self.mode != "none" or self.crown_lambda > 0

    def is_on(self, fraction: float, lr_scale: float) -> bool:
        """Whether a step at `fraction` of the run with this rate multiplier is quantized or penalized."""
        return self.enabled and (lr_scale < self.start_lr_scale or fraction >= self.start_fraction)


class PackConfig(Section):
    """Quantization grids and the container (techniques.md sections 6-7). Bits are those of one code."""

    matrix_bits: int = Field(8, ge=2, le=12, description="block matrices and other projections")
    attention_bits: int = Field(0, ge=0, le=12, description="attention matrices; 0 = matrix_bits")
    mlp_bits: int = Field(0, ge=0, le=12, description="MLP matrices; 0 = matrix_bits")
    embed_bits: int = Field(8, ge=2, le=12, description="token embedding and other tables")
    method: Literal["gptq", "rtn", "lossless"] = Field("gptq", description="lossless keeps fp32")
    clip_sigmas: float = Field(0.0, ge=0, description="clip block matrices at k standard deviations; 0 = percentiles")
    embed_clip_sigmas: float = Field(0.0, ge=0, description="the same for embedding and tables")
    scale_floor: bool = Field(False, description="no row step of a block matrix below 1 / qmax, as published")
    prune: float = Field(0.0, ge=0, lt=1, description="share of smallest weights zeroed in each large matrix")
    percentiles: tuple[float, ...] = Field(
        (0.999, 0.9995, 0.9999, 0.99999, 1.0), description="row clips tried; the least squared error wins"
    )
    damping: float = Field(0.01, gt=0, le=1, description="share of the mean diagonal added to the Hessian")
    block_size: int = Field(128, ge=1, description="columns between two lazy updates")
    small_tensor: int = Field(8_192, ge=0, description="tensors up to this many elements stay fp16")
    compressor: Literal["zstd", "lzma", "zlib", "brotli"] = "zstd"

    @model_validator(mode="after")
    def _grids_exist(self) -> Self:
        for key in ("attention_bits", "mlp_bits"):
            if getattr(self, key) == 1:
                raise ValueError(f"{key} 1: a grid has 2 to 12 bits; 0 takes matrix_bits")
        return self


class ScoreConfig(Section):
    """How validation text is scored (techniques.md section 8)."""

    seq_len: int = Field(0, ge=0, description="context window in tokens; 0 = train.seq_len")
    methods: tuple[Literal["chunked", "sliding"], ...] = ("chunked", "sliding")
    stride: int = Field(64, ge=1, description="targets newly scored by each sliding window")
    batch_tokens: int = Field(131_072, ge=8, description="tokens of one scoring batch")
    float_reference: bool = Field(True, description="also score the float weights (not counted as evaluation)")
    compile: bool = Field(True, description="torch.compile the scorer (CUDA only)")
    compressors: bool = Field(True, description="also compress the text with zstd-22 and xz-9, for comparison")


LoraTarget = Literal["q", "k", "v", "o", "mlp", "head"]


class TTTConfig(Section):
    """Adaptation while scoring, score-first; the adapted pass is the headline (techniques.md sections 9 and 11)."""

    method: Literal["none", "full", "last_blocks", "lora"] = Field(
        "none", description="what learns from scored tokens: all weights, the last blocks, or adapters a document"
    )
    chunk_tokens: int = Field(32_768, ge=1, description="targets scored between two updates (not lora)")
    last_blocks: int = Field(2, ge=1, description="blocks that learn with last_blocks, besides all scales")
    epochs: int = Field(3, ge=1, description="passes over each scored chunk")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="its state is kept across chunks")
    lr: float = Field(0.002, gt=0, description="learning rate of the first chunk; falls by a cosine over the chunks")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    beta1: float = Field(0.9, ge=0, lt=1, description="of adamw")
    beta2: float = Field(0.999, ge=0, lt=1, description="of adamw")
    weight_decay: float = Field(0.0, ge=0, description="of adamw")
    grad_clip: float = Field(1.0, ge=0, description="global gradient norm; 0 = no clipping")
    batch_rows: int = Field(32, ge=1, description="rows of one window in a step, over all ranks")
    lora_rank: int = Field(8, ge=1)
    lora_alpha: float = Field(8.0, gt=0, description="the adapters' output is scaled by alpha / rank")
    lora_targets: tuple[LoraTarget, ...] = Field(("q", "v", "head"), description="where adapters are added")
    lora_documents: int = Field(64, ge=1, description="documents adapted side by side, over all ranks")
    lora_chunk_tokens: int = Field(256, ge=1, description="targets of a document scored between two updates")
    lora_lr: float = Field(0.01, gt=0)
    lora_beta1: float = Field(0.9, ge=0, lt=1)
    lora_beta2: float = Field(0.95, ge=0, lt=1)
    lora_weight_decay: float = Field(0.0, ge=0)
    lora_keep_a: bool = Field(False, description="a document starts from the A that its predecessor in the slot left")
    temperature: float = Field(1.0, gt=0, description="divides the logits of the adapted pass; 1 = untouched")
    temperature_lr: float = Field(0.0, ge=0, description="step of log temperature after each chunk; 0 = constant")
    rescore_temperature: float = Field(
        0.0, ge=0, description="after the pass, score all again at this temperature as a diagnostic; 0 = do not"
    )

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        if not self.lora_targets or len(set(self.lora_targets)) != len(self.lora_targets):
            raise ValueError(f"lora_targets {list(self.lora_targets)} must name at least one place, each once")
        if self.method == "lora" and self.temperature_lr:
            raise ValueError(
                "temperature_lr learns between chunks of the text, but lora adapts inside documents; "
                "set temperature_lr 0 (a constant temperature works)"
            )
        if self.rescore_temperature and self.method not in ("full", "last_blocks"):
            raise ValueError(
                f"rescore_temperature {self.rescore_temperature:g} scores with the weights that test-time training "
                f"left, but method is {self.method}; use full or last_blocks, or set it to 0"
            )
        return self

    @property
    def enabled(self) -> bool:
        """Whether there is an adapted pass."""
        return self.method != "none" or self.temperature != 1 or self.temperature_lr > 0

    @property
    def between_chunks(self) -> bool:
        """Whether something learns between chunks of the text."""
        return self.method in ("full", "last_blocks") or self.temperature_lr > 0


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
    qat: QATConfig = QATConfig()
    pack: PackConfig = PackConfig()
    score: ScoreConfig = ScoreConfig()
    ttt: TTTConfig = TTTConfig()
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

    @model_validator(mode="after")
    def _late_starts_are_reached(self) -> Self:
        lowest = self.train.min_lr if self.train.warmdown else 1.0
        if self.train.swa_weight and self.train.swa_start <= lowest:
            raise ValueError(
                f"train.swa_start {self.train.swa_start:g} is never reached: the learning-rate multiplier falls to "
                f"{lowest:g} at the lowest; raise it, or set train.swa_weight 0"
            )
        if self.qat.enabled and self.qat.start_fraction == 1 and self.qat.start_lr_scale <= lowest:
            raise ValueError(
                f"qat never starts: the learning-rate multiplier falls to {lowest:g} at the lowest and "
                f"qat.start_lr_scale is {self.qat.start_lr_scale:g}; raise it, or set qat.start_fraction below 1"
            )
        return self

    @model_validator(mode="after")
    def _adaptation_fits(self) -> Self:
        ttt, model, window = self.ttt, self.model, self.window
        if ttt.between_chunks and ttt.chunk_tokens < window:
            raise ValueError(
                f"ttt.chunk_tokens {ttt.chunk_tokens} is shorter than the window of {window} tokens: a chunk would "
                "not hold one row to learn from"
            )
        if ttt.method == "last_blocks" and ttt.last_blocks > model.num_layers:
            raise ValueError(f"ttt.last_blocks {ttt.last_blocks} is more than the {model.num_layers} layers there are")
        if ttt.method == "lora":
            widths = {"k": model.kv_dim, "v": model.kv_dim, "head": min(model.model_dim, model.vocab_size)}
            target = min(ttt.lora_targets, key=lambda name: widths.get(name, model.model_dim))
            width = widths.get(target, model.model_dim)
            if ttt.lora_rank > width:
                raise ValueError(f"ttt.lora_rank {ttt.lora_rank} is above the width {width} of target {target!r}")
            if ttt.lora_chunk_tokens > window:
                raise ValueError(
                    f"ttt.lora_chunk_tokens {ttt.lora_chunk_tokens} is above the window of {window} tokens: targets "
                    "would be skipped"
                )
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
