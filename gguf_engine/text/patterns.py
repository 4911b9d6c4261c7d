"""Which regular expressions of a tokenizer.json are run: those that cannot take long on any text."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from gguf_engine.text.pretokenizers import PRE_TOKENIZERS

MAX_PATTERN_CHARS = 4096
MAX_NESTING = 16
MAX_CHOICES = 8
"""Optional parts of an alternative before its first `*` or `+`: each doubles what may be tried."""
MAX_SHORT_REPEAT = 8
MAX_REPEAT = 1024

# Alternatives of published tokenizers, and of the models that llama.cpp knows, that break the rules
# below and are harmless: each tries again over one run of one kind of character at most.
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED = tuple(
    f"{_LEAD}[{_UPPER}{less}]{upper}[{_LOWER}{less}]{lower}{ending}"
    for less in ("", r"&&[^\p{Han}]")
    for upper, lower in ("*+", "+*")
    for ending in (
        "",
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    )
)
_PUBLISHED = (
    *_CASED,
    r"\s*[\r\n]",
    r"\s+$",
    r"^\s+",
    r"\s+(?!\S)",
    r"(?=(\d{3})+(?!\d))",
    r"\d{1,3}(?=(?:\d{3})*\b)",
    r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
    r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    r"<sentinel:[0-9]+>",
)
_SPELLED = {ord("\r"): r"\r", ord("\n"): r"\n", ord("\t"): r"\t"}
"""Published patterns hold these as they are or as escapes."""
_COUNT = re.compile(r"\{(\d{0,6})(,?)(\d{0,6})\}")
_GROUP = re.compile(r"\?(?:[imsx-]*:|>|=|!|<=|<!|<[A-Za-z_]\w*>)")
_FLAGS = re.compile(r"\?[imsx-]+\)")
_ESCAPE = re.compile(
    r"\\(?:[pP]\{\^?[\w ]{1,64}\}|x\{[0-9A-Fa-f]{1,8}\}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|[^1-9gkGKXRO])",
    re.DOTALL,
)


class PatternError(ValueError):
    """Why a pattern is not run; the message is the end of a sentence."""


class _Part(NamedTuple):
    """What can be repeated: a character, a class or a group."""

    is_open: bool  # holds `*` or `+`
    varies: bool  # can match in more than one way
    size: int = 1  # characters it matches, counted repetitions written out


def check_pattern(pattern: str) -> None:
    """
    Refuse a regular expression that could try a text over and over.

    An alternative that a published tokenizer has is taken as it is. In any other, what follows the
    first `*` or `+` has to be optional, so that no match ever has to be given back, and nothing that
    matches in several ways is repeated: the time grows with the text and no faster.

    Raises:
        PatternError: With the reason.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise PatternError(f"has {len(pattern)} characters; allowed: {MAX_PATTERN_CHARS}")
    known = _known()
    for alternative in _alternatives(pattern.translate(_SPELLED)):
        if alternative not in known:
            _Reader(alternative).check()


@cache
def _known() -> frozenset[str]:
    published = [*_PUBLISHED, *(regex for family in PRE_TOKENIZERS.values() for regex in family.regexes)]
    return frozenset(alternative for regex in published for alternative in _alternatives(regex))


def _alternatives(pattern: str) -> list[str]:
    """Cut a pattern at the `|` that are in no group and no class."""
    found, begin, depth, at = [], 0, 0, 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 1
        elif char == "[":
            at = _class_end(pattern, at) - 1
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == "|" and depth == 0:
            found.append(pattern[begin:at])
            begin = at + 1
        at += 1
    return [*found, pattern[begin:]]


def _class_end(pattern: str, at: int) -> int:
    """Return where the class that begins at `at` ends; classes nest."""
    depth = 0
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "[":
            depth += 1
            if pattern[at + 1 : at + 2] == "^":
                at += 1
            if pattern[at + 1 : at + 2] == "]":
                at += 1  # the first one stands for itself
        elif pattern[at] == "]":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    raise PatternError("has a class without an end")


class _Reader:
    def __init__(self, pattern: str) -> None:
        self._pattern, self._at = pattern, 0

    def check(self) -> None:
        self._group(0)
        if self._at < len(self._pattern):
            raise PatternError("has a parenthesis too many")

    def _group(self, depth: int) -> _Part:
        """Read alternatives up to a closing parenthesis or the end."""
        if depth > MAX_NESTING:
            raise PatternError(f"nests more than {MAX_NESTING} groups")
        is_open, varies, size = False, False, 0
        while True:
            part = self._sequence(depth)
            is_open, varies, size = is_open or part.is_open, varies or part.varies, size + part.size
            if self._pattern[self._at : self._at + 1] != "|":
                return _Part(is_open, varies, size)
            self._at += 1
            varies = True

    def _sequence(self, depth: int) -> _Part:
        is_open, n_choices, size = False, 0, 0
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            part = self._part(depth)
            low, high = self._repeats()
            if part.varies and high > 1:
                raise PatternError("repeats what can match in several ways")
            if is_open and low > 0:
                raise PatternError("goes on after * or +, with what may not match")
            if low != high or part.varies:
                n_choices += 1
            if n_choices > MAX_CHOICES:
                raise PatternError(f"has more than {MAX_CHOICES} parts that can match in several ways")
            size += part.size * (low if high > MAX_REPEAT else high)
            if size > MAX_PATTERN_CHARS:
                raise PatternError(f"is longer than {MAX_PATTERN_CHARS} characters when written out")
            is_open = is_open or part.is_open or (low != high and high > MAX_SHORT_REPEAT)
        return _Part(is_open, n_choices > 0, size)

    def _part(self, depth: int) -> _Part:
        pattern, at = self._pattern, self._at
        if pattern[at] == "(":
            return self._parenthesis(depth)
        if pattern[at] == "[":
            self._at = _class_end(pattern, at)
        elif pattern[at] == "\\":
            escape = _ESCAPE.match(pattern, at)
            if escape is None:
                raise PatternError(f"holds {pattern[at : at + 2]!r}")
            self._at = escape.end()
        elif pattern[at] in "*+?":
            raise PatternError("repeats nothing")
        else:
            self._at += 1
        return _Part(is_open=False, varies=False)

    def _parenthesis(self, depth: int) -> _Part:
        self._at += 1
        kind = ""
        if self._pattern[self._at : self._at + 1] == "?":
            if flags := _FLAGS.match(self._pattern, self._at):
                self._at = flags.end()
                return _Part(is_open=False, varies=False)
            group = _GROUP.match(self._pattern, self._at)
            if group is None:
                raise PatternError(f"holds {self._pattern[self._at - 1 : self._at + 2]!r}")
            kind, self._at = group[0], group.end()
        part = self._group(depth + 1)
        if self._pattern[self._at : self._at + 1] != ")":
            raise PatternError("has a group without an end")
        self._at += 1
        if part.is_open and kind in ("?=", "?!", "?<=", "?<!"):
            raise PatternError("looks ahead or back without an end")
        return part

    def _repeats(self) -> tuple[int, int]:
        """Read what follows a part; return how often it matches at least and at most."""
        pattern, at = self._pattern, self._at
        sign = pattern[at : at + 1]
        endless = MAX_REPEAT + 1
        low, high = {"*": (0, endless), "+": (1, endless), "?": (0, 1)}.get(sign, (1, 1))
        if sign and sign in "*+?":
            # Lazy or possessive.
            self._at += 2 if pattern[at + 1 : at + 2] in ("?", "+") else 1
        elif count := _COUNT.match(pattern, at):
            low = int(count[1] or 0)
            high = int(count[3]) if count[3] else endless if count[2] else low
            if max(low, high if count[3] else 0) > MAX_REPEAT:
                raise PatternError(f"repeats more than {MAX_REPEAT} times")
            self._at = count.end()
        if self._at > at and pattern[self._at : self._at + 1] in ("*", "+", "?", "{"):
            raise PatternError("repeats a repetition")
        return low, high
