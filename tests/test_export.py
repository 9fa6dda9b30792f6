"""`bitgolf export`: the exported models compute the same logits and write the same text, without bitgolf."""

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from slow_gpt import make
from tiny_run import documents, done, environment, refused

import bitgolf
from bitgolf.config import load_config, preset_names
from bitgolf.data.train_tokenizer import train_tokenizer
from bitgolf.export.network_tensors import network_of
from bitgolf.export.onnx import export_onnx
from bitgolf.language_model import LanguageModel, load
from bitgolf.model import GPT

TEXT = documents()[4] + " — déjà vu <s> ▁ 漢\n\n  tail "
TOLERANCE = 1e-3

PROGRAM = """
import json, sys
sys.modules["bitgolf"] = None  # an import of bitgolf fails
import numpy, torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, text = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer(text, return_tensors="pt")
with torch.no_grad():
    numpy.save("logits.npy", model(**inputs).logits.numpy())
    loss = float(model(**inputs, labels=inputs.input_ids).loss)
prompt = tokenizer("The quiet", return_tensors="pt")
torch.manual_seed(3)
made = model.generate(**prompt, do_sample=True, temperature=0.8, top_k=0, max_new_tokens=150)[0]
tokenizer.save_pretrained("again")
again = AutoTokenizer.from_pretrained("again", trust_remote_code=True)
json.dump({
    "ids": inputs.input_ids[0].tolist(), "decoded": tokenizer.decode(inputs.input_ids[0], skip_special_tokens=True),
    "again": again(text).input_ids, "text": tokenizer.decode(made, skip_special_tokens=True), "loss": loss,
    "special": [tokenizer.bos_token_id, tokenizer.eos_token_id], "vocab": len(tokenizer),
}, open("result.json", "w"))
exec(open("page.py").read())
"""
# The programs of the page: Transformers, ONNX.
PAGE = re.findall(
    r"^```python\n(.*?)^```", Path(__file__).parents[1].joinpath("docs/own-corpus.md").read_text("utf-8"), re.M | re.S
)


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> LanguageModel:
    return load(tiny_run / "model.bitgolf", device="cpu")


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_layers": 1, "mlp.activation": "leaky_relu2", "rope.dims": 4, "rope.train_length": 8},
        {"skips": False, "num_kv_heads": 1, "logit_softcap": 5.0},
        {"bigram.rows": 40, "bigram.dim": 6, "smear.gate": "v1", "skip_gates": True, "num_layers": 5},
        {"bigram.rows": 7, "bigram.dim": 6, "smear.gate": "v2", "smear.document_mask": True},
        {"value_embedding.layers": (0, 2), "value_embedding.dim": 5, "attention.value_residual": True},
        {"attention.xsa_layers": 2, "num_kv_heads": 4, "ln_scale": True, "attention.gate": True},
        {"num_layers": 6, "loop.repeats": 2, "loop.first": 2, "loop.last": 3, "lanes_from": 4},
        {"attention.within_documents": True, "bigram.rows": 20, "bigram.dim": 6, "attention.document_tokens": 3},
        {"attention.within_documents": True, "smear.gate": "v1", "smear.document_mask": True},
        {"attention.within_documents": True, "attention.window": 3, "attention.full_layers": (1,)},
        {"attention.key_offset": True, "rope.dims": 2, "attention.window": 3, "attention.full_layers": (1,)},
        {"attention.key_offset": True, "rope.dims": 2, "attention.within_documents": True},
        {"bigram.rows": 40, "bigram.dim": 6, "bigram.every_layer": True},
        {"bigram.rows": 40, "bigram.dim": 6, "bigram.every_layer": True, "attention.within_documents": True},
        {"value_embedding.layers": (0, 1), "value_embedding.gated": True},
    ],
    ids=str,
)  # fmt: skip
def test_the_plain_network_computes_what_the_model_computes(changes: dict[str, object]) -> None:
    model = make(changes)  # of a window of 16
    tokens = torch.randint(300, (2, 29), generator=torch.Generator().manual_seed(0))
    tokens[0, [0, 6, 17]] = tokens[1, 4] = 1
    torch.testing.assert_close(network_of(model)(tokens), model(tokens), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_pairs_of_tokens_that_cannot_be_have_no_probability() -> None:
    model = make({"vocab_size": 301})
    pairs = np.random.default_rng(0).integers(0, 256, (301, 38), dtype=np.uint8)
    model.forbid_(pairs)
    tokens = torch.randint(301, (2, 9), generator=torch.Generator().manual_seed(0))
    logits = network_of(model)(tokens)
    assert 0.3 < float((logits == -2 * model.config.logit_softcap).float().mean()) < 0.7
    torch.testing.assert_close(logits, model(tokens), rtol=1e-4, atol=1e-4)


def test_the_exported_tokenizer_marks_capitals(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    tokenizer = train_tokenizer(documents()[:60], 400, lossless=True, case_markers=True)
    package = Path(bitgolf.__file__).parent
    for file in ("export/remote/tokenization_bitgolf.py", "data/case_markers.py"):
        shutil.copy(package / file, tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    spec = importlib.util.spec_from_file_location("exported", tmp_path / "tokenization_bitgolf.py")
    assert spec is not None and spec.loader is not None
    spec.submodule_search_locations = [str(tmp_path)]
    sys.modules["exported"] = exported = importlib.util.module_from_spec(spec)
    exported.__package__ = "exported"
    spec.loader.exec_module(exported)
    again = exported.BitgolfTokenizer(str(tmp_path / "tokenizer.model"), marks_capitals=True)
    text = TEXT + " The RIVER iPhone"
    ids = again(text).input_ids
    assert ids == [tokenizer.bos_id, *tokenizer.encode(text)]
    assert again.decode(ids, skip_special_tokens=True) == text


@torch.no_grad()
@pytest.mark.parametrize("name", preset_names())
def test_the_plain_network_computes_what_a_preset_computes(name: str) -> None:
    config = load_config(name)
    sizes = {
        "model_dim": 4 * config.model.num_heads,
        "vocab_size": 300,
        "bigram.rows": min(50, config.model.bigram.rows),
        "bigram.dim": 8,
    }
    if config.model.rope.dims:
        sizes["rope.dims"] = 2 if config.model.attention.key_offset else 4
    model = GPT(config.model.updated(sizes), config.window)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0, 0.3, generator=generator)
    tokens = torch.randint(300, (2, 40), generator=generator)
    torch.testing.assert_close(network_of(model)(tokens), model(tokens), rtol=1e-3, atol=1e-3)


def test_transformers_loads_the_folder_without_bitgolf(model: LanguageModel, tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = tmp_path / "exported"
    done("export", tiny_run, "--to", "transformers", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    assert folder.stat().st_mode & 0o777 == 0o755 and "AutoTokenizer" in (folder / "README.md").read_text()
    (tmp_path / "page.py").write_text(PAGE[0])
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", PROGRAM, str(folder), TEXT]
    outcome = subprocess.run(
        command, cwd=tmp_path, env=environment() | quiet, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith("The ")
    result = json.loads((tmp_path / "result.json").read_text())
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode(TEXT)]
    assert len(ids) > 2 * model.window
    assert result["ids"] == result["again"] == ids
    assert result["decoded"] == TEXT
    assert result["special"] == [model.tokenizer.bos_id] * 2 and result["vocab"] == model.tokenizer.vocab_size
    with torch.no_grad():
        logits = model.model(torch.tensor([ids]))
        assert np.abs(np.load(tmp_path / "logits.npy") - logits.numpy()).max() < TOLERANCE
        assert result["loss"] == pytest.approx(
            float(model.model(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]))), abs=1e-4
        )
    words = ("--prompt", "The quiet", "--max-tokens", "150", "--seed", "3", "--json")
    assert result["text"] == "The quiet" + done("sample", tiny_run, *words).json["continuation"]


@pytest.mark.parametrize("window", [1, 2, 7, 16])
def test_a_continuation_begins_a_new_window_where_sample_does(window: int) -> None:
    pytest.importorskip("transformers")
    from bitgolf.export.remote.modeling_bitgolf import BitgolfForCausalLM

    model: Any = SimpleNamespace(config=SimpleNamespace(window=window))
    num_cached = 0
    for length in range(1, 5 * window + 9):
        num_cached = num_cached + 1 if num_cached < window else max(1, window // 2)
        tokens = torch.arange(length)[None]
        for mask in (None, torch.ones_like(tokens)):
            inputs = BitgolfForCausalLM.prepare_inputs_for_generation(model, tokens, mask)
            assert inputs["input_ids"].tolist() == [list(range(length - num_cached, length))]
    with pytest.raises(ValueError, match="padded"):
        BitgolfForCausalLM.prepare_inputs_for_generation(model, tokens, torch.zeros_like(tokens))


def test_a_folder_that_exists_is_kept(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("x")
    assert "exists already" in refused("export", tiny_run, "--to", "transformers", tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert "ends in .onnx" in refused("export", tiny_run, "--to", "onnx", tmp_path / "folder")
    for name in ("pipe.onnx", "other.model"):  # the file, or the tokenizer beside it
        os.mkfifo(tmp_path / name)
        message = refused("export", tiny_run, "--to", "onnx", (tmp_path / name).with_suffix(".onnx"))
        assert f"{tmp_path / name} is a device or a pipe" in message
    os.mkfifo(tmp_path / "a.onnx")
    (tmp_path / "b.model").mkdir()
    assert "is a device or a pipe" in refused("export", tiny_run, "--to", "onnx", tmp_path / "a.onnx")
    assert "b.model is a directory" in refused("export", tiny_run, "--to", "onnx", tmp_path / "b.onnx")


def test_an_export_that_fails_leaves_nothing(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitgolf.export import transformers

    def half_written(packed: Any, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers, "_write", half_written)
    with pytest.raises(KeyboardInterrupt):
        transformers.export_transformers(model, tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_for_which_there_is_no_room_is_named(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("bitgolf.model.weights.save_file", full)
    message = refused("export", tiny_run, "--to", "transformers", tmp_path / "folder")
    assert f"No space left on device ({tmp_path / 'folder'})" in message and list(tmp_path.iterdir()) == []


def test_an_onnx_file_that_differs_from_the_model_is_not_written(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from bitgolf.export import onnx as exporter

    monkeypatch.setattr("torch.onnx.export", lambda network, example, file, **options: Path(file).touch())
    notes: list[dict[str, str]] = []
    made = SimpleNamespace(metadata_props=SimpleNamespace(add=lambda **note: notes.append(note)))
    monkeypatch.setattr(onnx, "load", lambda file: made)
    monkeypatch.setattr(onnx, "save", lambda model, file: Path(file).write_bytes(b"network"))
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda file, providers: None)
    for difference, written in ((0.001, True), (0.0011, False), (math.nan, False)):
        monkeypatch.setattr(exporter, "_difference", lambda packed, session, value=difference: value)
        path = tmp_path / f"{difference}.onnx"
        if written:
            done("export", tiny_run, "--to", "onnx", path)
        else:
            assert "was not written" in refused("export", tiny_run, "--to", "onnx", path)
        assert path.exists() == path.with_suffix(".model").exists() == written
    assert (tmp_path / "0.001.onnx").read_bytes() == b"network"
    assert notes[:2] == [{"key": "window", "value": "64"}, {"key": "bos_id", "value": "1"}]
    assert len(list(tmp_path.iterdir())) == 2


def test_an_onnx_file_is_compared_on_short_whole_and_longer_windows(model: LanguageModel) -> None:
    from bitgolf.export.onnx import _difference

    given: list[np.ndarray] = []

    def run(names: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        given.append(inputs["tokens"])
        with torch.no_grad():
            logits = model.model(torch.from_numpy(given[-1])).numpy()
        logits[-1, -1, -1] -= (0.125, 0.25, 0.0)[(len(given) - 1) % 3]
        return [logits]

    for _ in range(2):
        assert _difference(model, SimpleNamespace(run=run)) == pytest.approx(0.25)
    assert [tokens.shape for tokens in given[:3]] == [(3, 5), (1, model.window), (1, model.window * 3 // 2)]
    assert all((tokens[:, 0] == model.tokenizer.bos_id).all() for tokens in given)
    assert all(map(np.array_equal, given[:3], given[3:]))


def test_an_onnx_file_computes_what_the_model_computes(
    model: LanguageModel,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "mine.onnx"
    values = done("export", tiny_run, "--to", "onnx", path, "--json").json
    assert 0 < values["largest_difference"] < TOLERANCE
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine.model", "mine.onnx"]
    assert path.with_suffix(".model").read_bytes() == model.tokenizer.model_bytes
    monkeypatch.setattr(torch.onnx, "export", lambda network, example, file, **options: shutil.copy(path, file))
    for marks in (False, True):
        monkeypatch.setattr(model.tokenizer, "marks_capitals", marks)
        export_onnx(model, tmp_path / "an" / "again" / "mine.onnx")
        assert ("case_markers.py" in caplog.text) is marks, "a plain SentencePiece would give other tokens"
    monkeypatch.undo()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["window"] == str(model.window)
    ids = torch.tensor([[model.tokenizer.bos_id, *model.tokenizer.encode(TEXT)]])  # longer than the window
    for tokens in (ids, ids[:, : model.window], ids[:, :2], ids[:, :20].repeat(3, 1)):
        (logits,) = session.run(None, {"tokens": tokens.numpy()})
        with torch.no_grad():
            assert np.abs(logits - model.model(tokens).numpy()).max() < TOLERANCE
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(compile(PAGE[1], "own-corpus.md", "exec"), namespace)
    tokens = torch.tensor(namespace["tokens"])[None]
    assert tokens[0].tolist() == [model.tokenizer.bos_id, *model.tokenizer.encode("The ")]
    with torch.no_grad():
        assert np.abs(namespace["logits"] - model.model(tokens).numpy()).max() < TOLERANCE
