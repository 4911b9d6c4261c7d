"""The one table of the server: an error → a status and an OpenAI error object."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from gguf_engine.errors import (
    BackendError,
    EngineClosedError,
    EngineCrashed,
    EngineSilentError,
    GGUFEngineError,
    OptionError,
    PromptTooLongError,
    TemplateError,
    TokenizerError,
)

INVALID, AUTHENTICATION, RATE_LIMIT, SERVER = (
    "invalid_request_error",
    "authentication_error",
    "rate_limit_error",
    "server_error",
)


class RefusedError(GGUFEngineError):
    """
    A request that is not served.

    Attributes:
        status: The HTTP status, 4xx or 5xx.
        code: A stable identifier such as "queue_full".
        param: The field concerned, or None.
        headers: Headers that go with the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status, self.code, self.param, self.headers = status, code, param, headers or {}
        super().__init__(message)


class QueueFullError(RefusedError):
    """All slots are taken, and as many wait as may."""

    def __init__(self, n_slots: int, n_waiting: int, retry_s: float) -> None:
        seconds = max(1, math.ceil(retry_s))
        message = f"{n_slots} requests run and {n_waiting} wait, which is all there is room for; "
        super().__init__(
            429, "queue_full", f"{message}try again in {seconds} s", headers={"Retry-After": str(seconds)}
        )


class ErrorReply(NamedTuple):
    """What a client is told: the status, the headers, the body."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]


# Status, type and code; the first class that fits decides. What is not here is our own fault: a 500.
_TABLE: tuple[tuple[type[GGUFEngineError], int, str, str], ...] = (
    (PromptTooLongError, 400, INVALID, "context_length_exceeded"),
    (OptionError, 400, INVALID, "invalid_value"),
    (TemplateError, 400, INVALID, "invalid_messages"),
    (TokenizerError, 400, INVALID, "invalid_text"),
    (EngineCrashed, 503, SERVER, "engine_crashed"),
    (EngineSilentError, 503, SERVER, "engine_silent"),
    (EngineClosedError, 503, SERVER, "engine_closed"),
    (BackendError, 500, SERVER, "engine_failed"),
)


def reply_to(error: BaseException) -> ErrorReply:
    """Return what a client is told of an error."""
    if isinstance(error, RefusedError):
        kind = {401: AUTHENTICATION, 429: RATE_LIMIT}.get(
            error.status, INVALID if error.status < 500 else SERVER
        )
        body = error_body(str(error), kind, error.code, error.param)
        return ErrorReply(error.status, error.headers, body)
    for kind_, status, type_, code in _TABLE:
        if isinstance(error, kind_):
            return ErrorReply(status, {}, error_body(sentence(error), type_, code, _param(error)))
    message = "the server failed at this request; its log says more"
    return ErrorReply(500, {}, error_body(message, SERVER, "internal_error", None))


def error_body(message: str, kind: str, code: str, param: str | None) -> dict[str, Any]:
    """Return an error object as OpenAI's API has it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def sentence(error: BaseException) -> str:
    """Return what a client may know: no process ids, no paths, no words of llama.cpp."""
    if isinstance(error, EngineCrashed):
        return f"the engine's process {error.what}; send the request again"
    if isinstance(error, EngineClosedError):
        return "the engine is closed; the server has to be started again"
    if isinstance(error, BackendError):
        return "the model failed while it computed this answer"
    return str(error)


def _param(error: GGUFEngineError) -> str | None:
    return error.option if isinstance(error, OptionError) else None
