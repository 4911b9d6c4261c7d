"""The chat page: three files of the package, and a policy that lets it load nothing else."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from gguf_engine.server.errors import RefusedError

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/chat.css": ("chat.css", "text/css; charset=utf-8"),
    "/chat.js": ("chat.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
}


async def show(request: Request) -> Response:
    """Return one of the page's files."""
    name, kind = FILES[request.url.path]
    file = files("gguf_engine.server") / "page" / name
    try:
        data = file.read_bytes()
    except OSError:
        raise RefusedError(404, "not_found", "this installation has no chat page; the API works") from None
    return Response(data, media_type=kind, headers=_HEADERS)
