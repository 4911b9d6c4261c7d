"""HTTP/1.1 over uvicorn's h11, with a deadline for whoever sends slowly and for whoever reads slowly."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import h11
from pydantic_core import to_json
from uvicorn.protocols.http.h11_impl import H11Protocol

from gguf_engine.server.errors import INVALID, error_body

if TYPE_CHECKING:
    from gguf_engine.server.settings import ServerParams


class GuardedProtocol(H11Protocol):
    """
    One connection.

    Attributes:
        settings: Its limits; set by `protocol_for`.
    """

    settings: ServerParams

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._arrival: asyncio.TimerHandle | None = None  # until a request has arrived whole
        self._reading: asyncio.TimerHandle | None = None  # until the client has taken what was sent

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; one connection too many ends at once."""
        super().connection_made(Joining(transport, self.loop))  # type: ignore[arg-type]
        if len(self.connections) > self.settings.max_connections:
            transport.abort()
            return
        # Whatever the system does not take at once counts as not taken.
        transport.set_write_buffer_limits(high=0)
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        """Take some bytes; the deadline holds until the last one of a request."""
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._expect_request()
        else:
            self._arrival = _cancelled(self._arrival)

    def _expect_request(self) -> None:
        if self._arrival is None and not self.transport.is_closing():
            self._arrival = self.loop.call_later(self.settings.request_s, self._on_late_request)

    def _on_late_request(self) -> None:
        self._arrival = None
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # answered long ago, and still sending
            return
        message = f"the request did not arrive within {self.settings.request_s:g} s"
        self._end_with(408, message, "request_timeout")

    def send_400_response(self, msg: str) -> None:
        """Say that this is no HTTP."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        self._end_with(400, msg, "invalid_http")

    def _end_with(self, status: int, message: str, code: str) -> None:
        body = to_json(error_body(message, INVALID, code, None))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def on_response_complete(self) -> None:
        """Go on with the next request of this connection."""
        cast("Joining", self.transport).flush()  # the last bytes wait for no turn of the loop
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._expect_request()

    def pause_writing(self) -> None:
        """Wait for a client that does not read, and not for ever."""
        super().pause_writing()
        if self._reading is None:
            self._reading = self.loop.call_later(self.settings.slow_reader_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client has taken everything."""
        super().resume_writing()
        self._reading = _cancelled(self._reading)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._arrival, self._reading = _cancelled(self._arrival), _cancelled(self._reading)
        super().connection_lost(exc)


class Joining:
    """
    A transport that sends what is written in one turn of the event loop together.

    An answer's head and body, or the pieces of several choices, then cost one system call.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._waiting: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send some bytes in this turn of the loop."""
        if data and not self._waiting:
            self._loop.call_soon(self.flush)
        if data:
            self._waiting.append(data)

    def flush(self) -> None:
        """Send at once what waits."""
        if self._waiting:
            data, self._waiting = b"".join(self._waiting), []
            self._transport.write(data)

    def close(self) -> None:
        """Send what is left, and end."""
        self.flush()
        self._transport.close()


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Cancel a timer, and return what stands for none."""
    if timer is not None:
        timer.cancel()
    return None


def protocol_for(settings: ServerParams) -> type[GuardedProtocol]:
    """Return the protocol with these limits."""
    return type("Protocol", (GuardedProtocol,), {"settings": settings})
