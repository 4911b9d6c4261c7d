"""
How many ids to guess: what passes cost, how often guesses are right, and what follows from the two.

Everything is learned from passes that were made anyway. No clock is read here, so the arithmetic is exact
in tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as SequenceABC

# Guesses that are less likely than this to be right, all of them up to there, are not worth a row.
MIN_CHANCE = 0.02
# Numbers of guesses that are tried: rows beyond a few cost in steps.
LADDER = (1, 2, 3, 5, 7, 11, 15, 23, 31, 47, 63, 95, 127)
# A cost that is this many passes old is measured again: contexts grow, neighbours come and go.
FRESH_PASSES = 256
_N_SAMPLES = 5
_N_EXACT = 16


class Rate:
    """
    The share of guesses that were right lately, in (0, 1).

    Args:
        memory: About how many guesses it remembers.
        prior: Another rate, which is told the same.
        start: What it begins with, counted as `_PRIOR_WEIGHT` guesses; None for what the prior has come to.
    """

    __slots__ = ("_memory", "_n", "_n_right", "_prior", "value")

    _PRIOR_WEIGHT = 4.0

    def __init__(self, memory: int, prior: Rate | None = None, start: float | None = None) -> None:
        self._memory, self._prior = memory, prior
        if start is None:
            start = 0.5 if prior is None else prior.value
        self.value: float = start
        self._n, self._n_right = self._PRIOR_WEIGHT, self._PRIOR_WEIGHT * self.value

    def add(self, is_right: bool) -> None:
        """Count one more guess."""
        n = self._n + 1
        self._n_right += is_right
        if n > self._memory:
            self._n_right *= 0.5
            n *= 0.5
        self._n = n
        self.value = self._n_right / n
        if self._prior is not None:
            self._prior.add(is_right)


class PassCosts:
    """Seconds that a pass takes by its number of rows: medians of the last few real ones."""

    def __init__(self) -> None:
        self._samples: dict[int, list[float]] = {}
        self._medians: dict[int, float] = {}
        self._measured_at: dict[int, int] = {}
        self._n_passes = 0

    def record(self, n_rows: int, seconds: float) -> None:
        """Learn from one pass."""
        self._n_passes += 1
        key = _bucket(n_rows)
        samples = self._samples.get(key)
        if samples is None or self._n_passes - self._measured_at[key] > FRESH_PASSES:
            samples = self._samples[key] = []
        samples.append(seconds)
        del samples[:-_N_SAMPLES]
        # What disturbs a pass makes it longer: of two or three the shortest is the truest.
        ordered = sorted(samples)
        self._medians[key] = ordered[(len(ordered) - 1) // 2] if len(ordered) > 3 else ordered[0]
        self._measured_at[key] = self._n_passes

    def seconds(self, n_rows: int) -> float | None:
        """Return what a pass of `n_rows` takes; None when none was made lately."""
        key = _bucket(n_rows)
        at = self._measured_at.get(key)
        return None if at is None or self._n_passes - at > FRESH_PASSES else self._medians[key]


def _bucket(n_rows: int) -> int:
    """Return a number that stands for all numbers of rows near this one: exact, then to an eighth."""
    if n_rows <= _N_EXACT:
        return n_rows
    step = 1 << (n_rows.bit_length() - 4)
    return -(-n_rows // step) * step


def choose_lengths(
    chances: SequenceABC[SequenceABC[float]],
    costs: PassCosts,
    n_spare: Callable[[], int],
    guess_seconds: Callable[[int], float],
) -> list[int]:
    """
    Return how many guesses of each sequence the next pass should verify.

    Maximises the product of the sequences' tokens a second (proportional fairness), so that one that
    copies does not slow down the others by more than it gains; for one sequence that is its speed. A
    number of rows that was not measured lately is taken for as cheap as the next smaller one that was,
    and only the first such on the ladder is tried: what guesses cost is found out step by step.

    Args:
        chances: For each sequence of the pass, how likely its first 1, 2, ... guesses are all right.
        costs: What passes cost.
        n_spare: Returns the rows that the pass has left.
        guess_seconds: What making that many guesses for one sequence takes.

    Returns:
        A number for each sequence, 0 where guessing does not pay.
    """
    n_sequences = len(chances)
    n_guessing = sum(map(bool, chances))
    plain = costs.seconds(n_sequences)
    if plain is None or not n_guessing:
        return [0] * n_sequences
    # The usual case first: not even all the guesses would make up for the first one's row.
    least = (costs.seconds(n_sequences + 1) or plain) + guess_seconds(1)
    if sum(math.log1p(sum(each)) for each in chances) <= n_sequences * math.log(least / plain):
        return [0] * n_sequences
    steps = sorted(_gains(chances), reverse=True)[: max(0, n_spare())]
    if not steps:
        return [0] * n_sequences
    best, n_best = 0.0, 0
    gain, n_gained, floor, has_tried = 0.0, 0, plain, False
    for n in [*(n for n in LADDER if n < len(steps)), len(steps)]:
        gain += sum(step[0] for step in steps[n_gained:n])
        n_gained = n
        seconds = costs.seconds(n_sequences + n)
        if seconds is not None:
            floor = max(floor, seconds)
        elif has_tried:
            continue
        has_tried = has_tried or seconds is None
        total = floor if seconds is None else seconds
        total += guess_seconds(-(-n // n_guessing))
        value = gain - n_sequences * math.log(total / plain)
        if value > best:
            best, n_best = value, n
    lengths = [0] * n_sequences
    for _, index in steps[:n_best]:
        lengths[index] += 1
    return lengths


def _gains(chances: SequenceABC[SequenceABC[float]]) -> list[tuple[float, int]]:
    """Return what each guess adds to the logarithm of its sequence's expected ids, and whose it is."""
    gains = []
    for index, each in enumerate(chances):
        expected = 1.0
        for chance in each:
            gains.append((math.log1p(chance / expected), index))
            expected += chance
    return gains
