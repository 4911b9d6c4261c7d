"""xllamacpp.Server: llama.cpp's own server without its sockets."""

from __future__ import annotations

import importlib
import threading
import time
from typing import Any


def load() -> None:
    """Import it."""
    importlib.import_module("xllamacpp")


class Engine:
    """`handle_completions`, streaming; see child.py for what it is asked."""

    def __init__(self, config: dict[str, Any]) -> None:
        module = importlib.import_module("xllamacpp")
        self.version = module.__version__
        params = module.CommonParams()
        params.model.path = config["path"]
        params.n_ctx, params.n_parallel = config["n_ctx"] * config["n_slots"], config["n_slots"]
        params.kv_unified = True
        params.n_batch = params.n_ubatch = 512
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config["n_threads"]
        if config["device"] == "cpu":
            params.n_gpu_layers = 0
        params.verbosity = 0
        self.server = module.Server(params)

    def encode(self, text: str) -> None:
        """Encode nothing: the server does it inside a request."""
        del text

    def run(
        self, prompts: list[list[int]], *, n_tokens: int, seed: int, sampling: dict[str, float]
    ) -> dict[str, Any]:
        """Read all streams, each in a thread of its own."""
        times: list[list[float]] = [[] for _ in prompts]

        def read(i: int) -> None:
            options = {"samplers": ["penalties", "temperature", "min_p"], "seed": seed + i, **sampling}
            times[i] = self._stream(prompts[i], n_tokens, options)[0]

        readers = [threading.Thread(target=read, args=(i,)) for i in range(len(prompts))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return {"end_s": time.perf_counter(), "token_s": times, "stages": {}}

    def _stream(self, prompt: list[int], n_tokens: int, options: dict[str, Any]) -> tuple[list[float], str]:
        """Return when each token came, and the text."""
        chunks: list[tuple[float, Any]] = []
        request = {"prompt": prompt, "n_predict": n_tokens, "stream": True, "ignore_eos": True, **options}
        self.server.handle_completions(request, lambda chunk: chunks.append((time.perf_counter(), chunk)))
        if not chunks or "usage" not in chunks[-1][1]:
            raise RuntimeError(f"the server answered {chunks[-1][1] if chunks else 'nothing'}")
        made = chunks[-1][1]["usage"]["completion_tokens"]
        times = [when for when, _ in chunks[:-1]][:made]
        # A token that only begins a character brings no chunk: it came with the last one at the latest.
        times += [chunks[-1][0]] * (made - len(times))
        return times, "".join(chunk["choices"][0]["text"] for _, chunk in chunks)

    def greedy(self, ids: list[int], n_tokens: int) -> tuple[list[int], str]:
        """Return the most probable continuation; the server gives text alone."""
        options = {"temperature": 0.0, "repeat_penalty": 1.0, "samplers": ["temperature"]}
        return [], self._stream(ids, n_tokens, options)[1]

    def rows(self, ids: list[int]) -> None:
        """Return nothing: the server shows no rows of a text that is given."""
        del ids
