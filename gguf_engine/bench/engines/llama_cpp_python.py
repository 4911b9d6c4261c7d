"""llama_cpp.Llama, by its `generate`: the method that can go past an answer's end at full speed."""

from __future__ import annotations

import importlib
import time
from itertools import islice
from typing import Any


def load() -> None:
    """Import it; a peer, which this package's own engine never runs on."""
    importlib.import_module("llama_cpp")


class Engine:
    """One stream at a time, a token's bytes made as it comes. See child.py for what it is asked."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.module = importlib.import_module("llama_cpp")
        self.version = self.module.__version__
        self.options = {
            "model_path": config["path"],
            "n_gpu_layers": 0 if config["device"] == "cpu" else -1,
            "n_threads": config["n_threads"],
            "n_threads_batch": config["n_threads"],
            "verbose": False,
        }
        self.llama = self.module.Llama(n_ctx=config["n_ctx"], **self.options)

    def encode(self, text: str) -> list[int]:
        """Return the prompt's ids."""
        return list(self.llama.tokenize(text.encode(), add_bos=True))

    def run(
        self, prompts: list[list[int]], *, n_tokens: int, seed: int, sampling: dict[str, float]
    ) -> dict[str, Any]:
        """Generate, and make each token's bytes."""
        (prompt,) = prompts
        times: list[float] = []
        self.llama.set_seed(seed)
        tokens = self.llama.generate(
            prompt, temp=sampling["temperature"], top_p=1.0, top_k=0, min_p=sampling["min_p"],
            repeat_penalty=sampling["repeat_penalty"],
        )  # fmt: skip
        for token in islice(tokens, n_tokens):
            times.append(time.perf_counter())
            self.llama.detokenize([token])
        return {"end_s": time.perf_counter(), "token_s": [times], "stages": {}}

    def greedy(self, ids: list[int], n_tokens: int) -> tuple[list[int], str]:
        """Return the most probable continuation."""
        made = list(islice(self.llama.generate(ids, temp=0.0, repeat_penalty=1.0), n_tokens))
        return made, self.llama.detokenize(made, prev_tokens=ids).decode("utf-8", "replace")

    def rows(self, ids: list[int]) -> Any:
        """Return the logits row after each id."""
        llama = self.module.Llama(n_ctx=max(64, len(ids)), logits_all=True, **self.options)
        llama.eval(ids)
        return llama.scores[: len(ids)].copy()
