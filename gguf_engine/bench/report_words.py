"""Rows → the sentences a report begins with, for readers who know nothing of benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gguf_engine.bench import figures
from gguf_engine.bench.record import OURS, Case
from gguf_engine.bench.report_charts import number
from gguf_engine.bench.report_rows import Row, contestants, is_clear, plain, speed

BOUND_SHARE = 0.6  # of the memory's speed, from which memory is what decoding waits for
MAX_NAMED = 3  # others in the verdict
CACHE_BYTES = 2**26  # weights this small may stay in a processor's caches


def verdict(rows: Sequence[Row]) -> str:
    """Return what is fastest, and by how much, in one or two sentences."""
    ranked = contestants(rows)
    if not ranked:
        return "No case of this run has a speed: there is nothing to compare."
    first, *others = ranked
    if not others:
        return f"{first.subject} {_speeds(first)}."
    second = others[0]
    assert first.decode is not None
    assert second.decode is not None
    reason, drift = None, first.record.anchor.limit
    if not is_clear(first.decode, second.decode):
        reason = "their trials differ by more than they do"
    elif first.record is not second.record and speed(first) <= (1 + drift) * speed(second):
        reason = f"two runs on one machine may differ by {drift:.0%}, and these do by less"
    if reason is not None:
        rates = f"{number(speed(first))} and {number(speed(second))} tokens per second"
        return f"{first.subject} and {second.subject} write about as fast, {rates}: {reason}."
    slower = [f"{times(speed(first) / speed(row))} as {row.subject}" for row in others[:MAX_NAMED]]
    return f"{first.subject} is fastest: {' and '.join(slower)}. It {_speeds(first)}."


def sentences(rows: Sequence[Row]) -> list[str]:
    """Return what else the figures say, a sentence each, what matters most first."""
    ranked = contestants(rows)
    return [
        *(f"{row.subject} {_speeds(row)}." for row in ranked[1:]),
        *_threads(rows, ranked),
        *_memory(ranked),
        *_neighbour(rows, ranked),
        *_company(rows, ranked),
        *_context(rows, ranked),
        *_peers(rows),
    ]


def times(ratio: float) -> str:
    """Return a ratio of speeds, to be followed by "as" and what it is of."""
    return f"{number(ratio)} times as fast" if ratio >= 1 else f"{ratio:.0%} as fast"


def _speeds(row: Row) -> str:
    text = f"writes {number(speed(row))} tokens per second"
    parts = []
    if row.prefill:
        parts.append(f"reads a prompt at {number(row.prefill.median)}")
    if first := row.over(figures.first_token_s):
        parts.append(f"gives its first token after {seconds(first.median)}")
    return text if not parts else f"{text}, {' and '.join(parts)}"


def _threads(rows: Sequence[Row], ranked: Sequence[Row]) -> Iterator[str]:
    for best in ranked:
        others = [
            row
            for row in plain(rows)
            if row.record is best.record
            and (row.case.engine, row.case.device) == (best.case.engine, best.case.device)
            and row.case.neighbour == best.case.neighbour
            and row.case.n_threads != best.case.n_threads
        ]
        for row in others:
            yield (
                f"{row.subject} writes {times(speed(row) / speed(best))} as with "
                f"{best.case.n_threads} thread{'s' * (best.case.n_threads != 1)}."
            )


def _memory(ranked: Sequence[Row]) -> Iterator[str]:
    for row in ranked:
        limit, achieved = row.memory_limit, row.achieved
        if limit is None or achieved is None:
            continue
        n_bytes, share = row.record.model.weight_bytes_a_token, achieved.median / limit
        what = (
            f"On {row.subject} each token reads {size(n_bytes)} of weights, {size(achieved.median)} per "
            f"second: {share:.0%} of what a plain loop gets from this memory ({size(limit)} per second)."
        )
        if n_bytes < CACHE_BYTES or share > 1.05:
            yield f"{what} The weights stay in the processor's caches, so memory is no limit."
        elif share >= BOUND_SHARE:
            yield f"{what} Memory is the limit: smaller weights would be faster, a faster processor not."
        else:
            yield f"{what} Computing is the limit, not memory."


def _company(rows: Sequence[Row], ranked: Sequence[Row]) -> Iterator[str]:
    for best in ranked:
        base = best.case.concurrency
        fewer = "one alone" if base == 1 else f"{base} at once"
        found = _like(best, rows, lambda case: (case.depth, case.neighbour))
        ratios = [(row.case.concurrency, number(speed(row) / speed(best))) for row in found]
        if ratios:
            parts = [f"{n} requests at once make {ratio} times" for n, ratio in ratios]
            yield f"On {best.subject}, {_listed(parts)} the tokens of {fewer}."


def _context(rows: Sequence[Row], ranked: Sequence[Row]) -> Iterator[str]:
    for best in ranked:
        found = _like(best, rows, lambda case: (case.concurrency, case.neighbour))
        parts = [
            f"{speed(row) / speed(best):.0%} after {row.case.depth:,} tokens of context" for row in found
        ]
        if parts:
            yield f"{best.subject} keeps {_listed(parts)}, of its speed at the start."


def _neighbour(rows: Sequence[Row], ranked: Sequence[Row]) -> Iterator[str]:
    """Say it for every number of threads: which is best beside a neighbour is what one wants to know."""
    for best in ranked:
        parts = []
        for quiet in plain(rows):
            case = quiet.case
            if (quiet.run, case.engine, case.device) != (best.run, best.case.engine, best.case.device):
                continue
            for row in _like(quiet, rows, lambda case: (case.depth, case.concurrency)):
                if row.case.neighbour:
                    threads = f"{case.n_threads} thread{'s' * (case.n_threads != 1)}"
                    parts.append(f"{times(speed(row) / speed(quiet))} as alone with {threads}")
        if parts:
            of = f" of {best.run}" if best.run else ""
            yield f"Beside one busy program, {best.model_of_device}{of} writes {_listed(parts)}."


def _like(base: Row, rows: Sequence[Row], rest: Callable[[Case], object]) -> list[Row]:
    """Return the other rows of a row's record, engine, device and threads that are equal in `rest`, too."""
    return [
        row
        for row in rows
        if row is not base
        and row.record is base.record
        and row.decode is not None
        and base.decode is not None
        and _lane(row.case) == _lane(base.case)
        and rest(row.case) == rest(base.case)
    ]


def _lane(case: Case) -> tuple[str, str, int]:
    return case.engine, case.device, case.n_threads


def _listed(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _peers(rows: Sequence[Row]) -> Iterator[str]:
    quiet = [row for row in plain(rows) if row.decode is not None and not row.case.neighbour]
    for ours in (row for row in quiet if row.case.engine == OURS):
        for peer in (row for row in quiet if row.case.engine != OURS):
            here = (ours.case.device, ours.case.n_threads) == (peer.case.device, peer.case.n_threads)
            if ours.record is not peer.record or not here or not (ours.decode and peer.decode):
                continue
            ratio = times(speed(ours) / speed(peer))
            close = "" if is_clear(ours.decode, peer.decode) else " (their trials overlap)"
            yield f"On {ours.subject}, gguf_engine writes {ratio} as {peer.engine}{close}."


def seconds(value: float) -> str:
    """Return a time with its unit."""
    if value >= 1:
        return f"{number(value)} s"
    return f"{number(1e3 * value)} ms" if value >= 1e-3 else f"{number(1e6 * value)} us"


def size(n_bytes: float) -> str:
    """Return an amount of memory with its unit, in powers of ten as memory's speed is told."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= factor:
            return f"{number(n_bytes / factor)} {unit}"
    return f"{n_bytes:g} bytes"
