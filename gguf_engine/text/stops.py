"""Text → the text that can no longer begin a stop string; owns what still can."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopMatcher:
    """
    Finds the first stop string in a text that comes in pieces (Aho-Corasick over characters).

    The match that ends first wins, the longest of those that end there. What `push` returned in
    all, and which stop matched, do not depend on how the text was cut.

    Attributes:
        matched: The stop string found, None so far.
    """

    __slots__ = ("_children", "_depths", "_fails", "_firsts", "_found", "_held", "_node", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        """
        Build the automaton.

        Args:
            stops: Non-empty strings; none of them means that every text passes.
        """
        self._children: list[dict[str, int]] = [{}]
        self._depths = [0]
        self._found: list[str | None] = [None]
        for stop in stops:
            self._add(stop)
        self._fails = self._links()
        self._firsts = frozenset(self._children[0])
        self._node = 0
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Return the text that cannot begin a stop any more; after a match the text before it, then ""."""
        if self.matched is not None:
            return ""
        if self._node == 0 and self._firsts.isdisjoint(text):
            return text
        return self._scan(text)

    def flush(self) -> str:
        """Return the held text at the end of everything; "" after a match."""
        held, self._held, self._node = self._held, "", 0
        return held

    def _scan(self, text: str) -> str:
        children, fails, found = self._children, self._fails, self._found
        node = self._node
        for at, char in enumerate(text, 1):
            while node and char not in children[node]:
                node = fails[node]
            node = children[node].get(char, 0)
            stop = found[node]
            if stop is not None:
                self.matched = stop
                whole = self._held + text[:at]
                self._held, self._node = "", 0
                return whole[: len(whole) - len(stop)]
        whole = self._held + text
        self._node = node
        n_free = len(whole) - self._depths[node]
        self._held = whole[n_free:]
        return whole[:n_free]

    def _add(self, stop: str) -> None:
        node = 0
        for char in stop:
            if char not in self._children[node]:
                self._children[node][char] = len(self._children)
                self._children.append({})
                self._depths.append(self._depths[node] + 1)
                self._found.append(None)
            node = self._children[node][char]
        self._found[node] = stop

    def _links(self) -> list[int]:
        """Link each node to the longest proper suffix that is a node too; pass its stop on."""
        fails = [0] * len(self._children)
        queue = deque(self._children[0].values())
        while queue:
            node = queue.popleft()
            for char, child in self._children[node].items():
                back = fails[node]
                while back and char not in self._children[back]:
                    back = fails[back]
                fails[child] = self._children[back].get(char, 0)
                queue.append(child)
            # A node's own stop is longer than any of its suffixes.
            if self._found[node] is None:
                self._found[node] = self._found[fails[node]]
        return fails
