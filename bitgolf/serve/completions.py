"""The completions endpoint without its HTTP: a request of the OpenAI API (`/v1/completions`) becomes an answer.

The text is that of `bitgolf sample` with the same settings. Log-probabilities come from a second pass, which scores
prompt and continuation together with sliding windows, as `LanguageModel.logprobs` does. With `echo` they cover the
prompt, which is what `lm-eval` reads.

Legend: n tokens of prompt and continuation, V vocabulary.
"""

import codecs
import time
import uuid
from typing import Any, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitgolf.artifact.generate import Continuation, Sampling, continue_tokens
from bitgolf.errors import ConfigError
from bitgolf.foreign import printable
from bitgolf.language_model import LanguageModel

MAX_TOKENS = 4_096  # of one continuation
MAX_PROMPTS = 128  # of one request
MAX_STOPS = 64  # texts that end a continuation
MAX_WORK = 32_768  # tokens that one request may have generated and, with logprobs, scored
_ROWS_AT_ONCE = 256  # targets whose distributions are held at once
_END = "<s>"  # how answers write the token that ends a document


class CompletionRequest(BaseModel):
    """The body of a request. Keys of the API that this server does not have are refused unless they change nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int = Field(16, ge=0, le=MAX_TOKENS)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | list[str] | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    model: str = ""
    user: str = ""
    n: Literal[1] = 1
    best_of: Literal[1] = 1
    stream: Literal[False] = False

    @property
    def prompts(self) -> list[str | list[int]]:
        several = isinstance(self.prompt, list) and self.prompt and not isinstance(self.prompt[0], int)
        return cast("list[str | list[int]]", self.prompt if several else [self.prompt])


def read_request(values: Any) -> CompletionRequest:
    """Raises ConfigError, which names the key, for a request that cannot be answered."""
    try:
        request = CompletionRequest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0]) if first["loc"] else "the request"
        raise ConfigError(f"{printable(where)}: {printable(first['msg'])}") from error
    if not all(request.prompts):
        raise ConfigError("prompt: it is empty; give at least one character")
    if len(request.prompts) > MAX_PROMPTS:
        raise ConfigError(f"prompt: {len(request.prompts):,} prompts, at most {MAX_PROMPTS} are allowed")
    if isinstance(request.stop, list) and len(request.stop) > MAX_STOPS:
        raise ConfigError(f"stop: {len(request.stop):,} texts, at most {MAX_STOPS} are allowed")
    return request


def complete(model: LanguageModel, request: CompletionRequest) -> dict[str, Any]:
    """The answer. Raises ConfigError for token ids outside the vocabulary and impossible settings."""
    choices, num_prompt, num_new = [], 0, 0
    prompts = [model.tokenizer.encode(p) if isinstance(p, str) else _checked(p, model) for p in request.prompts]
    work = len(prompts) * request.max_tokens + (0 if request.logprobs is None else sum(map(len, prompts)))
    if work > MAX_WORK:
        raise ConfigError(f"the request asks for {work:,} tokens, at most {MAX_WORK:,} are allowed; send several")
    for index, ids in enumerate(prompts):
        made = _continuation(model, ids, request)
        shown = ids if request.echo else []
        text = (model.tokenizer.decode(ids) if request.echo else "") + made.text
        choices.append(
            {
                "index": index,
                "text": text,
                "logprobs": None
                if request.logprobs is None
                else _logprobs(model, ids, made.tokens, shown, request.logprobs),
                "finish_reason": "stop" if made.ended else "length",
            }
        )
        num_prompt, num_new = num_prompt + len(ids), num_new + len(made.tokens)
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": request.model or "bitgolf",
        "choices": choices,
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_new,
            "total_tokens": num_prompt + num_new,
        },
    }


def _checked(ids: list[int], model: LanguageModel) -> list[int]:
    bad = next((i for i in ids if not 0 <= i < model.tokenizer.vocab_size), None)
    if bad is not None:
        raise ConfigError(f"prompt: token id {bad} is outside the vocabulary of {model.tokenizer.vocab_size}")
    return ids


def _continuation(model: LanguageModel, ids: list[int], request: CompletionRequest) -> Continuation:
    if not request.max_tokens:
        return Continuation("", [], False)
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    sampling = Sampling(request.max_tokens, request.temperature, request.top_k, request.top_p, stop, request.seed)
    begins = ids[:1] == [model.tokenizer.bos_id]  # the prompt names the beginning of the document itself
    return continue_tokens(model, ids[begins:], sampling)


def _logprobs(
    model: LanguageModel, prompt: list[int], new: list[int], shown: list[int], num_top: int
) -> dict[str, list[Any]]:
    """Tokens, their log-probabilities, the most likely tokens of each place, and offsets in the text."""
    bos = model.tokenizer.bos_id
    begins = prompt[:1] == [bos]
    context = np.array([*([] if begins else [bos]), *prompt, *new], dtype=np.int64)
    first = len(context) - len(shown) - len(new)  # of the tokens in the answer; 0 only for a BOS in the prompt
    rows = _rows(model, context, max(1, first), num_top)
    if first == 0:
        rows.insert(0, (None, None))
    ids = context[first:].tolist()
    spelling = codecs.getincrementaldecoder("utf-8")("replace")
    offsets, length = [], 0
    for text in model.tokenizer.spell(ids):
        offsets.append(length)
        length += len(spelling.decode(text))
    return {
        "tokens": [_spelled(model, token) for token in ids],
        "token_logprobs": [own for own, _ in rows],
        "top_logprobs": [top for _, top in rows],
        "text_offset": offsets,
    }


def _rows(
    model: LanguageModel, context: np.ndarray, first: int, num_top: int
) -> list[tuple[float | None, dict[str, float] | None]]:
    """For each token of `context` from `first` on: its log-probability, and the most likely tokens with theirs."""
    scorer = model.scorer(len(context))
    rows: list[tuple[float | None, dict[str, float] | None]] = []
    for start in range(first - 1, len(context) - 1, _ROWS_AT_ONCE):  # target t is token t + 1
        stop = min(start + _ROWS_AT_ONCE, len(context) - 1)
        table = scorer.distributions(lambda low, high: context[low:high], start, stop)  # (rows, V)
        for logprobs, token in zip(table, context[start + 1 : stop + 1].tolist(), strict=True):
            top: dict[str, float] = {}
            for i in [*np.argsort(-logprobs, kind="stable")[:num_top].tolist(), token]:
                top.setdefault(_spelled(model, i), float(logprobs[i]))
            rows.append((float(logprobs[token]), top if num_top else None))
    return rows


def _spelled(model: LanguageModel, token: int) -> str:
    """A token as text; a part of a character as in `bytes:\\xc3`."""
    if token == model.tokenizer.bos_id:
        return _END
    data = model.tokenizer.token_text_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
