"""What a hub can do wrong on the wire, beyond the plain faults of fakehub.py."""

from __future__ import annotations

import contextlib
import gzip
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from fakehub import Fault, Request, fault_on


class _Body:
    """A file for writing that hands everything after the headers to a function."""

    def __init__(self, file: Any, write_body: Callable[[bytes], None]) -> None:
        self.file, self.write_body = file, write_body
        self.in_body = False

    def write(self, data: bytes) -> int:
        if self.in_body:
            self.write_body(data)
        else:
            self.in_body = data.endswith(b"\r\n\r\n")
            self.file.write(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def send_body(
    write: Callable[[Request, bytes], None], *, path: str = "", method: str = "GET", times: int = 10**9
) -> Fault:
    """Return a fault that leaves the sending of matching bodies, headers sent, to a function."""

    def act(request: Request) -> None:
        whole = request.wfile
        request.wfile = _Body(whole, lambda data: write(request, data))  # type: ignore[assignment]
        request.close_connection = True
        with contextlib.suppress(OSError):
            request.serve()
        request.wfile = whole

    return fault_on(act, path, method, times)


def reset_after(n_bytes: int, *, path: str = "", times: int = 10**9) -> Fault:
    """Return a fault that sends n_bytes of a body, then resets the connection."""

    def write(request: Request, data: bytes) -> None:
        request.connection.sendall(data[:n_bytes])
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(request.connection.detach())

    return send_body(write, path=path, times=times)


def stall_after(n_bytes: int, *, path: str = "", times: int = 10**9) -> Fault:
    """Return a fault that sends n_bytes of a body, then nothing more until the hub stops."""

    def write(request: Request, data: bytes) -> None:
        request.connection.sendall(data[:n_bytes])
        request.hub.over.wait(60)

    return send_body(write, path=path, times=times)


def trickle(wait_s: float, *, path: str = "", n_bytes: int = 1, times: int = 10**9) -> Fault:
    """Return a fault that sends a body a few bytes at a time."""

    def write(request: Request, data: bytes) -> None:
        for start in range(0, len(data), n_bytes):
            request.connection.sendall(data[start : start + n_bytes])
            if request.hub.over.wait(wait_s):
                return

    return send_body(write, path=path, times=times)


ENDLESS_HEADER = b"HTTP/1.1 200 OK\r\nX-Slow: "
ENDLESS_BODY = b"HTTP/1.1 200 OK\r\n\r\n"  # of no announced length: cut off, it looks complete


def drip(start: bytes, wait_s: float, *, path: str = "") -> Fault:
    """Return a fault whose answer has this start, goes on a byte at a time and never ends."""

    def act(request: Request) -> None:
        request.close_connection = True
        with contextlib.suppress(OSError):
            request.connection.sendall(start)
            while not request.hub.over.wait(wait_s):
                request.connection.sendall(b"x")

    return fault_on(act, path, "")


def endless(piece: bytes, *, path: str = "") -> Fault:
    """Return a fault whose body has no announced length and no end."""

    def act(request: Request) -> None:
        request.close_connection = True
        with contextlib.suppress(OSError):
            request.send(200, b"", {"Content-Length": "", "Transfer-Encoding": "chunked"})
            while not request.hub.over.is_set():
                request.connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))

    return fault_on(act, path, "GET")


def gzip_bomb(n_bytes: int, *, path: str = "") -> Fault:
    """Return a fault that answers with a few compressed bytes that would become n_bytes."""
    body = gzip.compress(bytes(n_bytes))

    def act(request: Request) -> None:
        request.send(200, body, {"Content-Encoding": "gzip"})

    return fault_on(act, path, "GET")


def headers(changed: dict[str, str], *, path: str = "", method: str = "HEAD") -> Fault:
    """Return a fault that answers with these headers, and no body, as if they were a file's."""

    def act(request: Request) -> None:
        request.send(200, b"", changed)

    return fault_on(act, path, method)


def redirect(location: str, *, path: str = "", times: int = 10**9) -> Fault:
    """Return a fault that sends matching GET requests elsewhere."""

    def act(request: Request) -> None:
        request.send(302, b"", {"Location": location})

    return fault_on(act, path, "GET", times)


def spliced(n_bytes: int, other: bytes, *, path: str = "") -> Fault:
    """Return a fault that cuts a file after n_bytes and goes on, whatever If-Range says, with another's."""

    def act(request: Request) -> None:
        start = int((request.headers.get("range") or "bytes=0-")[6:-1])
        if start == 0:
            request.send(200, other[:n_bytes], {"Content-Length": str(len(other)), "ETag": '"old"'})
            request.close_connection = True
        else:
            del request.headers["if-range"]
            request.serve()

    return fault_on(act, path, "GET", 2)


def without_ranges(*, path: str = "") -> Fault:
    """Return a fault that serves whole files, whatever range was asked for."""

    def act(request: Request) -> None:
        del request.headers["range"]
        request.serve()

    return fault_on(act, path, "GET")


def wrong_range(*, path: str = "") -> Fault:
    """Return a fault that answers a range with another one; requests for all bytes are served."""

    def fault(request: Request) -> bool:
        if path not in request.path or "range" not in request.headers:
            return False
        request.send(206, b"abc", {"Content-Range": "bytes 1-3/4000"})
        return True

    return fault
