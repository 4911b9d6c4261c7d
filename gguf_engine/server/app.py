"""create_app: the application that serves one LLM. Of the server only this file reads the environment."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gguf_engine.errors import GGUFEngineError
from gguf_engine.server import document, page
from gguf_engine.server.desk import Desk
from gguf_engine.server.errors import INVALID, RefusedError, error_body, reply_to
from gguf_engine.server.generation import Engine, note_failure
from gguf_engine.server.guard import Guard
from gguf_engine.server.metrics import Metrics
from gguf_engine.server.routes import Routes
from gguf_engine.server.settings import ServerParams, check_key, read_keys

if TYPE_CHECKING:
    from gguf_engine.llm import LLM

KEY_VARIABLE = "GGUF_ENGINE_API_KEY"


def with_keys(settings: ServerParams, path: str | None) -> ServerParams:
    """
    Return settings with the keys of a file, or else of $GGUF_ENGINE_API_KEY (several with commas between).

    Raises:
        OptionError: A file that cannot be read, or a key that no header can carry.
    """
    if path is not None:
        return replace(settings, api_keys=read_keys(path))
    keys = [key.strip() for key in os.environ.get(KEY_VARIABLE, "").split(",")]
    return replace(settings, api_keys=tuple(check_key(key, f"${KEY_VARIABLE}") for key in keys if key))


def create_app(llm: LLM, settings: ServerParams | None = None) -> Starlette:
    """
    Return an ASGI application that answers from `llm`, which stays the caller's to close.

    Its `state.desk` knows what runs; see `serving.run`, which also guards against slow clients.

    Raises:
        EngineSilentError: The engine does not answer.
    """
    settings = settings or ServerParams()
    metrics = Metrics()
    desk = Desk(llm.stats().n_slots, settings.max_queue)
    with contextlib.suppress(GGUFEngineError):
        llm.encode("Hello", chat=True)  # compiles the chat template, before a client waits for it
    routes = Routes(Engine(llm, desk, metrics), settings)
    # Outermost first: a refusal, too, must be readable by the pages that may call.
    middleware = [Middleware(Guard, settings=settings, metrics=metrics)]
    if settings.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
        middleware.insert(0, cors)
    table = routes.table()
    served = [Route(path, handler, methods=[method]) for method, path, handler, _ in table]
    served += [Route(path, page.show, methods=["GET"]) for path in page.FILES]
    served.append(Route("/openapi.json", document.answer(table), methods=["GET"]))
    app = Starlette(
        routes=served,
        middleware=middleware,
        exception_handlers={GGUFEngineError: _answer_error, HTTPException: _answer_http_error},
    )
    app.router.redirect_slashes = False
    app.state.desk, app.state.metrics = desk, metrics
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    del request
    note_failure(error)
    status, headers, body = reply_to(error)
    return Response(to_json(body), status, headers, "application/json")


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:80]
    message, code = str(error.detail), "invalid_request"
    if error.status_code == 404:
        message, code = f"there is nothing at {path!r}; /openapi.json lists what there is", "not_found"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        message, code = f"{path} takes {allowed}, not {request.method[:16]}", "method_not_allowed"
    body = error_body(message, INVALID, code, None)
    return Response(to_json(body), error.status_code, error.headers, "application/json")


__all__ = ["RefusedError", "ServerParams", "create_app", "with_keys"]
