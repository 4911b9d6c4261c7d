"""
Total tokens/s of 1, 2, 4, 8 concurrent streams, against a bare ctypes loop over the same batches.

What bounds it: a pass over n rows reads the weights once, so wider batches gain until arithmetic or
attention takes over; what they gain is the processor's doing. What is ours is to lose none of it: one
native call samples all rows, and each stream is read by a thread of its own.

    python benchmarks/batching.py [--threads N] [--rounds N] [--record]

Both take turns within each round; figures are medians. The table goes to stderr; the last line of
stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import threading
import time
from typing import Any

from common import BareLoop, finish, quartiles, say

from gguf_engine import LLM
from gguf_engine.loader.resolve import resolve_model

WIDTHS = (1, 2, 4, 8)
N_TOKENS = 256
TOPICS = ("ice", "rain", "the sea", "old maps", "bread", "a clock", "snow geese", "rust")


def run_engine(llm: LLM, prompts: list[list[int]], seed: int) -> None:
    """Read one stream a prompt, each in its own thread."""

    def read(index: int) -> None:
        stream = llm.stream(
            prompts[index], seed=seed + index, max_tokens=N_TOKENS, ignore_eos=True, min_p=0.1
        )
        assert sum(1 for _ in stream) == N_TOKENS

    threads = [threading.Thread(target=read, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Measure each width, print the table, end with JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    path = resolve_model("haiku").weights
    llm = LLM.load(path, device="cpu", n_ctx=4096, n_threads=args.threads)
    bare = BareLoop(path, n_ctx=4096, n_slots=8, n_threads=args.threads)
    prompts = [llm.encode(f"Write a haiku about {topic}", chat=True) for topic in TOPICS]
    results: dict[str, Any] = {}
    for width in WIDTHS:
        rates: dict[str, list[float]] = {"gguf_engine": [], "bare": []}
        for round_ in range(args.rounds + 1):
            start = time.perf_counter()
            run_engine(llm, prompts[:width], round_)
            middle = time.perf_counter()
            bare.run(prompts[:width], N_TOKENS, round_)
            end = time.perf_counter()
            if round_:  # the first round warms up
                rates["gguf_engine"].append(width * N_TOKENS / (middle - start))
                rates["bare"].append(width * N_TOKENS / (end - middle))
        row: dict[str, Any] = {name: quartiles(values) for name, values in rates.items()}
        row["of_bare"] = row["gguf_engine"]["median"] / row["bare"]["median"]
        results[str(width)] = row
    llm.close()
    bare.close()
    say(f"{'streams':>8}{'ours/s':>10}{'bare/s':>10}{'of bare':>9}")
    for width_, row in results.items():
        ours, theirs = row["gguf_engine"]["median"], row["bare"]["median"]
        say(f"{width_:>8}{ours:10.0f}{theirs:10.0f}{row['of_bare']:9.2f}")
    finish("batching", {"n_threads": args.threads, "n_tokens": N_TOKENS, "widths": results}, args.record)


if __name__ == "__main__":
    main()
