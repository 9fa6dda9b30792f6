"""`bitgolf.load`: the artifact alone gives log-probabilities, bits per byte and text, by their plain definitions."""

import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_run import PRESET, documents, done, environment, read_json

import bitgolf
from bitgolf.artifact import generate as generation
from bitgolf.cli import main
from bitgolf.config import load_config
from bitgolf.errors import ArtifactError, ConfigError, DataError
from bitgolf.evaluate import ScoreTape, bits_per_byte
from bitgolf.language_model import LanguageModel
from bitgolf.model import GPT
from bitgolf.model.build import load_weights_
from bitgolf.model.cached_steps import CachedSteps
from bitgolf.run.directory import RunDirectory

WINDOW, STRIDE = 64, 32
TEXT = documents()[5]
UNUSUAL = "naïve \N{SNOWMAN} \0 <unk> ▁ 漢字\n\n  tail "


@pytest.fixture(scope="module")
def lossless_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's weights, packed as fp32 and scored."""
    source = f"jsonl:{tiny_run}"  # never read: the data is already prepared
    config = load_config(str(PRESET), {"data.source": source, "pack.method": "lossless"})
    run = RunDirectory.create(tmp_path_factory.mktemp("lossless") / "run", config)
    shutil.copytree(tiny_run / "data", run / "data")
    shutil.copy(tiny_run / "weights.safetensors", run / "weights.safetensors")
    done("pack", run.path)
    done("score", run.path)
    return run.path


@pytest.fixture(scope="module")
def lossless(lossless_run: Path) -> LanguageModel:
    return bitgolf.load(lossless_run / "model.bitgolf", device="cpu")


@pytest.fixture(scope="module")
def packed(tiny_run: Path) -> LanguageModel:
    return bitgolf.load(tiny_run / "model.bitgolf", device="cpu")


def brute_force(model: GPT, ids: list[int]) -> np.ndarray:
    """Log-probability of every token but the first, each by a forward pass of its own context."""
    logprobs = []
    for target in range(len(ids) - 1):  # target t is token t + 1
        begin = 0 if target < WINDOW else ((target - WINDOW) // STRIDE + 1) * STRIDE
        with torch.no_grad():
            logits = model(torch.tensor([ids[begin : target + 1]]))[0, -1].double()
        logprobs.append(float(torch.log_softmax(logits, -1)[ids[target + 1]]))
    return np.array(logprobs)


@pytest.mark.parametrize("text", ["a", TEXT[:100], TEXT, TEXT + documents()[6], UNUSUAL], ids=len)
def test_a_lossless_artifact_gives_the_log_probabilities_of_the_float_model(
    lossless: LanguageModel, tiny_run: Path, text: str
) -> None:
    model = GPT(load_config(str(tiny_run / "config.toml")).model, WINDOW)
    model.load_state_dict(load_file(tiny_run / "weights.safetensors"))
    result = lossless.logprobs(text)
    ids = [lossless.tokenizer.bos_id, *lossless.tokenizer.encode(text)]
    np.testing.assert_allclose(result.logprobs, brute_force(model, ids), atol=1e-5)
    assert result.tokens == ids[1:]


def test_the_score_of_a_lossless_artifact_is_that_of_the_float_weights(lossless_run: Path) -> None:
    score = read_json(lossless_run / "score.json")
    assert score["methods"]["chunked"]["bpb"] == pytest.approx(score["float"]["chunked"]["bpb"], abs=1e-6)
    assert score["quantization_tax"] == pytest.approx(0.0, abs=1e-6)


def test_a_long_text_is_scored_once_a_token(packed: LanguageModel) -> None:
    text = "".join(documents()[7:9])
    result = packed.logprobs(text)
    assert b"".join(result.pieces) == text.encode()
    assert len(result.tokens) > 4 * WINDOW
    ids = [packed.tokenizer.bos_id, *result.tokens]
    np.testing.assert_allclose(result.logprobs, brute_force(packed.model, ids), atol=1e-4)


@pytest.mark.parametrize("text", ["x", TEXT, UNUSUAL, "\N{SNOWMAN}" * 300], ids=len)
def test_bits_per_byte_are_the_sum_of_the_log_probabilities(packed: LanguageModel, text: str) -> None:
    bits = -packed.logprobs(text).logprobs.astype(np.float64).sum() / math.log(2)
    assert packed.bits_per_byte(text) == pytest.approx(bits / len(text.encode()), rel=1e-9)
    assert packed.score(text).bytes == len(text.encode())


def test_memory_does_not_grow_with_a_long_word(packed: LanguageModel) -> None:
    """The largest tensor, and with it the memory of a pass, is that of one batch."""
    shapes: list[torch.Size] = []
    handle = packed.model.blocks[0].register_forward_hook(lambda module, args, out: shapes.append(out[0].shape))
    try:
        bits = packed.bits_per_byte("z9Kq" * 6_000)
    finally:
        handle.remove()
    assert math.isfinite(bits)
    assert len(shapes) > 1 and {shape[0] * shape[1] for shape in shapes} == {8_192}


def test_familiar_text_costs_less_than_shuffled_letters(packed: LanguageModel) -> None:
    shuffled = "".join(np.random.default_rng(0).permutation(list(TEXT)))
    assert packed.bits_per_byte(TEXT) < 1.0 < 3.0 < packed.bits_per_byte(shuffled)


@pytest.mark.parametrize("method", ["logprobs", "bits_per_byte", "score"])
def test_an_empty_text_has_no_score(packed: LanguageModel, method: str) -> None:
    with pytest.raises(ConfigError, match="empty text"):
        getattr(packed, method)("")


def test_text_without_a_utf8_form_is_refused(packed: LanguageModel) -> None:
    with pytest.raises(DataError, match="surrogate"):
        packed.logprobs("\udc80")


def greedy_without_cache(lm: LanguageModel, prompt: str, count: int) -> str:
    """The most likely token each time, the whole context computed anew; full windows restart from their half."""
    ids = [lm.tokenizer.bos_id, *lm.tokenizer.encode(prompt)]
    start, prefix = max(0, len(ids) - WINDOW), len(ids)
    for _ in range(count):
        with torch.no_grad():
            token = int(lm.model(torch.tensor([ids[start:]]))[0, -1].argmax())
        if token == lm.tokenizer.bos_id:
            break
        ids.append(token)
        if len(ids) - start > WINDOW:
            start = len(ids) - WINDOW // 2
    return lm.tokenizer.decode(ids[prefix:])


@pytest.mark.parametrize(
    ("prompt", "count"), [("", 30), ("The quiet river", 40), ("The ", 3 * WINDOW), (TEXT, 50), (UNUSUAL, 20)]
)
def test_generation_with_a_cache_equals_generation_without(packed: LanguageModel, prompt: str, count: int) -> None:
    text = packed.generate(prompt, max_tokens=count, temperature=0)
    assert text == greedy_without_cache(packed, prompt, count)
    assert text


def test_a_full_window_is_followed_by_its_second_half(packed: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    begin = CachedSteps.begin

    def watched(steps: CachedSteps, tokens: torch.Tensor) -> torch.Tensor:
        lengths.append(tokens.size(1))
        return begin(steps, tokens)

    monkeypatch.setattr(CachedSteps, "begin", watched)
    monkeypatch.setattr(generation, "_choose", lambda *_: 70)
    packed.generate("", max_tokens=2 * WINDOW)
    assert lengths == [1, WINDOW // 2, WINDOW // 2]


def test_a_seed_repeats_a_sample_and_another_gives_another(packed: LanguageModel) -> None:
    texts = [packed.generate("The ", max_tokens=30, temperature=1.0, seed=seed) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
    free = {packed.generate("The ", max_tokens=30, temperature=1.0) for _ in range(4)}
    assert len(free) > 1


def test_the_best_token_alone_is_the_greedy_choice_at_any_temperature(packed: LanguageModel) -> None:
    greedy = packed.generate("The ", max_tokens=20, temperature=0)
    assert packed.generate("The ", max_tokens=20, temperature=5.0, top_k=1, seed=1) == greedy
    assert packed.generate("The ", max_tokens=20, temperature=1e-4, seed=2) == greedy


def test_sampling_follows_temperature_and_top_k() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -30.0])
    generator = torch.Generator().manual_seed(0)
    draws = [generation._choose(logits, generation.Sampling(temperature=0.5, top_k=2), generator) for _ in range(4000)]
    expected = 1 / (1 + math.exp(-2.0))  # two candidates, a logit apart, at temperature one half
    assert set(draws) == {0, 1}
    assert draws.count(0) / 4000 == pytest.approx(expected, abs=0.02)


def test_sampling_among_the_tokens_that_have_a_probability() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    generator = torch.Generator().manual_seed(0)

    def drawn(top_p: float) -> set[int]:
        sampling = generation.Sampling(temperature=1.0, top_p=top_p)
        return {generation._choose(logits, sampling, generator) for _ in range(300)}

    assert [drawn(p) for p in (0.1, 0.4, 0.41, 0.7, 0.75, 1.0)] == [
        {0}, {0}, {0, 1}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3},
    ]  # fmt: skip


@pytest.mark.parametrize("stop", [(), ("e",), ("quiet", "the"), ("zzz",), ("the river crosses",)], ids=str)
def test_the_parts_of_a_text_add_up_and_end_before_a_stop(packed: LanguageModel, stop: tuple[str, ...]) -> None:
    whole = packed.generate("The ", max_tokens=60, seed=5)
    parts: list[str] = []
    text = packed.generate("The ", max_tokens=60, seed=5, stop=stop, each=parts.append)
    assert "".join(parts) == text
    assert text == min((whole.partition(end)[0] for end in stop), key=len, default=whole)
    assert len(parts) > 1 or len(text) < 9
    assert all(parts)


@pytest.mark.parametrize("lossless", [True, False])
def test_characters_of_several_tokens_are_passed_on_whole(lossless: bool) -> None:
    class Spelled:
        """Every byte is a token."""

        def __init__(self) -> None:
            self.lossless, self.marks_capitals = lossless, False

        def token_text_bytes(self, token: int) -> bytes:
            return bytes([token])

        def decode(self, ids: list[int]) -> str:
            return bytes(ids).decode("utf-8", "replace")

    ids = [ord("a")]
    spelling = generation._Spelling(Spelled(), ids)  # type: ignore[arg-type]
    parts = []
    for byte in "é漢".encode() + b"x\xe6\xbc":
        ids.append(byte)
        parts.append(spelling.add(byte))
    assert parts == ["", "é", "", "", "漢", "x", "", ""]
    assert spelling.finish() == "\ufffd"


def test_generation_ends_with_the_document(packed: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter([70, 71, packed.tokenizer.bos_id, 72])
    monkeypatch.setattr(generation, "_choose", lambda *_: next(tokens))
    assert packed.generate("The ", max_tokens=50) == packed.tokenizer.decode([70, 71])


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"seed": -1},
        {"seed": 2**63},
    ],
    ids=str,
)
def test_impossible_generation_settings_are_refused(packed: LanguageModel, settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError) as error:
        packed.generate("The ", **settings)  # type: ignore[arg-type]
    assert str(next(iter(settings.values()))) in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: lm.bits_per_byte(b"text"), r"text must be a string; decode it first, .* not bytes"),
        (lambda lm: lm.score(None), "text must be a string, not NoneType"),
        (lambda lm: lm.logprobs(["a"]), "text must be a string, not list"),
        (lambda lm: lm.generate(b"The "), "prompt must be a string; decode it first, .* not bytes"),
        (lambda lm: lm.generate("The ", max_tokens="9"), "max_tokens must be a whole number, not str"),
        (lambda lm: lm.generate("The ", max_tokens=2.5), "max_tokens must be a whole number, not float"),
        (lambda lm: lm.generate("The ", temperature="hot"), "temperature must be a number, not str"),
        (lambda lm: lm.generate("The ", top_k=True), "top_k must be a whole number, not bool"),
        (lambda lm: lm.generate("The ", top_p="all"), "top_p must be a number, not str"),
        (lambda lm: lm.generate("The ", stop="."), "stop must be a list of strings, not str"),
        (lambda lm: lm.generate("The ", stop=[3]), "stop must be a string, not int"),
        (lambda lm: lm.generate("The ", seed="now"), "seed must be a whole number or None, not str"),
        (lambda lm: lm.generate("The ", each="print"), "each must be a function of a text, not str"),
        (lambda lm: lm.tokenizer.encode(b"text"), "text must be a string, not bytes"),
        (lambda lm: lm.tokenizer.decode("text"), "ids must be a list of whole numbers: .*"),
        (lambda lm: lm.tokenizer.decode([1.5]), "ids must be a list of whole numbers: .*"),
        (lambda lm: lm.tokenizer.decode(7), "ids must be a list of whole numbers: .*"),
        (lambda lm: load_config(None), "preset must be the name of a preset or .*, not NoneType"),
        (lambda lm: load_config("demo", ["seed"]), "overrides must be a dictionary of texts, not list"),
        (lambda lm: load_config("demo", {"seed": 7}), "the value of seed must be a text, as in .*, not int"),
        (lambda lm: main("doctor"), "argv must be a list of texts, not str"),
        (lambda lm: main(["score", Path("x")]), "a word of argv must be a text, not PosixPath"),
        (lambda lm: bitgolf.load(7), "path must be a string or a path, not int"),
        (lambda lm: bitgolf.load("x", device=0), "device must be auto, cpu, cuda or a torch.device, not int"),
        (lambda lm: bitgolf.compress_bytes("text", None), "data must be bytes; encode it first, .* not str"),
        (lambda lm: bitgolf.compress_bytes(b"text", lm), r"model must be a CodecModel; .*, not LanguageModel"),
        (lambda lm: bitgolf.decompress_bytes(None, lm), "data must be bytes, not NoneType"),
        (lambda lm: bits_per_byte([1.0], [1]), "nll_nats must be a numpy array, not list"),
        (lambda lm: ScoreTape([1, 2]), "tokens must be a numpy array of integers, not list"),
    ],
)
def test_values_of_the_wrong_type_are_named(
    packed: LanguageModel, call: Callable[[LanguageModel], object], message: str
) -> None:
    with pytest.raises(TypeError, match=f"^{message}$"):
        call(packed)


def test_the_file_alone_is_enough(tiny_run: Path, tmp_path: Path, packed: LanguageModel) -> None:
    shutil.copy(tiny_run / "model.bitgolf", tmp_path / "alone.bitgolf")
    program = (
        "import bitgolf; model = bitgolf.load('alone.bitgolf', device='cpu');"
        f"print(repr(model.bits_per_byte({TEXT!r})), model.generate('The ', max_tokens=9, temperature=0))"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    bpb, _, text = process.stdout.partition(" ")
    assert float(bpb) == packed.bits_per_byte(TEXT)
    assert text.rstrip("\n") == packed.generate("The ", max_tokens=9, temperature=0).rstrip("\n")


def test_a_missing_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.bitgolf"):
        bitgolf.load(tmp_path / "none.bitgolf")


def test_weights_of_another_model_are_refused(packed: LanguageModel) -> None:
    tensors = dict(packed.model.named_parameters())
    model = GPT(packed.model.config, WINDOW)
    extra = {**tensors, "surprise": torch.zeros(1)}
    with pytest.raises(ArtifactError, match="'surprise'"):
        load_weights_(model, extra, "here")
    wrong = {**tensors, "embedding": torch.zeros(3, 64)}
    with pytest.raises(ArtifactError, match=r"here: tensor 'embedding' is \(3, 64\)"):
        load_weights_(model, wrong, "here")


def test_the_package_loads_the_model_lazily(tmp_path: Path) -> None:
    program = "import sys, bitgolf; assert 'torch' not in sys.modules; bitgolf.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment(), check=True)
    attribute: Callable[[], object] = lambda: bitgolf.nothing  # noqa: E731
    with pytest.raises(AttributeError, match="nothing"):
        attribute()
