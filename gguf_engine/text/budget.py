"""
What one rendering of a chat template may use: steps, processor time, memory, size, depth.

A sandbox stops a template from reaching out; this stops it from using the machine up. Every piece of
work that a template asks for is charged before it is done, in the thread that asks: no signal, no
second thread, the same on every system. State: one Budget a rendering, in a context variable.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any, TypeVar

from jinja2.utils import Namespace

MAX_STEPS = 2**20
"""Loop turns, calls and operations of one rendering; long texts count for more."""
MAX_CPU_S = 0.8
"""Processor time of one rendering, in seconds: a busy neighbour takes nothing from it."""
MAX_TEXT_CHARS = 2**20
"""Characters of one text, the result among them."""
MAX_MADE_BYTES = 2**27
"""Bytes of all texts and lists made during one rendering, also of those dropped since."""
MAX_TREE_NODES = 2**17
"""Values inside a value that is printed, compared, sorted or searched."""
MAX_TREE_CHARS = 2**22
"""Characters inside such a value."""
MAX_TREE_DEPTH = 64
"""Lists within lists of such a value."""
MAX_CALL_DEPTH = 64
"""Macros and recursive loops inside one another."""
MAX_INT_BITS = 4096

_CHARS_A_STEP = 8  # as a shift: 256 characters are one step
_NODES_A_STEP = 3
_STEPS_BETWEEN_LOOKS = 1024
_SMALL_TEXT_BYTES = 56
_Value = TypeVar("_Value")


class LimitError(Exception):
    """A template asked for more than one rendering may use; the message is the end of a sentence."""


class Budget:
    """
    Counts what one rendering uses, and refuses the rest.

    Attributes:
        steps: Used so far.
        made_bytes: Of texts and lists made so far.
        depth: Macros and recursive loops that run now, one inside the other.
    """

    __slots__ = ("_end_cpu_s", "_next_look", "depth", "made_bytes", "steps")

    def __init__(self) -> None:
        self.steps = self.made_bytes = self.depth = 0
        self._next_look = _STEPS_BETWEEN_LOOKS
        self._end_cpu_s = time.thread_time() + MAX_CPU_S

    def charge(self, steps: int) -> None:
        """Count steps, a number >= 0; raise LimitError beyond MAX_STEPS or MAX_CPU_S."""
        self.steps += steps
        if self.steps < self._next_look:
            return
        if self.steps > MAX_STEPS:
            raise LimitError(f"takes more than {MAX_STEPS} steps")
        if time.thread_time() > self._end_cpu_s:
            raise LimitError(f"takes more than {MAX_CPU_S} s of processor time")
        self._next_look = self.steps + _STEPS_BETWEEN_LOOKS

    def reserve(self, n_chars: int) -> None:
        """Refuse a text of n_chars before it is made."""
        if n_chars > MAX_TEXT_CHARS:
            raise LimitError(f"makes a text of {n_chars} characters; allowed: {MAX_TEXT_CHARS}")

    def made(self, value: _Value, n_texts: int = 0) -> _Value:
        """Count a value just made, with n_texts short texts inside that are new too; return it."""
        if isinstance(value, str):
            self.reserve(len(value))
        elif isinstance(value, int):
            if value.bit_length() > MAX_INT_BITS:
                raise LimitError(f"makes a number of {value.bit_length()} bits; allowed: {MAX_INT_BITS}")
            self.charge(1)
            return value
        n_bytes = sys.getsizeof(value) + n_texts * _SMALL_TEXT_BYTES
        self.made_bytes += n_bytes
        if self.made_bytes > MAX_MADE_BYTES:
            raise LimitError(f"makes texts and lists of more than {MAX_MADE_BYTES} bytes")
        self.charge(1 + (n_bytes >> _CHARS_A_STEP))
        return value

    def read(self, value: _Value) -> _Value:
        """Count the cost of reading a value whole (to compare, search, print or hash it); return it."""
        kind = type(value)
        if isinstance(value, str):
            self.charge(1 + (len(value) >> _CHARS_A_STEP))
        elif kind in (list, tuple, dict):
            self._walk(value)
        elif kind is range:
            self.charge(1 + (len(value) >> _NODES_A_STEP))  # type: ignore[arg-type]
        elif kind is Namespace:
            raise LimitError("prints or compares a namespace")
        return value

    def text(self, value: object) -> str:
        """Return a value as text, read and counted."""
        if type(value) is str:
            return value
        return self.made(str(self.read(value)))

    def items(self, values: Any) -> list[Any]:
        """Return what an iterable gives as a list, each item a step."""
        if hasattr(values, "__len__"):
            self.charge(len(values))
            return self.made(list(values), len(values) if isinstance(values, str) else 0)
        items = []
        for item in values:
            self.charge(1)
            items.append(item)
        return self.made(items)

    @contextmanager
    def deeper(self) -> Iterator[None]:
        """Run a macro or a recursive loop inside."""
        if self.depth >= MAX_CALL_DEPTH:
            raise LimitError(f"calls macros more than {MAX_CALL_DEPTH} deep")
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def _walk(self, value: object) -> None:
        """Visit a nested value; one that holds itself many times over is as large as it prints."""
        levels: list[Iterator[Any]] = [iter((value,))]
        n_nodes = n_chars = 0
        while levels:
            for item in levels[-1]:
                n_nodes += 1
                kind = type(item)
                if isinstance(item, str):
                    n_chars += len(item)
                elif kind is dict:
                    levels.append(chain(item, item.values()))
                    break
                elif kind in (list, tuple):
                    levels.append(iter(item))
                    break
                elif kind is Namespace:
                    raise LimitError("prints or compares a namespace")
                if n_nodes > MAX_TREE_NODES:
                    break
            else:
                levels.pop()
            if n_nodes > MAX_TREE_NODES or n_chars > MAX_TREE_CHARS:
                raise LimitError(
                    f"reads a value of more than {MAX_TREE_NODES} parts or {MAX_TREE_CHARS} characters"
                )
            if len(levels) > MAX_TREE_DEPTH:
                raise LimitError(f"reads a value nested more than {MAX_TREE_DEPTH} deep")
        self.charge(1 + (n_nodes >> _NODES_A_STEP) + (n_chars >> _CHARS_A_STEP))


_current: ContextVar[Budget] = ContextVar("template_budget")


def current() -> Budget:
    """Return the budget of the rendering that runs in this thread."""
    return _current.get()


@contextmanager
def metered() -> Iterator[Budget]:
    """Give what runs inside a fresh budget."""
    budget = Budget()
    token = _current.set(budget)
    try:
        yield budget
    finally:
        _current.reset(token)
