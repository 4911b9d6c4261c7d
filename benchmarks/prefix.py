"""
What a shared or kept prefix saves, and what keeping it costs.

"eight": eight requests with one system prompt, submitted together, against eight with prompts as long that
share nothing: total time, first token, KV cells. "turn": the second turn of a long chat against the same
from an empty cache. "alternating": two chats, one turn each in turn. "restart": a system prompt kept on
disk (prefix_cache), found by an engine that has just been loaded, against computing it; and the longest
gap in a running stream while its state is taken and written. "idle": a decode step, and a chunk of 128
prompt tokens, beside cells that are kept for later.

What bounds it: prefill is arithmetic, so a first token from a shared prefix costs one pass of what is
new. Attention of a unified KV cache looks at the mask of every used cell, and skips what it hides: with
flash attention idle cells cost next to nothing, without it they cost as much as live ones.

    python benchmarks/prefix.py [PART ...] [--model haiku|FILE] [--threads N] [--rounds N]
                                [--chat N] [--record]

Both sides take turns within each round; figures are medians. The table goes to stderr; the last line of
stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import finish, say

from gguf_engine import LLM, EngineParams
from gguf_engine.backend.base import Batch
from gguf_engine.backend.llama import LlamaBackend
from gguf_engine.engine.engine import Engine
from gguf_engine.loader.resolve import resolve_model
from gguf_engine.streams import Stream
from gguf_engine.text.chat import Message

N_SYSTEM = 512
N_STREAMS = 8
N_ANSWER = 16


def ids(seed: int, n: int) -> list[int]:
    """Return `n` ids, different from the first on for different seeds."""
    return [(seed * 31 + i * i * 7) % 300 + 20 for i in range(n)]


def forget(engine: Engine) -> None:
    """Empty every idle slot."""
    for slot in list(engine.kv_cache._idle):
        engine.kv_cache.drop(slot)


def empty(llm: LLM) -> None:
    """Empty the cache of a model that is asked nothing now."""
    llm._worker.call(forget)  # type: ignore[attr-defined]


def first_s(stream: Stream) -> float:
    """Return the time to the first token of a stream, read to its end."""
    return stream.completion().timings.ttft_s


def alternate(n_rounds: int, sides: dict[str, Callable[[int], float]]) -> dict[str, float]:
    """Return each side's median over rounds in which they take turns; the first of several warms up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(n_rounds + (n_rounds > 1)):
        for name, side in sides.items():
            value = side(round_)
            if round_ or n_rounds == 1:
                found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def eight(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure eight requests with one system prompt, and eight without."""
    n_cells = N_STREAMS * (N_SYSTEM + 64)
    rows: dict[str, list[dict[str, float]]] = {"shared": [], "apart": []}
    with LLM.load(path, n_threads=args.threads, n_ctx=1024, n_cells=n_cells, tuned=False) as llm:
        for round_ in range(args.rounds + (args.rounds > 1)):
            for name, found in rows.items():
                empty(llm)
                start = time.perf_counter()
                streams = []
                for n in range(N_STREAMS):
                    seed = round_ if name == "shared" else 1000 + round_ * N_STREAMS + n
                    prompt = [*ids(seed, N_SYSTEM), *ids(n, 16)]
                    streams.append(llm.stream(prompt, max_tokens=N_ANSWER, ignore_eos=True))
                timings = [stream.completion().timings for stream in streams]
                total_s = time.perf_counter() - start
                cells = llm.stats().n_cells_used
                first = [each.ttft_s for each in timings]
                if round_ or args.rounds == 1:
                    found.append(
                        {
                            "total_s": total_s,
                            "first_s": statistics.mean(first),
                            "last_first_s": max(first),
                            "cells": cells,
                        }
                    )
    result: dict[str, Any] = {
        name: {key: statistics.median(each[key] for each in found) for key in found[0]}
        for name, found in rows.items()
    }
    for key in ("total_s", "first_s", "last_first_s"):
        result[f"{key}_ratio"] = result["apart"][key] / result["shared"][key]
    return result


def turn(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the first token of a second turn, and of turns of two chats in turn."""
    with LLM.load(path, n_threads=args.threads, n_ctx=4096, n_cells=8192, tuned=False) as llm:

        def chat(seed: int, n_more: int) -> list[int]:
            prompt = ids(seed, args.chat)
            answer = llm.generate(prompt, max_tokens=N_ANSWER, ignore_eos=True, seed=1).token_ids
            return [*prompt, *answer, *ids(seed + 1, n_more)]

        def warm(round_: int) -> float:
            empty(llm)
            second = chat(round_, 24)
            return first_s(llm.stream(second, max_tokens=1))

        def cold(round_: int) -> float:
            second = chat(round_, 24)
            empty(llm)
            return first_s(llm.stream(second, max_tokens=1))

        def in_turn(round_: int) -> float:
            empty(llm)
            chats = [chat(round_ + n * 100, 24) for n in range(2)]
            return statistics.mean(first_s(llm.stream(each, max_tokens=1)) for each in chats)

        found: dict[str, Any] = dict(
            alternate(args.rounds, {"cold_s": cold, "second_turn_s": warm, "alternating_s": in_turn})
        )
    found["n_prompt"] = args.chat + N_ANSWER + 24
    found["second_turn_ratio"] = found["cold_s"] / found["second_turn_s"]
    found["alternating_ratio"] = found["cold_s"] / found["alternating_s"]
    return found


def restart(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a system prompt that is found on disk after a restart, and what keeping it costs."""
    cold, warm, stalls = [], [], []
    n_prefix = size = 0
    for round_ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            text = " ".join(f"rule {n * 7 + round_}: be brief." for n in range(args.chat // 4))
            options: dict[str, Any] = {
                "n_threads": args.threads,
                "n_ctx": 4096,
                "tuned": False,
                "prefix_cache": folder,
            }
            with LLM.load(path, **options) as llm:
                while len(llm.encode([Message(role="system", content=text)])) > args.chat:
                    text = text[: len(text) * 9 // 10]
                system = Message(role="system", content=text)
                llm.generate([5, 6, 7], max_tokens=4)
                cold.append(
                    first_s(llm.stream([system, Message(role="user", content="Hello")], max_tokens=1))
                )
            file = next(each for each in Path(folder).rglob("*.state"))
            n_prefix, size = int(file.name.partition("-")[0]), file.stat().st_size
            with LLM.load(path, **options) as llm:
                llm.generate([5, 6, 7], max_tokens=4)
                stream = llm.stream([system, Message(role="user", content="Good day")], max_tokens=1)
                completion = stream.completion()
                assert completion.usage.n_cached == n_prefix
                warm.append(completion.timings.ttft_s)
                stalls.append(llm._worker.call(time_save))  # type: ignore[attr-defined]
    found: dict[str, Any] = {"n_prefix": n_prefix, "file_bytes": size}
    found["cold_s"], found["from_disk_s"] = statistics.median(cold), statistics.median(warm)
    found["ratio"] = found["cold_s"] / found["from_disk_s"]
    found["take_state_s"] = statistics.median(stalls)
    return found


def time_save(engine: Engine) -> float:
    """Return how long the engine's thread is busy taking the state of its longest slot."""
    kv = engine.kv_cache
    slot = max(range(engine.backend.n_slots), key=kv.n_held)
    start = time.perf_counter()
    kv.save(slot)
    return time.perf_counter() - start


def idle(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a decode step and a chunk of prompt beside idle cells, with and without flash attention."""
    rows = []
    for flash_attention in ("on", "off"):
        params = EngineParams(
            n_ctx=2048,
            n_cells=8192,
            n_threads=args.threads,
            flash_attention=flash_attention,
            tuned=False,
        )
        backend = LlamaBackend(path, params)

        def put(slot: int, start: int, n: int, backend: LlamaBackend = backend) -> float:
            begin = time.perf_counter()
            for at in range(start, start + n, 512):
                batch = Batch()
                batch.add(slot, at, array("i", ids(slot, min(512, start + n - at))), 1)
                backend.forward(batch)
            return time.perf_counter() - begin

        put(0, 0, 64)
        n_idle = 0
        for slot, target in enumerate((0, 500, 2000, 4000, 6000)):
            if target:
                put(slot, 0, target - n_idle)
                n_idle = target
            steps = [put(0, 64 + round_, 1) for round_ in range(4 * args.rounds)]
            backend.truncate(0, 64)
            chunks = []
            for _ in range(args.rounds):
                chunks.append(put(0, 64, 128))
                backend.truncate(0, 64)
            row = {"flash_attention": flash_attention, "n_idle": n_idle}
            rows.append(
                {
                    **row,
                    "decode_ms": 1e3 * statistics.median(steps),
                    "chunk_ms": 1e3 * statistics.median(chunks),
                }
            )
        backend.close()
    return {"rows": rows}


PARTS = {"eight": eight, "turn": turn, "restart": restart, "idle": idle}


def main() -> None:
    """Measure the parts asked for, or all, and end with JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--model", default="haiku")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--chat", type=int, default=3000, help="ids of a long chat (turn) or prompt (restart)"
    )
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    path = resolve_model(args.model).weights
    results: dict[str, Any] = {"model": path.name, "n_threads": args.threads, "rounds": args.rounds}
    for name in args.parts or PARTS:
        results[name] = found = PARTS[name](path, args)
        say(f"{name}:")
        for key, value in found.items():
            for line in value if isinstance(value, list) else [value]:
                say(f"    {key:>20}  {line}")
    finish("prefix", results, args.record)


if __name__ == "__main__":
    main()
