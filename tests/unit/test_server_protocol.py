"""What is written in one turn of the event loop leaves in one piece."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from server_samples import CHAT, chat_body, serve

from gguf_engine.server.protocol import GuardedProtocol, Joining


class Transport:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def close(self) -> None:
        self.told.append("close")

    def is_closing(self) -> bool:
        return "close" in self.told


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_writes_of_one_turn_are_one_and_those_of_the_next_another() -> None:
    async def main() -> None:
        inner = Transport()
        joining = Joining(inner, asyncio.get_running_loop())  # type: ignore[arg-type]
        for data in (b"head", b"", b"body"):
            joining.write(data)
        assert inner.told == []
        await asyncio.sleep(0)
        assert inner.told == [b"headbody"]
        joining.write(b"more")
        await asyncio.sleep(0)
        assert inner.told == [b"headbody", b"more"]

    run(main())


def test_nothing_is_lost_when_the_connection_is_closed() -> None:
    async def main() -> None:
        inner = Transport()
        joining = Joining(inner, asyncio.get_running_loop())  # type: ignore[arg-type]
        joining.write(b"last")
        joining.close()
        await asyncio.sleep(0)
        assert inner.told == [b"last", "close"]
        assert joining.is_closing()

    run(main())


def test_a_whole_answer_is_one_write(monkeypatch: Any) -> None:
    made: list[Transport] = []

    def connect(self: GuardedProtocol, transport: asyncio.Transport) -> None:
        original(self, transport)
        joining: Any = self.transport
        spy, real = Transport(), joining._transport
        made.append(spy)

        def write(data: bytes) -> None:
            spy.write(data)
            real.write(data)

        joining._transport = _With(real, write)

    original = GuardedProtocol.connection_made
    monkeypatch.setattr(GuardedProtocol, "connection_made", connect)
    with serve() as running:
        assert running.post(CHAT, chat_body()).status_code == 200
    (written,) = made[0].told
    assert written.startswith(b"HTTP/1.1 200")
    assert written.endswith(b"}")


class _With:
    """A transport with another `write`."""

    def __init__(self, transport: asyncio.Transport, write: Any) -> None:
        self._inner, self.write = transport, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
