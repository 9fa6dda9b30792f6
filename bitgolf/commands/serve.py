"""`bitgolf serve`: a page to type into, and an OpenAI-style completions endpoint, on this machine."""

import argparse
import errno
import socket
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from bitgolf.commands.command import Arguments, Command
from bitgolf.commands.files import artifact_path
from bitgolf.commands.output import print_line
from bitgolf.errors import ConfigError
from bitgolf.foreign import printable


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="run directory, or its model.bitgolf")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port (8000); 0 = any free one")
    parser.add_argument(
        "--name", action="append", default=[], metavar="HOST", help="also answer under this host name; repeatable"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def _serve(arguments: Arguments, out: Console) -> int:
    try:
        import uvicorn

        from bitgolf.serve.app import make_app
    except ImportError as error:
        raise ConfigError(
            f"`serve` needs {error.name}, which is not installed; pip install 'bitgolf[serve]'"
        ) from error
    from bitgolf.language_model import load

    path = artifact_path(arguments.model)
    model = load(path, arguments.device)
    listener = _listen(arguments.host, arguments.port)
    host, port = listener.getsockname()[:2]
    name = printable(path.parent.name or path.stem)
    app = make_app(model, name, [host, arguments.host, "localhost", *arguments.name])
    print_line(
        out, f"http://{host}:{port}/ is the page; the API is http://{host}:{port}/v1/completions; Ctrl-C ends it"
    )
    with suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off")).run(sockets=[listener])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=1024)
    except OverflowError as error:
        raise ConfigError(f"--port {port} is no port; give 0 to 65535") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} is in use; choose another one with --port, or 0 for any") from error
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


SERVE = Command(
    "serve",
    "serve a page to type into and an OpenAI-style API for a model, on this machine",
    _add_arguments,
    _serve,
    examples=(
        ("serve runs/mine", "then open http://127.0.0.1:8000/"),
        ("serve runs/mine --port 8123", "on another port; clients use http://127.0.0.1:8123/v1/completions"),
    ),
)
