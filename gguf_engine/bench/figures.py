"""What follows from a record's raw samples: rates, medians, quartiles, the unexplained rest."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from gguf_engine.bench.record import OURS, Anchor, Case, MemorySpeed, Model, Record, Trial


class Spread(NamedTuple):
    """Median and quartiles of some samples, and how many there are."""

    median: float
    q1: float
    q3: float
    n: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return the spread of what is there; None when nothing is."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    if len(found) == 1:
        return Spread(found[0], found[0], found[0], 1)
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    return Spread(middle, low, high, len(found))


def over_trials(case: Case, figure: Callable[[Trial], float | None]) -> Spread | None:
    """Return the spread of a figure over a case's trials."""
    return spread(figure(trial) for trial in case.trials)


def name_of(case: Case) -> str:
    """Return a case's name for people: what it ran on, then only what is not the plain case."""
    threads = f"{case.n_threads} thread" + ("" if case.n_threads == 1 else "s")
    parts = [case.engine, case.device, threads]
    if case.depth:
        parts.append(f"depth {case.depth}")
    if case.concurrency > 1:
        parts.append(f"{case.concurrency} at once")
    if case.neighbour:
        parts.append("busy neighbour")
    return ", ".join(parts)


def first_token_s(trial: Trial) -> float | None:
    """Return the time from ids to the first token; of several streams their median."""
    firsts = [times[0] for times in trial.token_s if times]
    return statistics.median(firsts) if firsts else None


def prefill_tokens_per_s(trial: Trial, n_prompt: int) -> float | None:
    """
    Return prompt tokens per second, until every stream has its first token.

    Args:
        trial: One trial.
        n_prompt: Ids of one prompt, as in Workload.
    """
    if not trial.token_s:
        return trial.prefill_tokens_per_s
    seconds = max(times[0] for times in trial.token_s)
    return n_prompt * len(trial.token_s) / seconds if seconds > 0 else None


def decode_tokens_per_s(trial: Trial) -> float | None:
    """Return tokens per second of all streams together, over the time in which all of them decode."""
    if not trial.token_s:
        return trial.decode_tokens_per_s
    begin = max(times[0] for times in trial.token_s)
    end = min(times[-1] for times in trial.token_s)
    n_tokens = sum(sum(begin < time <= end for time in times) for times in trial.token_s)
    if end > begin:
        return n_tokens / (end - begin)
    # Streams that ran one after another: all tokens over all of the time.
    whole = max(times[-1] for times in trial.token_s) - min(times[0] for times in trial.token_s)
    n_all = sum(len(times) for times in trial.token_s) - 1
    return n_all / whole if whole > 0 else None


def forward_tokens_per_s(trial: Trial) -> float | None:
    """Return tokens per second of the decode passes alone: no sampling, no text. One stream only."""
    seconds = trial.stages.get("decode")
    if not seconds or len(trial.token_s) != 1:
        return None
    return (len(trial.token_s[0]) - 1) / seconds


def token_gaps_s(case: Case) -> tuple[float, ...]:
    """Return the seconds between each token and the one before it, of all streams and trials."""
    return tuple(
        after - before
        for trial in case.trials
        for times in trial.token_s
        for before, after in pairwise(times)
    )


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the value that a share in (0, 1] of all values do not exceed; None of no values."""
    if not values:
        return None
    return sorted(values)[math.ceil(share * len(values)) - 1]


def rest_s(trial: Trial) -> float | None:
    """Return the part of the total that no stage explains; None where the stages are not shown."""
    return None if trial.total_s is None or not trial.stages else trial.total_s - sum(trial.stages.values())


def boot_s(trial: Trial) -> float | None:
    """Return the time from the process's start until the model is loaded; None where nobody sees it."""
    return None if trial.import_s is None or trial.load_s is None else trial.import_s + trial.load_s


def decode_bytes_per_s(trial: Trial, model: Model) -> float | None:
    """Return the bytes of weights read per second in decode; of one stream: several share a reading."""
    rate = decode_tokens_per_s(trial)
    return None if rate is None or len(trial.token_s) > 1 else rate * model.weight_bytes_a_token


def prefill_flops_per_s(trial: Trial, model: Model, n_prompt: int) -> float | None:
    """Return floating-point operations per second in prefill: two for each weight and token."""
    rate = prefill_tokens_per_s(trial, n_prompt)
    return None if rate is None else 2.0 * model.n_params_a_token * rate


def memory_of(record: Record, n_threads: int) -> MemorySpeed | None:
    """Return what memory gave to so many threads; None where it was not measured."""
    return next((speed for speed in record.memory if speed.n_threads == n_threads), None)


def drift(anchor: Anchor) -> float | None:
    """Return the largest share by which an anchor's sample differs from their median."""
    samples = anchor.decode_tokens_per_s
    if not samples:
        return None
    middle = statistics.median(samples)
    return max(abs(sample / middle - 1.0) for sample in samples)


def plain_cases(record: Record) -> tuple[Case, ...]:
    """Return our own cases without depth, company and neighbour: one for each device and thread count."""
    return tuple(
        case
        for case in record.cases
        if case.engine == OURS and not case.depth and case.concurrency == 1 and not case.neighbour
    )
