"""
How long Ctrl-C takes: from the signal to the `except KeyboardInterrupt`, or to the end of the program.

What bounds it: nothing of ours waits in C code on the main thread. A load that llama.cpp cannot stop at
once is given 0.2 s, then left to end by itself.

    python benchmarks/interrupts.py [--model PATH] [--n-ctx N] [--longest S] [--rounds N] [--record]

Real SIGINTs at random moments, to one program that loads, prefills, generates and streams in turn, and
to fresh starts of the command line. The table goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from pathlib import Path

from common import finish, say

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from interrupt_samples import interrupt_cli, interrupt_library

PHASES = ("load", "prompt", "generation", "stream")


def row(name: str, seconds: list[float | None]) -> dict[str, float]:
    """Print and return the distribution of one phase; None counts as lost."""
    times = [1e3 * value for value in seconds if value is not None]
    figures: dict[str, float] = {"n": len(seconds), "n_lost": seconds.count(None)}
    figures |= {"median_ms": statistics.median(times), "max_ms": max(times)}
    say(f"{name:12}" + "".join(f"{figures[what]:10.1f}" for what in ("median_ms", "max_ms", "n", "n_lost")))
    return figures


def main() -> None:
    """Interrupt both programs, print the table, end with JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="haiku")
    parser.add_argument("--n-ctx", type=int, default=2000)
    parser.add_argument("--longest", type=float, default=0.2, help="wait at most this long, in seconds")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    say(f"{'phase':12}{'median ms':>10}{'max ms':>10}{'n':>10}{'lost':>10}")
    phases = [*PHASES] * (args.rounds // len(PHASES))
    seen, code, errors = interrupt_library(args.model, args.n_ctx, phases, args.longest, seed=1)
    if errors or len(seen) != len(phases):
        say(f"ended after {len(seen)} of {len(phases)} with {code}: {errors}")
    results = {name: row(name, [x.seconds for x in seen if x.phase == name]) for name in PHASES}
    random_ = random.Random(2)
    command = ["run", "--model", args.model, "--n-ctx", str(args.n_ctx), "--ignore-eos", "--max-tokens"]
    ended: list[float | None] = []
    for _ in range(args.rounds):
        wait_s = random_.uniform(0, 1 + args.longest)
        seconds, code, errors = interrupt_cli([*command, "none", "Write a haiku"], wait_s)
        is_well = (code, errors) == (130, "")
        ended.append(seconds if is_well else None)
        if not is_well:
            say(f"interrupted after {wait_s:.3f} s, it ended with {code}: {errors}")
    results["program"] = row("program", ended)
    finish(
        "interrupts", {"model": Path(args.model).stem, "n_ctx": args.n_ctx, "phases": results}, args.record
    )


if __name__ == "__main__":
    main()
