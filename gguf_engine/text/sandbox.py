"""Chat template source → a compiled Jinja template that can neither reach out nor write."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from jinja2.exceptions import SecurityError

MAX_REPEATED = 2**20
"""Characters or items that one `*` of a template may make."""


class RaisedByTemplateError(Exception):
    """A template called `raise_exception`."""


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("the ** operator is not allowed in a chat template")
        for many, count in ((left, right), (right, left)):
            if (
                isinstance(many, (str, list, tuple))
                and isinstance(count, int)
                and len(many) * count > MAX_REPEATED
            ):
                raise SecurityError(f"a repetition makes more than {MAX_REPEATED} items")
        return super().call_binop(context, operator, left, right)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training; here it is its content alone."""

    tags = {"generation"}  # noqa: RUF012 - the type that jinja2 declares

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str) -> jinja2.Template:
    """
    Compile a template in the environment that `transformers` gives one.

    Blocks are trimmed; `raise_exception`, `strftime_now`, `tojson`, `break` and `continue` exist;
    nothing can be loaded, and the globals that hold state or make text are gone.

    Raises:
        jinja2.TemplateError: The source is not a template.
    """
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    for name in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(name)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.filters["tojson"] = _tojson
    return environment.from_string(source)


def _raise_exception(message: object) -> NoReturn:
    raise RaisedByTemplateError(str(message))


def _strftime_now(layout: str) -> str:
    return datetime.now(tz=timezone.utc).astimezone().strftime(layout)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which models were not trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
