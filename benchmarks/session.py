"""
What a session saves: the next turn of a long chat, in one run, forked, and after a restart from its file.

Time to the first token of the next turn: "cold" by a model that has just been loaded and has the messages
alone; "warm" by the session that has run all the time; "forked" by a fork of it; "restarted" by a model
that has just been loaded and has the session from its file. `load_s` is what reading, checking and
restoring the file took, which comes before the first token of "restarted"; `save_s` is what writing took.

What bounds it: cold computes the whole chat, which is arithmetic; warm and forked one question, and what
the answer before it is spelled with when its text is encoded anew; restarted one question, after a file of
the size of the KV cache's part has gone through SHA-256. A model with random weights answers with ids that
no text is encoded to, so nearly all of its answer is computed anew: use `--answer 1` with one.

    python benchmarks/session.py [--model haiku|FILE] [--threads N] [--rounds N] [--chat N]
                                 [--answer N] [--record]

The sides take turns within each round; figures are medians. The table goes to stderr; the last line of
stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import finish, say

from gguf_engine import LLM, Completion, Session

QUESTION = "And what of the rain?"
OTHER = "What of the rain, then?"


def long_system(llm: LLM, n_tokens: int, seed: int) -> str:
    """Return a system message that makes a chat of about `n_tokens`."""
    rules = [f"rule {n * 7 + seed}: be brief." for n in range(n_tokens // 4)]
    while len(llm.encode([{"role": "system", "content": " ".join(rules)}])) > n_tokens:
        rules = rules[: len(rules) * 9 // 10]
    return " ".join(rules)


def one_round(args: argparse.Namespace, seed: int, file: Path) -> dict[str, float]:
    """Measure each side once; the texts differ from round to round."""
    options: dict[str, Any] = {"n_threads": args.threads, "n_ctx": 4096, "tuned": False}
    found: dict[str, float] = {}

    def note(name: str, answer: Completion) -> None:
        found[f"{name}_s"] = answer.timings.ttft_s
        found[f"{name}_cached"] = answer.usage.n_cached
        found["n_prompt"] = answer.usage.n_prompt

    with LLM.load(args.model, **options) as llm:
        llm.generate([5, 6, 7], max_tokens=4)
        session = llm.session(system=long_system(llm, args.chat, seed), seed=1, max_tokens=args.answer)
        session.send("Tell me about the snow.")
        fork = session.fork()
        note("warm", session.send(QUESTION, max_tokens=1))
        note("forked", fork.send(OTHER, max_tokens=1))
        session.rewind()
        start = time.perf_counter()
        found["n_kept"] = session.save(file)
        found["save_s"] = time.perf_counter() - start
        found["file_bytes"] = file.stat().st_size
    for name in ("cold", "restarted"):
        with LLM.load(args.model, **options) as llm:
            llm.generate([5, 6, 7], max_tokens=4)
            start = time.perf_counter()
            loaded = Session.load(file, llm, computed=name == "restarted")
            found["load_s"] = time.perf_counter() - start
            note(name, loaded.send(QUESTION, max_tokens=1))
    return found


def main() -> None:
    """Measure, show, record."""
    parser = argparse.ArgumentParser(description="What a session saves.")
    parser.add_argument("--model", default="haiku")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chat", type=int, default=1024, help="tokens of the system message")
    parser.add_argument("--answer", type=int, default=16, help="tokens of the first answer")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [one_round(args, seed, Path(folder) / "s") for seed in range(args.rounds)]
    found: dict[str, Any] = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    found["cold_over_warm"] = found["cold_s"] / found["warm_s"]
    found["cold_over_restarted"] = found["cold_s"] / found["restarted_s"]
    found["cold_over_load_and_restarted"] = found["cold_s"] / (found["load_s"] + found["restarted_s"])
    found |= {"model": Path(args.model).name, "n_threads": args.threads, "n_rounds": args.rounds}
    for key, value in found.items():
        say(f"{key:<30} {value:.4f}" if isinstance(value, float) else f"{key:<30} {value}")
    finish("session", found, args.record)


if __name__ == "__main__":
    main()
