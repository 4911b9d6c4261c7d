"""Text → the control tokens in it and the texts between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import tokenizers

from gguf_engine.errors import TokenizerError
from gguf_engine.text.vocabulary import MAX_ADDED

# Unicode's White_Space, as Rust has it; Python's strip() takes U+001C..U+001F too.
_WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


class ControlTokens:
    """
    Finds control tokens in text, leftmost first and the longest there, as `tokenizers` does.

    Attributes:
        texts: Of all control tokens, the longest first.
        pattern: Matches one of them.
    """

    def __init__(self, built: tokenizers.Tokenizer, special_ids: frozenset[int]) -> None:
        flags = built.get_added_tokens_decoder()
        self._ids: dict[str, int] = {}
        self._lstrip: set[int] = set()
        self._rstrip: set[int] = set()
        for i in sorted(special_ids):
            text = built.id_to_token(i)
            if not text:
                continue
            self._ids[text] = i
            if i in flags and flags[i].lstrip:
                self._lstrip.add(i)
            if i in flags and flags[i].rstrip:
                self._rstrip.add(i)
        self.texts = tuple(sorted(self._ids, key=len, reverse=True))
        self.pattern = _pattern(self.texts)

    def split(self, text: str) -> list[int | str]:
        """Return ids, and the texts between them without white space that a token swallows."""
        parts: list[int | str] = []
        end = 0
        for match in self.pattern.finditer(text):
            token_id = self._ids[match[0]]
            between = text[end : match.start()]
            if parts and parts[-1] in self._rstrip:
                between = between.lstrip(_WHITE_SPACE)
            if token_id in self._lstrip:
                between = between.rstrip(_WHITE_SPACE)
            parts += [between, token_id] if between else [token_id]
            end = match.end()
        rest = text[end:]
        if parts and parts[-1] in self._rstrip:
            rest = rest.lstrip(_WHITE_SPACE)
        return [*parts, rest] if rest else parts


def _pattern(texts: Sequence[str]) -> re.Pattern[str]:
    """
    Return a pattern that matches the longest of the texts, as a tree of their characters.

    Side by side, each of a thousand texts would be tried at every place.
    """
    if len(texts) > MAX_ADDED:
        raise TokenizerError(f"the vocabulary has {len(texts)} control tokens; allowed: {MAX_ADDED}")
    tree: dict[str, Any] = {}
    for text in texts:
        node = tree
        for char in text:
            node = node.setdefault(char, {})
        node[""] = {}
    try:
        return re.compile(_alternatives(tree) if texts else r"(?!)")
    except RecursionError as error:
        raise TokenizerError("the texts of the control tokens branch too often to be told apart") from error


def _alternatives(tree: dict[str, Any]) -> str:
    branches = []
    for chars, node in map(_straight, tree.items()):
        if chars:
            branches.append(re.escape(chars) + (_alternatives(node) if node.keys() - {""} else ""))
    joined = f"(?:{'|'.join(branches)})"
    return joined + "?" if "" in tree else joined


def _straight(branch: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Follow a branch to where it forks or a text ends."""
    chars, node = branch
    while len(node) == 1 and "" not in node:
        ((char, node),) = node.items()
        chars += char
    return chars, node
