"""
The filters, tests, methods and functions that a chat template has: all of them, each charged.

A list of what may be called, not of what may not: the 57 published templates that were read use less
than half of it. State: none; each charges the Budget of the rendering that calls it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import wraps
from typing import Any, NoReturn

from jinja2 import filters, pass_environment
from jinja2 import tests as jinja_tests
from jinja2.exceptions import FilterArgumentError, SecurityError
from jinja2.filters import make_attrgetter
from jinja2.sandbox import safe_range
from jinja2.utils import Namespace
from markupsafe import Markup

from gguf_engine.text import metering
from gguf_engine.text.budget import LimitError, current

MAX_INDENT = 64
MAX_DATE_CHARS = 256
MAX_DIGITS = 4096

# A width, as in %9999Y, would be filled with zeros.
_DATE = re.compile(r"(?:[^%]|%[-#]?[A-Za-z%])*")
_Function = Callable[..., Any]
_words = str.split


class RaisedByTemplateError(Exception):
    """A template called `raise_exception`."""


class Method:
    """A method of a text or a dict, as a template gets it: never the real one."""

    __slots__ = ("function", "name", "owner")

    def __init__(self, owner: object, name: str, function: _Function) -> None:
        self.owner, self.name, self.function = owner, name, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function on the owner."""
        return self.function(self.owner, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<method {self.name}>"


def _linear(function: _Function) -> _Function:
    """Charge a function whose cost and result grow with the size of what it reads, and no faster."""

    @wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        budget = current()
        for value in (*args, *kwargs.values()):
            budget.read(value)
        result = function(*args, **kwargs)
        if isinstance(result, Iterator):
            return budget.items(result)
        # Any other kind is an item of what was there before.
        return budget.made(result) if isinstance(result, (str, int, list)) else result

    return charged


def _splits(function: _Function) -> _Function:
    """Charge a method that cuts a text in many."""

    @wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        budget = current()
        for value in args:
            budget.read(value)
        parts = function(*args, **kwargs)
        return budget.made(parts, len(parts))

    return charged


def _join(separator: str, values: Any) -> str:
    budget = current()
    texts = [budget.text(value) for value in budget.items(values)]
    budget.reserve(sum(map(len, texts)) + len(separator) * max(0, len(texts) - 1))
    return budget.made(separator.join(texts))


def _join_texts(separator: str, values: Any) -> str:
    """Join as `str.join` does: what is no text is refused."""
    values = current().items(values)
    wrong = next((value for value in values if not isinstance(value, str)), None)
    if wrong is not None:
        raise TypeError(f"join got a {type(wrong).__name__}; allowed: texts")
    return _join(separator, values)


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    budget = current()
    found = budget.read(text).count(budget.read(old))
    found = found if count < 0 else min(found, count)
    budget.reserve(len(text) + found * (len(new) - len(old)))
    return budget.made(text.replace(old, new, count))


@pass_environment
def _join_filter(environment: Any, value: Any, d: Any = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return _join(current().text(d), value)


def _replace_filter(s: Any, old: Any, new: Any, count: int | None = None) -> str:
    text = current().text
    return _replace(text(s), text(old), text(new), -1 if count is None else count)


def _indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    budget = current()
    text = budget.read(budget.text(s))
    n_chars = len(width) if isinstance(width, str) else width
    if n_chars > MAX_INDENT:
        raise LimitError(f"indents by {n_chars} characters; allowed: {MAX_INDENT}")
    budget.reserve(len(text) + n_chars * (1 + len(budget.made(text.splitlines()))))
    return budget.made(filters.do_indent(text, width, first, blank))


def _int(value: Any, default: Any = 0, base: int = 10) -> Any:
    if isinstance(value, str) and len(value) > MAX_DIGITS:
        raise LimitError(f"reads a number of {len(value)} digits; allowed: {MAX_DIGITS}")
    return current().made(filters.do_int(value, default, base))


def _round(value: Any, precision: int = 0, method: Any = "common") -> Any:
    if not -20 <= precision <= 20:
        raise FilterArgumentError(f"round to {precision} digits; allowed: -20..20")
    return filters.do_round(value, precision, method)


def _text(value: Any) -> str:
    return current().text(value)


def _safe(value: Any) -> str:
    return Markup(current().text(value))  # noqa: S704 - a text for a model, no HTML


def _list(value: Any) -> list[Any]:
    return current().items(value)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which models were not trained on.
    for extra in (indent, *(separators or ())):
        if (len(extra) if isinstance(extra, str) else extra or 0) > MAX_INDENT:
            raise LimitError(f"writes JSON with more than {MAX_INDENT} characters between values")
    budget = current()
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    budget.read(value)
    if indent is None:
        return budget.made(encoder.encode(value))
    chunks, n_chars = [], 0
    for chunk in encoder.iterencode(value):
        # An indent alone can make a value a hundred times as long.
        n_chars += len(chunk)
        budget.reserve(n_chars)
        budget.charge(1)
        chunks.append(chunk)
    return budget.made("".join(chunks))


def _items(value: dict[Any, Any]) -> list[tuple[Any, Any]]:
    return current().made([*value.items()], len(value))


def _get(value: dict[Any, Any], key: Any, default: Any = None) -> Any:
    return value.get(current().read(key), default)


def _dict(*pairs: Any, **values: Any) -> dict[Any, Any]:
    budget = current()
    for value in pairs:
        budget.read(value)
    return budget.made(dict(*pairs, **values))


def _namespace(*pairs: Any, **values: Any) -> Namespace:
    return Namespace(_dict(*pairs, **values))


def _raise_exception(message: object) -> NoReturn:
    raise RaisedByTemplateError(current().text(message))


def _strftime_now(layout: str) -> str:
    if len(layout) > MAX_DATE_CHARS or not _DATE.fullmatch(layout):
        raise SecurityError(f"strftime_now takes {MAX_DATE_CHARS} characters, without widths such as %9Y")
    return datetime.now(tz=timezone.utc).astimezone().strftime(layout)


# What metering.py puts in.


def _made(value: Any) -> Any:
    return current().made(value)


def _read(value: Any) -> Any:
    return current().read(value)


def each(values: Any, steps: int = 1) -> Any:
    """Return what a loop runs over, with all its turns charged before the first."""
    budget = current()
    if not hasattr(values, "__len__"):
        values = budget.items(values)
    budget.charge(1 + len(values) * max(1, steps))
    return values


def _cut(value: Any, start: Any, stop: Any, step: Any) -> Any:
    part = value[start:stop:step]
    return current().made(part) if isinstance(part, (str, list, tuple)) else part


def joined(values: Any) -> str:
    """Return the texts of values, one after another."""
    return _join("", values)


def _steps(steps: int) -> str:
    current().charge(max(0, steps))
    return ""


_JINJA_FILTERS = _words(
    "abs capitalize dictsort float items lower map max min reject rejectattr reverse select "
    "selectattr sort title trim unique upper wordcount"
)

_JINJA: dict[str, Any] = filters.FILTERS
FILTERS: dict[str, _Function] = {
    **{name: _linear(_JINJA[name]) for name in _JINJA_FILTERS},
    # These read nothing of what a value holds.
    **{name: _JINJA[name] for name in ("d", "default", "first", "last", "length", "count")},
    "join": _join_filter,
    "replace": _replace_filter,
    "indent": _indent,
    "int": _int,
    "round": _round,
    "string": _text,
    "safe": _safe,
    "list": _list,
    "tojson": _tojson,
    metering.MADE: _made,
    metering.READ: _read,
    metering.EACH: each,
    metering.CUT: _cut,
    metering.JOINED: joined,
    metering.STEPS: _steps,
}

_PLAIN_TESTS = _words(
    "boolean callable defined divisibleby even false float integer iterable mapping none number odd "
    "sameas sequence string true undefined"
)
_READING_TESTS = _words("== != < <= > >= eq equalto ge greaterthan gt in le lessthan lower lt ne upper")

_JINJA_TESTS: dict[str, Any] = jinja_tests.TESTS
TESTS: dict[str, _Function] = {
    **{name: _JINJA_TESTS[name] for name in _PLAIN_TESTS},
    **{name: _linear(_JINJA_TESTS[name]) for name in _READING_TESTS},
}

_LINEAR_METHODS = _words(
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower "
    "isnumeric isspace istitle isupper lower lstrip removeprefix removesuffix rfind rindex rstrip "
    "startswith strip swapcase title upper"
)

METHODS: dict[type, dict[str, _Function]] = {
    str: {
        **{name: _linear(getattr(str, name)) for name in _LINEAR_METHODS},
        **{
            name: _splits(getattr(str, name))
            for name in _words("partition rpartition rsplit split splitlines")
        },
        "join": _join_texts,
        "replace": _replace,
    },
    dict: {
        "get": _get,
        "items": _items,
        "keys": lambda value: current().made([*value]),
        "values": lambda value: current().made([*value.values()]),
    },
    list: {"count": _linear(list.count), "index": _linear(list.index)},
    tuple: {"count": _linear(tuple.count), "index": _linear(tuple.index)},
}

FUNCTIONS: dict[str, _Function] = {
    "dict": _dict,
    "namespace": _namespace,
    "raise_exception": _raise_exception,
    "range": safe_range,
    "strftime_now": _strftime_now,
}
