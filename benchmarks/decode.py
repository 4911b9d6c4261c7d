"""
Decode and prefill of one stream, against a bare ctypes loop and llama_cpp.Llama; a token's cost by stage.

What bounds it: decode reads every weight once a token, so the memory's speed bounds it, and GB/s are shown
beside what the memory gives to plain reads and copies by as many threads. Prefill computes many rows for
one reading, so arithmetic bounds it; the reference program feeds a prompt one token at a time, at decode's
speed. `LLM` and the bare loop run on one library, one file and as many threads; `Llama` has its own
defaults for everything else.

    python benchmarks/decode.py [--model phi3.gguf] [--threads N] [--tokens N] [--rounds N] [--record]
    python benchmarks/decode.py --depth N [--model phi3.gguf] [--threads N] [--tokens N] [--record]
    python benchmarks/decode.py --stages [--model haiku] [--tokens N] [--record]

The engines take turns within each round, so that a busy machine slows all of them; figures are medians.
No prompt comes twice, or a kept prefix would be reused; but with --depth, where decode alone is measured
after a prompt of so many tokens, and the bare loop has llama.cpp's own choice of attention. With --stages
one stream is decoded with a clock around each stage of the engine's step; each stage's mean is given, less
what the clocks cost. The table goes to stderr; the last line of stdout is one JSON object. The Phi-3 shape:
`python tools/make_gguf.py --shape phi3-mini FILE`.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import BareLoop, finish, quartiles, say

from gguf_engine import LLM
from gguf_engine.backend.processors import usable_processors
from gguf_engine.loader.gguf import read_gguf
from gguf_engine.loader.resolve import resolve_model

N_ONE_BY_ONE = 48  # of the prompt, fed one token at a time; the rest would only be slower
N_CTX = 2048
BUFFER_BYTES = 2**28


def weights_read(path: Path) -> int:
    """Return the bytes of weights that one token reads: all but an embedding that is only looked up."""
    tensors = {tensor.name: tensor.n_bytes for tensor in read_gguf(path).tensors}
    looked_up = tensors.get("token_embd.weight", 0) if "output.weight" in tensors else 0
    return sum(tensors.values()) - looked_up


class Memory:
    """Plain reads and copies of buffers far larger than the caches, by some threads."""

    def __init__(self, n_threads: int) -> None:
        self.sources = [np.ones(BUFFER_BYTES // 4, np.float32) for _ in range(n_threads)]
        self.targets = [np.empty_like(source) for source in self.sources]

    def _together(self, work: Callable[[int], object]) -> float:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(self.sources))]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begin

    def read(self) -> float:
        """Return GB/s of reads."""
        seconds = self._together(lambda i: np.dot(self.sources[i], self.sources[i]))
        return BUFFER_BYTES * len(self.sources) / seconds / 1e9

    def copy(self) -> float:
        """Return GB/s of copies, reads and writes counted."""
        seconds = self._together(lambda i: np.copyto(self.targets[i], self.sources[i]))
        return 2 * BUFFER_BYTES * len(self.sources) / seconds / 1e9


class Engines:
    """One file in three engines."""

    def __init__(self, path: Path, n_threads: int, n_prefill: int, depth: int = 0) -> None:
        from llama_cpp import Llama

        self.n_prefill = n_prefill
        self.deep = self.prompt(depth) if depth else []
        n_ctx = max(N_CTX, depth + 512)
        self.llm = LLM.load(path, device="cpu", n_ctx=n_ctx, n_slots=1, n_threads=n_threads, tuned=False)
        attention = "llama.cpp" if depth else "ours"
        self.bare = BareLoop(path, n_ctx=n_ctx, n_slots=1, n_threads=n_threads, attention=attention)
        self.peer = Llama(
            str(path),
            n_ctx=n_ctx,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            n_gpu_layers=0,
            verbose=False,
        )

    n_fresh = 0

    def prompt(self, n_tokens: int) -> list[int]:
        """Return a prompt that was not used before: its first id is new."""
        self.n_fresh += 1
        return [100 + self.n_fresh, *((7 * i + 3) % 200 + 100 for i in range(n_tokens - 1))]

    def llm_decode(self, n_tokens: int) -> float:
        """Read `LLM.stream`; return tokens/s after the first."""
        prompt = self.deep or self.prompt(8)
        stream = self.llm.stream(prompt, max_tokens=n_tokens, ignore_eos=True, min_p=0.1, seed=1)
        times = [time.perf_counter() for _ in stream]
        assert len(times) == n_tokens
        return (n_tokens - 1) / (times[-1] - times[0])

    def bare_decode(self, n_tokens: int) -> float:
        """Run the bare loop; the seconds of its prompt are taken off, measured right before."""
        if self.deep:
            return self.bare.go_on(self.deep, n_tokens, 1)
        prompt = self.prompt(8)
        begin = time.perf_counter()
        self.bare.run([prompt], 1, 1)
        middle = time.perf_counter()
        self.bare.run([prompt], n_tokens, 1)
        return (n_tokens - 1) / (time.perf_counter() - middle - (middle - begin))

    def peer_decode(self, n_tokens: int) -> float:
        """Read `Llama.create_completion(stream=True)`; return tokens/s after the first."""
        never = {str(token_id): -1e9 for token_id in self.llm.end_ids}
        chunks = self.peer.create_completion(
            self.deep or self.prompt(8),
            max_tokens=n_tokens, temperature=1.0, top_p=1.0, top_k=0, min_p=0.1,
            repeat_penalty=1.2, seed=1, stream=True, logit_bias=never,
        )  # fmt: skip
        times = [time.perf_counter() for _ in chunks]
        # It holds back text that may be part of a character: the last chunk brings what is left.
        return (n_tokens - 1) / (times[-1] - times[0])

    def llm_prefill(self) -> float:
        """Return tokens/s of a prompt, up to its first token."""
        prompt = self.prompt(self.n_prefill)
        begin = time.perf_counter()
        completion = self.llm.generate(prompt, max_tokens=1, ignore_eos=True)
        assert completion.usage.n_cached == 0
        return self.n_prefill / (time.perf_counter() - begin)

    def bare_prefill(self) -> float:
        """Return tokens/s of a prompt in the bare loop, up to its first token."""
        prompt = self.prompt(self.n_prefill)
        begin = time.perf_counter()
        self.bare.run([prompt], 1, 1)
        return self.n_prefill / (time.perf_counter() - begin)

    def peer_prefill(self) -> float:
        """Return tokens/s of a prompt in `Llama`, up to its first token."""
        prompt = self.prompt(self.n_prefill)
        self.peer.reset()
        begin = time.perf_counter()
        self.peer.create_completion(prompt, max_tokens=1, seed=1)
        return self.n_prefill / (time.perf_counter() - begin)

    def one_by_one(self) -> float:
        """Return tokens/s of a prompt fed one token at a time: a prompt of one id, and its answer."""
        prompt = self.prompt(1)
        begin = time.perf_counter()
        self.bare.run([prompt], N_ONE_BY_ONE, 1)
        return N_ONE_BY_ONE / (time.perf_counter() - begin)

    def close(self) -> None:
        """Free them all."""
        self.llm.close()
        self.bare.close()
        self.peer.close()


def take_turns(methods: dict[str, Callable[[], float]], n_rounds: int) -> dict[str, list[float]]:
    """Call all in turn, `n_rounds` times and once before that to warm up; return what each gave."""
    figures: dict[str, list[float]] = {name: [] for name in methods}
    for round_ in range(n_rounds + 1):
        for name, method in methods.items():
            figure = method()
            if round_:
                figures[name].append(figure)
    return figures


def compare(path: Path, n_threads: int, n_tokens: int, n_prefill: int, n_rounds: int) -> dict[str, Any]:
    """Return tokens/s of each engine in decode and prefill, GB/s, and the ratios."""
    engines, memory = Engines(path, n_threads, n_prefill), Memory(n_threads)
    methods: dict[str, Callable[[], float]] = {
        "decode_gguf_engine": lambda: engines.llm_decode(n_tokens),
        "decode_bare": lambda: engines.bare_decode(n_tokens),
        "decode_llama_cpp.Llama": lambda: engines.peer_decode(n_tokens),
        "prefill_gguf_engine": engines.llm_prefill,
        "prefill_bare": engines.bare_prefill,
        "prefill_llama_cpp.Llama": engines.peer_prefill,
        "prefill_one_by_one": engines.one_by_one,
        "memory_read_gb_per_s": memory.read,
        "memory_copy_gb_per_s": memory.copy,
    }
    figures = take_turns(methods, n_rounds)
    engines.close()
    results: dict[str, Any] = {name: quartiles(values) for name, values in figures.items()}
    middle = {name: row["median"] for name, row in results.items()}
    for phase in ("decode", "prefill"):
        ours = middle[f"{phase}_gguf_engine"]
        results[f"{phase}_of_bare"] = ours / middle[f"{phase}_bare"]
        results[f"{phase}_of_llama_class"] = ours / middle[f"{phase}_llama_cpp.Llama"]
    results["prefill_of_one_by_one"] = middle["prefill_gguf_engine"] / middle["prefill_one_by_one"]
    results["weight_bytes_a_token"] = weights_read(path)
    results["decode_gb_per_s"] = middle["decode_gguf_engine"] * weights_read(path) / 1e9
    return results


def at_depth(path: Path, n_threads: int, n_tokens: int, depth: int, n_rounds: int) -> dict[str, Any]:
    """Return tokens/s of each engine's decode after a long prompt."""
    engines = Engines(path, n_threads, 1, depth)
    methods: dict[str, Callable[[], float]] = {
        "gguf_engine": lambda: engines.llm_decode(n_tokens),
        "bare": lambda: engines.bare_decode(n_tokens),
        "llama_cpp.Llama": lambda: engines.peer_decode(n_tokens),
    }
    figures = take_turns(methods, n_rounds)  # the prompt is computed in the first one
    engines.close()
    return {"depth": depth, **{name: quartiles(values) for name, values in figures.items()}}


class Clocks:
    """Clocks around the functions that a step calls; what one calls counts for that one alone."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []  # seconds of each stage, a dict for each finished step
        self._now: dict[str, float] = {}
        self._inside = [0.0]
        self.cost_s = 0.0  # what one clock adds to whatever is outside of it
        self._measure_cost()

    def around(self, owner: Any, name: str, stage: str, *, ends_step: bool = False) -> None:
        """Replace a function of an object or class by one that is timed."""
        function, clock, inside = getattr(owner, name), time.perf_counter, self._inside

        def timed(*args: Any, **kwargs: Any) -> Any:
            inside.append(0.0)
            begin = clock()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = clock() - begin
                own = seconds - inside.pop()
                inside[-1] += seconds + self.cost_s
                self._now[stage] = self._now.get(stage, 0.0) + own
                if ends_step:
                    self.steps.append(self._now)
                    self._now = {}

        setattr(owner, name, timed)

    def _measure_cost(self) -> None:
        class Nothing:
            def act(self) -> None: ...

        nothing = Nothing()
        plain = median(_seconds_of(nothing.act) for _ in range(7))
        self.around(nothing, "act", "act")
        timed = median(_seconds_of(nothing.act) for _ in range(7))
        self._now.clear()
        self._inside[:] = [0.0]
        self.cost_s = max(0.0, timed - plain)


def _seconds_of(function: Callable[[], object], n: int = 20_000) -> float:
    begin = time.perf_counter()
    for _ in range(n):
        function()
    return (time.perf_counter() - begin) / n


STAGES = ("schedule", "batch", "sample", "detokenise", "hand over", "record", "loop", "llama.cpp")


def stages(path: Path, n_threads: int, n_tokens: int) -> dict[str, Any]:
    """Return the microseconds a token of each stage of a step, at one stream."""
    from gguf_engine.engine.sequence import Sequence
    from gguf_engine.text.detokenizer import Detokenizer

    clocks = Clocks()
    llm = LLM.load(path, device="cpu", n_ctx=N_CTX, n_slots=1, n_threads=n_threads, tuned=False)

    def read(n: int, seed: int) -> None:
        for _ in llm.stream([1 + seed, 5, 6], max_tokens=n, ignore_eos=True, min_p=0.1, seed=seed):
            pass

    def attach(engine: Any) -> None:
        clocks.around(engine, "step", "loop", ends_step=True)
        for owner, name, stage in (
            (engine, "_decide", "schedule"),
            (engine, "_compute", "batch"),
            (engine.backend, "_decode", "llama.cpp"),
            (engine.sampler, "sample", "sample"),
            (engine, "_record", "record"),
            (Detokenizer, "push", "detokenise"),
            (Sequence, "_hand_over", "hand over"),
        ):
            clocks.around(owner, name, stage)

    read(n_tokens // 4, 0)  # the threads have found their number
    llm._worker.call(attach)  # type: ignore[attr-defined]  # in the engine's thread
    begin = time.perf_counter()
    read(n_tokens, 1)
    wall_us = (time.perf_counter() - begin) / n_tokens * 1e6
    llm.close()
    ours = [sum(step.values()) - step.get("llama.cpp", 0.0) for step in clocks.steps]
    # A step in which another process took the processor says nothing of its stages.
    steps = [step for step, own in zip(clocks.steps, ours, strict=True) if own < 20 * median(ours)]
    results = {stage: sum(step.get(stage, 0.0) for step in steps) / len(steps) * 1e6 for stage in STAGES}
    results["all but llama.cpp"] = sum(results[stage] for stage in STAGES if stage != "llama.cpp")
    return {
        "us_a_token": results,
        "wall_us_a_token": wall_us,
        "clock_us": clocks.cost_s * 1e6,
        "n_steps": len(steps),
        "n_interrupted": len(ours) - len(steps),
    }


def main() -> None:
    """Measure, print the table, end with JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="haiku")
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depth", type=int, default=0, help="tokens of a prompt before what is decoded")
    parser.add_argument("--stages", action="store_true")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds is at least 2: quartiles need two figures")
    path = resolve_model(args.model).weights
    facts: dict[str, Any] = {"model": path.stem, "n_threads": args.threads, "n_tokens": args.tokens}
    if args.stages:
        results = stages(path, args.threads, args.tokens)
        for stage, us in results["us_a_token"].items():
            say(f"{stage:20}{us:10.1f} us")
        finish("stages", {**facts, **results}, args.record)
        return
    if args.depth:
        deep = at_depth(path, args.threads, args.tokens, args.depth, args.rounds)
        for name in ("gguf_engine", "bare", "llama_cpp.Llama"):
            say(f"{name:20}{deep[name]['median']:10.2f} tokens/s after {args.depth}")
        deep["n_threads"] = args.threads
        finish("decode", {"model": path.stem, "at_depth": deep}, args.record)
        return
    results = compare(path, args.threads, args.tokens, args.prefill, args.rounds)
    for name, row in results.items():
        figure = f"{row['median']:12.2f}" if isinstance(row, dict) else f"{row:12.2f}"
        say(f"{name:28}{figure}")
    finish("decode", {**facts, "n_prefill": args.prefill, **results}, args.record)


if __name__ == "__main__":
    main()
