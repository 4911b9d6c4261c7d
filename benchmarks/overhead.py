"""
Tokens/s of one stream, against a bare ctypes loop and against llama_cpp.Llama.

What bounds it: the forward pass. Everything around it (schedule, sample, detokenise, hand over to the
reading thread) is ours, and shows most on a model so small that its pass takes a fraction of a
millisecond. The tiny model is two layers of 64; the haiku model is the bundled one. All draw with
repeat penalty 1.2 over 64 ids, temperature 1 and min-p 0.1, for a fixed number of tokens, past end tokens.
Each engine loads with its own defaults, but for the bare loop, which loads as ours does. `Llama` is left
out on the tiny model and above 512 tokens: it decodes all ids that are no text yet again at each token,
and what a model writes without end sooner or later holds such bytes (40 ms a token, and growing).

    python benchmarks/overhead.py [--threads N] [--rounds N] [--record]

The engines take turns within each round, so that a busy machine slows all of them; figures are medians.
The table goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import BareLoop, finish, quartiles, say

from gguf_engine import LLM
from gguf_engine.loader.resolve import resolve_model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from make_gguf import write_tiny_model

LENGTHS = (128, 512, 2048)
MIN_P = 0.1
PROMPT = "Write a haiku about ice hockey"


class Engines:
    """The same file in three engines."""

    def __init__(self, path: Path, n_threads: int) -> None:
        from llama_cpp import Llama

        self.llm = LLM.load(path, device="cpu", n_ctx=4096, n_threads=n_threads)
        self.bare = BareLoop(path, n_ctx=4096, n_slots=8, n_threads=n_threads)
        self.peer = Llama(
            str(path),
            n_ctx=4096,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            n_gpu_layers=0,
            verbose=False,
        )
        self.prompt_ids = self.llm.encode(PROMPT)

    def engine(self, n_tokens: int, seed: int) -> None:
        """Read `LLM.stream` to its end."""
        pieces = list(
            self.llm.stream(self.prompt_ids, seed=seed, max_tokens=n_tokens, ignore_eos=True, min_p=MIN_P)
        )
        assert len(pieces) == n_tokens

    def bare_loop(self, n_tokens: int, seed: int) -> None:
        """Run the bare loop."""
        self.bare.run([self.prompt_ids], n_tokens, seed)

    def llama_class(self, n_tokens: int, seed: int) -> None:
        """Read `Llama.create_completion(stream=True)` to its end."""
        never = {str(token_id): -1e9 for token_id in self.llm.end_ids}
        chunks = self.peer.create_completion(
            self.prompt_ids, max_tokens=n_tokens, temperature=1.0, top_p=1.0, top_k=0, min_p=MIN_P,
            repeat_penalty=1.2, seed=seed, stream=True, logit_bias=never,
        )  # fmt: skip
        for _ in chunks:
            pass

    def close(self) -> None:
        """Free them all."""
        self.llm.close()
        self.bare.close()
        self.peer.close()


def measure(path: Path, n_threads: int, n_rounds: int, *, with_llama_class: bool) -> dict[str, Any]:
    """Return tokens/s by length and engine, with ratios of medians."""
    engines = Engines(path, n_threads)
    methods = {"gguf_engine": engines.engine, "bare": engines.bare_loop}
    results: dict[str, Any] = {}
    for n_tokens in LENGTHS:
        is_peer_in = with_llama_class and n_tokens <= 512
        if is_peer_in:
            methods["llama_cpp.Llama"] = engines.llama_class
        else:
            methods.pop("llama_cpp.Llama", None)
        rates: dict[str, list[float]] = {name: [] for name in methods}
        for round_ in range(n_rounds + 1):
            for name, method in methods.items():
                start = time.perf_counter()
                method(n_tokens, round_)
                if round_:  # the first round warms up
                    rates[name].append(n_tokens / (time.perf_counter() - start))
        row: dict[str, Any] = {name: quartiles(values) for name, values in rates.items()}
        ours = row["gguf_engine"]["median"]
        row["of_bare"] = ours / row["bare"]["median"]
        if is_peer_in:
            row["of_llama_class"] = ours / row["llama_cpp.Llama"]["median"]
        row["us_over_bare"] = 1e6 / ours - 1e6 / row["bare"]["median"]
        results[str(n_tokens)] = row
    engines.close()
    return results


def main() -> None:
    """Measure both models, print the table, end with JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tiny = write_tiny_model(Path(folder) / "tiny.gguf", n_ctx=4096)
        models = {"tiny": tiny, "haiku": resolve_model("haiku").weights}
        results = {
            name: measure(path, args.threads, args.rounds, with_llama_class=name != "tiny")
            for name, path in models.items()
        }
    say(
        f"{'model':8}{'tokens':>8}{'ours/s':>10}{'bare/s':>10}{'Llama/s':>10}"
        f"{'of bare':>9}{'of Llama':>9}{'us over':>9}"
    )
    for model, rows in results.items():
        for n_tokens, row in rows.items():
            theirs = row.get("llama_cpp.Llama", {"median": float("nan")})["median"]
            say(
                f"{model:8}{n_tokens:>8}{row['gguf_engine']['median']:10.0f}{row['bare']['median']:10.0f}"
                f"{theirs:10.0f}{row['of_bare']:9.2f}{row.get('of_llama_class', float('nan')):9.2f}"
                f"{row['us_over_bare']:9.1f}"
            )
    finish("overhead", {"n_threads": args.threads, "models": results}, args.record)


if __name__ == "__main__":
    main()
