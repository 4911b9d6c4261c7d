"""How much of a chat's prompt its system messages alone decide: what other chats will begin with too."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Any

from gguf_engine.engine.kv_cache import common_prefix
from gguf_engine.errors import GGUFEngineError

_N_REMEMBERED = 16
_PROBES = ("A", "1")


class SystemPrefixes:
    """
    Finds these prefixes, and remembers the last few.

    Args:
        encode: Returns the ids of messages.
    """

    def __init__(self, encode: Callable[[list[Any]], list[int]]) -> None:
        self._encode = encode
        self._known: dict[tuple[tuple[str, str], ...], array[int]] = {}

    def length(self, prompt: Any, prompt_ids: array[int]) -> int:
        """Return how many of a prompt's first ids come from its system messages; 0 without any."""
        if isinstance(prompt, str) or not isinstance(prompt[0], Mapping):
            return 0
        system: list[tuple[str, str]] = []
        for message in prompt:
            if message["role"] not in ("system", "developer"):
                break
            system.append((message["role"], message["content"]))
        if not system:
            return 0
        key = tuple(system)
        prefix = self._known.get(key)
        if prefix is None:
            prefix = self._known[key] = self._probe(system)
            for old in list(self._known)[:-_N_REMEMBERED]:
                self._known.pop(old, None)
        return common_prefix(prefix, prompt_ids)

    def _probe(self, system: list[tuple[str, str]]) -> array[int]:
        """Return what two chats with these messages, and else different ones, have in common."""
        messages = [{"role": role, "content": content} for role, content in system]
        try:
            a, b = (
                array("i", self._encode([*messages, {"role": "user", "content": text}])) for text in _PROBES
            )
        except GGUFEngineError:  # a template that wants other turns: nothing is kept for it
            return array("i")
        return a[: common_prefix(a, b)]
