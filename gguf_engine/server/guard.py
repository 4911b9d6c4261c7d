"""Guard: what every request passes first. The Host, the key; and last, counting and the log."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import time
from typing import TYPE_CHECKING

from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gguf_engine.server.errors import RefusedError, reply_to
from gguf_engine.server.generation import STARTED_AT

if TYPE_CHECKING:
    from gguf_engine.server.metrics import Metrics
    from gguf_engine.server.settings import ServerParams

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/", "/chat.css", "/chat.js"})
"""What needs no key: the page has to be there before somebody can type one in it."""
_MAX_SHOWN = 200


class Guard:
    """
    ASGI middleware around the whole application.

    Args:
        app: What is guarded.
        settings: Hosts and keys.
        metrics: Told of each answer.
    """

    def __init__(self, app: ASGIApp, settings: ServerParams, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._keys = [key.encode() for key in settings.api_keys]
        names = {"localhost", settings.host, *settings.allowed_hosts}
        self._hosts = {name.lower() for name in names}
        self._logs = settings.log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = scope[STARTED_AT] = time.perf_counter()
        status = 0

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, noting_send)
        except ClientDisconnect:
            status = 499
        except Exception as error:
            if not isinstance(error, RefusedError):
                log.exception("a request failed")
            if status:
                raise
            await _refuse(error, scope, receive, noting_send)
        finally:
            self._metrics.note_request(scope["path"], status)
            if self._logs:
                self._note(scope, status, time.perf_counter() - started_at)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if not self._is_known(headers.get(b"host", b"").decode("latin-1")):
            host = headers.get(b"host", b"").decode("latin-1")[:80]
            message = f"the host {host!r} is not served here; the server's --allowed-host adds one"
            raise RefusedError(403, "host_not_allowed", message)
        if self._keys and scope["path"] not in OPEN_PATHS:
            self._check_key(headers.get(b"authorization", b""))

    def _is_known(self, host: str) -> bool:
        """Tell whether a Host header names this server, and is no stranger's name for it."""
        name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        name = name.lower()
        if "*" in self._hosts or name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # an address cannot be made to point elsewhere

    def _check_key(self, authorization: bytes) -> None:
        scheme, _, key = authorization.partition(b" ")
        given = key.strip()
        # Every key is compared, each in constant time.
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        if scheme.lower() != b"bearer" or not any(matches):
            what = "the API key is wrong" if given else "an API key is needed"
            raise RefusedError(
                401,
                "invalid_api_key",
                f"{what}; send Authorization: Bearer KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _note(self, scope: Scope, status: int, took_s: float) -> None:
        client = scope.get("client")
        # !r: a path can hold line ends and control characters, which must not make log lines.
        path = ascii(scope["path"][:_MAX_SHOWN])
        who = client[0] if client else "-"
        log.info("%s %s %s %d %.1f ms", who, scope["method"][:16], path, status, took_s * 1e3)


async def _refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    del scope, receive
    status, more, body = reply_to(error)
    data = to_json(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
        *((name.lower().encode(), value.encode()) for name, value in more.items()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
