"""
Tokens/s of one stream beside a busy neighbour, against the same engine's tokens/s without one.

What bounds it: with one of two cores taken, one core's worth of arithmetic. What costs far more is waiting:
the threads of a pass meet at a barrier after every operation, and a thread that spins there for a partner
without a core takes the time that the partner needs. "llama.cpp" is a bare loop with llama.cpp's own
settings: as many threads as processors, the OpenMP library's own spin. The others are this engine, which
bounds the spin: "never" with as many threads, "exact" as it loads by default, "always" with threads that
adapt wherever that is faster. The neighbour is a process that counts: "pinned" to one processor, or left
to the scheduler ("free").

    python benchmarks/neighbour.py [--model haiku|phi3.gguf ...] [--rounds N] [--seconds S] [--record]

Each engine lives in a process of its own, because OpenMP reads its settings once. They take turns within
each round, and the rates include the time an engine needs to notice. Medians; the table goes to stderr;
the last line of stdout is one JSON object. The Phi-3 shape: tools/make_gguf.py --shape phi3-mini FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import finish, quartiles, say

from gguf_engine.loader.resolve import resolve_model

ENGINES = ("llama.cpp", "never", "exact", "always")
NEIGHBOURS = ("none", "pinned", "free")
PROMPT_IDS = [5, 6, 7]
N_CTX = 4096
SPIN = "import os, sys\nif len(sys.argv) > 1: os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


def serve(engine: str, path: Path) -> None:
    """Be an engine: for each number of seconds on stdin, decode for so long and print the tokens/s."""
    if engine == "llama.cpp":
        import llama_cpp.llama_cpp as library

        library.llama_backend_init()  # before the engine's module sets the spin: OpenMP reads it once
        run = bare_runner(path)
    else:
        run = engine_runner(path, engine)
    run(0.2)
    print("ready", flush=True)
    for line in sys.stdin:
        print(run(float(line)), flush=True)


def bare_runner(path: Path) -> Any:
    """Return what decodes with a bare loop for some seconds and returns the tokens/s."""
    from common import BareLoop

    from gguf_engine.backend.processors import usable_processors

    bare = BareLoop(path, n_ctx=N_CTX, n_slots=1, n_threads=usable_processors())

    def run(seconds: float) -> float:
        n_tokens, chunk, begin = 0, 1, time.perf_counter()
        while (spent := time.perf_counter() - begin) < seconds:
            # As long as fits, so that what one prompt costs does not count.
            rate = n_tokens / spent if n_tokens else 0.0
            chunk = max(1, min(1000, 4 * chunk, int(rate * (seconds - spent))))
            bare.run([PROMPT_IDS], chunk, 0)
            n_tokens += chunk
        return n_tokens / (time.perf_counter() - begin)

    return run


def engine_runner(path: Path, adapt: str) -> Any:
    """Return what reads a stream for some seconds and returns the tokens/s."""
    from gguf_engine import LLM
    from gguf_engine.backend.processors import usable_processors

    n_threads = usable_processors() if adapt == "never" else None
    llm = LLM.load(
        path, device="cpu", n_ctx=N_CTX, n_slots=1, n_threads=n_threads, adapt_threads=adapt, tuned=False
    )

    def run(seconds: float) -> float:
        n_tokens, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            with llm.stream(PROMPT_IDS, max_tokens=1000, ignore_eos=True, min_p=0.1, seed=1) as stream:
                for _ in stream:
                    n_tokens += 1
                    if time.perf_counter() - begin > seconds:
                        break
        return n_tokens / (time.perf_counter() - begin)

    return run


@contextmanager
def beside(neighbour: str) -> Iterator[None]:
    """Let a neighbour run meanwhile."""
    if neighbour == "none":
        yield
        return
    cpu = [str(max(os.sched_getaffinity(0)))] if neighbour == "pinned" else []
    child = subprocess.Popen([sys.executable, "-c", SPIN, *cpu])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def ask(child: subprocess.Popen[str], seconds: float) -> float:
    """Let an engine decode for some seconds; return the tokens/s."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{seconds}\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def measure(path: Path, n_rounds: int, seconds: float) -> dict[str, Any]:
    """Return tokens/s by neighbour and engine, and the ratios to the idle figure of the same engine."""
    here = str(Path(__file__).resolve())
    children = {
        engine: subprocess.Popen(
            [sys.executable, here, "--serve", engine, "--model", str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for engine in ENGINES
    }  # fmt: skip
    rates: dict[str, dict[str, list[float]]] = {n: {e: [] for e in ENGINES} for n in NEIGHBOURS}
    try:
        for child in children.values():
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for _ in range(n_rounds):
            for neighbour in NEIGHBOURS:
                for engine, child in children.items():
                    with beside(neighbour):
                        rates[neighbour][engine].append(ask(child, seconds))
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    results: dict[str, Any] = {n: {e: quartiles(rates[n][e]) for e in ENGINES} for n in NEIGHBOURS}
    idle = {engine: results["none"][engine]["median"] for engine in ENGINES}
    for neighbour in NEIGHBOURS[1:]:
        medians = {engine: results[neighbour][engine]["median"] for engine in ENGINES}
        results[f"of_idle_{neighbour}"] = {e: medians[e] / idle[e] for e in ENGINES}
        # Against the best idle figure of all: an engine that is slow when idle gains nothing here.
        results[f"of_best_idle_{neighbour}"] = {e: medians[e] / max(idle.values()) for e in ENGINES}
    return results


def main() -> None:
    """Measure each model, print the table, end with JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--serve", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds is at least 2: quartiles need two figures")
    if args.serve:
        serve(args.serve, Path(args.model[0]))
        return
    results: dict[str, Any] = {}
    for model in args.model or ["haiku"]:
        files = resolve_model(model)
        results[files.weights.stem] = measure(files.weights, args.rounds, args.seconds)
    for model, rows in results.items():
        say(f"{model}\n{'neighbour':12}" + "".join(f"{engine:>22}" for engine in ENGINES))
        for neighbour in NEIGHBOURS:
            shares = rows.get(f"of_idle_{neighbour}", dict.fromkeys(ENGINES, 1.0))
            cells = (f"{rows[neighbour][e]['median']:12.1f}/s ({shares[e]:4.2f})" for e in ENGINES)
            say(f"{neighbour:12}" + "".join(f"{cell:>22}" for cell in cells))
    finish("neighbour", json.loads(json.dumps({"seconds": args.seconds, "models": results})), args.record)


if __name__ == "__main__":
    main()
