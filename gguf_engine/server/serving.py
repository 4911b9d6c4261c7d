"""run: sockets, signals and the end of a server. It returns when the server was told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from gguf_engine.errors import OptionError
from gguf_engine.server.app import create_app
from gguf_engine.server.protocol import protocol_for

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from gguf_engine.llm import LLM
    from gguf_engine.server.desk import Desk
    from gguf_engine.server.settings import ServerParams

_LAST_WORDS_S = 2.0
"""For answers that were cut off to say so, after the grace."""
_N_RESERVED_FILES = 64


def bind(settings: ServerParams) -> list[socket.socket]:
    """
    Return sockets bound to every address of the host; they accept nothing yet.

    Raises:
        OptionError: No such host, an address others reach and no key, or a port that is taken.
    """
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise OptionError("host", settings.host, "a name or address of this machine", str(error)) from error
    places = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    for _, address in places:
        if (
            not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
            and not settings.api_keys
        ):
            way_out = "name a key: --api-key-file FILE, or $GGUF_ENGINE_API_KEY"
            raise OptionError(
                "host", settings.host, "127.0.0.1, ::1 or localhost without an API key", way_out
            )
    sockets: list[socket.socket] = []
    port = settings.port
    try:
        for family, address in places:
            sockets.append(_bind(family, (address[0], port, *address[2:])))
            port = sockets[0].getsockname()[1]
    except OSError as error:
        for each in sockets:
            each.close()
        raise OptionError("port", port, "a port that is free here", error.strerror or "") from error
    return sockets


def _bind(family: int, address: tuple[object, ...]) -> socket.socket:
    # The protocol by name: asyncio turns Nagle's algorithm off for TCP alone, and 0 does not look like it.
    # With it an answer's body waits 40 ms for the client's word that it has the headers.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def url_of(listening: socket.socket) -> str:
    """Return where a bound socket can be reached."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    llm: LLM,
    settings: ServerParams,
    sockets: Sequence[socket.socket],
    *,
    on_start: Callable[[str], object] = lambda _: None,
) -> None:
    """
    Serve until SIGTERM or SIGINT, let running requests finish, and return. A second signal ends at once.

    Args:
        llm: What answers; the caller closes it.
        settings: See ServerParams.
        sockets: What `bind` returned; closed in the end.
        on_start: Told the address when connections are accepted.
    """
    _allow_files(settings.max_connections)
    _start_log()
    make_server(create_app(llm, settings), settings, lambda: on_start(url_of(sockets[0]))).run([*sockets])


def make_server(
    app: Starlette, settings: ServerParams, on_start: Callable[[], object] = lambda: None
) -> Server:
    """Return a server that can be run with sockets, in any thread; signals are the main thread's."""
    config = uvicorn.Config(
        app,
        http=protocol_for(settings),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(settings.drain_s + 2 * _LAST_WORDS_S),
    )
    return Server(config, app.state.desk, settings.drain_s, on_start)


class Server(uvicorn.Server):
    """
    uvicorn's server, with our end.

    Args:
        config: uvicorn's.
        desk: Who still has an answer to come.
        drain_s: How long they may take.
        on_start: Called when connections are accepted.
    """

    def __init__(
        self, config: uvicorn.Config, desk: Desk, drain_s: float, on_start: Callable[[], object]
    ) -> None:
        super().__init__(config)
        self._desk, self._drain_s, self._on_start = desk, drain_s, on_start
        self._forced = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept, and say so."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Hear signals while the server runs; unlike uvicorn's own, do not die of them afterwards."""
        with contextlib.ExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM):
                # Only the main thread has signals.
                with contextlib.suppress(ValueError):
                    stack.callback(signal.signal, number, signal.signal(number, self.handle_exit))
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; the second time, at once."""
        del sig, frame
        self.force_exit = self.should_exit
        self.should_exit = True
        if self.force_exit and self._loop is not None:
            self._loop.call_soon_threadsafe(self._forced.set)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, let running requests finish, cut off those that take too long."""
        self._desk.close()
        cutter = asyncio.ensure_future(self._cut_off())
        try:
            await super().shutdown(sockets)
        finally:
            cutter.cancel()

    async def _cut_off(self) -> None:
        await self._wait(self._drain_s)
        self._desk.end_all()
        await self._wait(_LAST_WORDS_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def _wait(self, timeout_s: float) -> None:
        """Wait, or less when a second signal has come."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._forced.wait(), timeout_s)


class _Plain(logging.Formatter):
    """One record, one line: control characters in what users sent stay visible and harmless."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """See logging."""
        line = super().formatMessage(record)
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def _start_log() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("gguf_engine.server", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level)


def _allow_files(n: int) -> None:
    """Raise the limit of open files, as far as this process may, to what so many connections need."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n + _N_RESERVED_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
