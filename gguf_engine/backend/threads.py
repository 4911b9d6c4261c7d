"""
ThreadGovernor: how many threads the next forward pass gets, from how long the last ones took.

Threads of one pass wait for each other at every operation, so a neighbour that takes one core slows all of
them. Fewer threads are then faster, and on a small model they may always be. Nobody tells an engine of its
neighbours, so it tries: fewer threads when passes become slow, and now and then other numbers, at a cost
that stays a small share of the work.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from gguf_engine.params import EngineParams

# An epoch is judged by its mean: a neighbour takes a core for milliseconds at a time, so that of short
# passes most are fast and the one that waits costs as much as all others.
EPOCH_PASSES = 4
EPOCH_S = 0.02
LONG_EPOCH_S = 0.25  # of large passes one or two have to do

JUMP = 1.4  # an epoch this much slower than the median of those before it: somebody has come
GAIN = 0.9  # a step is taken if it costs at most this share of what it replaces
HOPELESS = 3.0  # a trial that costs this many times as much ends early
TRIAL_SHARE = 0.02  # of the time may go into trials that gain nothing
FIRST_REST_S = 0.25
MAX_PATIENCE = 4  # rests grow to so many times their length while trials gain nothing
N_KEPT = 8


SMALL_BYTES = 2**23  # a pass takes a fraction of a millisecond; two threads would spend it at barriers


def choose_threads(params: EngineParams, n_processors: int, n_bytes: int) -> tuple[int, int]:
    """
    Return the most threads of a pass over one token, and of one over several.

    Args:
        params: The user's options.
        n_processors: Threads that can run without sharing a core.
        n_bytes: Of the model's weights.
    """
    one = params.n_threads or (1 if n_bytes < SMALL_BYTES else n_processors)
    return one, params.n_threads_batch or params.n_threads or n_processors


def make_governor(
    params: EngineParams, most: tuple[int, int], start: tuple[int, int] | None, n_cells: int
) -> ThreadGovernor | None:
    """
    Return what adapts the threads, None where they stay.

    Args:
        params: The user's options.
        most: What `choose_threads` returned.
        start: What to begin with; None begins with the most.
        n_cells: Of the KV cache.
    """
    if params.adapt_threads == "never":
        return None
    is_free = params.adapt_threads == "always" or is_exact_with_any_threads(params, n_cells)
    return ThreadGovernor(*most, start, one_row=is_free)


def is_exact_with_any_threads(params: EngineParams, n_cells: int) -> bool:
    """
    Return whether passes over one token give the same bits with any number of threads.

    They do but for ggml's flash attention over 512 cells or more of an f16 cache, which cuts the cells
    into as many parts as there are threads, and adds up what the parts give. llama.cpp rounds cells up
    to 256. Passes over several tokens cut rows, never sums.
    """
    return params.flash_attention == "off" or params.kv_cache_type != "f16" or n_cells <= 256


def ladder(n_max: int) -> tuple[int, ...]:
    """Return the thread counts to choose among, ascending: all, one for the neighbour, and ever fewer."""
    return tuple(sorted({max(1, n) for n in (n_max, n_max - 1, n_max * 3 // 4, n_max // 2, n_max // 4, 1)}))


class ThreadGovernor:
    """
    Chooses the number of threads of each pass. Pure: it is told how long passes took, and has no clock.

    Passes of one row, of 2 to 3, of 4 to 7 and so on are kinds of their own: each has its own best number.

    Args:
        n_threads: Most threads of a pass over one token.
        n_threads_batch: Most threads of a pass over several.
        start: The numbers to begin with; None begins with the most.
        one_row: Whether passes over one token adapt; else they have `n_threads`.
    """

    def __init__(
        self,
        n_threads: int,
        n_threads_batch: int,
        start: tuple[int, int] | None = None,
        *,
        one_row: bool = True,
    ) -> None:
        self._kinds: dict[int, _Climber] = {}
        self._most = n_threads, n_threads_batch
        self._start = start or self._most
        if not one_row:
            self._kinds[1] = _Climber((n_threads,), n_threads)

    def n_threads(self, n_tokens: int) -> int:
        """Return how many threads the next pass, over `n_tokens` >= 1, should have."""
        climber = self._kinds.get(n_tokens.bit_length())
        if climber is None:
            is_batch = n_tokens > 1
            climber = _Climber(ladder(self._most[is_batch]), self._start[is_batch])
            self._kinds[n_tokens.bit_length()] = climber
        return climber.n_threads

    def record(self, n_tokens: int, seconds: float) -> None:
        """Learn that the pass which `n_threads` was last asked for took so long."""
        self._kinds[n_tokens.bit_length()].record(n_tokens, seconds)


class _Climber:
    """
    One kind of pass: at home on a rung of the ladder, now and then on trial on another.

    `_costs` are those of the last epochs at home, in seconds a token. Between trials lies a rest, as long
    as what they lost asks for.
    """

    def __init__(self, rungs: tuple[int, ...], start: int) -> None:
        self._rungs = rungs
        self._home = max((i for i, n in enumerate(rungs) if n <= start), default=0)
        self._trial: int | None = None
        self._planned: deque[int] = deque()  # rungs to try right after this trial
        self._n_vain = 0
        self._costs: deque[float] = deque(maxlen=N_KEPT)
        self._rested_s, self._rest_s, self._patience = 0.0, FIRST_REST_S, 1
        self._lost_s = 0.0
        self._is_cold = True
        self.n_threads = rungs[self._home]
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._n_passes, self._n_tokens, self._seconds = 0, 0, 0.0

    def record(self, n_tokens: int, seconds: float) -> None:
        if len(self._rungs) == 1:
            return
        self._n_passes += 1
        self._n_tokens += n_tokens
        self._seconds += seconds
        is_enough = self._n_passes >= EPOCH_PASSES or self._seconds >= LONG_EPOCH_S
        if self._seconds < EPOCH_S or not (is_enough or self._is_hopeless()):
            return
        if self._trial is None:
            self._end_epoch_at_home()
        else:
            self._end_trial(self._trial)
        self._begin_epoch()

    def _is_hopeless(self) -> bool:
        return self._trial is not None and self._seconds > HOPELESS * self._n_tokens * self._usual()

    def _usual(self) -> float:
        """Return the cost at home as it was last: a trial is compared with the time right before it."""
        return min(self._costs[-1], self._costs[-2]) if len(self._costs) > 1 else self._costs[-1]

    def _end_epoch_at_home(self) -> None:
        if self._is_cold:  # weights came from the disk, threads were started
            self._is_cold = False
            return
        cost = self._seconds / self._n_tokens
        has_jumped = len(self._costs) > 1 and cost > JUMP * median(self._costs)
        if has_jumped:
            self._costs.clear()  # what was usual is no more
        self._costs.append(cost)
        self._rested_s += self._seconds
        if has_jumped and self._home > 0 and self._rested_s >= self._rest_s / MAX_PATIENCE:
            self._planned.extend(reversed(range(self._home)))
            self._try(self._planned.popleft())
        elif self._rested_s >= self._rest_s:
            others = sorted(set(range(len(self._rungs))) - {self._home}, key=self._distance)
            self._try(others[self._n_vain % len(others)])

    def _distance(self, rung: int) -> tuple[int, bool]:
        return abs(rung - self._home), rung > self._home

    def _try(self, rung: int | None) -> None:
        """Go on trial; None goes home."""
        self._trial = rung
        self.n_threads = self._rungs[self._home if rung is None else rung]

    def _end_trial(self, rung: int) -> None:
        usual, cost = self._usual(), self._seconds / self._n_tokens
        if cost < GAIN * usual:
            further = 2 * rung - self._home if abs(rung - self._home) == 1 else -1
            self._planned.clear()
            if 0 <= further < len(self._rungs):
                self._planned.append(further)  # one more step this way may gain too
            self._home, self._n_vain, self._patience = rung, 0, 1
            self._costs.clear()
            self._costs.append(cost)
        else:
            self._lost_s += max(0.0, self._seconds - usual * self._n_tokens)
            self._n_vain += 1
        self._try(self._planned.popleft() if self._planned else None)
        if self._trial is None:
            self._rested_s = 0.0
            self._rest_s = self._patience * max(FIRST_REST_S, self._lost_s / TRIAL_SHARE)
            self._patience, self._lost_s = min(2 * self._patience, MAX_PATIENCE), 0.0
