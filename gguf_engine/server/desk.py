"""Who may come in: so many answers run, so many wait, and more are told to come again."""

from __future__ import annotations

from typing import Protocol

from gguf_engine.server.errors import QueueFullError, RefusedError

_MAX_RETRY_S = 60.0


class Running(Protocol):
    """What runs for a request."""

    def cancel(self) -> None:
        """End it soon."""


class Desk:
    """
    Counts the answers that run and wait. Used from the event loop alone.

    Args:
        n_slots: Answers that run at once.
        max_queue: Answers that may wait.
    """

    def __init__(self, n_slots: int, max_queue: int) -> None:
        self._n_slots, self._max_queue = n_slots, max_queue
        self._mean_s = 1.0
        self._n_taken = 0
        self._answers: set[Running] = set()
        self._is_closing = False

    def take(self, n: int) -> None:
        """
        Take places for `n` answers; to be given back with `give_back`.

        Raises:
            RefusedError: No places are left, there are never so many, or the server ends.
        """
        room = self._n_slots + self._max_queue
        if self._is_closing:
            raise RefusedError(503, "shutting_down", "the server is shutting down")
        if n > room:
            message = f"{n} answers are asked for at once; this server has room for {room}"
            raise RefusedError(400, "invalid_value", message, param="n")
        if self._n_taken + n > room:
            n_waiting = max(0, self._n_taken - self._n_slots)
            # When so many have finished that this one fits.
            turns = (self._n_taken + n - room) / self._n_slots
            raise QueueFullError(
                min(self._n_taken, self._n_slots), n_waiting, min(_MAX_RETRY_S, self._mean_s * turns)
            )
        self._n_taken += n

    def give_back(self, n: int, took_s: float) -> None:
        """Give `n` places back that were held for so long."""
        self._n_taken -= n
        self._mean_s += 0.1 * (took_s - self._mean_s)

    def watch(self, answer: Running) -> None:
        """Remember a running answer, for `end_all`."""
        self._answers.add(answer)

    def forget(self, answer: Running) -> None:
        """Forget one that has ended."""
        self._answers.discard(answer)

    def close(self) -> None:
        """Let nobody in any more."""
        self._is_closing = True

    def end_all(self) -> None:
        """Cancel what still runs."""
        self.close()
        for answer in self._answers:
            answer.cancel()
