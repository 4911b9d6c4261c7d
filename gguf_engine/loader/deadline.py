"""A moment that a download must not outlive, not even inside one read of a socket."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gguf_engine.errors import HubError

Trace = Callable[[str, Mapping[str, Any]], None]


class Deadline:
    """
    A number of seconds, counted from now.

    Args:
        seconds: math.inf for no end.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Return the seconds left, 0 when it has passed."""
        return max(self._end - time.monotonic(), 0.0)

    @property
    def has_passed(self) -> bool:
        """Return whether no time is left."""
        return self.left_s == 0

    def check(self) -> None:
        """
        Return while there is time.

        Raises:
            HubError: timeout.
        """
        if self.has_passed:
            raise HubError(
                "timeout", f"the download took longer than {self.seconds:g} s", "run it again to go on"
            )

    @contextlib.contextmanager
    def guard(self) -> Iterator[Trace]:
        """
        Yield a trace function for one request; its connection is cut when the time is up.

        Time limits of a client hold for one read each: a byte now and then keeps it waiting for ever.
        """
        sockets: list[socket.socket] = []

        def trace(event: str, info: Mapping[str, Any]) -> None:
            if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
                sockets.append(info["return_value"].get_extra_info("socket"))

        def cut() -> None:
            for connection in sockets:
                # Not the TLS one's own method, which would take the stream away from its reader.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

        timer = threading.Timer(min(self.left_s, threading.TIMEOUT_MAX), cut)
        timer.daemon = True
        timer.start()
        try:
            yield trace
        finally:
            timer.cancel()
