"""Chat template source → a compiled Jinja template that can neither reach out nor use the machine up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import FunctionType, MethodType
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from jinja2.exceptions import SecurityError
from jinja2.lexer import Token, TokenStream
from jinja2.runtime import LoopContext, Macro
from jinja2.utils import Namespace

from gguf_engine.text.budget import MAX_INT_BITS, LimitError, current, metered
from gguf_engine.text.functions import FILTERS, FUNCTIONS, METHODS, TESTS, Method, each
from gguf_engine.text.metering import meter

MAX_TOKENS = 2**14
"""Words and signs of a template; published ones have at most 2,400."""

_CALLABLE = frozenset(FUNCTIONS.values())
_LOOP = "cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0"
_LOOP_NAMES = frozenset(_LOOP.split())


class _CodeGenerator(jinja2.compiler.CodeGenerator):
    def _output_child_to_const(self, node: jinja2.nodes.Expr, frame: Any, finalize: Any) -> str:
        # Jinja would run filters on literals while it compiles.
        if not isinstance(node, (jinja2.nodes.TemplateData, jinja2.nodes.Const)):
            raise jinja2.nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """
    Charges operators, calls and output, and gives templates nothing but what is on our lists.

    No method of a Python object ever reaches a template; see `functions.METHODS`.
    """

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002
        budget = current()
        if operator == "*":
            _check_product(left, right)
        elif operator == "**":
            raise SecurityError("the ** operator is not allowed in a chat template")
        elif operator == "%" and isinstance(left, str):
            raise SecurityError("the % operator on a text is not allowed in a chat template")
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            budget.reserve(len(left) + len(right))
        return budget.made(self.binop_table[operator](left, right))

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = str if isinstance(obj, str) else type(obj)
        methods = METHODS.get(kind)
        if methods is not None and attribute in methods:
            return Method(obj, attribute, methods[attribute])
        if kind is dict:
            return obj[attribute] if attribute in obj else self._no_attribute(obj, attribute)
        if attribute.startswith("_"):
            return self._no_attribute(obj, attribute)
        if kind is Namespace or isinstance(obj, jinja2.Undefined):
            return super().getattr(obj, attribute)
        if isinstance(obj, LoopContext) and attribute in _LOOP_NAMES:
            return getattr(obj, attribute)
        return self._no_attribute(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, str) or type(obj) in (dict, list, tuple, range):
            try:
                return obj[current().read(argument) if type(argument) is tuple else argument]
            except (TypeError, LookupError):
                pass
        if isinstance(argument, str):
            return self.getattr(obj, argument)
        if isinstance(obj, jinja2.Undefined):
            return super().getitem(obj, argument)
        return self.undefined(obj=obj, name=argument)

    def _no_attribute(self, obj: Any, attribute: str) -> jinja2.Undefined:
        if attribute.startswith("_"):
            raise SecurityError(f"{attribute!r} of a {type(obj).__name__} is not for templates")
        if hasattr(type(obj), attribute):
            return self.unsafe_undefined(obj, attribute)
        return self.undefined(obj=obj, name=attribute)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        budget = current()
        budget.charge(1 + ((len(args) + len(kwargs)) >> 3))
        if isinstance(__obj, Method) or (type(__obj) is FunctionType and __obj in _CALLABLE):
            # What Jinja adds for functions that ask for the context.
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return __obj(*args, **kwargs)
        if isinstance(__obj, LoopContext):
            args = (each(*args),)
        elif isinstance(__obj, MethodType) and isinstance(__obj.__self__, LoopContext):
            return __obj(*args)  # loop.cycle, the only one that getattr gives
        elif not isinstance(__obj, (Macro, jinja2.Undefined)):
            raise SecurityError(f"a {type(__obj).__name__} cannot be called")
        with budget.deeper():
            return __context.call(__obj, *args, **kwargs)

    def concat(self, chunks: Iterable[str]) -> str:
        """Return the text of a macro or a block."""
        budget, texts = current(), list(chunks)
        budget.reserve(sum(map(len, texts)))
        return budget.made("".join(texts))


def _check_product(left: Any, right: Any) -> None:
    for many, count in ((left, right), (right, left)):
        if isinstance(count, int) and isinstance(many, (str, list, tuple)):
            current().reserve(len(many) * count)
    if isinstance(left, int) and isinstance(right, int):
        n_bits = left.bit_length() + right.bit_length()
        if n_bits > MAX_INT_BITS:
            raise LimitError(f"makes a number of {n_bits} bits; allowed: {MAX_INT_BITS}")


def _output(value: Any) -> str:
    return value if type(value) is str else current().text(value)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training; here it is its content alone."""

    tags = {"generation"}  # noqa: RUF012 - the type that jinja2 declares

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        for n_tokens, token in enumerate(stream):
            if n_tokens == MAX_TOKENS:
                raise SecurityError(f"more than {MAX_TOKENS} words and signs")
            yield token


@cache
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation],
        finalize=_output,
        optimized=False,
    )
    environment.globals = dict(FUNCTIONS)
    environment.filters = dict(FILTERS)
    environment.tests = dict(TESTS)
    return environment


class Program:
    """A compiled template; safe to render from several threads."""

    def __init__(self, source: str) -> None:
        """
        Compile a template in an environment like the one that `transformers` gives one.

        Blocks are trimmed; `raise_exception`, `strftime_now`, `tojson`, `break` and `continue`
        exist; nothing can be loaded.

        Raises:
            jinja2.TemplateError: The source is not a template.
            SecurityError: It uses a statement that is not allowed, or is too long.
        """
        environment = _environment()
        code = environment.compile(meter(environment.parse(source)))
        self._template = jinja2.Template.from_code(environment, code, environment.globals)

    def render(self, variables: Mapping[str, Any]) -> str:
        """
        Return the text of one rendering, which has a Budget of its own.

        Raises:
            LimitError: It would use more than that.
            RaisedByTemplateError: The template called `raise_exception`.
            Exception: Whatever else goes wrong inside a template.
        """
        with metered() as budget:
            chunks: list[str] = []
            n_chars = 0
            for chunk in self._template.generate(**variables):
                n_chars += len(chunk)
                budget.reserve(n_chars)
                chunks.append(chunk)
            return "".join(chunks)
