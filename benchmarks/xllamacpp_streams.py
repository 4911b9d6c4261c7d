"""
Run by benchmarks/batching.py under a Python that has xllamacpp: tokens/s of concurrent streams there.

    PYTHON benchmarks/xllamacpp_streams.py MODEL N_THREADS N_SLOTS N_CELLS

Reads a JSON object a line, {"prompts": [[ids], ...], "n_tokens": N, "seed": S}; answers each with seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from typing import Any


def main() -> None:
    """Serve rounds until stdin ends."""
    xllamacpp: Any = importlib.import_module("xllamacpp")  # of another environment

    path, n_threads, n_slots, n_cells = sys.argv[1], *map(int, sys.argv[2:5])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints is for people
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.kv_unified = path, n_cells, n_slots, True
    params.n_batch = params.n_ubatch = 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
    params.verbosity = 0
    server = xllamacpp.Server(params)

    def read(prompt: list[int], n_tokens: int, seed: int) -> None:
        pieces: list[Any] = []
        request = {
            "prompt": prompt,
            "n_predict": n_tokens,
            "stream": True,
            "ignore_eos": True,
            "cache_prompt": False,
            "seed": seed,
            "samplers": ["penalties", "temperature", "min_p"],
            "temperature": 1.0,
            "min_p": 0.1,
            "repeat_penalty": 1.2,
            "repeat_last_n": 64,
        }
        server.handle_completions(request, pieces.append)
        made = pieces[-1]["usage"]["completion_tokens"]
        assert made == n_tokens, f"{made} tokens, {n_tokens} wanted"

    for line in sys.stdin:
        asked = json.loads(line)
        start = time.perf_counter()
        threads = [
            threading.Thread(target=read, args=(prompt, asked["n_tokens"], asked["seed"] + n))
            for n, prompt in enumerate(asked["prompts"])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(time.perf_counter() - start, file=answers, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
