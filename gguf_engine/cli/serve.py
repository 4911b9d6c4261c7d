"""`gguf-engine serve`: an OpenAI-compatible HTTP server."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from typing import Annotated

import typer

from gguf_engine.cli.loading import loaded, note
from gguf_engine.cli.options import HubOptions, ModelOptions, Without
from gguf_engine.errors import GGUFEngineError
from gguf_engine.params import EngineParams
from gguf_engine.server.settings import ServerParams


def serve(
    *,
    server: Annotated[ServerParams, Without(("api_keys",))],
    model: ModelOptions,
    hub: HubOptions,
    engine: EngineParams,
    api_key_file: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="A file with API keys, one a line; otherwise $GGUF_ENGINE_API_KEY, if set."
        ),
    ] = None,
) -> None:
    """
    Serve a model over HTTP, as OpenAI's API does, until Ctrl-C or SIGTERM. Needs gguf-engine[server].

    The model runs in a process of its own, and is started again when that dies, unless --isolation thread.
    """
    try:
        from gguf_engine.server.app import with_keys
        from gguf_engine.server.serving import bind, run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("gguf_engine"):
            raise
        raise ServerMissingError(error.name or "fastapi") from error
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # while it loads
    server = with_keys(server, api_key_file)
    sockets = bind(server)
    try:
        with loaded(replace(model, isolation=model.isolation or "process"), hub, engine) as llm:
            run(llm, server, sockets, on_start=lambda url: note(f"listening on {url}"))
    finally:
        for each in sockets:
            each.close()


class ServerMissingError(GGUFEngineError):
    """The packages that the server needs are not installed."""

    def __init__(self, package: str) -> None:
        self.package = package
        super().__init__(f"serving needs the package {package}; run: pip install 'gguf-engine[server]'")
