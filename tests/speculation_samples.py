"""A backend that says what it is told to and a clock that its passes move: speculation without chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from random import Random
from typing import Any

from gguf_engine.backend.base import Batch, Rows
from gguf_engine.backend.fake import FakeBackend

# Seconds of a pass by its rows, as measured on two cores with a model of Phi-3-mini's shape: 1 row is 1.
TWO_CORES = {1: 1.0, 2: 1.8, 4: 2.9, 8: 4.9, 16: 6.1, 32: 10.0, 64: 17.0}


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def cost_of(costs: Mapping[int, float], n_rows: int) -> float:
    """Return seconds between the two measured points; beyond the last in proportion."""
    points = sorted(costs.items())
    for (low, at_low), (high, at_high) in pairwise(points):
        if low <= n_rows <= high:
            return at_low + (at_high - at_low) * (n_rows - low) / (high - low)
    rows, at_last = points[-1]
    return at_last * n_rows / rows


class Scripted(FakeBackend):
    """
    Continues each prompt as it is told to, whatever it was given before.

    Args:
        scripts: Prompts with their answers; they differ in their first id.
        clock: Moved by each pass.
        costs: Seconds of a pass by its rows.
    """

    def __init__(
        self,
        scripts: Sequence[Sequence[int]],
        clock: Clock | None = None,
        costs: Mapping[int, float] = TWO_CORES,
        **sizes: Any,
    ) -> None:
        n_vocab = 1 + max(map(max, scripts))
        n_ctx = 8 + max(map(len, scripts))
        super().__init__(**{"n_vocab": n_vocab, "n_ctx": n_ctx, "n_cells": 8 * n_ctx, **sizes})
        self._scripts = {script[0]: script for script in scripts}
        self._clock, self._costs = clock or Clock(), costs
        self.n_rows: list[int] = []

    def forward(self, batch: Batch) -> Rows:
        """See Backend."""
        self._clock.now += cost_of(self._costs, len(batch))
        self.n_rows.append(len(batch))
        return super().forward(batch)

    def _fill(self, row: Rows, slot: int) -> None:
        held = self.held(slot)
        script = self._scripts[held[0]]
        row[:] = 0.0
        row[script[len(held)] if len(held) < len(script) else 0] = 50.0


class Steps(Clock):
    """A clock that each pass moves by one of some steps; by one alone, all passes take the same."""

    def __init__(self, dice: Random, sizes: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self._dice, self._sizes = dice, sizes

    def step(self) -> None:
        self.now += self._dice.choice(self._sizes)


class Habitual(FakeBackend):
    """
    A FakeBackend that mostly lets the same id follow the same id: what it says can be guessed.

    Args:
        clock: Moved by each pass; None takes no time.
        sizes: As FakeBackend.
    """

    def __init__(self, clock: Steps | None = None, **sizes: Any) -> None:
        super().__init__(**sizes)
        self._clock = clock

    def forward(self, batch: Batch) -> Rows:
        """See Backend."""
        if self._clock is not None:
            self._clock.step()
        return super().forward(batch)

    def _fill(self, row: Rows, slot: int) -> None:
        super()._fill(row, slot)
        row[(5 * self.held(slot)[-1] + 1) % self.n_vocab] += 5
