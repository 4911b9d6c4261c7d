"""The routes → the OpenAPI document. FastAPI describes them; it stands in no request's way."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from pydantic_core import to_json

from gguf_engine import __version__
from gguf_engine.server.routes import Handler, TableRow

_REFS = "#/components/schemas/{model}"
_STATUSES = (400, 401, 403, 404, 408, 413, 415, 429, 501, 503)
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


def answer(table: Sequence[TableRow]) -> Handler:
    """Return the handler that shows the document of some routes, made when it is first asked for."""
    made = cache(lambda: to_json(describe(table)))

    async def show(request: Request) -> Response:
        del request
        return Response(made(), media_type="application/json")

    return show


def describe(table: Sequence[TableRow]) -> dict[str, Any]:
    """Return the OpenAPI document of some routes."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": "Refused, and why", "content": {"application/json": {"schema": _ERROR}}}
        for status in _STATUSES
    }
    described = APIRouter()
    for method, path, handler, body in table:
        extra: dict[str, Any] = {}
        if body is not None:
            schema = {"$ref": _REFS.format(model=body.__name__)}
            extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        described.add_api_route(
            path, handler, methods=[method], response_class=Response, responses=errors, openapi_extra=extra
        )
    made = get_openapi(title="gguf-engine", version=__version__, routes=described.routes)
    bodies = [body for *_, body in table if body is not None]
    _, defined = models_json_schema([(body, "validation") for body in bodies], ref_template=_REFS)
    made.setdefault("components", {}).setdefault("schemas", {}).update(defined["$defs"])
    return made
