"""Numbers that files, verdicts and results depend on, beside the settings, which docs/settings.md has.

A change of a format makes earlier files unreadable, and that of a tolerance changes verdicts. So each is a decision,
and is written twice.
"""

import importlib
from typing import Any

import pytest

# What files of artifacts, coded texts, shards and tokenizers consist of.
FORMATS: dict[str, dict[str, Any]] = {
    "artifact.ans": {"_MAX_PLAIN": 16},
    "artifact.container": {"FORMAT_VERSION": 1, "MAX_BYTES": 1 << 31},
    "artifact.entropy_coder": {"MAX_CODE": 32_767, "MAX_EXPANSION": 1 << 20},
    "artifact.float_coder": {
        "_ORDERED": 0,
        "_RAW": 1,
        "_MAGNITUDES": 2,
        "_PALETTE": 3,
        "_WAY_BITS": 2,
        "_LARGEST_BITS": 32_767,
        "_SIZE_BITS": 4,
        "_FIRST_BITS": 12,
    },
    "artifact.frequency": {
        "PRECISION": 24,
        "SCALE_STEPS": 64,
        "CLASS_STEPS": 8,
        "SMALLEST_LOG2": -12,
        "MAX_SCALE": 1792,
        "BETA_STEPS": 8,
        "BETAS": range(8, 40),
        "GAUSSIAN": 16,
        "SPIKE_BITS": 16,
        "MAX_VALUE": 1 << 18,
        "MAX_CELLS": 1 << 18,
        "_FRACTION": 12,
        "_MANTISSA": 30,
        "_NARROWEST_LOG2": -4,
        "_SAMPLING": ((1, 16, 128), (4, 4, 1024), (64, 1, 262144)),
        "_PRIOR_BITS": 4,
    },
    "artifact.integer_coder": {
        "MAX_CLASSES": 1 << 8,
        "_HAS_ROWS": 1,
        "_HAS_COLUMNS": 2,
        "_HAS_MEAN": 4,
        "_FLAG_BITS": 3,
        "_MAX_SHIFT": 16,
        "_SCALE_BITS": 11,
        "_SYMBOL_COUNT_BITS": 3,
        "_CENTER_BITS": 4,
        "_FIRST_BLOCK": 8,
    },
    "artifact.message": {"MAX_PREFIX": 32},
    "artifact.parities": {"_SHARE_BITS": 16},
    "artifact.plain_ans": {"_WORD": 32},
    "artifact.scale_model": {
        "COEFFICIENT_BITS": 6,
        "_SHIFT_ABOVE": 7,
        "_MEAN_PEAK": 127,
        "_LARGEST_COEFFICIENT": 33_000,
    },
    "artifact.stored": {"UNBOUNDED_BITS": 16},
    "artifact.trellis": {"RESTART_ROWS": 1 << 9, "STATE_COUNTS": (0, 8), "_PARITY_CHECKS": {8: (11, 4)}},
    "codec.checkpoints": {"FIRST_STEPS": 64, "_INTERVAL": 1 << 11},
    "codec.counts": {
        "COUNT_BITS": 24,
        "TOTAL": 1 << 24,
        "_STEP_BITS": 14,
        "_LOW_BITS": 9,
        "_RANGE_BITS": 19,
        "_LONGEST": 524_287,
        "_SCALE_BITS": 31,
        "_SHARE_BITS": 38,
    },
    "codec.file_format": {
        "FORMAT_VERSION": 2,
        "MODEL_DIGEST_BYTES": 8,
        "TEXT_DIGEST_BYTES": 16,
        "_CRC_AT": 7,
        "STEPS_PER_BYTE": 16,
    },
    "codec.range_coder": {"WORD_BYTES": 4},
    "data.prepared": {"FORMAT": 1},
    "data.shards": {"MAGIC": 20_240_520, "VERSION": 1, "HEADER_BYTES": 1 << 10},
    "evaluate.tape": {"EVENT_LOG_FORMAT": 1, "ADAPTER_CHUNK_TARGETS": 1 << 17},
    "grids.grid": {
        "PERCENTILES": (0.999, 0.9995, 0.9999, 0.99999, 1.0),
        "SMALLEST_SCALE": 5.960464477539063e-08,
        "LARGEST_SCALE": 65504.0,
        "MAX_BITS": 12,
    },
}
# What is read of files and requests of others.
LIMITS: dict[str, dict[str, Any]] = {
    "artifact.compressors": {
        "_ZSTD_MAX_WINDOW": 1 << 27,
        "_ZSTD_MAX_EXPANSION": 1 << 15,
        "_LZMA_MIN_DICTIONARY": 1 << 12,
        "_LZMA_MAX_DICTIONARY": 1 << 26,
    },
    "artifact.entropy_coder": {"_FREE_WORK": 1 << 24, "_WORK_PER_BYTE": 8},
    "artifact.header": {
        "MAX_HEADER_BYTES": 1 << 20,
        "MAX_TENSORS": 1 << 12,
        "MAX_TOKENIZER_BYTES": 1 << 22,
        "MAX_COLUMNS": 1 << 20,
        "FREE_ELEMENTS": 1 << 22,
        "ELEMENTS_PER_BYTE": 32,
        "MAX_DIMENSIONS": 4,
        "MAX_NAME_LENGTH": 200,
    },
    "artifact.open": {"_LARGEST_WINDOW": 1 << 24},
    "artifact.tokenizer_bytes": {"_LONGEST": 127, "_MOST_PIECES": 1 << 16},
    "audit.sandbox.client": {"_MAX_ANSWER": 1 << 20, "_ALL_PROCESSES": 2},
    "audit.sandbox.namespaces": {"_WORK_BYTES": 1 << 30},
    "audit.sandbox.process_limits": {"WALL_SECONDS": 3600.0, "_PER_THREAD_BYTES": 167_772_160},
    "codec.file_format": {
        "MAX_STREAMS": 1 << 12,
        "MAX_THREADS": 1 << 8,
        "MAX_TEXT_BYTES": 1 << 31,
        "MAX_EPOCHS": 100,
        "_UNCHECKED_STEPS": 1 << 10,
        "_MAX_JSON_BYTES": 1 << 18,
    },
    "codec.text": {"_MAX_CACHE_BYTES": 1 << 28},
    "commands.score": {"_MAX_TEXT_BYTES": 100_000_000},
    "config.load": {"_MAX_BYTES": 1_000_000},
    "data.fineweb": {"_MAX_FILES": 100_000},
    "data.prepared": {"_MAX_MANIFEST_BYTES": 1 << 26},
    "data.spm_model": {"MAX_PIECES": 1 << 16, "MAX_MODEL_BYTES": 1 << 24, "MAX_PIECE_BYTES": 1 << 12},
    "data.text_files": {"MAX_LINE_BYTES": 1 << 28, "_FREE_BYTES": 1 << 25, "_MAX_RATIO": 100},
    "foreign": {
        "MAX_BYTES": 1 << 26,
        "MAX_DEPTH": 64,
        "MAX_INTEGER": 9_223_372_036_854_775_807,
        "MAX_NUMBER_LENGTH": 64,
        "_LARGEST": 1e100,
    },
    "referee.code": {
        "_MOST_BYTES": 1 << 21,
        "_MOST_CHARACTERS": 600_000,
        "_MOST_NODES": 400_000,
        "_MOST_LAYERS": 4,
        "_MOST_STRINGS": 64,
        "_MEMORY_BYTES": 1 << 27,
    },
    "referee.folder": {"_MOST_FILE_BYTES": 1 << 26, "_MOST_FILES": 10_000},
    "referee.log": {"_LONGEST_LINE": 2000, "SEARCHED_CHARACTERS": 300},
    "referee.shipped": {"_MOST_CODE": 1 << 22},
    "run.directory": {"_MAX_CONFIG_BYTES": 1_000_000},
    "run.lock": {"_MAX_OWNER_BYTES": 1 << 12},
    "serve.app": {"MAX_BODY_BYTES": 1 << 18, "_MAX_DRAINED_BYTES": 1 << 24, "MAX_WAITING": 128},
    "serve.completions": {"MAX_TOKENS": 1 << 12, "MAX_PROMPTS": 128, "MAX_STOPS": 64, "MAX_WORK": 1 << 15},
}
# Tolerances and samples of the checks.
VERDICTS: dict[str, dict[str, Any]] = {
    "audit.borders": {"TOLERANCE_NATS": 0.001, "_NUM_MOVES": {True: 1, False: 3}},
    "audit.budgets": {"CLOCK_SLACK_SECONDS": 0.5, "CLOCK_SLACK_SHARE": 0.05},
    "audit.codec": {"TOLERANCE_SHARE": 0.005, "TOLERANCE_BYTES": 8},
    "audit.distribution": {"SUM_TOLERANCE": 1e-05, "LOSS_TOLERANCE_NATS": 5e-05},
    "audit.documents": {"_DECODED_TOKENS": 2_000_000, "_OVERLAP_TOKENS": 50_000_000, "_OVERLAP_BLOCK": 1_000_000},
    "audit.figures": {"IDENTITY_TOLERANCE": 1e-07, "_SAME_SECONDS": 1e-06, "_LOG_DIGITS": 6},
    "audit.flips": {"_NOISE_FACTOR": 10.0, "_NUM_FLIPS": {True: 3, False: 10}},
    "audit.headline": {"MODEL_ROWS": 4, "_STRIDES": 3, "_NUM_BLOCKS": 4, "_UPDATES": {True: 1, False: 2}},
    "audit.near_duplicates": {
        "SHINGLE_WORDS": 5,
        "NEAR": 0.8,
        "HALF": 0.4,
        "PIECE": 0.2,
        "COPY_WORDS": 2,
        "MAX_NEAR": 0.01,
        "MAX_COPIES": 0.001,
        "MAX_NEAR_IN_PIECES": 0.02,
        "MAX_HALF": 0.1,
        "_MIN_SHINGLES": 20,
    },
    "audit.reproduction": {"TOLERANCE_NATS": 0.0001, "SCATTER_NATS": 1.0, "SCATTER_STD_NATS": 0.005},
    "audit.sealed_run": {
        "_NUM_UPDATES": {True: 1, False: 3},
        "_NUM_BLOCKS": {True: 4, False: 16},
        "_WHOLE_PASS_TARGETS": 1 << 17,
    },
    "evaluate.tape": {"NEGATIVE_NLL_TOLERANCE": 0.0001},
    "export.onnx": {"TOLERANCE": 0.001},
    "report.caveats": {
        "LEAST_VAL_BYTES": 50_000,
        "LEAST_VAL_DOCUMENTS": 10,
        "LEAST_STEPS": 200,
        "MANY_PASSES": 4,
        "_RISE": 1.1,
        "_RISE_NATS": 0.1,
    },
    "report.comparison.t_tests": {"MARGIN_NATS": 0.005, "BAR_P": 0.01, "AUDIT_P": 0.25},
    "report.comparison.bootstrap": {"RESAMPLES": 10_000},
    "report.comparison.document_losses": {"_TOLERANCE": 1e-06},
}
# Constants of published methods, and of the challenge.
METHODS: dict[str, dict[str, Any]] = {
    "data.fineweb_docs": {"VALIDATION_DOCUMENTS": 50_000},
    "data.prepare_text": {"_VAL_SHARE": 0.05, "_MOST_VAL_SHARE": 0.2, "_VAL_BYTES": 100_000},
    "evaluate.lora": {"_EPS": 1e-10},
    "model.document_borders": {"BOS": 1},
    "model.embeddings": {"_SIGN_ROWS": 1 << 13, "_SMEAR_WINDOW": 12},
    "model.layers": {"_GATE_CHANNELS": 12, "_VALUE_GATE_CHANNELS": 32, "GATE_SCALE": 0.5},
    "model.small_step": {"_BIGRAM_FACTORS": (36_313, 27_191)},
    "plan.predict": {"_FINEWEB_VAL_BYTES": 151_080_891},
    "quantize.allocate": {"_NOISE_VARIANCES": 12},
    "run.clock": {"SAFETY": 1.15},
    "train.muon": {"QUINTIC": (3.4445, -4.775, 2.0315), "FAST_RAIL": 0.85, "SLOW_RAIL": 0.98, "SLOW_SHARE": 0.5615},
    "train.watch": {"_TEMPERATURE": 0.8},
    "referee.folder": {"VAL_DOCUMENTS": 50_000},
}


@pytest.mark.parametrize(
    "numbers", [FORMATS, LIMITS, VERDICTS, METHODS], ids=["formats", "limits", "verdicts", "methods"]
)
def test_numbers_that_others_depend_on_are_as_decided(numbers: dict[str, dict[str, Any]]) -> None:
    for module, values in numbers.items():
        there = importlib.import_module(f"bitgolf.{module}")
        assert {name: getattr(there, name) for name in values} == values, module
