"""The bytes of a request → a checked object of `schema`, or a refusal that names the field."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from gguf_engine.server.errors import RefusedError
from gguf_engine.server.refusal import refusal
from gguf_engine.server.schema import MAX_FIELDS, drop_what_asks_for_nothing, without_nothing

_M = TypeVar("_M", bound=BaseModel)


async def read(request: Request, kind: type[_M], max_bytes: int) -> _M:
    """
    Read and check the body of a request.

    Raises:
        RefusedError: 413 too large, 415 not JSON, 400 with the field for everything else.
    """
    # A page of another site can post text and forms here without asking; JSON it cannot.
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        message = f"the content type is {content_type[:80]!r}; send Content-Type: application/json"
        raise RefusedError(415, "content_type", message)
    values = _parse(await _read(request, max_bytes))
    _check_fields(values)
    if isinstance(values.get("messages"), list):
        values["messages"] = [without_nothing(message) for message in values["messages"]]
    values = drop_what_asks_for_nothing(kind, values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise refusal(kind, values, error) from None


async def _read(request: Request, max_bytes: int) -> bytes:
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > max_bytes:
        raise _too_large(max_bytes)
    body = b""
    async for chunk in request.stream():
        body = body + chunk if body else chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return body


def _too_large(max_bytes: int) -> RefusedError:
    message = f"the body is larger than {max_bytes} bytes; send less"
    return RefusedError(413, "body_too_large", message)


def _check_fields(values: dict[str, Any]) -> None:
    """Refuse objects of more fields than any has: each wrong one would be an error to write down."""
    for name, value in (("", values), *values.items()):
        objects = [
            each for each in (value if isinstance(value, list) else [value]) if isinstance(each, dict)
        ]
        most = max(map(len, objects), default=0)
        if most > MAX_FIELDS:
            message = f"{name or 'the body'} has {most} fields; allowed: {MAX_FIELDS} at most"
            raise RefusedError(400, "invalid_value", message, param=name or None)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        values = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError(400, "invalid_json", f"the body is not JSON: {error}") from None
    if not isinstance(values, dict):
        message = f"the body is a JSON {type(values).__name__}; send an object"
        raise RefusedError(400, "invalid_json", message)
    return values
