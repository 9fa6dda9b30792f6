"""`bitgolf serve`: the answers of the endpoint, its refusals, many clients at a time, and the page in a browser."""

import asyncio
import contextlib
import json
import math
import re
import shlex
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from browser import BROWSER, NO_BROWSER
from tiny_run import documents, done, refused

from bitgolf.errors import ConfigError
from bitgolf.language_model import LanguageModel, load

uvicorn = pytest.importorskip("uvicorn")
app = pytest.importorskip("bitgolf.serve.app")
from bitgolf.serve.completions import complete, read_request  # noqa: E402

TEXT = documents()[3]


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> LanguageModel:
    return load(tiny_run / "model.bitgolf", device="cpu")


@pytest.fixture(scope="module")
def address(model: LanguageModel) -> Iterator[str]:
    """The address of a running server."""
    with serving(app.make_app(model, "tiny", ["127.0.0.1"])) as address:
        yield address


@contextlib.contextmanager
def serving(application: Any, listener: socket.socket | None = None) -> Iterator[str]:
    listener = listener or socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = uvicorn.Server(uvicorn.Config(application, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def ask(address: str, body: bytes | dict[str, Any], path: str = "/v1/completions", **headers: str) -> tuple[int, Any]:
    """Status and JSON of the answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def choice(address: str, **request: Any) -> dict[str, Any]:
    status, answer = ask(address, request)
    assert status == 200, answer
    return answer["choices"][0]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_text_is_that_of_sample(address: str, tiny_run: Path, seed: int) -> None:
    words = shlex.split(f"--prompt 'The quiet' --max-tokens 30 --temperature 0.9 --top-p 0.8 --seed {seed}")
    sampled = done("sample", tiny_run, *words, "--json").json["continuation"]
    request = {"prompt": "The quiet", "max_tokens": 30, "temperature": 0.9, "top_p": 0.8, "seed": seed}
    answer = choice(address, **request)
    assert answer["text"] == sampled and answer["logprobs"] is None
    assert choice(address, **request, stop=sampled[4:6])["text"] == sampled[: sampled.index(sampled[4:6])]
    assert choice(address, **request, stop=[sampled[4:6]])["finish_reason"] == "stop"
    assert choice(address, **request, echo=True)["text"] == "The quiet" + sampled


def test_log_probabilities_of_the_prompt_are_those_of_the_library(address: str, model: LanguageModel) -> None:
    text = TEXT + TEXT + " — déjà vu \N{SNOWMAN}"  # longer than the window, with characters of several tokens
    answer = choice(address, prompt=text, max_tokens=0, echo=True, logprobs=2)
    logprobs, reference = answer["logprobs"], model.logprobs(text)
    assert answer["text"] == text and answer["finish_reason"] == "length"
    assert logprobs["token_logprobs"] == pytest.approx(reference.logprobs.tolist(), abs=1e-5)
    assert len(logprobs["tokens"]) == len(reference.tokens) > 2 * model.window
    whole = [i for i, token in enumerate(logprobs["tokens"]) if not token.startswith("bytes:")]
    assert len(whole) < len(logprobs["tokens"])
    for i in whole:
        begin = logprobs["text_offset"][i]
        assert text[begin : begin + len(logprobs["tokens"][i])] == logprobs["tokens"][i]
    for token, own, top in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        assert top[token] == own <= max(top.values()) and len(top) <= 3
        assert sum(map(math.exp, top.values())) < 1 + 1e-5


def test_lm_eval_reads_the_log_likelihood_of_a_continuation(address: str, model: LanguageModel) -> None:
    """Its `local-completions` sends token ids, asks for one token more, and drops that one."""
    context, continuation = model.tokenizer.encode("The quiet"), model.tokenizer.encode(" river opens")
    request = {"model": "tiny", "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True, "temperature": 0}
    status, answer = ask(address, request | {"prompt": [context + continuation, [*context, 0, 1, 2]]})
    assert status == 200 and [c["index"] for c in answer["choices"]] == [0, 1]
    logprobs = answer["choices"][0]["logprobs"]
    scored = logprobs["token_logprobs"][len(context) : -1]
    expected = model.logprobs("The quiet river opens").logprobs[len(context) :]
    assert sum(scored) == pytest.approx(float(np.sum(expected)), abs=1e-4)
    top = logprobs["top_logprobs"][len(context) : -1]
    greedy = all(own == max(each.values()) for own, each in zip(scored, top, strict=True))
    assert greedy == (model.generate("The quiet", max_tokens=len(continuation), temperature=0) == " river opens")


def test_lm_eval_reads_the_log_likelihood_of_a_whole_text(address: str, model: LanguageModel) -> None:
    """Requests `loglikelihood_rolling`: the context is the token that begins documents."""
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode("The quiet river opens")]
    request = {"model": "tiny", "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True, "temperature": 0}
    scored = choice(address, **request, prompt=[ids])["logprobs"]["token_logprobs"][1:-1]
    assert scored == pytest.approx(model.logprobs("The quiet river opens").logprobs.tolist(), abs=1e-5)


def test_lm_eval_gets_a_continuation_up_to_a_stop(address: str, model: LanguageModel) -> None:
    """Requests `generate_until`: token ids of several prompts, and the end of a document among the stops."""
    prompts = ["The quiet", "The"]
    request = {"model": "tiny", "max_tokens": 20, "temperature": 0, "seed": 1234, "stop": ["\n\n", "<s>"]}
    status, answer = ask(address, request | {"prompt": [model.tokenizer.encode(prompt) for prompt in prompts]})
    assert status == 200
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        assert choice["text"] == model.generate(prompt, max_tokens=20, temperature=0).split("\n\n")[0]
    status, _ = ask(address, request | {"prompt": [[1]], "temperature": 0.7, "top_p": 0.9})
    assert status == 200


def test_a_prompt_may_begin_with_the_token_that_begins_documents(address: str, model: LanguageModel) -> None:
    ids = model.tokenizer.encode("The quiet")
    plain = choice(address, prompt=ids, max_tokens=5, temperature=0, echo=True, logprobs=0)["logprobs"]
    begun = choice(address, prompt=[1, *ids], max_tokens=5, temperature=0, echo=True, logprobs=0)["logprobs"]
    assert model.tokenizer.bos_id == 1
    assert begun["token_logprobs"] == [None, *plain["token_logprobs"]] and begun["tokens"] == ["<s>", *plain["tokens"]]


def test_a_document_that_ends_has_its_end_among_the_tokens(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitgolf.artifact import generate

    tokens = iter([70, model.tokenizer.bos_id])
    monkeypatch.setattr(generate, "_choose", lambda *_: next(tokens))
    answer = complete(model, read_request({"prompt": "The", "max_tokens": 9, "logprobs": 0}))["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert answer["logprobs"]["tokens"][-1] == "<s>" and len(answer["logprobs"]["tokens"]) == 2


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        (b"{", 400, "no JSON"),
        (b"[" * 100_000, 400, "no JSON"),
        (b"\xff", 400, "no JSON"),
        ([], 400, "the request"),
        ({}, 400, "prompt: Field required"),
        ({"prompt": ""}, 400, "prompt: it is empty"),
        ({"prompt": []}, 400, "prompt: it is empty"),
        ({"prompt": ["a", ""]}, 400, "prompt: it is empty"),
        ({"prompt": [[]]}, 400, "prompt: it is empty"),
        ({"prompt": [-1]}, 400, "token id -1 is outside the vocabulary"),
        ({"prompt": [10**6]}, 400, "token id 1000000 is outside"),
        ({"prompt": {"a": 1}}, 400, "prompt: Input should be"),
        ({"prompt": "\ud800"}, 400, "surrogate"),
        ({"prompt": "a", "max_tokens": "9"}, 400, "max_tokens: Input should be a valid integer"),
        ({"prompt": "a", "temperature": math.nan}, 400, "temperature"),
        ({"prompt": "a", "stop": [""]}, 400, "stop"),
        ({"prompt": "a", "stop": ["b"] * 65}, 400, "stop: 65 texts, at most 64"),
        ({"prompt": ["a"] * 129}, 400, "129 prompts, at most 128"),
        ({"prompt": ["a"] * 9, "max_tokens": 4096}, 400, "asks for 36,864 tokens, at most 32,768"),
        ({"prompt": [9] * 32_768, "max_tokens": 1, "logprobs": 0}, 400, "asks for 32,769 tokens"),
        ({"prompt": "a", "n": 2}, 400, "n: Input should be 1"),
        ({"prompt": "a", "stream": True}, 400, "stream"),
        ({"prompt": "a", "suffix": "b"}, 400, "suffix: Extra inputs"),
        ({"prompt": "a" * 1_000_000}, 413, "262,144 bytes"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_cannot_be_answered_is_a_clear_refusal(address: str, request_: Any, status: int, message: str) -> None:
    body = request_ if isinstance(request_, bytes) else json.dumps(request_).encode()
    answered, answer = ask(address, body)
    assert (answered, answer["error"]["code"]) == (status, status)
    assert message in answer["error"]["message"]
    assert choice(address, prompt="The", max_tokens=1)["finish_reason"] in ("length", "stop")


@pytest.mark.parametrize(
    ("key", "last", "beyond"),
    [
        ("max_tokens", 4_096, 4_097),
        ("max_tokens", 0, -1),
        ("temperature", 0.0, math.inf),
        ("top_p", 1.0, 1.01),
        ("top_p", 0.01, 0),
        ("top_k", 0, -1),
        ("seed", 2**63 - 1, 2**63),
        ("seed", 0, -1),
        ("logprobs", 20, 21),
        ("logprobs", 0, -1),
        ("stop", ["b"] * 64, ["b"] * 65),
        ("prompt", ["a"] * 128, ["a"] * 129),
        ("best_of", 1, 2),
    ],
)
def test_values_of_a_request_have_bounds(key: str, last: Any, beyond: Any) -> None:
    assert getattr(read_request({"prompt": "a"} | {key: last}), key) == last
    with pytest.raises(ConfigError, match=f"^{key}: "):
        read_request({"prompt": "a"} | {key: beyond})


def test_an_answer_counts_its_tokens_and_names_the_model(address: str, model: LanguageModel) -> None:
    prompts = ["The quiet", "The"]
    request = {"max_tokens": 3, "temperature": 0, "logprobs": 0, "model": "other"}
    status, answer = ask(address, request | {"prompt": prompts})
    tokens = [choice["logprobs"]["tokens"] for choice in answer["choices"]]
    num_prompt, num_new = sum(len(model.tokenizer.encode(text)) for text in prompts), sum(map(len, tokens))
    assert status == 200 and answer["model"] == "tiny" and num_new == 6
    assert answer["usage"] == {
        "prompt_tokens": num_prompt, "completion_tokens": num_new, "total_tokens": num_prompt + num_new,
    }  # fmt: skip
    first = answer["choices"][0]
    assert first["logprobs"]["top_logprobs"] == [None] * 3 and first["logprobs"]["text_offset"][0] == 0
    stopped = choice(address, prompt=prompts[0], max_tokens=3, temperature=0, stop=first["text"][0])
    assert (stopped["text"], stopped["finish_reason"], first["finish_reason"]) == ("", "stop", "length")


def test_a_request_has_at_most_256_kib_and_much_more_is_not_read(address: str) -> None:
    body = json.dumps({"prompt": "The", "max_tokens": 1}).encode()
    assert ask(address, body.ljust(262_144))[0] == 200 and ask(address, body.ljust(262_145))[0] == 413
    taken: list[int] = []

    async def stream() -> Any:
        for number in range(100):
            taken.append(number)
            yield bytes(1 << 20)

    assert asyncio.run(app._body(SimpleNamespace(stream=stream))) is None
    assert len(taken) == 17  # the first MiB above 16


def test_the_work_of_a_request_may_be_its_limit(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitgolf.serve.completions.MAX_WORK", 9)
    assert complete(model, read_request({"prompt": [9] * 7, "max_tokens": 2, "logprobs": 0}))["choices"]
    assert complete(model, read_request({"prompt": [9] * 70, "max_tokens": 9}))["choices"]
    with pytest.raises(ConfigError, match="asks for 10 tokens, at most 9"):
        complete(model, read_request({"prompt": [9] * 8, "max_tokens": 2, "logprobs": 0}))


def test_a_client_that_goes_away_in_mid_request_is_no_failure(address: str, caplog: pytest.LogCaptureFixture) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n{")
    assert choice(address, prompt="The", max_tokens=1)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_other_paths_and_methods_are_refused(address: str) -> None:
    status, answer = ask(address, {}, "/v1/chat/completions")
    assert status == 404 and "POST to /v1/completions" in answer["error"]["message"]
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(address + "/v1/completions")
    assert error.value.code == 405


def test_two_hundred_requests_of_twenty_clients(address: str) -> None:
    def one(number: int) -> str:
        return str(choice(address, prompt=f"Letter {number % 10}", max_tokens=3, seed=number % 10)["text"])

    with ThreadPoolExecutor(20) as clients:
        texts = list(clients.map(one, range(200)))
    assert texts == texts[:10] * 20


def test_a_full_line_refuses_and_recovers(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five requests two wait, as many as the line holds; the model answers no earlier than three are refused."""
    refused_three, complete = threading.Event(), app.complete

    def held(*request: Any) -> Any:
        assert refused_three.wait(20)
        return complete(*request)

    monkeypatch.setattr(app, "complete", held)
    application = app.make_app(model, "tiny", ["127.0.0.1"], max_waiting=2)
    with serving(application) as address, ThreadPoolExecutor(5) as clients:
        asked = [clients.submit(ask, address, {"prompt": "The", "max_tokens": 1}) for _ in range(5)]
        early = [answer.result() for _, answer in zip(range(3), as_completed(asked), strict=False)]
        refused_three.set()
        answers = [answer.result() for answer in asked]
        assert choice(address, prompt="The", max_tokens=1)
    assert [status for status, _ in early] == [503] * 3
    assert sorted(status for status, _ in answers) == [200, 200, 503, 503, 503]
    assert all("2 requests are waiting; try again later" in answer["error"]["message"] for _, answer in early)


def test_the_command_answers_where_it_says_and_under_the_names_that_it_is_given(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[tuple[Any, socket.socket]] = []

    class Noted:
        """Stands for a server that serves until it is interrupted."""

        def __init__(self, config: Any) -> None:
            self.app = config.app

        def run(self, sockets: list[socket.socket]) -> None:
            served.append((self.app, sockets[0].dup()))

    with monkeypatch.context() as patched:
        patched.setattr(uvicorn, "Server", Noted)
        text = done("serve", tiny_run, "--port", "0", "--name", "model.example", "--device", "cpu").stdout
    ((application, listener),) = served
    with serving(application, listener) as address:
        assert text.startswith(f"{address}/ is the page") and f"{address}/v1/completions;" in text
        for host in ("127.0.0.1", "localhost", "model.example"):
            request = urllib.request.Request(f"{address}/v1/models", headers={"Host": host})
            with urllib.request.urlopen(request) as response:
                assert json.load(response)["data"][0]["id"] == tiny_run.name
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "attacker.example"}))
        assert error.value.code == 400


def test_a_fault_of_the_server_is_an_answer(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(app, "complete", fails)
    with serving(app.make_app(model, "tiny", ["127.0.0.1"])) as address:
        status, answer = ask(address, {"prompt": "The"})
        assert (status, answer["error"]["type"]) == (500, "server_error") and "secret" not in str(answer)
        with urllib.request.urlopen(address) as page:
            assert b"<html" in page.read()


def test_a_port_in_use_and_a_missing_model_are_named(tiny_run: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port} is in use" in refused("serve", tiny_run, "--port", port)
    assert "cannot listen on 203.0.113.1:" in refused("serve", tiny_run, "--host", "203.0.113.1", "--port", "0")
    assert "no port" in refused("serve", tiny_run, "--port", "99999")
    assert "holds no model.bitgolf" in refused("serve", tmp_path)


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_the_page_in_a_browser(model: LanguageModel, tmp_path: Path) -> None:
    """A script types a text, then asks for a continuation; the page shows colored tokens that add up to the text."""
    typed = "The quiet river — déjà vu"
    script = f"""<script>addEventListener("load", async () => {{
      at("prompt").value = {json.dumps(typed)};
      await ask(0);
      const scored = at("text").textContent, spans = at("text").children.length, note = at("note").textContent;
      await ask(20);
      const fresh = [...document.querySelectorAll("#text .new")].map((span) => span.textContent).join("");
      const title = at("text").firstChild.title, width = document.documentElement.scrollWidth;
      document.title = JSON.stringify({{ scored, spans, note, fresh, title, width }});
    }});</script>"""
    application = app.make_app(model, "tiny", ["127.0.0.1"])
    original = app.resources.files("bitgolf.serve").joinpath("page.html").read_text("utf-8")
    page = app.HTMLResponse(original.replace("</body>", script + "</body>"))

    async def scripted(_: Any) -> Any:
        return page

    application.router.routes[0] = app.Route("/", scripted)
    options = shlex.split("--headless --no-sandbox --disable-gpu --dump-dom --window-size=500,900")
    options.append("--virtual-time-budget=20000")
    with serving(application) as address:
        command = [str(BROWSER), *options, f"--user-data-dir={tmp_path}", address]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    match = re.search(r"<title>(\{.*?\})</title>", shown.stdout)
    assert match, shown.stdout[-400:]
    result = json.loads(match[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert result["scored"] == typed and 3 < result["spans"] <= len(typed)
    assert f"{model.bits_per_byte(typed):.3f} bits per byte" in result["note"]
    assert result["fresh"] == model.generate(typed, max_tokens=20, temperature=0.8, seed=1)
    assert "bits" in result["title"] and "expected" in result["title"]
    assert result["width"] <= 500
