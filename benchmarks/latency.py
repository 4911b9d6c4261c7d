"""
What a long prompt costs a running stream: the time between its tokens while the prompt is computed.

What bounds it: a pass over a chunk of the prompt is one pass for the stream too, so the longest gap is
the time of one chunk. A smaller chunk reads all weights for fewer tokens, so the prompt takes longer.
Each preset chooses its chunk by what passes take on this machine: that is the trade shown here.

    python benchmarks/latency.py [--model haiku|FILE] [--threads N] [--prompt N] [--rounds N] [--record]

"alone" is the same stream with no prompt beside it; "n prompts" is the number of long prompts submitted
at once. The table goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import threading
import time
from typing import Any

from common import finish, say

from gguf_engine import LLM
from gguf_engine.loader.resolve import resolve_model

PRESETS = (None, "latency", "throughput")


class Reader:
    """Reads a stream in a thread of its own and notes when each piece came."""

    def __init__(self, llm: LLM) -> None:
        self._stream = llm.stream([5, 6, 7], max_tokens=None, ignore_eos=True, seed=1)
        next(self._stream)
        self.times: list[float] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        for _ in self._stream:
            self.times.append(time.perf_counter())

    def stop(self) -> None:
        """End the stream."""
        self._stream.cancel()
        self._thread.join()


def gaps(times: list[float], start: float, end: float) -> dict[str, float]:
    """Return the gaps that touch the time between two moments, in milliseconds."""
    pairs = itertools.pairwise(times)
    # Pieces of one hand-over come together.
    found = sorted(b - a for a, b in pairs if start < b and a < end and b - a > 1e-4)
    at = [found[min(len(found) - 1, int(share * len(found)))] * 1e3 for share in (0.5, 0.99)]
    return {"p50_ms": at[0], "p99_ms": at[1], "max_ms": found[-1] * 1e3, "n": len(found)}


def measure(llm: LLM, n_prompt: int, n_prompts: int, seed: int, quiet_s: float) -> dict[str, Any]:
    """Return the gaps alone and beside the prompts, and when the prompts' first tokens came."""
    reader = Reader(llm)
    begin = time.perf_counter()
    time.sleep(quiet_s)
    start = time.perf_counter()
    # The first id differs, so that nothing is shared with a prompt before.
    prompts = [
        [10 + (seed * 7 + n) % 90, *(i % 200 + 10 for i in range(n_prompt - 1))] for n in range(n_prompts)
    ]
    streams = [llm.stream(prompt, max_tokens=1) for prompt in prompts]
    first_s = [stream.completion().timings.ttft_s for stream in streams]
    end = time.perf_counter()
    reader.stop()
    beside = gaps(reader.times, start, end)
    return {
        "alone": gaps(reader.times, begin, start),
        "beside": beside,
        "ttft_s": statistics.median(first_s),
        "tokens_per_pass": n_prompt * n_prompts / beside["n"],
    }


def main() -> None:
    """Measure each preset with one prompt and with three."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="haiku")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--prompt", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--quiet", type=float, default=1.0, help="seconds of the stream alone")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    path = resolve_model(args.model).weights
    results: list[dict[str, Any]] = []
    heads = {"preset": 12, "prompts": 9, "alone ms": 10, "p50": 9, "p99": 9, "max": 9, "ids/pass": 10}
    say("".join(f"{head:>{width}}" for head, width in heads.items()) + f"{'first s':>9}")
    for n_prompts in args.prompts:
        for preset in PRESETS:
            with LLM.load(
                path,
                n_threads=args.threads,
                preset=preset,
                n_ctx=4096,
                n_cells=4096 * (1 + n_prompts),
                tuned=False,
            ) as llm:
                rounds = [
                    measure(llm, args.prompt, n_prompts, round_, args.quiet)
                    for round_ in range(args.rounds)
                ]
            middle = sorted(rounds, key=lambda each: each["beside"]["max_ms"])[len(rounds) // 2]
            results.append({"preset": preset, "n_prompts": n_prompts, **middle})
            beside = middle["beside"]
            say(
                f"{preset!s:>12}{n_prompts:9}{middle['alone']['p50_ms']:10.1f}{beside['p50_ms']:9.1f}"
                f"{beside['p99_ms']:9.1f}{beside['max_ms']:9.1f}{middle['tokens_per_pass']:10.0f}"
                f"{middle['ttft_s']:9.2f}"
            )
    found = {
        "model": path.name,
        "n_threads": args.threads,
        "n_prompt": args.prompt,
        "rounds": args.rounds,
        "rows": results,
    }
    finish("latency", found, args.record)


if __name__ == "__main__":
    main()
