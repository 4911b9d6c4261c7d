"""The seam for grammars: which ids may come next, given the ids that were committed."""

from __future__ import annotations

from typing import Protocol


class Constraint(Protocol):
    """
    A position in a grammar.

    It moves only by `accept`, which the engine calls with committed ids: a draft is tried on a
    `clone`.
    """

    def fill_mask(self, mask: bytearray) -> None:
        """
        Write which ids may come next.

        Args:
            mask: (n_vocab + 31) // 32 little-endian uint32 words, overwritten; bit i % 32 of word
                i // 32 is set when id i is allowed. Bits past n_vocab are 0.
        """

    def accept(self, token_id: int) -> None:
        """Move past an id that the mask allowed."""

    def clone(self) -> Constraint:
        """Return an independent copy at the same position."""
