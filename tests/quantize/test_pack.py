"""Stage `pack`: the form of each tensor, the contents of the artifact, the byte cap, and products that are missing."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import PRESET, read_json, tree_digest

from bitgolf.artifact.container import read_artifact
from bitgolf.artifact.open import open_model
from bitgolf.config import Config, load_config
from bitgolf.config.pack import PackConfig
from bitgolf.data.shards import TokenShards
from bitgolf.errors import ArtifactError, BudgetError, ConfigError, RunError
from bitgolf.grids.grid import Grid
from bitgolf.grids.roles import is_table
from bitgolf.measure.calibration import hessian_key
from bitgolf.quantize.pack import _plan, _smaller, pack
from bitgolf.run.directory import RunDirectory

CPU = torch.device("cpu")
CODE_BYTES = 40_000  # of the code beside the artifact
Make = Callable[..., RunDirectory]


@pytest.fixture
def trained(tiny_run: Path, tmp_path: Path) -> Make:
    """Makes runs with the tiny run's weights, ready to be packed with other settings."""

    def make(**pack_settings: str) -> RunDirectory:
        overrides = {f"pack.{key.replace('__', '.')}": value for key, value in pack_settings.items()}
        run = RunDirectory.create(tmp_path / "run", load_config(str(PRESET), overrides))
        for name in ("data", "calibration"):
            shutil.copytree(tiny_run / name, run / name)
        shutil.copy(tiny_run / "weights.safetensors", run / "weights.safetensors")
        return run

    return make


def test_large_matrices_go_on_their_grids_and_the_rest_stays_fp16(trained: Make) -> None:
    run = trained(grid__matrix_bits="5", grid__embed_bits="7", small_tensor="2048")
    pack(run, CPU, CODE_BYTES)
    kinds = read_artifact(run / "model.bitgolf").kinds
    weights = load_file(run / "weights.safetensors")
    assert kinds.keys() == weights.keys()
    for name, weight in weights.items():
        if weight.ndim < 2 or weight.numel() <= 2048:
            assert kinds[name] == "fp16", name
        elif is_table(name):
            assert kinds[name] == "int7", name
        else:
            assert kinds[name] == "int5", name
    assert kinds["embedding"] == "int7"
    assert kinds["blocks.0.mlp.up.weight"] == "int5"
    assert kinds["blocks.0.resid_mix"] == "fp16"
    assert kinds["bigram.table"] == "fp16"  # 1,536 elements


def test_matrices_are_coded_in_the_processes_for_their_number_of_weights(
    trained: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    coded: list[str] = []

    @contextmanager
    def processes(num_weights: int) -> Iterator[Callable]:
        asked.append(num_weights)

        def apply(function: Callable, values: Iterable) -> Iterator:
            coded.append(function.__name__)
            return map(function, values)

        yield apply

    monkeypatch.setattr("bitgolf.quantize.pack.coder_processes", processes)
    run = trained(method="rtn", compressor="range")
    pack(run, CPU, CODE_BYTES)
    assert asked == [sum(weight.numel() for weight in load_file(run / "weights.safetensors").values())]
    assert "work_of_reading" in coded and len(set(coded)) > 1


def test_rtn_equals_rounding_by_hand(trained: Make) -> None:
    run = trained(method="rtn", grid__percentiles="[1.0]")
    pack(run, CPU, CODE_BYTES)
    artifact = read_artifact(run / "model.bitgolf")
    weight = load_file(run / "weights.safetensors")["blocks.1.mlp.up.weight"].double().numpy()
    step = (np.abs(weight).max(1, keepdims=True) / 31).astype(np.float16).astype(np.float64)
    expected = np.clip(np.rint(weight / step), -31, 31) * step
    np.testing.assert_allclose(artifact.tensors["blocks.1.mlp.up.weight"].numpy(), expected, rtol=1e-6)


def test_lossless_keeps_every_bit(trained: Make) -> None:
    run = trained(method="lossless")
    shutil.rmtree(run / "calibration")  # not needed
    pack(run, CPU, CODE_BYTES)
    artifact = read_artifact(run / "model.bitgolf")
    assert set(artifact.kinds.values()) == {"fp32"}
    for name, weight in load_file(run / "weights.safetensors").items():
        assert torch.equal(artifact.tensors[name], weight)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda weights: weights.pop("blocks.1.resid_mix"), ["weights.safetensors", "'blocks.1.resid_mix'"]),
        (lambda weights: weights.update(extra=torch.ones(3)), ["weights.safetensors", "'extra'"]),
        (lambda weights: weights.update(embedding=torch.ones(8, 64)), ["'embedding' is (8, 64)", "(384, 64)"]),
        (lambda weights: weights["blocks.0.attention.q_gain"].fill_(torch.nan), ["blocks.0.attention.q_gain: ", "NaN"]),
    ],
)
def test_unusable_weights_leave_the_earlier_artifact(
    trained: Make, damage: Callable[[dict[str, torch.Tensor]], object], words: list[str]
) -> None:
    run = trained()
    pack(run, CPU, CODE_BYTES)
    weights = load_file(run / "weights.safetensors")
    damage(weights)
    save_file(weights, run / "weights.safetensors")
    before = tree_digest(run.path)
    with pytest.raises(ArtifactError) as error:
        pack(run, CPU, CODE_BYTES)
    for word in words:
        assert word in str(error.value)
    assert tree_digest(run.path) == before


def test_a_damaged_ledger_is_found_before_the_artifact_is_replaced(trained: Make) -> None:
    run = trained()
    pack(run, CPU, CODE_BYTES)
    (run / "budget.json").write_text("[]")
    before = tree_digest(run.path)
    with pytest.raises(RunError, match="not a budget ledger"):
        pack(run, CPU, CODE_BYTES)
    assert tree_digest(run.path) == before


def test_packing_reads_no_text(trained: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained()

    def forbidden(*_: object) -> None:
        raise AssertionError("pack read tokens")

    monkeypatch.setattr(TokenShards, "read", forbidden)
    monkeypatch.setattr(TokenShards, "chunks", forbidden)
    pack(run, CPU, CODE_BYTES)
    assert (run / "model.bitgolf").exists()


def test_the_artifact_holds_all_that_scoring_needs(trained: Make) -> None:
    run = trained()
    pack(run, CPU, CODE_BYTES)
    artifact = read_artifact(run / "model.bitgolf")
    assert artifact.model_config == run.config.model.model_dump(mode="json")
    assert artifact.tokenizer == (run / "data" / "tokenizer.model").read_bytes()
    assert artifact.tokenizer_meta["lossless"] is True
    assert (artifact.meta["window"], artifact.meta["stride"]) == (64, 32)
    assert artifact.meta["config_sha256"] == run.config.digest()
    packed = open_model(run / "model.bitgolf", "cpu")
    assert (packed.window, packed.stride) == (64, 32)


@pytest.mark.parametrize("packed_with", [False, True])
def test_forbidden_pairs_are_those_of_the_artifact_unless_the_caller_decides(trained: Make, packed_with: bool) -> None:
    run = trained()
    run = RunDirectory(run.path, run.config.updated({"score.canonical": packed_with}))
    pack(run, CPU, CODE_BYTES)
    for canonical, expected in ((None, packed_with), (False, False), (True, True)):
        model = open_model(run / "model.bitgolf", "cpu", canonical=canonical).model
        assert (model.forbidden is not None) == expected


def test_the_cap_is_inclusive_and_the_excess_exact(trained: Make) -> None:
    run = trained()
    pack(run, CPU, CODE_BYTES)
    packed = read_json(run / "pack.json")
    total = packed["total_bytes"]
    pack(run, CPU, CODE_BYTES, artifact_bytes=total)
    before = (run / "model.bitgolf").read_bytes(), (run / "budget.json").read_bytes()
    with pytest.raises(BudgetError, match=rf"= {total:,}, 1 over the cap of {total - 1:,}.*matrix_bits"):
        pack(run, CPU, CODE_BYTES, artifact_bytes=total - 1)
    assert ((run / "model.bitgolf").read_bytes(), (run / "budget.json").read_bytes()) == before


def test_the_advice_for_a_smaller_file_names_the_bits_that_can_be_lowered(trained: Make) -> None:
    run = trained(grid__matrix_bits="2", grid__embed_bits="3")
    with pytest.raises(BudgetError, match=r"lower pack\.grid\.embed_bits \(now 3\), ") as caught:
        pack(run, CPU, CODE_BYTES, artifact_bytes=CODE_BYTES + 5_000)
    assert "matrix_bits" not in str(caught.value) and "attention_bits" not in str(caught.value)


def test_passthrough_tensors_stay_fp16_and_the_rest_is_unchanged(trained: Make, tiny_run: Path) -> None:
    run = trained(passthrough='["embedding", "blocks.*.attention.key.weight"]')
    pack(run, CPU, CODE_BYTES)
    artifact, usual = read_artifact(run / "model.bitgolf"), read_artifact(tiny_run / "model.bitgolf")
    exempt = {"embedding", "blocks.0.attention.key.weight", "blocks.1.attention.key.weight"}
    for name, weight in load_file(run / "weights.safetensors").items():
        if name in exempt:
            assert artifact.kinds[name] == "fp16"
            assert usual.kinds[name] != "fp16"
            assert torch.equal(artifact.tensors[name], weight.half().float())
        else:
            assert artifact.kinds[name] == usual.kinds[name]
            assert torch.equal(artifact.tensors[name], usual.tensors[name])


def test_an_entry_of_passthrough_without_a_tensor_is_refused_with_the_nearest(trained: Make) -> None:
    run = trained(passthrough='["embedding", "blocks.1.attn.c_k"]')
    with pytest.raises(ConfigError, match=r"'blocks\.1\.attn\.c_k' matches none of.* tensors; the nearest name is 'b"):
        pack(run, CPU, CODE_BYTES)
    assert not (run / "model.bitgolf").exists()


def test_a_passthrough_without_effect_is_logged(trained: Make, caplog: pytest.LogCaptureFixture) -> None:
    pack(trained(passthrough='["*.q_gain", "blocks.*.attention.key.weight"]'), CPU, CODE_BYTES)
    assert "pack.passthrough '*.q_gain': all tensors that it matches stay in float" in caplog.text
    assert "key.weight" not in caplog.text


def test_codes_of_one_are_zeroed_until_the_artifact_fits(trained: Make, tiny_run: Path) -> None:
    run = trained(fit__prune="true", fit__margin_bytes="1000")
    pack(run, CPU, CODE_BYTES)
    model_bytes = read_json(run / "pack.json")["model_bytes"]
    pack(run, CPU, CODE_BYTES, artifact_bytes=read_json(run / "pack.json")["total_bytes"] + 1000 - 600)
    packed = read_json(run / "pack.json")
    assert model_bytes - 700 < packed["model_bytes"] <= model_bytes - 600
    record = packed["pruned_to_fit"]
    assert 0 < record["zeroed"] < record["candidates"]
    assert record["margin_bytes"] == 1000
    assert record["encodes"] <= 6
    artifact, usual = read_artifact(run / "model.bitgolf"), read_artifact(tiny_run / "model.bitgolf")
    hessians = load_file(run / "calibration" / "hessians.safetensors")
    weights = load_file(run / "weights.safetensors")
    gone, left = [], []
    for name, before in usual.tensors.items():
        now = artifact.tensors[name]
        if hessian_key(name) is None or is_table(name) or not usual.kinds[name].startswith("int"):
            assert torch.equal(now, before)
            continue
        grid = Grid(int(usual.kinds[name][3:]))
        step = grid.scales(weights[name], grid.search_clip(weights[name]))[:, None]
        ones = (before != 0) & (before.abs() <= 1.001 * step)
        assert torch.equal(now[~ones], before[~ones])
        assert bool(((now == before) | (now == 0))[ones].all())
        cost = step.square() * hessians[str(hessian_key(name))].diagonal()
        gone += cost[ones & (now == 0)].tolist()
        left += cost[ones & (now != 0)].tolist()
    assert len(gone) == record["zeroed"]
    assert len(gone) + len(left) == record["candidates"]
    assert max(gone) <= min(left) * 1.0001
    assert record["cost"] == pytest.approx(sum(gone), rel=1e-3)
    figures = packed["tensors"]["blocks.0.mlp.up.weight"]
    before = read_json(tiny_run / "pack.json")["tensors"]["blocks.0.mlp.up.weight"]
    assert figures["hessian_error"] > before["hessian_error"]
    assert figures["code_bits"] < before["code_bits"]


def test_an_artifact_that_fits_is_not_pruned(trained: Make, tiny_run: Path) -> None:
    run = trained(fit__prune="true")
    pack(run, CPU, CODE_BYTES)
    record = read_json(run / "pack.json")["pruned_to_fit"]
    assert (record["zeroed"], record["cost"], record["encodes"]) == (0, 0.0, 1)
    usual = read_artifact(tiny_run / "model.bitgolf")
    for name, tensor in read_artifact(run / "model.bitgolf").tensors.items():
        assert torch.equal(tensor, usual.tensors[name])
    assert read_json(tiny_run / "pack.json")["pruned_to_fit"] is None


def test_when_no_pruning_is_enough_the_error_says_by_how_much(trained: Make) -> None:
    run = trained(fit__prune="true", fit__margin_bytes="700")
    pack(run, CPU, CODE_BYTES)
    before = (run / "model.bitgolf").read_bytes(), (run / "pack.json").read_bytes()
    least = read_json(run / "pack.json")["code_bytes"] + 5_000
    with pytest.raises(BudgetError, match=r"even with all [\d,]+ codes of \+-1 zeroed: .* bytes of code") as caught:
        pack(run, CPU, CODE_BYTES, artifact_bytes=least)
    words = str(caught.value).replace(",", "")
    total, over = (
        int(words.split(mark)[1].split()[0]) for mark in ("bytes of code = ", f"= {words.split('= ')[1].split()[0]} ")
    )
    assert over == total - least + 700
    assert f"over the cap of {least} less pack.fit.margin_bytes 700" in words
    assert ((run / "model.bitgolf").read_bytes(), (run / "pack.json").read_bytes()) == before


def test_pruning_to_fit_without_gptq_is_logged_and_keeps_the_whole_cap(
    trained: Make, caplog: pytest.LogCaptureFixture
) -> None:
    run = trained(fit__prune="true", method="rtn")
    pack(run, CPU, CODE_BYTES)
    total = read_json(run / "pack.json")["total_bytes"]
    pack(run, CPU, CODE_BYTES, artifact_bytes=total)
    assert "pack.fit.prune: only GPTQ matrices are pruned" in caplog.text
    assert read_json(run / "pack.json")["pruned_to_fit"] is None


def test_statistics_are_asked_for_only_where_they_are_used(trained: Make) -> None:
    run = trained()
    (run / "calibration" / "hessians.safetensors").unlink()
    with pytest.raises(RunError, match=r"hessians\.safetensors is missing.*bitgolf train.*rtn"):
        pack(run, CPU, CODE_BYTES)
    shutil.rmtree(run / "calibration")
    with pytest.raises(RunError, match=r"calibration is missing; run `bitgolf train"):
        pack(run, CPU, CODE_BYTES)


def test_a_method_that_fills_the_cap_needs_room_beside_the_code() -> None:
    """The margin is kept free where pruning brings the file to the cap."""
    changes = {"pack.method": "rate", "train.measure.fisher_tokens": 2048, "pack.fit.margin_bytes": 7}
    rate = Config().updated(changes)
    assert _plan(rate, 100, 101).model_bytes == 1
    with pytest.raises(BudgetError, match="the code alone has 100 bytes, 0 over the cap"):
        _plan(rate, 100, 100)
    gptq = rate.updated({"pack.method": "gptq"})
    assert _plan(gptq, 100, 90).model_bytes == -10
    assert _plan(gptq.updated({"pack.fit.prune": True}), 100, 500).model_bytes == 393
    assert _plan(gptq, 100, None).model_bytes == gptq.budget.artifact_bytes - 100


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"method": "lossless"}, "use pack.method 'gptq' or 'rate', lower "),
        (
            {"method": "gptq", "grid": {"matrix_bits": 5, "embed_bits": 7}},
            "lower pack.grid.matrix_bits (now 5), pack.grid.embed_bits (now 7), ",
        ),
        (
            {"grid": {"matrix_bits": 6, "attention_bits": 4, "embed_bits": 2}},
            "lower pack.grid.matrix_bits (now 6), pack.grid.attention_bits (now 4), ",
        ),
        (
            {"grid": {"attention_bits": 4, "mlp_bits": 3, "embed_bits": 8}},
            "lower pack.grid.attention_bits (now 4), pack.grid.mlp_bits (now 3), pack.grid.embed_bits (now 8), ",
        ),
    ],
    ids=str,
)
def test_a_file_that_does_not_fit_names_the_settings_in_force(settings: dict, advice: str) -> None:
    assert _smaller(PackConfig.model_validate(settings)) == advice
