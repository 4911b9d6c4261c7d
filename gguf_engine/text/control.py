"""Text → the control tokens in it and the texts between them."""

from __future__ import annotations

import re

import tokenizers

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
        self.pattern = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")

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
