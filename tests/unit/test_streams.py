"""AsyncStream.listen: what comes is told in the event loop, at once or when it is whole."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from server_samples import fake_llm

from gguf_engine import EngineClosedError
from gguf_engine.outputs import Piece
from gguf_engine.streams import _Handover

OPTIONS: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True, "seed": 1}


def heard(*, whole: bool) -> list[list[Piece]]:
    """Return the lists of pieces that a listener was told."""
    told: list[list[Piece]] = []

    async def main() -> None:
        ended = asyncio.Event()

        def hear(at: float, delivered: Any) -> None:
            assert at > 0
            assert threading.current_thread() is threading.main_thread()
            told.append(delivered)
            if delivered[-1].finish_reason is not None:
                ended.set()

        with fake_llm(forward_s=0.002) as llm:
            stream = llm.astream("the cat", **OPTIONS)
            stream.listen(hear, whole=whole)
            await asyncio.wait_for(ended.wait(), 30)

    asyncio.run(main())
    return told


@pytest.mark.parametrize("whole", [False, True])
def test_a_listener_hears_what_a_reader_reads(whole: bool) -> None:
    with fake_llm() as llm:
        expected = llm.generate("the cat", **OPTIONS)
    pieces = [piece for each in heard(whole=whole) for piece in each]
    assert "".join(piece.text for piece in pieces) == expected.text
    assert pieces[-1].finish_reason == "length"


def test_a_listener_hears_the_error_that_ends_a_request() -> None:
    async def main() -> None:
        told: asyncio.Queue[Any] = asyncio.Queue()
        llm = fake_llm(forward_s=0.01)
        stream = llm.astream("the cat", max_tokens=400, ignore_eos=True)
        stream.listen(lambda _, delivered: told.put_nowait(delivered), whole=True)
        await asyncio.to_thread(llm.close)
        while not isinstance(error := await asyncio.wait_for(told.get(), 30), BaseException):
            pass
        assert isinstance(error, EngineClosedError)

    asyncio.run(main())


@pytest.mark.parametrize(("whole", "n_wakes"), [(False, 1), (True, 0)])
def test_many_deliveries_wake_the_loop_once_or_only_at_the_end(whole: bool, n_wakes: int) -> None:
    async def main() -> None:
        told: list[Any] = []
        handover = _Handover()
        handover.listen(lambda _, delivered: told.append(delivered), whole=whole)
        await asyncio.sleep(0)
        wakes: list[Any] = []
        handover._loop = _Counting(wakes)  # type: ignore[assignment]
        for n in range(5):
            handover.put([Piece(str(n), n)])
        assert len(wakes) == n_wakes
        handover.put([Piece("", finish_reason="stop")])
        assert len(wakes) == 1
        wakes[0]()
        assert [piece.text for pieces in told for piece in pieces] == ["0", "1", "2", "3", "4", ""]

    asyncio.run(main())


class _Counting:
    """An event loop that only counts how often it is woken."""

    def __init__(self, wakes: list[Any]) -> None:
        self._wakes = wakes

    def call_soon_threadsafe(self, function: Any) -> None:
        self._wakes.append(function)
