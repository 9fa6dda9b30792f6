"""The web application: the page, `POST /v1/completions` and `GET /v1/models`.

One thread runs the model, because a second one would only take its cores. Requests wait for it in a line of bounded
length; when the line is full, a request is refused with status 503. Bodies are bounded too. Hosts other than the one
that is served are refused, so that a page of somebody else cannot reach the server under a name of its own.
"""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from bitgolf.errors import BitgolfError
from bitgolf.language_model import LanguageModel
from bitgolf.serve.completions import CompletionRequest, complete, read_request

MAX_BODY_BYTES = 262_144
_MAX_DRAINED_BYTES = 16_777_216  # of a body that is too long: read, so that the client gets to see the answer
MAX_WAITING = 128  # requests in line


def make_app(model: LanguageModel, name: str, hosts: list[str], max_waiting: int = MAX_WAITING) -> Starlette:
    """The application.

    Args:
        name: of the model, as clients see it.
        hosts: names under which the server may be reached.
        max_waiting: requests in line, the one that is answered included.
    """
    server = _Server(model, name, max_waiting)
    return Starlette(
        routes=[
            Route("/", server.page),
            Route("/v1/models", server.models),
            Route("/v1/completions", server.completions, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
        exception_handlers={404: _not_found, 405: _not_found, 500: _failed},
    )


class _Server:
    def __init__(self, model: LanguageModel, name: str, max_waiting: int) -> None:
        self._model, self._name, self._max_waiting = model, name, max_waiting
        self._thread = ThreadPoolExecutor(1)
        self._waiting = 0

    async def page(self, request: Request) -> Response:
        text = resources.files("bitgolf.serve").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(text)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": self._name, "object": "model", "owned_by": "bitgolf"}]})

    async def completions(self, request: Request) -> Response:
        try:
            body = await _body(request)
        except ClientDisconnect:
            return Response()  # nobody reads it
        if body is None:
            return _error(413, f"the request has more than the {MAX_BODY_BYTES:,} bytes that are accepted")
        try:
            values = json.loads(body)
        except (ValueError, RecursionError):
            return _error(400, "the request is no JSON")
        try:
            completion = read_request(values)
        except BitgolfError as error:
            return _error(400, str(error))
        if self._waiting >= self._max_waiting:
            return _error(503, f"{self._waiting} requests are waiting; try again later", {"Retry-After": "1"})
        return await self._in_line(completion)

    async def _in_line(self, completion: CompletionRequest) -> Response:
        self._waiting += 1
        try:
            answer: dict[str, Any] = await asyncio.get_running_loop().run_in_executor(
                self._thread, complete, self._model, completion
            )
        except BitgolfError as error:
            return _error(400, str(error))
        finally:
            self._waiting -= 1
        return JSONResponse(answer | {"model": self._name})


async def _body(request: Request) -> bytes | None:
    """The body; None if it is too long."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= MAX_BODY_BYTES:
            parts.append(part)
        elif size > _MAX_DRAINED_BYTES:
            break
    return b"".join(parts) if size <= MAX_BODY_BYTES else None


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status, headers)


async def _not_found(request: Request, error: Exception) -> Response:
    status = int(getattr(error, "status_code", 404))
    return _error(status, f"there is no {request.method} {request.url.path}; POST to /v1/completions, or open /")


async def _failed(request: Request, error: Exception) -> Response:
    return _error(500, "the server failed; its log has the reason")
