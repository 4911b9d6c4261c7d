"""What pydantic found wrong in a body → a refusal in our words: the field, its value, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from gguf_engine.server.errors import RefusedError

_Schema = Mapping[str, Any]
_MAX_SHOWN = 80


def refusal(kind: type[BaseModel], sent: Mapping[str, Any], error: ValidationError) -> RefusedError:
    """Return the refusal of a body: `sent` is what `kind` was to be made of."""
    errors = error.errors(include_url=False, include_context=False)
    first = errors[0]
    if first["type"] == "missing":  # a field that is misspelt is missing too
        first = next((each for each in errors if each["type"] == "extra_forbidden"), first)
    schema = _schema_of(kind)
    if first["type"] == "missing":
        param = _written(first["loc"])
        return RefusedError(400, "missing_field", f"{param} is missing", param=param)
    if first["type"] == "extra_forbidden":
        return _unknown(first["loc"], schema)
    place = _place(sent, first["loc"], first["input"])
    param = _written(place)
    if first["type"] == "value_error":
        what = f"{param} {first['msg'].removeprefix('Value error, ')}"
    else:
        shown = repr(first["input"])
        shown = shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
        what = f"{param} is {shown}; allowed: {in_words(_part_of(schema, place), schema)}"
    return RefusedError(400, "invalid_value", what, param=param)


def _unknown(loc: Sequence[int | str], schema: _Schema) -> RefusedError:
    name = str(loc[-1])[:_MAX_SHOWN]
    choices = [_resolved(choice, schema) for choice in _choices(_part_of(schema, loc[:-1]))]
    known = [each for choice in choices for each in choice.get("properties", ())]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    way_out = f"did you mean {close[0]!r}?" if close else "remove it"
    message = f"{name!r} is no field of this request; {way_out}"
    return RefusedError(400, "unknown_field", message, param=_written([*loc[:-1], name]))


def _place(sent: Any, loc: Sequence[int | str], value: object) -> Sequence[int | str]:
    """
    Return where a value stands in what was sent.

    Pydantic's own place has the names of a union's choices in it, and counts the list that a single
    value was put into.
    """
    place: list[int | str] = []
    found: list[int | str] = []
    for part in loc:
        if isinstance(sent, dict):
            there = part in sent
        else:
            there = isinstance(sent, list) and isinstance(part, int) and part < len(sent)
        if not there:
            continue
        sent = sent[part]
        place.append(part)
        if sent is value:
            found = [*place]
    return found or place


def _written(place: Sequence[int | str]) -> str:
    parts = (
        f".{part}" if isinstance(part, str) and (part.isidentifier() or not n) else f"[{str(part)[:20]}]"
        for n, part in enumerate(place)
    )
    return "".join(parts).removeprefix(".")


@cache
def _schema_of(kind: type[BaseModel]) -> _Schema:
    return kind.model_json_schema()


def _part_of(root: _Schema, place: Sequence[int | str]) -> _Schema:
    """Return the schema of a place, as deep as it goes."""
    schema = root
    for part in place:
        choices = [_resolved(choice, root) for choice in _choices(schema)]
        key = "items" if isinstance(part, int) else "properties"
        inner = next((choice for choice in reversed(choices) if key in choice), None)
        if inner is not None:
            schema = inner["items"] if isinstance(part, int) else inner["properties"].get(part, inner)
        elif isinstance(choices[0].get("additionalProperties"), dict):
            schema = choices[0]["additionalProperties"]
    return _resolved(schema, root)


def _choices(schema: _Schema) -> list[_Schema]:
    """Return what a value may be, but null: that is as if the field were not there."""
    return [choice for choice in schema.get("anyOf", [schema]) if choice.get("type") != "null"]


def _resolved(schema: _Schema, root: _Schema) -> _Schema:
    name = schema.get("$ref", "").rpartition("/")[2]
    resolved: _Schema = root["$defs"][name] if name else schema
    return resolved


def in_words(schema: _Schema, root: _Schema) -> str:
    """Return what a schema allows: a single value's bounds, and of a compound one its description."""
    schema = _resolved(schema, root)
    if "properties" in schema:
        return f"an object of {', '.join(schema['properties'])}"
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    write = _SINGLE.get(schema.get("type", ""))
    if write is not None:
        return write(schema)
    if "description" in schema:
        described: str = schema["description"]
        return described
    return " or ".join(in_words(choice, root) for choice in _choices(schema))


def _integer(schema: _Schema) -> str:
    high = schema["maximum"] if "maximum" in schema else schema["exclusiveMaximum"] - 1
    return f"an integer in {schema['minimum']}..{high}"


def _number(schema: _Schema) -> str:
    low = f"[{schema['minimum']:g}" if "minimum" in schema else f"({schema['exclusiveMinimum']:g}"
    high = f"{schema['maximum']:g}]" if "maximum" in schema else f"{schema['exclusiveMaximum']:g})"
    return f"a number in {low}, {high}"


def _text(schema: _Schema) -> str:
    if "maxLength" in schema:
        return f"a text of {schema['minLength']}..{schema['maxLength']} characters"
    return "a text that is not empty" if "minLength" in schema else "a text"


_SINGLE: Mapping[str, Callable[[_Schema], str]] = {
    "boolean": lambda _: "true or false",
    "integer": _integer,
    "number": _number,
    "string": _text,
}
