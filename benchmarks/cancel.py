"""
How long a cancel takes: from the call to the last piece read and the slot free for the next request.

What bounds it: ggml looks at the abort flag after each node of the graph, so a cancel inside a prompt
waits for the one matrix product that runs; its size is the model's and the micro-batch's. Outside a
prompt it waits for one token.

    python benchmarks/cancel.py [--model PATH ...] [--threads N] [--rounds N] [--record]

A prompt of 4,000 ids is cancelled at random moments, each request going on where the one before was
stopped. The table goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import finish, say

from gguf_engine import LLM, Piece
from gguf_engine.engine.engine import Engine
from gguf_engine.loader.resolve import resolve_model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from make_gguf import write_tiny_model

N_PROMPT = 4000
LONGEST_WAIT_S = 3.0


def held(engine: Engine) -> int:
    """Return how many ids of a prompt the engine has computed."""
    return max(map(len, engine.kv_cache._held))


def forget(engine: Engine) -> None:
    """Empty every idle slot."""
    for slot in list(engine.kv_cache._idle):
        engine.kv_cache.drop(slot)


class Canceller:
    """One model, a long prompt, and the ways to end it."""

    def __init__(self, path: Path, n_threads: int | None) -> None:
        self.llm = LLM.load(path, device="cpu", n_ctx=4096, n_threads=n_threads)
        self.random = random.Random(1)
        self.prompt = [self.random.randrange(300, self.llm.n_vocab) for _ in range(N_PROMPT)]
        start = time.perf_counter()
        self.llm.generate(self.prompt[:256], max_tokens=1, ignore_eos=True)
        self.longest_wait_s = min(LONGEST_WAIT_S, 4 * (time.perf_counter() - start))

    def moment(self) -> float:
        """Return how long to wait before a cancel, in seconds."""
        return self.random.uniform(0.0, self.longest_wait_s)

    def until_free(self, start: float) -> float:
        """Return the seconds since `start` once no request is left."""
        while self.llm._worker.call(lambda engine: engine.has_work):  # type: ignore[attr-defined]
            pass
        return time.perf_counter() - start

    def other_thread(self) -> tuple[float, bool]:
        """Call `Stream.cancel` in a thread while another one waits for the first piece."""
        stream = self.llm.stream(self.prompt, max_tokens=8, ignore_eos=True)
        pieces: list[Piece] = []
        reader = threading.Thread(target=lambda: pieces.extend(stream))
        reader.start()
        time.sleep(self.moment())
        start = time.perf_counter()
        stream.cancel()
        reader.join()
        return self.until_free(start), pieces[-1].usage is not None and len(pieces) == 1

    def asyncio_task(self) -> tuple[float, bool]:
        """Cancel the task that waits for the first piece."""

        async def main() -> tuple[float, bool]:
            pieces: list[Piece] = []

            async def read() -> None:
                async for piece in self.llm.astream(self.prompt, max_tokens=8, ignore_eos=True):
                    pieces.append(piece)  # noqa: PERF401 - what was read before the cancel counts

            task = asyncio.create_task(read())
            await asyncio.sleep(self.moment())
            start = time.perf_counter()
            is_inside = task.cancel() and not pieces
            await asyncio.wait([task])
            return start, is_inside

        start, is_inside = asyncio.run(main())
        return self.until_free(start), is_inside

    def leave_loop(self) -> tuple[float, bool]:
        """Leave the `for` loop over an answer after some pieces."""
        n_pieces = self.random.randint(1, 20)
        prompt = self.prompt[:64]
        with self.llm.stream(prompt, max_tokens=None, ignore_eos=True) as stream:
            for _ in stream:
                n_pieces -= 1
                if not n_pieces:
                    break
            start = time.perf_counter()
        return self.until_free(start), True

    def measure(self, way: Callable[[], tuple[float, bool]], n_rounds: int) -> dict[str, float]:
        """Return the distribution of one way in ms; rounds in which the prompt had ended do not count."""
        self.llm._worker.call(forget)  # type: ignore[attr-defined]
        times: list[float] = []
        while len(times) < n_rounds:
            seconds, counts = way()
            if counts:
                times.append(1e3 * seconds)
            if self.llm._worker.call(held) > 0.9 * N_PROMPT:  # type: ignore[attr-defined]
                self.llm._worker.call(forget)  # type: ignore[attr-defined]
        p99 = statistics.quantiles(times, n=100, method="inclusive")[98]
        return {"median_ms": statistics.median(times), "p99_ms": p99, "max_ms": max(times), "n": len(times)}


def main() -> None:
    """Measure each model, print the table, end with JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, action="append", default=[], help="one more GGUF file")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        tiny = write_tiny_model(Path(folder) / "tiny.gguf", n_ctx=4096)
        models = {"tiny": tiny, "haiku": resolve_model("haiku").weights}
        models |= {path.stem: path for path in args.model}
        say(f"{'model':16}{'way':16}{'median ms':>10}{'p99 ms':>10}{'max ms':>10}{'n':>6}")
        for name, path in models.items():
            canceller = Canceller(path, args.threads)
            ways = (canceller.other_thread, canceller.asyncio_task, canceller.leave_loop)
            results[name] = {}
            for way in ways:
                row = results[name][way.__name__] = canceller.measure(way, args.rounds)
                cells = "".join(f"{row[f'{what}_ms']:10.1f}" for what in ("median", "p99", "max"))
                say(f"{name:16}{way.__name__:16}{cells}{row['n']:6.0f}")
            canceller.llm.close()
    finish("cancel", {"n_prompt": N_PROMPT, "n_threads": args.threads, "models": results}, args.record)


if __name__ == "__main__":
    main()
