"""
PrefixTree: which slots hold how much of a text, found in time that grows with the text, not with the slots.

A radix tree whose edges are blocks of BLOCK ids. A node stands for the ids on the way to it and knows the
slots that begin with them; what a slot holds beyond its last whole block is not in the tree.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

# Below this a shared prefix is an accident (a template's first words), not worth a copy.
BLOCK = 16


class _Node:
    __slots__ = ("children", "key", "parent", "slots")

    def __init__(self, parent: _Node | None, key: bytes) -> None:
        self.parent, self.key = parent, key
        self.children: dict[bytes, _Node] = {}
        self.slots: set[int] = set()


class PrefixTree:
    """
    The tree over some slots, all empty at first.

    Args:
        slots: Their numbers.
    """

    def __init__(self, slots: Iterable[int]) -> None:
        self._root = _Node(None, b"")
        self._paths: dict[int, list[_Node]] = {slot: [] for slot in slots}

    def extend(self, slot: int, held: array[int]) -> None:
        """Enter the whole blocks of `held`, which begins with what was entered for the slot before."""
        path = self._paths[slot]
        node = path[-1] if path else self._root
        for start in range(len(path) * BLOCK, len(held) - BLOCK + 1, BLOCK):
            key = held[start : start + BLOCK].tobytes()
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = _Node(node, key)
            child.slots.add(slot)
            path.append(child)
            node = child

    def cut(self, slot: int, length: int) -> None:
        """Forget the blocks of a slot that reach beyond its first `length` ids."""
        path = self._paths[slot]
        while len(path) * BLOCK > length:
            node = path.pop()
            node.slots.discard(slot)
            if not node.slots:
                assert node.parent is not None
                del node.parent.children[node.key]

    def longest(self, ids: array[int]) -> tuple[int, frozenset[int]]:
        """
        Return how many leading ids some slot holds, in whole blocks, and the slots that hold those.

        Each of these slots may hold up to BLOCK - 1 ids more of the same; the others hold fewer.
        """
        node, n_blocks = self._root, 0
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            child = node.children.get(ids[start : start + BLOCK].tobytes())
            if child is None:
                break
            node, n_blocks = child, n_blocks + 1
        return n_blocks * BLOCK, frozenset(node.slots)

    @property
    def n_nodes(self) -> int:
        """Nodes in the tree, the root not counted."""
        return len({id(node) for path in self._paths.values() for node in path})
