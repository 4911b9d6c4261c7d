"""mistralrs.Runner: candle's kernels. It shows no single tokens of raw text, so two requests are timed."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import time
from typing import Any


def load() -> None:
    """Import it."""
    importlib.import_module("mistralrs")


class Engine:
    """`send_completion_request`, one text at a time; see child.py for what it is asked."""

    takes_text = True

    def __init__(self, config: dict[str, Any]) -> None:
        self.module = module = importlib.import_module("mistralrs")
        self.version = importlib.metadata.version("mistralrs")
        folder, file = os.path.split(config["path"])
        # Without a kept prefix the second request computes the prompt as the first did.
        self.runner = module.Runner(which=module.Which.GGUF(folder, file), max_seqs=1, prefix_cache_n=0)

    def encode(self, text: str) -> None:
        """Encode nothing: the runner does it inside a request."""
        del text

    def run(
        self, prompts: list[str], *, n_tokens: int, seed: int, sampling: dict[str, float]
    ) -> dict[str, Any]:
        """Ask for one token, then for all. The seed is of no use: on a CPU the runner takes none."""
        del seed
        (prompt,) = prompts
        options = {
            "temperature": sampling["temperature"],
            "min_p": sampling["min_p"],
            "repetition_penalty": sampling["repeat_penalty"],
        }
        begin = time.perf_counter()
        self._complete(prompt, 1, **options)
        middle = time.perf_counter()
        usage = self._complete(prompt, n_tokens, **options).usage
        end = time.perf_counter()
        if usage.completion_tokens != n_tokens:
            raise RuntimeError(f"{usage.completion_tokens} tokens came back, {n_tokens} were wanted")
        decode_s = (end - middle) - (middle - begin)
        rate = (n_tokens - 1) / decode_s if decode_s > 0 and n_tokens > 1 else None
        return {
            "total_s": end - middle,
            "token_s": [],
            "stages": {},
            "prefill_tokens_per_s": usage.prompt_tokens / (middle - begin),
            "decode_tokens_per_s": rate,
        }

    def _complete(self, prompt: str, n_tokens: int, **sampling: Any) -> Any:
        request = self.module.CompletionRequest(
            prompt=prompt, model="default", max_tokens=n_tokens, ignore_eos=True, **sampling
        )
        return self.runner.send_completion_request(request)

    def greedy(self, prompt: str, n_tokens: int) -> tuple[list[int], str]:
        """Return the most probable continuation, as text alone."""
        return [], self._complete(prompt, n_tokens, temperature=0.0).choices[0].text

    def rows(self, prompt: str) -> None:
        """Return nothing: the runner shows no rows of a text that is given."""
        del prompt
