"""
10,000 short prompts from a CSV: `gguf-engine batch` against `llama_cpp.Llama`, one at a time.

What bounds it: the model's arithmetic, which is the same for both. Many requests share each pass over
the weights, prompts begin alike and are computed once, encoding passes beside computing; one at a time
each token pays the whole way through Python.

    python benchmarks/batch.py [--model haiku|FILE] [--threads N] [--prompts N] [--parts N] [--tokens N]
                               [--slots N] [--engines N] [--record]

Both get the same prompts through the model's chat template, the same options of sampling and the same
number of threads, and end where the model ends. The prompts are cut in parts, and the two take turns: ours
is the command line, a process a part, its start and load within its time; theirs is one process that has
loaded already (what its load takes is added once). The last part of stderr is our stage table over the
whole CSV in one run; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from common import PROGRAM, finish, quartiles, say

from gguf_engine import LLM
from gguf_engine.loader.resolve import resolve_model

TOPICS = ("ice", "rain", "moss", "sand", "bread", "rust", "wool", "salt", "the sea", "old maps")


def write_csv(path: Path, prompts: list[str]) -> None:
    """Write a CSV with an id and a prompt a row."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt"])
        writer.writerows(enumerate(prompts))


def ours(folder: Path, prompts: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Run the command line over these prompts; return its record, with the seconds of the whole process."""
    write_csv(folder / "in.csv", prompts)
    options = ["--max-tokens", str(args.tokens), "--min-p", "0.1", "--seed", "1"]
    n_threads = str(
        max(1, args.threads // args.engines)
    )  # of each engine; all together have as many as theirs
    begun_at = time.perf_counter()
    subprocess.run(
        [
            *(PROGRAM, "batch", "--model", args.model, "--column", "prompt"),
            *("--input", str(folder / "in.csv"), "--output", str(folder / "out.jsonl"), "--no-resume"),
            *("--record", str(folder / "record.json"), "--no-tuned", "--n-slots", str(args.slots)),
            *(
                "--engines",
                str(args.engines),
                "--n-threads",
                n_threads,
                "--n-threads-batch",
                n_threads,
                *options,
            ),
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - begun_at
    assert len((folder / "out.jsonl").read_bytes().splitlines()) == len(prompts)
    return {**json.loads((folder / "record.json").read_text()), "process_s": seconds}


class Theirs:
    """`llama_cpp.Llama`, loaded once; it is given ids, since it knows no chat template of this model."""

    def __init__(self, path: Path, n_threads: int, n_tokens: int) -> None:
        import llama_cpp

        self._n_tokens = n_tokens
        begun_at = time.perf_counter()
        self._model = llama_cpp.Llama(
            str(path),
            n_ctx=2048,
            n_batch=512,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            verbose=False,
        )
        self.load_s = time.perf_counter() - begun_at

    def answer(self, prompts: list[list[int]]) -> tuple[float, int]:
        """Answer the prompts in turn; return the seconds, and the tokens of the answers."""
        begun_at, n_tokens = time.perf_counter(), 0
        for prompt in prompts:
            made = self._model.create_completion(
                prompt, max_tokens=self._n_tokens, temperature=1.0, top_p=1.0, top_k=0, min_p=0.1,
                repeat_penalty=1.2, seed=1,
            )  # fmt: skip
            n_tokens += made["usage"]["completion_tokens"]
        return time.perf_counter() - begun_at, n_tokens


def main() -> None:
    """Take turns over the parts, then run the whole once more; print the figures, end with JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="haiku")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--parts", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    path = resolve_model(args.model).weights
    prompts = [f"Write a haiku about {TOPICS[n % len(TOPICS)]} {n}" for n in range(args.prompts)]
    theirs = Theirs(path, args.threads, args.tokens)
    with LLM.load(path, device="cpu", n_threads=1) as llm:
        encoded = [llm.encode(prompt, chat=True) for prompt in prompts]
    size = -(-len(prompts) // args.parts)
    rows: dict[str, list[float]] = {"ours_s": [], "theirs_s": [], "ratio": []}
    tokens = {"ours": 0, "theirs": 0}
    with tempfile.TemporaryDirectory() as folder:
        for at in range(0, len(prompts), size):
            mine = ours(Path(folder), prompts[at : at + size], args)
            their_s, n_tokens = theirs.answer(encoded[at : at + size])
            tokens["ours"] += mine["n_completion"]
            tokens["theirs"] += n_tokens
            ratio = their_s / mine["process_s"]
            for name, value in zip(rows, (mine["process_s"], their_s, ratio), strict=True):
                rows[name].append(value)
            say(f"{at:>6}..  ours {mine['process_s']:7.2f} s  theirs {their_s:7.2f} s  ratio {ratio:5.2f}")
        whole = ours(Path(folder), prompts, args)
    theirs_total = sum(rows["theirs_s"]) + theirs.load_s
    for name in ("boot_s", "inference_s", "encode_s", "rest_s", "total_s", "process_s"):
        say(f"{name:<12} {whole[name]:9.3f}")
    say(f"peak memory  {whole['peak_memory_bytes'] / 1e6:9.1f} MB")
    say(f"theirs, all  {theirs_total:9.3f} s, {theirs_total / whole['process_s']:.2f} times ours")
    found = {
        "model": path.name,
        **{
            name: getattr(args, name)
            for name in ("threads", "engines", "prompts", "parts", "tokens", "slots")
        },
        **{name: quartiles(values) for name, values in rows.items() if len(values) > 1},
        "n_completion": tokens,
        "whole": whole,
        "theirs_load_s": theirs.load_s,
        "theirs_total_s": theirs_total,
        "total_ratio": theirs_total / whole["process_s"],
    }
    finish("batch", found, args.record)


if __name__ == "__main__":
    main()
