"""
Judge the corpus of broken models, or count how many of them kill llama.cpp, and print the figures.

    python tools/gguf_corpus.py --workers 2                  # every file, through the pre-flight check
    python tools/gguf_corpus.py --at-most 2 --bypass         # the same files given straight to llama.cpp

stdout is one line of JSON; the exit code is 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gguf_judge import Judge
from gguf_mutations import BASES, Case, list_cases, make_bases, names_of_mutations
from gguf_tally import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to judge: a share of the cases (every n_shares-th), each mutation at most so often a model."""

    at_most: int | None = None
    bypass: bool = False
    seed: int = 0
    limit_s: float = 20.0
    mutations: tuple[str, ...] | None = None
    bases: tuple[str, ...] = tuple(BASES)
    share: int = 0
    n_shares: int = 1


def judge_cases(cases: Iterable[Case], judge: Judge, folder: Path) -> Tally:
    """Write, judge and remove each file."""
    tally = Tally()
    for index, case in enumerate(cases):
        place = folder / str(index)
        place.mkdir()
        answer = judge.judge(case.write(place))
        # Given straight to llama.cpp, even a harmless file may be declined; the check is not asked.
        harmless = case.mutation.harmless and not judge.bypass
        if tally.add(case.name, answer, group=case.mutation.name, harmless=harmless):
            print(f"{case.name}: {answer.outcome} {answer.code} {answer.what}", file=sys.stderr)
        shutil.rmtree(place)
    return tally


def run(plan: Plan) -> Tally:
    """Judge one share of the corpus in this process."""
    with tempfile.TemporaryDirectory(prefix="gguf-corpus-") as name:
        folder = Path(name)
        bases = make_bases(folder, plan.bases)
        cases = list_cases(bases, plan.mutations, at_most=plan.at_most, seed=plan.seed)
        mine = (case for index, case in enumerate(cases) if index % plan.n_shares == plan.share)
        with Judge(limit_s=plan.limit_s, bypass=plan.bypass) as judge:
            return judge_cases(mine, judge, folder)


def main() -> int:
    """Read the command line, judge, print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument(
        "--at-most", type=int, help="variants of each mutation of each model; all without it"
    )
    parser.add_argument("--bypass", action="store_true", help="give every file to llama.cpp, in the child")
    parser.add_argument(
        "--mutation", action="append", choices=names_of_mutations(), help="only this; repeat"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--classes", action="store_true", help="outcomes of each mutation too")
    given = parser.parse_args()
    started = time.monotonic()
    plans = [
        Plan(
            at_most=given.at_most,
            bypass=given.bypass,
            seed=given.seed,
            mutations=tuple(given.mutation) if given.mutation else None,
            share=share,
            n_shares=given.workers,
        )
        for share in range(given.workers)
    ]
    tally = Tally()
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        for part in pool.map(run, plans):
            tally.merge(part)
    figures: dict[str, Any] = {"what": "corpus", "bypass": given.bypass, "classes": len(tally.by_class)}
    figures |= tally.figures()
    figures["findings"] = tally.findings[:20]
    figures["seconds"] = round(time.monotonic() - started, 1)
    if given.classes:
        figures["by_class"] = {name: dict(counts) for name, counts in sorted(tally.by_class.items())}
    print(json.dumps(figures))
    return 1 if tally.findings and not given.bypass else 0


if __name__ == "__main__":
    sys.exit(main())
