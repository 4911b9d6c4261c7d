"""
Proposers: guesses at the next ids, verified in one forward pass.

A draft is kept while the target's own seeded draw equals it, so the ids are those that plain decoding
would have given, at any temperature.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol


class Proposer(Protocol):
    """Whatever can guess how a sequence goes on."""

    n_max: int
    """Most ids to propose at once, >= 1."""

    def propose(self, ids: array[int], k: int) -> Sequence[int]:
        """Return at most `k` ids that may follow `ids` (prompt and answer); none is a fine answer."""
