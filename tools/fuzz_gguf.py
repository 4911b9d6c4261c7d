"""
Throw randomly edited model files at the loader, and at llama.cpp what the loader lets pass.

    python tools/fuzz_gguf.py --count 100000 --seed 1 --workers 2     # what `make fuzz` runs
    python tools/fuzz_gguf.py --seed 1 --only 4711 --save out         # one case again, its file kept

stdout is one line of JSON; the exit code is 1 if a file killed, hung or fooled anything.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gguf_edits import make_case
from gguf_judge import Judge
from gguf_mutations import BASES, make_bases
from gguf_tally import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """
    Cases first, first + step, ... below count, of one seed.

    Attributes:
        save: Where a finding's file and its description go; None keeps none.
        max_s: Stop after so many seconds; None never.
    """

    seed: int
    count: int
    first: int = 0
    step: int = 1
    save: Path | None = None
    max_s: float | None = None
    limit_s: float = 20.0
    bases: tuple[str, ...] = tuple(BASES)


def fuzz(run: Run) -> Tally:
    """Make and judge the cases of a run, one after the other."""
    tally = Tally()
    deadline = None if run.max_s is None else time.monotonic() + run.max_s
    with tempfile.TemporaryDirectory(prefix="gguf-fuzz-") as name, Judge(limit_s=run.limit_s) as judge:
        bases = make_bases(Path(name), run.bases)
        path = Path(name, "case.gguf")
        for number in range(run.first, run.count, run.step):
            if deadline is not None and time.monotonic() > deadline:
                break
            data, edits = make_case(bases, run.seed, number)
            path.write_bytes(data)
            answer = judge.judge(path)
            label = f"seed {run.seed} case {number} ({edits})"
            if tally.add(label, answer) and run.save is not None:
                run.save.mkdir(parents=True, exist_ok=True)
                kept = run.save / f"seed-{run.seed}-case-{number}.gguf"
                kept.write_bytes(data)
                facts = {"seed": run.seed, "case": number, "edits": edits, "answer": asdict(answer)}
                kept.with_suffix(".json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return tally


def show_one(seed: int, number: int, save: Path) -> int:
    """Make one case again, keep its file, and print what becomes of it."""
    with tempfile.TemporaryDirectory() as name:
        data, edits = make_case(make_bases(Path(name)), seed, number)
    save.mkdir(parents=True, exist_ok=True)
    path = save / f"seed-{seed}-case-{number}.gguf"
    path.write_bytes(data)
    with Judge() as judge:
        answer = judge.judge(path)
    print(json.dumps({"file": str(path), "edits": edits, "answer": asdict(answer)}))
    return 0 if answer.is_fair else 1


def main() -> int:
    """Read the command line, fuzz, print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-seconds", type=float, help="stop then, whatever the count")
    parser.add_argument("--only", type=int, metavar="N", help="make and judge case N alone")
    parser.add_argument("--save", type=Path, default=Path("fuzz-findings"), help="where findings are kept")
    given = parser.parse_args()
    if given.only is not None:
        return show_one(given.seed, given.only, given.save)
    started = time.monotonic()
    runs = [
        Run(
            seed=given.seed,
            count=given.count,
            first=first,
            step=given.workers,
            save=given.save,
            max_s=given.max_seconds,
        )
        for first in range(given.workers)
    ]
    tally = Tally()
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        for part in pool.map(fuzz, runs):
            tally.merge(part)
    figures = {"what": "fuzz", "seed": given.seed} | tally.figures()
    figures |= {"findings": tally.findings[:20], "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps(figures))
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
