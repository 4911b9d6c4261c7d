"""
Dataclasses of options → command line options, and what was typed → their values.

Names, defaults and help come from the fields and the docstrings; ranges are checked by the classes
themselves. A new field is a new option, with nothing typed twice.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from gguf_engine.errors import OptionError
from gguf_engine.params import EngineParams, Isolation, SamplingParams, build_params
from gguf_engine.server.settings import ServerParams

_N = TypeVar("_N", int, float)
_NUMBERS: dict[type, str] = {int: "an integer", float: "a number"}
DEFAULT_MODEL = "phi3-mini"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """
    Which model.

    Attributes:
        model: A catalog name (haiku, phi3-mini), org/repo:file@revision on the hub, a .gguf file, or
            a folder that holds one.
        tokenizer: A tokenizer.json instead of the one found with the model or inside it.
        chat_template: A file with a Jinja template instead of the model's own.
        preflight: Refuse files that would crash llama.cpp. With --no-preflight a bad file can end this
            process, and broken weights answer nonsense.
        isolation: "process" runs llama.cpp in a process of its own, which may crash; none means "thread",
            but "process" for families whose files cannot be checked tensor by tensor.
    """

    model: str = DEFAULT_MODEL
    tokenizer: str | None = None
    chat_template: str | None = None
    preflight: bool = True
    isolation: Isolation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HubOptions:
    """
    Where models are downloaded from, and kept.

    Attributes:
        revision: Branch, tag or commit; otherwise the catalog's, or main.
        cache_dir: The hub cache; otherwise $HF_HUB_CACHE, $HF_HOME/hub or ~/.cache/huggingface/hub.
        endpoint: The hub; otherwise $HF_ENDPOINT or https://huggingface.co.
        token: For gated repositories. Others can see it in the list of processes: prefer $HF_TOKEN.
        offline: Use what is cached, open no connection; also with HF_HUB_OFFLINE=1.
        lock: A file that `gguf-engine lock` made: whatever differs from it is refused.
    """

    revision: str | None = None
    cache_dir: str | None = None
    endpoint: str | None = None
    token: str | None = None
    offline: bool = False
    lock: str | None = None


@dataclass(frozen=True)
class Without:
    """Annotates a parameter: fields that this verb does not offer."""

    names: tuple[str, ...]


_SECTIONS: dict[type, str] = {
    ModelOptions: "Model",
    HubOptions: "Hub",
    EngineParams: "Loading",
    SamplingParams: "Sampling",
    ServerParams: "Server",
}
_FLAGS = {
    "model": ("--model", "-m"),
    "max_tokens": ("--max-tokens", "-n"),
    "use_mmap": ("--mmap/--no-mmap",),
    "repack": ("--repack/--no-repack",),
    "allowed_hosts": ("--allowed-host",),
    "cors_origins": ("--cors-origin",),
}
_METAVARS = {
    "logit_bias": "ID=VALUE",
    "model": "NAME",
    "device": "NAME",
    "devices": "NAME",
    "lora": "PATH[=SCALE]",
    "endpoint": "URL",
    "prefix_cache": "FOLDER",
    "draft": "lookup|MODEL",
    "allowed_hosts": "NAME",
    "cors_origins": "URL",
}
_PATHS = ("tokenizer", "chat_template", "cache_dir", "lock")


def flags(name: str, default: object = None) -> tuple[str, ...]:
    """Return the option strings of a field, in the form that typer takes."""
    if name in _FLAGS:
        return _FLAGS[name]
    flag = "--" + name.replace("_", "-")
    return (f"{flag}/--no-{flag[2:]}",) if default is True else (flag,)


def typed_name(name: str, parameters: Sequence[Any]) -> str:
    """
    Return how a verb has a value typed: as an option, an argument, or not at all.

    Args:
        name: What an OptionError calls it.
        parameters: Of the verb, as typer has them.

    Returns:
        The option's longest flag, or the argument's name; `name` where the verb has neither.
    """
    flag = "--" + name.replace("_", "-")
    for parameter in parameters:
        if name == parameter.name or flag in parameter.opts:
            if parameter.param_type_name == "argument":
                return parameter.metavar or name
            return str(max(parameter.opts, key=len))
    return name


def help_texts(kind: type) -> dict[str, str]:
    """Return the text of each field in the `Attributes:` section of a docstring."""
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    texts: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\w)", "\n" + section)[1:]:
        names, _, text = entry.partition(": ")
        for name in names.split(","):
            texts[name.strip()] = " ".join(text.split())
    return texts


def default_of(field: Field[Any]) -> Any:
    """Return a field's default, made where it has to be made."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def parse_typed(kind: type, name: str, typed: Any) -> Any:
    """
    Convert what was typed to the type of a field.

    Args:
        kind: The class of options.
        name: One of its fields.
        typed: A text; several for a field that holds several values; a flag's bool.

    Returns:
        The value. What cannot be converted stays text: the class refuses it and says what is allowed.
    """
    hint = get_type_hints(kind)[name]
    choices = get_args(hint)
    if get_origin(hint) is tuple:
        return tuple(_texts(typed))
    if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping):
        return _parse_mapping(name, _texts(typed))
    if not isinstance(typed, str):
        return typed
    bases = [choice for choice in choices if choice is not NoneType] if NoneType in choices else [hint]
    if NoneType in choices and bases != [str] and typed.lower() == "none":
        return None
    return _convert(bases[0], typed)


def _texts(typed: Any) -> list[str]:
    return [typed] if isinstance(typed, str) else list(typed)


def _convert(to: Any, text: str) -> Any:
    if to is bool:
        return {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}.get(
            text.lower(), text
        )
    if to in (int, float):
        try:
            return to(text)
        except ValueError:
            return text
    return text


def parse_number(option: str, typed: str, kind: type[_N], low: float, high: float) -> _N:
    """
    Return a number that was typed.

    Raises:
        OptionError: It is none, or outside low..high.
    """
    value = _convert(kind, typed)
    if isinstance(value, str) or not low <= value <= high:
        raise OptionError(option, value, f"{_NUMBERS[kind]} in {low}..{high}")
    return value  # type: ignore[no-any-return]


def _parse_mapping(name: str, texts: Sequence[str]) -> dict[Any, Any]:
    values: dict[Any, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        token_id = _convert(int, key)
        if not equals or token_id in values:
            what = "each id once, as ID=VALUE with a finite value or -inf"
            raise OptionError(name, text, what)
        values[token_id] = _convert(float, value)
    return values


def expand(verb: Callable[..., None]) -> Callable[..., None]:
    """
    Return `verb` with every parameter that is a dataclass of options spread into options.

    The function typer sees has one parameter a field; the verb still gets the objects, checked.
    """
    parameters = inspect.signature(verb, eval_str=True).parameters.values()
    groups: dict[str, tuple[type, list[str]]] = {}
    flat: list[inspect.Parameter] = []
    for parameter in parameters:
        kind, without = _options_class(parameter.annotation)
        if kind is None:
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        made = list(_parameters(kind, without))
        groups[parameter.name] = (kind, [option.name for option in made])
        flat.extend(made)

    @functools.wraps(verb)
    def called(**typed: Any) -> None:
        objects = {
            name: _build(kind, {field: typed.pop(field) for field in names})
            for name, (kind, names) in groups.items()
        }
        verb(**typed, **objects)

    called.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    called.__annotations__ = {option.name: option.annotation for option in flat}
    return called


def _options_class(annotation: Any) -> tuple[type | None, tuple[str, ...]]:
    without: tuple[str, ...] = ()
    if get_origin(annotation) is Annotated:
        annotation, *notes = get_args(annotation)
        without = next((note.names for note in notes if isinstance(note, Without)), ())
    is_options = isinstance(annotation, type) and is_dataclass(annotation)
    return (annotation if is_options else None), without


def _parameters(kind: type, without: Sequence[str]) -> Iterator[inspect.Parameter]:
    texts, hints = help_texts(kind), get_type_hints(kind)
    for field in fields(kind):
        if field.name in without:
            continue
        default, hint = default_of(field), hints[field.name]
        shown = "" if default in (None, "", (), {}) or hint is bool else f" [default: {default}]"
        option = typer.Option(
            *flags(field.name, default),
            help=texts.get(field.name, "").replace("None", "none") + shown,
            metavar=_metavar(field.name, hint),
            rich_help_panel=_SECTIONS[kind],
        )
        many = get_origin(hint) not in (None, Literal) and NoneType not in get_args(hint)
        annotation: Any = bool if _is_flag(hint) else list[str] if many else str
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default if hint is bool else None,
            annotation=Annotated[annotation | None if hint is not bool else annotation, option],
        )


def _is_flag(hint: Any) -> bool:
    return hint is bool or set(get_args(hint)) == {bool, NoneType}


def _metavar(name: str, hint: Any) -> str:
    if name in _METAVARS or name in _PATHS:
        return _METAVARS.get(name, "PATH")
    for choices in (hint, *get_args(hint)):
        if get_origin(choices) is Literal:
            return "|".join(get_args(choices))
    kinds = [choice for choice in get_args(hint) or (hint,) if choice in (int, float)]
    return kinds[0].__name__.upper() if kinds else "TEXT"


def _build(kind: type, typed: Mapping[str, Any]) -> Any:
    given = {name: value for name, value in typed.items() if value is not None and value != []}
    return kind(**{name: parse_typed(kind, name, value) for name, value in given.items()})


def params_from_json(values: Mapping[str, Any], base: SamplingParams) -> SamplingParams:
    """
    Return `base` with the options of a JSON object, in which ids are texts.

    Raises:
        OptionError: A name that is no option, or a value out of range.
    """
    bias = values.get("logit_bias")
    if isinstance(bias, Mapping):
        values = {**values, "logit_bias": {_convert(int, token_id): bias[token_id] for token_id in bias}}
    return build_params(SamplingParams, values, base)


def describe(parameter: Any) -> tuple[str, str]:
    """Return how an argument or option of typer is written, and its help."""
    if parameter.param_type_name == "argument":
        return parameter.metavar or parameter.name.upper(), parameter.help or ""
    names = ", ".join(sorted(parameter.opts, key=len))
    if parameter.secondary_opts:
        names += " / " + ", ".join(parameter.secondary_opts)
    if not parameter.is_flag:
        names += f" {parameter.metavar or 'TEXT'}"
    return names, parameter.help or ""


def sections(parameters: Sequence[Any]) -> dict[str, list[tuple[str, str]]]:
    """Return the described parameters by their heading: arguments and the verb's own options first."""
    by_title: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in parameters:
        is_argument = parameter.param_type_name == "argument"
        title = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or "Options"
        by_title.setdefault(title, []).append(describe(parameter))
    return {title: rows for title, rows in by_title.items() if rows}


class Command(TyperCommand):
    """A command whose help has one section a group of options, and whose errors name them as typed."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; errors call a value what this verb calls it."""
        try:
            return super().invoke(ctx)
        except OptionError as error:
            name = typed_name(error.option, self.get_params(ctx))
            if name == error.option:
                raise
            raise OptionError(name, error.value, error.allowed, error.help) from error

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections."""
        for title, rows in sections(self.get_params(ctx)).items():
            with formatter.section(title):
                formatter.write_dl(rows)
