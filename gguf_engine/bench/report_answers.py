"""Do two devices or engines say the same: the pairs of a report, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from math import exp, log
from typing import NamedTuple

from gguf_engine.bench.record import OURS, Answers, Record

NOTHING = "–"


class AnswerRow(NamedTuple):
    """What a pair says in words; whether its greedy answers are the same, and how many tokens of them."""

    pair: str
    greedy: str
    top_1: str
    kl: str
    is_same: bool
    n_same: int


def answer_rows(records: Sequence[Record], names: Sequence[str]) -> list[AnswerRow]:
    """
    Return the first of all answers beside each of the others.

    Args:
        records: Their answers are to one prompt and one fixed text.
        names: Of the records; of one record its name is not shown.
    """
    named = list(
        chain.from_iterable(
            ((f"{name}: " if len(records) > 1 else "", answers) for answers in record.answers)
            for record, name in zip(records, names, strict=True)
        )
    )
    if len(named) < 2:
        return []
    (first_run, first), *others = named
    name = f"{first_run}{_place(first)}"
    return [_row(name, first, f"{run}{_place(other)}", other) for run, other in others]


def agreement(rows: Sequence[AnswerRow]) -> list[str]:
    """Return what the pairs come to, in one sentence; nothing of no pairs."""
    if not rows:
        return []
    others = [row for row in rows if not row.is_same]
    if not others:
        return ["All of them give the same greedy answer, token by token."]
    worst = min(others, key=lambda row: row.n_same)
    more = "" if len(others) == 1 else f" {len(others)} pairs differ: the table below has them all."
    return [f"Not all give the same greedy answer: {worst.pair} give {worst.greedy}.{more}"]


def _place(answers: Answers) -> str:
    threads = f", {answers.n_threads} thread{'s' * (answers.n_threads != 1)}"
    device = f"{answers.device}{threads if answers.device == 'cpu' else ''}"
    return device if answers.engine == OURS else f"{answers.engine}, {device}"


def _row(first_name: str, first: Answers, second_name: str, second: Answers) -> AnswerRow:
    one: Sequence[object] = first.greedy_ids
    other: Sequence[object] = second.greedy_ids
    unit = "token"
    if not (one and other):  # some engines show text alone
        one, other, unit = first.greedy_text, second.greedy_text, "character"
    n_same, n_all = same_until(one, other), max(len(one), len(other))
    is_same = n_same == n_all
    greedy = f"other answers from the first {unit} on"
    if is_same:
        greedy = f"the same, all {n_all:,} {unit}s"
    elif n_same:
        greedy = f"the same up to {unit} {n_same:,} of {n_all:,}"
    tops = list(_both_tops(first, second))
    divergences = list(_divergences(first, second))
    share = sum(best == other_best for best, other_best in tops) / len(tops) if tops else None
    mean = sum(divergences) / len(divergences) if divergences else None
    return AnswerRow(
        pair=f"{first_name} and {second_name}",
        greedy=greedy,
        top_1=NOTHING if share is None else f"{share:.1%} of {len(tops):,} positions",
        kl=NOTHING if mean is None else f"{mean:.2g}" if mean >= 1e-9 else "0",
        is_same=is_same,
        n_same=n_same,
    )


def same_until(first: Sequence[object], second: Sequence[object]) -> int:
    """Return how many leading ids, or characters, are equal."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _both_tops(first: Answers, second: Answers) -> Iterator[tuple[int, int]]:
    for one, other in zip(first.top_ids, second.top_ids, strict=False):
        if one and other:
            yield one[0], other[0]


def _divergences(first: Answers, second: Answers) -> Iterator[float]:
    """
    Yield KL(first, second) of each position, over the ids that both list.

    What neither lists is one more outcome: a lower bound of the divergence, close where the lists hold
    nearly all of the probability.
    """
    rows = zip(first.top_ids, first.top_logprobs, second.top_ids, second.top_logprobs, strict=False)
    for ids, logprobs, other_ids, other_logprobs in rows:
        others = dict(zip(other_ids, other_logprobs, strict=True))
        both = [(p, others[i]) for i, p in zip(ids, logprobs, strict=True) if i in others]
        rest, other_rest = (max(1e-9, 1.0 - sum(exp(pair[n]) for pair in both)) for n in (0, 1))
        divergence = sum(exp(p) * (p - q) for p, q in both)
        yield max(0.0, divergence + rest * log(rest / other_rest))
