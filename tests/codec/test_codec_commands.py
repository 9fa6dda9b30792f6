"""`bitgolf compress` and `decompress`: files, printed figures, refusals, and files that must survive an error."""

from pathlib import Path

import pytest
from tiny_run import cli, documents, done, file_digest, refused

from bitgolf.codec import CodecModel
from bitgolf.codec import text as codec_text
from bitgolf.commands import codec as commands_codec

TEXT = documents()[3][:260].encode() + b"\xff\0\r\n"


@pytest.fixture
def artifact(tiny_run: Path) -> Path:
    return tiny_run / "model.bitgolf"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(TEXT)
    return path


def test_a_file_comes_back_and_the_figures_add_up(artifact: Path, source: Path, tmp_path: Path) -> None:
    coded, back = tmp_path / "new" / "text.bg", tmp_path / "back"
    there = done("compress", source, "-o", coded, "--model", artifact, "--streams", "2", "--json", "--verify").json
    again = done("decompress", coded, "-o", back, "--model", artifact, "--json").json
    assert back.read_bytes() == TEXT
    size = coded.stat().st_size
    assert there["bytes"] == again["bytes"] == len(TEXT)
    assert there["coded_bytes"] == again["coded_bytes"] == size == there["header_bytes"] + there["payload_bytes"]
    assert there["bpb"] == 8 * size / len(TEXT)
    assert (there["streams"], there["byte_streams"], there["stride"], there["verified"]) == (2, 1, 32, True)
    assert there["model_sha256"] == file_digest(artifact)
    assert there["ttt"] is None and there["platform"]["dtype"] == "float32"
    assert there["bytes_per_second"] > 0 < again["bytes_per_second"]
    assert size < len(TEXT) / 2, "the tiny model knows this kind of text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "new", "text"]


def test_one_line_says_what_was_done(artifact: Path, source: Path, tmp_path: Path) -> None:
    line = done("compress", source, "-o", tmp_path / "c", "--model", artifact, "--stride", "64").stdout
    assert line.startswith(f"{len(TEXT)} bytes coded in {(tmp_path / 'c').stat().st_size} (")
    assert "in 1 stream, " in line and line.count("\n") == 1
    assert done("decompress", tmp_path / "c", "-o", tmp_path / "d", "--model", artifact).stdout.startswith(
        f"{len(TEXT)} bytes in"
    )


def test_adaptation_is_asked_for_and_recorded(artifact: Path, source: Path, tmp_path: Path, tiny_run: Path) -> None:
    words = ["compress", source, "-o", tmp_path / "c", "--model", artifact, "--json", "--ttt"]
    size = done(*words[:-1]).json["payload_bytes"]
    plain = (tmp_path / "c").read_bytes()[-size:]
    settings = ["--ttt.method=lora", "--ttt.lora.chunk_tokens", "16", "--ttt.lora.lr", "0.02"]
    adapted = done(*words, *settings).json
    assert adapted["ttt"]["method"] == "lora" and adapted["ttt"]["lora"]["chunk_tokens"] == 16
    assert (tmp_path / "c").read_bytes()[-adapted["payload_bytes"] :] != plain
    done("decompress", tmp_path / "c", "-o", tmp_path / "back", "--model", artifact)
    assert (tmp_path / "back").read_bytes() == TEXT
    config = tmp_path / "ttt.toml"
    config.write_text('[ttt]\nmethod = "last_blocks"\nweights.last_blocks = 1\nweights.epochs = 1\n')
    taken = done(*words, "--config", config, "--ttt.weights.chunk_tokens", "64").json["ttt"]
    assert (taken["method"], taken["weights"]["epochs"], taken["weights"]["chunk_tokens"]) == ("last_blocks", 1, 64)
    assert done(*words, "--ttt.weights.chunk_tokens", "64").json["ttt"]["method"] == "full"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--ttt.weights.lr", "0.1"], ["need --ttt"]),
        (["--config", "demo"], ["need --ttt"]),
        (["--ttt", "--config", "none.toml"], ["none.toml does not exist"]),
        (["--ttt", "--ttt.method", "none"], ["method none"]),
        (["--ttt", "--ttt.methd", "full"], ["ttt.methd", "did you mean 'ttt.method'"]),
        (["--ttt", "--ttt.weights.chunk_tokens", "5"], ["chunk_tokens 5"]),
        (["--score.stride", "5"], ["--score.stride is not used by `compress`"]),
        (["--stride", "65"], ["score.stride 65", "64"]),
        (["--streams", "999"], [f"999 streams of {len(TEXT)} bytes"]),
        (["--streams", "many"], ["--streams", "many"]),
        (["--device", "cuda"], ["CUDA"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_impossible_settings_are_refused_and_write_nothing(
    words: list[str], expected: list[str], artifact: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = refused("compress", source, "-o", tmp_path / "c", "--model", artifact, *words)
    assert all(word in message for word in expected), message
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_files_that_cannot_be_are_refused(artifact: Path, source: Path, tmp_path: Path) -> None:
    coded = tmp_path / "c"
    assert "none does not exist" in refused("compress", tmp_path / "none", "-o", coded, "--model", artifact)
    assert "is a directory" in refused("decompress", tmp_path, "-o", coded, "--model", artifact)
    assert "is a directory" in refused("compress", source, "-o", tmp_path, "--model", artifact)
    assert "none.bitgolf" in refused("compress", source, "-o", coded, "--model", tmp_path / "none.bitgolf")
    assert "not a bitgolf artifact" in refused("compress", source, "-o", coded, "--model", source)
    assert "-o" in refused("compress", source, "--model", artifact)
    for command in ("compress", "decompress"):
        assert "would overwrite" in refused(command, source, "-o", source, "--model", artifact)
        assert "would overwrite" in refused(command, source, "-o", artifact, "--model", artifact)
    assert source.read_bytes() == TEXT and not coded.exists()


def test_what_cannot_be_decoded_leaves_the_earlier_file(artifact: Path, source: Path, tmp_path: Path) -> None:
    coded, back = tmp_path / "c", tmp_path / "back"
    done("compress", source, "-o", coded, "--model", artifact)
    back.write_text("precious")
    damaged = bytearray(coded.read_bytes())
    damaged[-3] ^= 1
    (tmp_path / "bad").write_bytes(damaged)
    assert "bad: checksum mismatch" in refused("decompress", tmp_path / "bad", "-o", back, "--model", artifact)
    assert "text: not a text coded by bitgolf" in refused("decompress", source, "-o", back, "--model", artifact)
    assert back.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"c", "bad", "back", "text"}


def test_another_platform_is_refused_and_can_be_tried(
    artifact: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coded, back = tmp_path / "c", tmp_path / "back"
    done("compress", source, "-o", coded, "--model", artifact)
    here = codec_text.fingerprint
    monkeypatch.setattr(codec_text, "fingerprint", lambda device: here(device) | {"torch": "99.0"})
    message = refused("decompress", coded, "-o", back, "--model", artifact)
    assert "torch 99.0" in message and "--allow-platform-mismatch" in message and not back.exists()
    done("decompress", coded, "-o", back, "--model", artifact, "--allow-platform-mismatch")
    assert back.read_bytes() == TEXT


def test_verification_keeps_what_cannot_be_decoded_from_being_written(
    artifact: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitgolf.codec.decompress_bytes", lambda data, model, **_: b"something else")
    outcome = cli("compress", source, "-o", tmp_path / "c", "--model", artifact, "--verify")
    assert outcome.status == 2 and "does not survive coding on this machine" in outcome.stderr
    assert not (tmp_path / "c").exists()


def test_the_library_offers_the_same(artifact: Path) -> None:
    import bitgolf

    model = bitgolf.CodecModel.load(artifact, "cpu")
    assert isinstance(model, CodecModel)
    coded = bitgolf.compress_bytes(TEXT[:60], model)
    assert bitgolf.decompress_bytes(coded.data, model) == TEXT[:60]


def test_an_interrupt_leaves_no_file(
    artifact: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bitgolf.codec.compress_bytes", interrupt)
    assert cli("compress", source, "-o", tmp_path / "c", "--model", artifact).status == 130
    assert not (tmp_path / "c").exists()


def test_cublas_is_asked_for_reproducible_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    commands_codec.ask_for_reproducible_cublas()
    import os

    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    commands_codec.ask_for_reproducible_cublas()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
