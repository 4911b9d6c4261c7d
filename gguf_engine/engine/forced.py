"""Forced: an answer that is given. As a constraint it allows nothing else; as a proposer it knows all."""

from __future__ import annotations

from array import array
from collections.abc import Sequence


class Forced:
    """
    A request's whole answer, for its log-probabilities: verified as a draft, many ids a pass.

    Args:
        n_prompt: Ids of the prompt.
        ids: The answer, at least one id.
    """

    def __init__(self, n_prompt: int, ids: Sequence[int]) -> None:
        assert ids
        self._n_prompt, self._ids, self._at = n_prompt, ids, 0
        self.n_max = len(ids)

    def fill_mask(self, mask: bytearray) -> None:
        """See Constraint: the one id. Behind the last one nothing is drawn, so anything will do."""
        mask[:] = bytes(len(mask))
        token_id = self._ids[min(self._at, len(self._ids) - 1)]
        mask[token_id >> 3] = 1 << (token_id & 7)

    def accept(self, token_id: int) -> None:
        """See Constraint."""
        del token_id
        self._at += 1

    def clone(self) -> Forced:
        """See Constraint."""
        copy = Forced(self._n_prompt, self._ids)
        copy._at = self._at
        return copy

    def propose(self, ids: array[int], k: int) -> Sequence[int]:
        """See Proposer: what comes next."""
        at = len(ids) - self._n_prompt
        return self._ids[at : at + k]
