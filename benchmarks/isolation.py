"""
What `isolation="process"` costs: time a token against the in-thread worker, and the load.

Each token crosses a pipe as JSON, at most one message every 5 ms and stream; the child runs the
same engine. Both take turns within each round, on the haiku model, at 1 and 8 streams.

    python benchmarks/isolation.py [--rounds N] [--record]

The table goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from common import finish, quartiles, say

from gguf_engine import LLM
from gguf_engine.params import Isolation

WIDTHS = (1, 8)
N_TOKENS = 400
PROMPT = "Write a haiku about ice"
KINDS: tuple[Isolation, ...] = ("thread", "process")


def us_per_token(llm: LLM, width: int, seed: int) -> float:
    """Return the wall time a token of `width` streams that run together, in microseconds."""
    start = time.perf_counter()
    streams = [
        llm.stream(
            "Write a haiku about ice", chat=True, seed=seed + i, max_tokens=N_TOKENS, ignore_eos=True
        )
        for i in range(width)
    ]
    n_tokens = sum(len(stream.completion().token_ids) for stream in streams)
    return (time.perf_counter() - start) / n_tokens * 1e6


def main() -> None:
    """Measure, print the table, end with JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    models: dict[Isolation, LLM] = {}
    load_s: dict[str, float] = {}
    for kind in KINDS:
        LLM.load("haiku", isolation=kind, n_threads=1).close()  # what is read once a process is read
        start = time.perf_counter()
        models[kind] = LLM.load("haiku", isolation=kind, n_threads=1)
        load_s[kind] = time.perf_counter() - start
    widths: dict[str, Any] = {}
    for width in WIDTHS:
        samples: dict[Isolation, list[float]] = {kind: [] for kind in KINDS}
        for round_ in range(args.rounds + 1):
            for kind in KINDS:
                took = us_per_token(models[kind], width, 100 * round_)
                if round_:  # the first round warms up
                    samples[kind].append(took)
        row: dict[str, Any] = {kind: quartiles(values) for kind, values in samples.items()}
        row["cost_us"] = row["process"]["median"] - row["thread"]["median"]
        widths[str(width)] = row
    for llm in models.values():
        llm.close()
    say(f"{'streams':>8}{'thread us':>11}{'process us':>12}{'cost us':>9}")
    for name, row in widths.items():
        say(
            f"{name:>8}{row['thread']['median']:11.0f}{row['process']['median']:12.0f}{row['cost_us']:9.0f}"
        )
    finish("isolation", {"n_tokens": N_TOKENS, "load_s": load_s, "widths": widths}, args.record)


if __name__ == "__main__":
    main()
