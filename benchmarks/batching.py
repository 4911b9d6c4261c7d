"""
Total tokens/s of 1, 2, 4, 8, 16 concurrent streams, against a bare ctypes loop over the same batches,
`llama_cpp.Llama`, which can do one at a time, and xllamacpp, whose server runs in C++.

What bounds it: a pass over n rows reads the weights once, so wider batches gain until arithmetic or
attention takes over; what they gain is the processor's doing. What is ours is to lose none of it: one
native call samples all rows, and each stream is read by a thread of its own. Each width has engines with
as many slots, so that no answer of another round stays beside it in the KV cache; all have the same threads
throughout (`adapt_threads="never"`), and prompts are computed in whole batches (`preset="throughput"`).

    python benchmarks/batching.py [--model haiku|FILE] [--threads N] [--rounds N] [--tokens N]
                                  [--xllamacpp PYTHON] [--record]

PYTHON is an interpreter that has xllamacpp installed (its wheel for Linux is built without the
processor's own instructions; it is a second copy of llama.cpp, so it runs in a process of its own). All
take turns within each round; figures are medians. The table goes to stderr; the last line of stdout is
one JSON object. The Phi-3 shape: tools/make_gguf.py --shape phi3-mini FILE.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import BareLoop, finish, quartiles, say

from gguf_engine import LLM
from gguf_engine.loader.resolve import resolve_model

WIDTHS = (1, 2, 4, 8, 16)
N_CELLS = 8192
TOPICS = ("ice", "rain", "moss", "sand", "bread", "rust", "wool", "salt")
PROMPTS = [f"Write a haiku about {adjective}{topic}" for adjective in ("", "old ") for topic in TOPICS]
Run = Callable[[list[list[int]], int], float]
"""Takes prompts and a seed, returns the tokens/s of all together."""


def engine_runner(path: Path, n_slots: int, n_threads: int, n_tokens: int) -> tuple[LLM, Run]:
    """Return the model, and what reads one stream a prompt, each in its own thread."""
    fixed: dict[str, Any] = {
        "n_threads": n_threads,
        "adapt_threads": "never",
        "preset": "throughput",
        "tuned": False,
    }
    llm = LLM.load(path, device="cpu", n_slots=n_slots, n_cells=N_CELLS, **fixed)

    def read(prompt: list[int], seed: int) -> None:
        stream = llm.stream(prompt, seed=seed, max_tokens=n_tokens, ignore_eos=True, min_p=0.1)
        assert sum(1 for _ in stream) == n_tokens

    def run(prompts: list[list[int]], seed: int) -> float:
        start = time.perf_counter()
        threads = [
            threading.Thread(target=read, args=(prompt, seed + n)) for n, prompt in enumerate(prompts)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(prompts) * n_tokens / (time.perf_counter() - start)

    return llm, run


def bare_runner(bare: BareLoop, n_tokens: int) -> Run:
    """Return what runs the bare loop over all prompts in step."""

    def run(prompts: list[list[int]], seed: int) -> float:
        start = time.perf_counter()
        bare.run(prompts, n_tokens, seed)
        return len(prompts) * n_tokens / (time.perf_counter() - start)

    return run


def llama_runner(path: Path, n_threads: int, n_tokens: int) -> Run:
    """Return what runs `llama_cpp.Llama`: the first prompt alone, as the rate of all in turn is its own."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(path), n_ctx=2048, n_batch=512, n_threads=n_threads, n_threads_batch=n_threads, verbose=False
    )

    def run(prompts: list[list[int]], seed: int) -> float:
        start = time.perf_counter()
        model.set_seed(seed)
        made = model.generate(
            prompts[0], temp=1.0, top_p=1.0, top_k=0, min_p=0.1, repeat_penalty=1.2, reset=True
        )
        for _, token_id in zip(range(n_tokens), made, strict=False):  # `generate` itself goes on for ever
            model.detokenize([token_id])
        return n_tokens / (time.perf_counter() - start)

    return run


def xllamacpp_runner(python: str, path: Path, n_threads: int, n_tokens: int) -> Run:
    """Return what has another interpreter run xllamacpp."""
    script = Path(__file__).with_name("xllamacpp_streams.py")
    command = [python, str(script), str(path), str(n_threads), "16", str(N_CELLS)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    asks, answers = process.stdin, process.stdout

    def run(prompts: list[list[int]], seed: int) -> float:
        print(json.dumps({"prompts": prompts, "n_tokens": n_tokens, "seed": seed}), file=asks, flush=True)
        return len(prompts) * n_tokens / float(answers.readline())

    return run


def main() -> None:
    """Measure each width, print the table, end with JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="haiku")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--xllamacpp", metavar="PYTHON")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    path = resolve_model(args.model).weights
    others = {"llama_cpp.Llama": llama_runner(path, args.threads, args.tokens)}
    if args.xllamacpp:
        others["xllamacpp"] = xllamacpp_runner(args.xllamacpp, path, args.threads, args.tokens)
    results: dict[str, Any] = {}
    names = ("gguf_engine", "bare", *others)
    say(f"{'streams':>8}" + "".join(f"{name + '/s':>20}" for name in names) + f"{'of bare':>9}")
    for width in args.widths:
        llm, engine = engine_runner(path, width, args.threads, args.tokens)
        bare = BareLoop(path, n_ctx=N_CELLS, n_slots=width, n_threads=args.threads)
        runs = {"gguf_engine": engine, "bare": bare_runner(bare, args.tokens), **others}
        prompts = [llm.encode(prompt, chat=True) for prompt in PROMPTS]
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for round_ in range(args.rounds + 1):
            for name, run in runs.items():
                rate = run(prompts[:width], 100 * round_)
                if round_:  # the first round warms up
                    rates[name].append(rate)
        row: dict[str, Any] = {name: quartiles(values) for name, values in rates.items()}
        medians = {name: row[name]["median"] for name in runs}
        for name in list(runs)[1:]:
            row[f"of_{name}"] = medians["gguf_engine"] / medians[name]
        results[str(width)] = row
        say(f"{width:>8}" + "".join(f"{medians[name]:20.1f}" for name in runs) + f"{row['of_bare']:9.2f}")
        llm.close()
        bare.close()
    found = {
        "model": path.name,
        "n_threads": args.threads,
        "n_tokens": args.tokens,
        "widths": results,
    }
    finish("batching", found, args.record)


if __name__ == "__main__":
    main()
